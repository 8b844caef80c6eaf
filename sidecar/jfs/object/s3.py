"""Objects in an S3 bucket (format §2.5, §6.3): Amazon's or any other endpoint that speaks its protocol.

Blocks are got, put and deleted by signed requests of our own (`http`), since these cost a fifth of the CPU
that aiobotocore takes for them; listings, bucket calls and credentials of the environment are aiobotocore's (`s3_control`,
imported when needed).
Invariants: every put carries the CRC-32C of the object as `x-amz-meta-crc32c`; a full get verifies it when it is there.
Concurrency: any number of requests at once over a pool of connections; nothing is shared but the session. A request whose
failure is transient (connection, 429, 5xx) is tried three times with growing random pauses; longer patience is the caller's.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any, Final

from crc32c import crc32c

from jfs.errors import (
    ConfigError,
    ObjectError,
    ObjectForbidden,
    ObjectNotFound,
    ObjectUnavailable,
    StorageFull,
    StorageMissing,
)
from jfs.object.base import Data, ObjectInfo
from jfs.object.connect import StorageOptions
from jfs.object.http import HttpAnswer, HttpClient
from jfs.object.s3_address import BucketAddress
from jfs.object.s3_signing import Credentials, Signer

_TRANSIENT: Final = frozenset((408, 429, 500, 502, 503, 504))
_LONGEST_PAUSE: Final = 10.0  # seconds
_CHECKSUM: Final = "x-amz-meta-crc32c"
_ERROR_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")


class S3Storage:
    """One bucket. Without keys the environment's credentials are used; the access key `anonymous` sends unsigned requests."""

    cheap_ranges = False
    whole_only = False
    at_once = 0

    def __init__(
        self,
        address: BucketAddress,
        *,
        access_key: str,
        secret_key: str,
        session_token: str,
        options: StorageOptions,
    ) -> None:
        if bool(access_key) != bool(secret_key) and access_key != "anonymous":
            raise ConfigError(f"the bucket {address.describe()} needs both an access key and a secret key, or neither")
        self._address = address
        self._options = options
        self._anonymous = access_key == "anonymous"
        self._static = (
            Credentials(access_key, secret_key, session_token) if access_key and not self._anonymous else None
        )
        self._ambient: Any = None
        self._finding = asyncio.Lock()
        self._signer = Signer(address.region)
        self._base = f"{address.scheme}://{address.host}"
        self._client: HttpClient | None = None

    async def get(self, key: str, offset: int = 0, size: int = -1) -> Data:
        headers: dict[str, str] = {}
        whole = not offset and size < 0
        if not size:
            return b""
        if not whole:
            headers["Range"] = f"bytes={offset}-{offset + size - 1 if size > 0 else ''}"
        answer = await self._ask("GET", key, headers)
        if answer.status == 416:
            return b""
        if answer.status not in (200, 206):
            raise self._explain("read", key, answer)
        body = answer.body
        if answer.status == 200 and not whole:  # a server that ignores ranges
            body = memoryview(body)[offset : offset + size if size > 0 else None]
        elif whole and (expected := answer.headers.get(_CHECKSUM)) and str(crc32c(body)) != expected:
            raise ObjectUnavailable(f"the object {key} in {self.describe()} is damaged: its checksum is not {expected}")
        return body

    async def put(self, key: str, data: Data, tier: int = 0) -> None:
        view = memoryview(data)
        headers = {_CHECKSUM: str(crc32c(view)), **self._tier_headers(tier)}
        answer = await self._ask("PUT", key, headers, view)
        if answer.status not in (200, 201, 204):
            raise self._explain("write", key, answer)

    def _tier_headers(self, tier: int) -> dict[str, str]:
        """Class and tags of a new object."""
        options = self._options
        kind = options.tiers.get(tier) or options.tiers.get(0)  # a tier that is not known (any more): as tier 0
        headers = {}
        if storage_class := kind.storage_class if kind is not None else options.storage_class:
            headers["x-amz-storage-class"] = storage_class
        if kind is not None and kind.tag:
            headers["x-amz-tagging"] = kind.tag
        return headers

    async def change_tier(self, key: str, tier: int) -> None:
        """By a copy onto itself. Its metadata are given anew with it, as a copy that changed nothing would be refused."""
        found = await self._ask("HEAD", key, {})
        if found.status != 200:
            raise self._explain("look at", key, found)
        headers = {name: value for name, value in found.headers.items() if name.startswith("x-amz-meta-")}
        if kind := found.headers.get("content-type"):
            headers["Content-Type"] = kind
        headers |= {"x-amz-storage-class": "STANDARD"} | self._tier_headers(tier)  # some servers keep it unless told
        headers["x-amz-copy-source"] = self._address.source(key)
        headers["x-amz-metadata-directive"] = headers["x-amz-tagging-directive"] = "REPLACE"
        answer = await self._ask("PUT", key, headers)
        if answer.status != 200 or b"<Error>" in bytes(answer.body[:4096]):  # a copy may fail after its status was sent
            raise self._explain("copy", key, answer)

    async def thaw(self, key: str, days: int) -> None:
        order = f"<RestoreRequest><Days>{days}</Days></RestoreRequest>".encode()
        answer = await self._ask("POST", key, {}, memoryview(order), query="restore=")
        if answer.status in (200, 202) or _code(answer) in ("InvalidObjectState", "RestoreAlreadyInProgress"):
            return
        raise self._explain("read" if answer.status == 404 else "restore", key, answer)

    def advise(self, key: str) -> None:
        return

    async def delete(self, key: str) -> None:
        answer = await self._ask("DELETE", key, {})
        if answer.status not in (200, 202, 204) and not (answer.status == 404 and _code(answer) != "NoSuchBucket"):
            raise self._explain("delete", key, answer)

    async def head(self, key: str) -> ObjectInfo:
        answer = await self._ask("HEAD", key, {})
        if answer.status != 200:
            raise self._explain("look at", key, answer)
        modified = answer.headers.get("last-modified")
        mtime = parsedate_to_datetime(modified).timestamp() if modified else 0.0
        return ObjectInfo(key, int(answer.headers.get("content-length", 0)), mtime)

    async def list(self, prefix: str = "", after: str = "") -> AsyncIterator[ObjectInfo]:
        control = self._control()
        async for info in control.list(await self._credentials(), prefix, after):
            yield info

    async def create_bucket(self) -> None:
        await self._control().create_bucket(await self._credentials())

    async def remove_bucket_parts(self, prefix: str) -> None:
        return

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def describe(self) -> str:
        return f"s3://{self._address.endpoint}/{self._address.bucket}/"

    async def _ask(
        self, method: str, key: str, headers: dict[str, str], data: memoryview | None = None, query: str = ""
    ) -> HttpAnswer:
        """Send a request, again while its failure is transient and tries are left; any other answer is the caller's."""
        tried = 0
        while True:
            tried += 1
            try:
                answer = await self._send(method, key, dict(headers), data, query)
            except (TimeoutError, OSError) as error:
                if tried >= self._options.tries:
                    reason = str(error) or type(error).__name__
                    raise ObjectUnavailable(
                        f"the object storage at {self._base} cannot be reached or broke off: {reason}"
                    ) from error
                wanted = 0.0
            else:
                if answer.status not in _TRANSIENT or tried >= self._options.tries:
                    return answer
                wanted = _wanted_pause(answer)
            pause = self._options.first_pause * 2 ** (tried - 1)
            await asyncio.sleep(wanted + random.uniform(0.5, 1.0) * pause)

    async def _send(
        self, method: str, key: str, headers: dict[str, str], data: memoryview | None, query: str
    ) -> HttpAnswer:
        path = self._address.path(key)
        credentials = self._static or await self._credentials()
        if credentials is not None:
            self._signer.sign(credentials, method, self._address.host, path, headers, query=query)
        client = self._client or self._open_client()
        return await client.request(method, f"{path}?{query}" if query else path, headers, data)

    def _open_client(self) -> HttpClient:
        options = self._options
        self._client = HttpClient(
            self._base,
            verify=self._address.verify,
            limit=options.connections,
            connect_timeout=options.connect_timeout,
            idle_timeout=options.idle_timeout,
        )
        return self._client

    async def _credentials(self) -> Credentials | None:
        """Static ones, or those of the environment; None to send unsigned requests."""
        if self._static is not None or self._anonymous:
            return self._static
        if self._ambient is None:
            async with self._finding:
                if self._ambient is None:
                    from jfs.object.s3_control import AmbientCredentials

                    self._ambient = await AmbientCredentials.find()
        if self._ambient is None:
            raise ObjectForbidden(
                f"there are no credentials for {self.describe()}: give an access key and a secret key (or the access key"
                " `anonymous` for a public bucket)"
            )
        current: Credentials = await self._ambient.current()
        return current

    def _control(self) -> Any:
        from jfs.object.s3_control import S3Control

        return S3Control(self._address, self._options.connect_timeout, self._options.idle_timeout)

    def _explain(self, action: str, key: str, answer: HttpAnswer) -> ObjectError:
        code = _code(answer)
        what = f"{key} in {self.describe()}"
        if answer.status == 404 and code == "NoSuchBucket":
            return StorageMissing(f"the bucket {self.describe()} does not exist: create it first")
        if answer.status == 507:
            return StorageFull(f"the object storage has no room to {action} {what} ({code or answer.status})")
        if answer.status == 404 and action in ("read", "look at"):
            return ObjectNotFound(f"there is no object {what}")
        if answer.status in (401, 403):
            hint = "set this machine's clock" if code == "RequestTimeTooSkewed" else "check the keys and their rights"
            return ObjectForbidden(f"the object storage refused to {action} {what} ({code or answer.status}): {hint}")
        if answer.status in (301, 307, 400) and (region := answer.headers.get("x-amz-bucket-region")):
            return ObjectUnavailable(
                f"the bucket {self.describe()} is in region {region}, not in {self._address.region}: name its region in the URL"
            )
        return ObjectUnavailable(f"the object storage failed to {action} {what}: {code or 'status'} {answer.status}")


def _wanted_pause(answer: HttpAnswer) -> float:
    """Seconds that a server which is too busy (503 SlowDown, 429) asks to be left alone, as far as we obey."""
    try:
        return min(max(float(answer.headers.get("retry-after", 0)), 0.0), _LONGEST_PAUSE)
    except ValueError:  # a date, which no object storage sends
        return 0.0


def _code(answer: HttpAnswer) -> str:
    """The error code of an answer; HEAD has none."""
    found = _ERROR_CODE.search(bytes(answer.body[:4096]))
    return found.group(1).decode() if found else ""
