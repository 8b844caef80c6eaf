"""An API server in memory, over real HTTP: objects by path, resourceVersions, conflicts, JSON patches, failures on order."""

import copy
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jsonpatch
from aiohttp import web
from aiohttp.test_utils import TestServer
from jfs_webhook.api import Access, ApiClient

Object = dict[str, Any]


def claims(name: str, namespace: str = "team") -> str:
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}"


def persistent_volumes(name: str = "") -> str:
    return f"/api/v1/persistentvolumes/{name}".rstrip("/")


def classes(name: str = "") -> str:
    return f"/apis/storage.k8s.io/v1/storageclasses/{name}".rstrip("/")


def juicefs_volumes(name: str, namespace: str = "team") -> str:
    return f"/apis/juicefs.io/v1alpha1/namespaces/{namespace}/juicefsvolumes/{name}"


class FakeApiServer:
    """Objects by their path, as the real server keeps them as far as this webhook can tell."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.requests: list[tuple[str, str]] = []
        self.queries: list[dict[str, str]] = []
        self.tokens: list[str | None] = []
        # Statuses to answer with before the requests of a method work again.
        self.failures: dict[str, list[int]] = {}
        self._version = 0

    def put(self, path: str, value: Object) -> Object:
        self._version += 1
        stored = copy.deepcopy(value)
        stored.setdefault("metadata", {})["resourceVersion"] = str(self._version)
        self.objects[path] = stored
        return stored

    async def handle(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.rel_url.raw_path))
        self.queries.append(dict(request.query))
        self.tokens.append(request.headers.get("Authorization"))
        if self.failures.get(request.method):
            return self._status(self.failures[request.method].pop(0), "made to fail")
        path = request.path
        body = json.loads(await request.read() or "null")
        if request.method == "GET":
            if path in self.objects:
                return web.json_response(self.objects[path])
            if path in (persistent_volumes(), classes()):
                items = [value for key, value in self.objects.items() if key.startswith(f"{path}/")]
                wanted = dict(term.split("=") for term in request.query.get("labelSelector", "").split(",") if term)
                items = [each for each in items if wanted.items() <= each["metadata"].get("labels", {}).items()]
                return web.json_response({"kind": "List", "items": items})
        if request.method == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return self._status(409, "already exists")
            return web.json_response(self.put(path, body), status=201)
        if path not in self.objects:
            return self._status(404, "not found")
        if request.method == "PUT":
            if body["metadata"].get("resourceVersion") != self.objects[path]["metadata"]["resourceVersion"]:
                return self._status(409, "the object has been modified")
            return web.json_response(self.put(path, body))
        try:
            changed = jsonpatch.apply_patch(self.objects[path], body)
        except jsonpatch.JsonPatchTestFailed:
            return self._status(422, "testing path /metadata/resourceVersion failed")
        return web.json_response(self.put(path, changed))

    def _status(self, status: int, message: str) -> web.Response:
        return web.json_response({"kind": "Status", "message": message, "code": status}, status=status)


@asynccontextmanager
async def api_server() -> AsyncIterator[tuple[FakeApiServer, ApiClient]]:
    """The server on a free port and a client of it."""
    fake = FakeApiServer()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", fake.handle)
    async with (
        TestServer(application) as server,
        ApiClient(Access(str(server.make_url("")).rstrip("/"), None)) as client,
    ):
        yield fake, client
