"""What an S3 storage does seldom, by aiobotocore: credentials of the environment, bucket calls, listings.

Imported only by `s3.py` and only when one of these is needed: aiobotocore takes 20 MiB and half a second, and a mount
with keys of its own never needs it. Foreign exceptions end in `explain`.
"""

from collections.abc import AsyncIterator
from typing import Any

import aiobotocore.session
import aiohttp
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from jfs.errors import ObjectError, ObjectForbidden, ObjectNotFound, ObjectUnavailable
from jfs.object.base import ObjectInfo
from jfs.object.s3_address import BucketAddress
from jfs.object.s3_signing import Credentials


class AmbientCredentials:
    """Credentials of the environment, a shared file, a web identity or the machine's role, renewed by botocore."""

    def __init__(self, source: Any) -> None:
        self._source = source

    @classmethod
    async def find(cls) -> "AmbientCredentials | None":
        """What this process may use; None when there is nothing."""
        try:
            source = await aiobotocore.session.get_session().get_credentials()
        except BotoCoreError as error:
            raise ObjectForbidden(f"the S3 credentials of this environment cannot be used: {error}") from error
        return cls(source) if source is not None else None

    async def current(self) -> Credentials:
        """The credentials valid now."""
        try:
            frozen = await self._source.get_frozen_credentials()
        except BotoCoreError as error:
            raise ObjectForbidden(f"the S3 credentials of this environment cannot be renewed: {error}") from error
        return Credentials(frozen.access_key, frozen.secret_key, frozen.token or "")


class S3Control:
    """A client for one bucket, made at the first call."""

    def __init__(self, address: BucketAddress, connect_timeout: float, read_timeout: float) -> None:
        self._address = address
        self._config = AioConfig(
            signature_version="s3v4",
            s3={"addressing_style": "path" if address.path_style else "virtual"},
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            retries={"mode": "standard", "total_max_attempts": 3},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._anonymous = AioConfig(signature_version=_unsigned())

    def _client(self, credentials: Credentials | None) -> Any:
        address = self._address
        return aiobotocore.session.get_session().create_client(
            "s3",
            region_name=address.region,
            endpoint_url=f"{address.scheme}://{address.endpoint}",
            verify=address.verify,
            aws_access_key_id=credentials.access_key if credentials else None,
            aws_secret_access_key=credentials.secret_key if credentials else None,
            aws_session_token=(credentials.token or None) if credentials else None,
            config=self._config if credentials else self._config.merge(self._anonymous),
        )

    async def list(self, credentials: Credentials | None, prefix: str, after: str) -> AsyncIterator[ObjectInfo]:
        """Pages of a thousand keys by ListObjectsV2."""
        try:
            async with self._client(credentials) as client:
                pages = client.get_paginator("list_objects_v2").paginate(
                    Bucket=self._address.bucket, Prefix=prefix, StartAfter=after
                )
                async for page in pages:
                    for entry in page.get("Contents", ()):
                        # Some servers show folders as empty objects whose keys end in a slash.
                        if not entry["Key"].endswith("/"):
                            yield ObjectInfo(entry["Key"], entry["Size"], entry["LastModified"].timestamp())
        except (ClientError, BotoCoreError, aiohttp.ClientError, OSError) as error:
            raise self.explain("list", error) from error

    async def create_bucket(self, credentials: Credentials | None) -> None:
        """Create the bucket unless it is there."""
        address = self._address
        try:
            async with self._client(credentials) as client:
                try:
                    await client.head_bucket(Bucket=address.bucket)
                except ClientError as error:
                    if _status(error) != 404:
                        raise
                else:
                    return
                where: dict[str, Any] = {}
                if address.region != "us-east-1" and ".amazonaws.com" in address.endpoint:
                    where["CreateBucketConfiguration"] = {"LocationConstraint": address.region}
                try:
                    await client.create_bucket(Bucket=address.bucket, **where)
                except ClientError as error:
                    if _code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                        raise
        except (ClientError, BotoCoreError, aiohttp.ClientError, OSError) as error:
            raise self.explain("create", error) from error

    def explain(self, action: str, error: Exception) -> ObjectError:
        """One sentence for a foreign exception."""
        where = self._address.describe()
        if isinstance(error, ClientError):
            code, status = _code(error), _status(error)
            if status == 403:
                return ObjectForbidden(
                    f"the object storage refused to {action} {where} ({code}): check the keys and their rights"
                )
            if code in ("NoSuchBucket", "404"):
                return ObjectUnavailable(f"the bucket {where} does not exist: create it first")
            if status == 404:
                return ObjectNotFound(f"there is no such object in {where}")
            return ObjectUnavailable(f"the object storage failed to {action} {where}: {code}")
        return ObjectUnavailable(f"the object storage {where} cannot be reached: {error}")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _unsigned() -> Any:
    from botocore import UNSIGNED

    return UNSIGNED
