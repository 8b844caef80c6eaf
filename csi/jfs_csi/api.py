"""The API server, as little of it as the node service needs: read a pod, create and patch events, apply the node's own object.

One keep-alive connection pool; the service account's token is read anew for each request because the kubelet rotates it.
Every call has a deadline: a publish must not hang on the control plane. Errors are `ApiError` (the server answered) or
`ApiUnreachable` (it did not).
"""

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any, Final, Self

import aiohttp

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"  # JSON is YAML


class ApiUnreachable(Exception):
    """No answer from the API server; the text says why. Trying again later may help."""


class ApiError(Exception):
    """The API server refused; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ApiClient:
    """`url` is the server's root; token and CA are files, both absent for a plain-HTTP server of a test."""

    def __init__(self, url: str, token: Path | None = None, ca: Path | None = None, seconds: float = 2.0) -> None:
        self._url, self._token, self._ca = url.rstrip("/"), token, ca
        self._timeout = aiohttp.ClientTimeout(total=seconds)
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def in_cluster(cls) -> Self | None:
        """By the environment of a pod; None outside a cluster."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            return None
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port}", _SERVICE_ACCOUNT / "token", _SERVICE_ACCOUNT / "ca.crt")

    async def request(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, content_type: str = "application/json"
    ) -> dict[str, Any]:
        """One request; the JSON object of the answer. Raises `ApiError`, `ApiUnreachable`."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            if self._token is not None:
                headers["Authorization"] = f"Bearer {self._token.read_text().strip()}"
            session = self._open()
            async with session.request(method, self._url + path, json=body, headers=headers) as response:
                document = await response.json(content_type=None)
                status = response.status
        except TimeoutError:
            raise ApiUnreachable("the API server did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiUnreachable(f"the API server is not reachable: {error}") from error
        if not isinstance(document, dict):
            raise ApiUnreachable("the API server's answer is not an object")
        if status >= 300:
            raise ApiError(status, str(document.get("message", f"HTTP status {status}")))
        return document

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            context: ssl.SSLContext | bool = True
            if self._ca is not None:
                context = ssl.create_default_context(cafile=str(self._ca))
            connector = aiohttp.TCPConnector(ssl=context, limit=8)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout)
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None
            # aiohttp closes TLS transports one turn of the loop later.
            await asyncio.sleep(0)
