"""The API server by the official client: its configuration, authentication and connections, with requests of our own on top.

Only paths, JSON and status codes are used, none of the client's generated models. Thread-safe (urllib3's pool). The client's
own debug log prints response bodies, that is Secrets; `logs` keeps it silent whatever the level.
"""

import json
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode

import urllib3
from jfs_api import names
from kubernetes.client import ApiClient, Configuration
from kubernetes.config import load_incluster_config, load_kube_config
from kubernetes.config.config_exception import ConfigException

from jfs_operator.api import ApiError, ApiUnavailable, Conflict, Object, Resource, metadata

_TIMEOUT: Final = urllib3.Timeout(connect=10, read=30)
_APPLY: Final = "application/apply-patch+yaml"
_MERGE: Final = "application/merge-patch+json"
_STRATEGIC: Final = "application/strategic-merge-patch+json"
_PAGE: Final = 500


def connect(kubeconfig: str | None, context: str | None = None) -> "KubeApi":
    """By the pod's service account, or by a kubeconfig (the named one, $KUBECONFIG, ~/.kube/config) and one of its contexts.
    Raises ConfigException."""
    configuration = Configuration()
    if kubeconfig is None and context is None:
        try:
            load_incluster_config(client_configuration=configuration)
        except ConfigException:
            load_kube_config(client_configuration=configuration)
    else:
        load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
    return KubeApi(ApiClient(configuration))


class Connection(NamedTuple):
    """How to reach the API server: what another client needs to speak as we do."""

    server: str
    ca_path: str | None
    token: str | None
    certificate_path: str | None
    private_key_path: str | None


class KubeApi:
    """`Api` over HTTP."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    def get(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        try:
            return self._request("GET", resource.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        items: list[Object] = []
        selectors = {"labelSelector": labels, "fieldSelector": fields}
        query = {"limit": str(_PAGE), **{name: text for name, text in selectors.items() if text}}
        while True:
            page = self._request("GET", resource.path(namespace), query)
            items += page.get("items") or []
            token = metadata(page).get("continue")
            if not token:
                return items
            query["continue"] = token

    def create(self, resource: Resource, manifest: Object) -> Object:
        path = resource.path(metadata(manifest).get("namespace"))
        return self._request("POST", path, {"fieldManager": names.OPERATOR}, manifest)

    def replace(self, resource: Resource, manifest: Object) -> Object:
        path = resource.path(metadata(manifest).get("namespace"), metadata(manifest)["name"])
        return self._request("PUT", path, {"fieldManager": names.OPERATOR}, manifest)

    def apply(self, resource: Resource, manifest: Object, *, status: bool = False) -> Object:
        path = resource.path(metadata(manifest).get("namespace"), metadata(manifest)["name"])
        query = {"fieldManager": names.OPERATOR, "force": "true"}
        return self._request("PATCH", path + "/status" * status, query, manifest, _APPLY)

    def patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object, *, strategic: bool = False
    ) -> Object:
        query = {"fieldManager": names.OPERATOR}
        return self._request("PATCH", resource.path(namespace, name), query, patch, _STRATEGIC if strategic else _MERGE)

    def delete(self, resource: Resource, namespace: str | None, name: str, uid: str) -> None:
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            self._request("DELETE", resource.path(namespace, name), body=options)
        except ApiError as error:
            if error.status not in {404, 409}:  # 409: the object of that name is another one
                raise

    def connection(self) -> Connection:
        """As it is now: a service account's token is read again when it was rotated."""
        configuration = self._client.configuration
        # The client of version 36 keeps a service account's token under the first name, a kubeconfig's under either.
        header = next(filter(None, map(configuration.get_api_key_with_prefix, ("BearerToken", "authorization"))), "")
        return Connection(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            token=header.removeprefix("Bearer ").removeprefix("bearer ") or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )

    def close(self) -> None:
        self._client.rest_client.pool_manager.clear()

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": names.OPERATOR}
        self._client.update_params_for_auth(headers, [], ["BearerToken"])
        url = self._client.configuration.host + path + (f"?{urlencode(query)}" if query else "")
        try:
            reply = self._client.rest_client.pool_manager.request(
                method,
                url,
                body=None if body is None else json.dumps(body).encode(),
                headers=headers,
                timeout=_TIMEOUT,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise ApiUnavailable(f"the API server did not answer {method} {path}: {type(error).__name__}") from error
        return _read(method, path, reply.status, reply.data)


def _read(method: str, path: str, status: int, data: bytes) -> Object:
    try:
        parsed: Any = json.loads(data)
    except ValueError:
        parsed = {}
    if 200 <= status < 300:
        return parsed if isinstance(parsed, dict) else {}
    message = str(parsed.get("message", "")) if isinstance(parsed, dict) else ""
    sentence = message or f"the API server answered {method} {path} with status {status}"
    if status == 409:
        raise Conflict(status, sentence)
    if status in {401, 408, 429} or status >= 500:
        raise ApiUnavailable(sentence)
    raise ApiError(status, sentence)
