"""A lean client of the API server: the few reads an admission needs, and the writes of the webhook's own two objects.

Used by resolve.py (through the cached reads at the end) and trust.py. In the cluster it authenticates with the service
account's token, which is read for every request because the kubelet renews it in place; outside, with a kubeconfig in
JSON. Invariant: every answer is a JSON object, every failure an ApiError whose sentence names request and cause and
never holds a body that was sent.
Concurrency: one session, any number of requests at once; the cache is only touched between awaits.
"""

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp
from jfs_api import names

from jfs_webhook.memfile import memory_file
from jfs_webhook.settings import JsonObject

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# Well inside the five seconds that the API server waits for a webhook, with room for a second attempt.
REQUEST_SECONDS = 2.0
# What may be read again and again is kept this long: volumes change only in annotations, classes hardly ever.
VOLUME_CACHE_SECONDS = 5.0
CLASS_CACHE_SECONDS = 30.0
_CACHE_ENTRIES = 10_000
_TRANSIENT = frozenset({429, 500, 502, 503, 504})


class ApiError(Exception):
    """The API server did not do what was asked; `status` is its HTTP status, None if it could not be reached."""

    def __init__(self, sentence: str, status: int | None) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the API server and who we are there."""

    url: str
    tls: ssl.SSLContext | None
    token_file: Path | None = None
    token: str | None = field(default=None, repr=False)

    def headers(self) -> dict[str, str]:
        """Authentication as it stands now: the token's file is renewed by the kubelet."""
        token = self.token_file.read_text().strip() if self.token_file else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}


class NoAccess(Exception):
    """Neither a service account nor a usable kubeconfig; the message says what was looked for."""


def find_access(environment: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> Access:
    """Access from KUBECONFIG if it is set, else from the pod's service account. Raises NoAccess."""
    if environment.get("KUBECONFIG"):
        return _from_kubeconfig(Path(environment["KUBECONFIG"]))
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port or not (service_account / "token").exists():
        raise NoAccess(
            f"no API server to talk to: not in a pod with a service account ({service_account}), and KUBECONFIG is not set"
        )
    context = ssl.create_default_context(cafile=str(service_account / "ca.crt"))
    return Access(
        f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", context, service_account / "token"
    )


def _from_kubeconfig(path: Path) -> Access:
    """The current context of a kubeconfig in JSON, as `kubectl config view --raw -o json` prints it."""
    try:
        config = json.loads(path.read_text())
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        server = str(cluster["server"]).rstrip("/")
        tls = None
        if server.startswith("https:"):
            authority = _data_or_file(cluster, "certificate-authority")
            tls = ssl.create_default_context(cadata=authority.decode() if authority else None)
            certificate, key = _data_or_file(user, "client-certificate"), _data_or_file(user, "client-key")
            if certificate and key:
                with memory_file(certificate) as certificate_path, memory_file(key) as key_path:
                    tls.load_cert_chain(certificate_path, key_path)
    except (OSError, ValueError, LookupError, TypeError, ssl.SSLError) as error:
        raise NoAccess(
            f"KUBECONFIG {path} is not a usable kubeconfig in JSON (write it with `kubectl config view --raw -o json`): "
            f"{type(error).__name__}"
        ) from error
    return Access(server, tls, token=user.get("token"))


def _named(entries: list[JsonObject], name: str) -> JsonObject:
    return next(entry for entry in entries if entry["name"] == name) if entries else {}


def _data_or_file(holder: JsonObject, field_name: str) -> bytes | None:
    if data := holder.get(f"{field_name}-data"):
        return base64.b64decode(data)
    return Path(holder[field_name]).read_bytes() if holder.get(field_name) else None


class ApiClient:
    """The API server's client; an async context manager that owns the HTTP session."""

    def __init__(self, access: Access, clock: Callable[[], float] = time.monotonic) -> None:
        self._access = access
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._cache: dict[str, tuple[float, JsonObject]] = {}

    async def __aenter__(self) -> "ApiClient":
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> JsonObject | None:
        """An object, or None if it does not exist. One more attempt after a transient failure. Raises ApiError."""
        try:
            return await self._request("GET", path, query=query)
        except ApiError as error:
            if error.status == 404:
                return None
            if error.status is not None and error.status not in _TRANSIENT:
                raise
        await asyncio.sleep(0.1)  # the peer's moment of weakness, not an event of ours
        try:
            return await self._request("GET", path, query=query)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, path: str, body: JsonObject) -> JsonObject:
        """POST an object. Raises ApiError (status 409 if it exists)."""
        return await self._request("POST", path, body=body)

    async def replace(self, path: str, body: JsonObject) -> JsonObject:
        """PUT an object over the version it names. Raises ApiError (status 409 if somebody was faster)."""
        return await self._request("PUT", path, body=body)

    async def patch(self, path: str, operations: list[JsonObject]) -> JsonObject:
        """Apply a JSON patch. Raises ApiError (status 409 or 422 if a test operation fails)."""
        return await self._request("PATCH", path, body=operations, content_type="application/json-patch+json")

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> JsonObject:
        if self._session is None:
            raise RuntimeError("the API client is used outside its async with block")
        try:
            headers = {"Accept": "application/json", **self._access.headers()}
            if body is not None:
                headers["Content-Type"] = content_type
            async with self._session.request(
                method,
                self._access.url + path,
                params=dict(query or {}),
                data=None if body is None else json.dumps(body).encode(),
                headers=headers,
                ssl=self._access.tls if self._access.tls is not None else True,
                allow_redirects=False,
            ) as response:
                answer = _decoded(await response.read())
                if 200 <= response.status < 300 and answer is not None:
                    return answer
                reason = str((answer or {}).get("message") or response.reason or "no message")[:500]
                raise ApiError(
                    f"{method} {path} at the API server failed: HTTP {response.status}, {reason}", response.status
                )
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            cause = str(error) or type(error).__name__
            raise ApiError(f"{method} {path}: the API server cannot be reached: {cause}", None) from error

    # The reads of resolve.Reader.

    async def claim(self, namespace: str, name: str) -> JsonObject | None:
        """A PersistentVolumeClaim; never cached, for it may be bound at any moment."""
        return await self.get(f"/api/v1/namespaces/{quote(namespace, '')}/persistentvolumeclaims/{quote(name, '')}")

    async def persistent_volume(self, name: str) -> JsonObject | None:
        """A PersistentVolume, at most VOLUME_CACHE_SECONDS old."""
        return await self._cached(f"/api/v1/persistentvolumes/{quote(name, '')}", VOLUME_CACHE_SECONDS)

    async def persistent_volumes(self, selector: str) -> list[JsonObject]:
        """PersistentVolumes by labels, from the API server's own cache (resourceVersion 0): cheap, a moment old."""
        query = {"resourceVersion": "0"} | ({"labelSelector": selector} if selector else {})
        return ((await self.get("/api/v1/persistentvolumes", query)) or {}).get("items") or []

    async def storage_class(self, name: str) -> JsonObject | None:
        """A StorageClass, at most CLASS_CACHE_SECONDS old."""
        return await self._cached(f"/apis/storage.k8s.io/v1/storageclasses/{quote(name, '')}", CLASS_CACHE_SECONDS)

    async def storage_classes(self) -> list[JsonObject]:
        """All StorageClasses."""
        return ((await self.get("/apis/storage.k8s.io/v1/storageclasses")) or {}).get("items") or []

    async def namespace(self, name: str) -> JsonObject | None:
        """A Namespace; never cached, for a pod may come right after its labels were changed."""
        return await self.get(f"/api/v1/namespaces/{quote(name, '')}")

    async def juicefs_volume(self, namespace: str, name: str) -> JsonObject | None:
        """A JuiceFSVolume."""
        path = f"/apis/{names.GROUP}/{names.VERSION}/namespaces/{quote(namespace, '')}/{names.VOLUME_PLURAL}"
        return await self.get(f"{path}/{quote(name, '')}")

    async def _cached(self, path: str, seconds: float) -> JsonObject | None:
        """Only what exists is kept: an object that is missing now may be there a moment later."""
        kept = self._cache.get(path)
        if kept is not None and kept[0] > self._clock():
            return kept[1]
        found = await self.get(path)
        self._cache.pop(path, None)
        if found is not None:
            if len(self._cache) >= _CACHE_ENTRIES:
                self._cache.pop(next(iter(self._cache)))
            self._cache[path] = (self._clock() + seconds, found)
        return found


def _decoded(body: bytes) -> JsonObject | None:
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None
