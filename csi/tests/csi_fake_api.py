"""A few paths of the Kubernetes API in memory: pods can be read, events created and patched, JuiceFSNodes applied. Real HTTP."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web


class FakeApi:
    """`pods` and `events` by "namespace/name"; `requests` counts by method and kind."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.events: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, list[dict[str, Any]]] = {}  # every write, by "namespace/name"
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []
        self.refuse: int | None = None
        self.url = ""

    def add_pod(self, name: str, uid: str, containers: list[str], init: list[str] | None = None) -> None:
        self.pods[f"default/{name}"] = {
            "metadata": {"name": name, "namespace": "default", "uid": uid},
            "spec": {
                "containers": [{"name": container} for container in containers],
                **({"initContainers": [{"name": container} for container in init]} if init else {}),
            },
        }

    @web.middleware
    async def _count(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path))
        self.authorizations.append(request.headers.get("Authorization"))
        if self.refuse is not None:
            return web.json_response({"kind": "Status", "message": "no"}, status=self.refuse)
        response = await handler(request)
        assert isinstance(response, web.StreamResponse)
        return response

    def _find(self, objects: dict[str, dict[str, Any]], request: web.Request) -> dict[str, Any] | None:
        return objects.get(f"{request.match_info['namespace']}/{request.match_info['name']}")

    async def _get_pod(self, request: web.Request) -> web.Response:
        pod = self._find(self.pods, request)
        return _missing("pods") if pod is None else web.json_response(pod)

    async def _create_event(self, request: web.Request) -> web.Response:
        event = await request.json()
        key = f"{request.match_info['namespace']}/{event['metadata']['name']}"
        # As the API server checks it: an event about a namespaced object lives in that namespace.
        involved = event["involvedObject"].get("namespace") or "default"
        if (
            event["metadata"]["namespace"] != request.match_info["namespace"]
            or involved != event["metadata"]["namespace"]
        ):
            return web.json_response({"kind": "Status", "message": "namespaces differ"}, status=422)
        if key in self.events:
            return web.json_response({"kind": "Status", "message": "exists"}, status=409)
        self.events[key] = event
        return web.json_response(event, status=201)

    async def _patch_event(self, request: web.Request) -> web.Response:
        event = self._find(self.events, request)
        if event is None:
            return _missing("events")
        assert request.content_type == "application/merge-patch+json"
        event.update(await request.json())
        return web.json_response(event)

    async def _apply_node(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/apply-patch+yaml"
        assert request.query["fieldManager"] == "juicefs-node"
        body = await request.json()
        key = f"{request.match_info['namespace']}/{request.match_info['name']}"
        assert key == f"{body['metadata']['namespace']}/{body['metadata']['name']}"
        self.nodes.setdefault(key, []).append(body)
        return web.json_response(body)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeApi"]:
        app = web.Application(middlewares=[self._count])
        app.add_routes(
            [
                web.get("/api/v1/namespaces/{namespace}/pods/{name}", self._get_pod),
                web.post("/api/v1/namespaces/{namespace}/events", self._create_event),
                web.patch("/api/v1/namespaces/{namespace}/events/{name}", self._patch_event),
                web.patch("/apis/juicefs.io/v1alpha1/namespaces/{namespace}/juicefsnodes/{name}", self._apply_node),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        try:
            yield self
        finally:
            await runner.cleanup()


def _missing(kind: str) -> web.Response:
    return web.json_response({"kind": "Status", "message": f"{kind} not found"}, status=404)
