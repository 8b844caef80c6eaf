"""The running webhook over real TLS: what the API server sends and gets, and what the kubelet sees."""

import asyncio
import base64
import io
import json
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from jfs_webhook import server as server_module
from jfs_webhook.arguments import Arguments
from jfs_webhook.main import listen, serve
from jfs_webhook.trust import Identity
from webhook_api_server import FakeApiServer, api_server, claims, persistent_volumes
from webhook_pods import SETTINGS, claim_volume, patched, pod_with

IDENTITY = Identity("hook", "system", "hook-tls", "hook-configuration")
CONFIGURATION = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/hook-configuration"


@dataclass
class Running:
    api: FakeApiServer
    session: aiohttp.ClientSession
    mutate: str
    health: str
    tls: ssl.SSLContext
    stop: asyncio.Event
    task: asyncio.Task[None]

    async def post(self, body: bytes, content_type: str = "application/json", path: str = "/mutate") -> tuple[int, str]:
        async with self.session.post(
            self.mutate.removesuffix("/mutate") + path,
            data=io.BytesIO(body),
            headers={"Content-Type": content_type},
            ssl=self.tls,
            server_hostname="hook.system.svc",
        ) as response:
            return response.status, await response.text()

    async def review(self, pod: dict[str, Any], namespace: str = "team", path: str = "/mutate") -> dict[str, Any]:
        request = {
            "uid": "u-1",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "namespace": namespace,
            "object": pod,
        }
        document = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
        status, text = await self.post(json.dumps(document).encode(), path=path)
        assert status == 200, text
        response: dict[str, Any] = json.loads(text)["response"]
        assert response["uid"] == "u-1"
        return response

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.health + path) as response:
            return response.status, await response.text()


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    admission, health = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    port, health_port = admission.getsockname()[1], health.getsockname()[1]
    arguments = Arguments(SETTINGS, IDENTITY, port, health_port, 0.0, "info")
    stop = asyncio.Event()
    async with api_server() as (api, client), aiohttp.ClientSession() as session:
        api.put(CONFIGURATION, {"metadata": {}, "webhooks": [{"clientConfig": {}}]})
        task = asyncio.create_task(serve(arguments, client, stop, admission, health))
        url = f"http://127.0.0.1:{health_port}"
        try:
            async with asyncio.timeout(20):
                while not await ready(session, url):
                    assert not task.done(), task
                    await asyncio.sleep(0.02)
            bundle = base64.b64decode(api.objects[CONFIGURATION]["webhooks"][0]["clientConfig"]["caBundle"])
            tls = ssl.create_default_context(cadata=bundle.decode())
            yield Running(api, session, f"https://127.0.0.1:{port}/mutate", url, tls, stop, task)
        finally:
            stop.set()
            await task


async def ready(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/readyz") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


def bound_claim(api: FakeApiServer) -> None:
    api.put(claims("data"), {"metadata": {"name": "data"}, "spec": {"volumeName": "pv"}})
    api.put(persistent_volumes("pv"), {"metadata": {"name": "pv"}, "spec": {"csi": {"driver": "sidecar.juicefs.io"}}})


async def test_pod_is_injected_without_any_write(running: Running) -> None:
    bound_claim(running.api)
    pod = pod_with(claim_volume("data", "data"))
    before = len(running.api.requests)
    response = await running.review(pod)
    assert {method for method, _ in running.api.requests[before:]} == {"GET"}
    assert response["allowed"] is True
    result = patched(pod, json.loads(base64.b64decode(response["patch"])))
    assert result["spec"]["initContainers"][0]["name"] == "juicefs-sidecar"
    assert "patch" not in await running.review(result)
    status, text = await running.get("/metrics")
    assert status == 200
    assert 'jfs_webhook_reviews_total{result="injected"} 1.0' in text
    assert 'jfs_webhook_reviews_total{result="unchanged"} 1.0' in text


async def test_pods_without_our_volumes_pass_untouched(running: Running) -> None:
    assert await running.review(pod_with({"name": "tmp", "emptyDir": {}})) == {"uid": "u-1", "allowed": True}
    bound_claim(running.api)
    pod = pod_with(claim_volume("data", "data"))
    assert "patch" not in await running.review(pod, "kube-system")
    pod["metadata"]["labels"]["juicefs.io/inject"] = "disabled"
    assert "patch" not in await running.review(pod)


async def test_missing_claim_passes_with_a_warning(running: Running) -> None:
    response = await running.review(pod_with(claim_volume("data", "nowhere")))
    assert response["allowed"] is True
    assert "team/nowhere does not exist" in response["warnings"][0]


async def test_refusals_are_sentences(running: Running) -> None:
    bound_claim(running.api)
    response = await running.review(pod_with(claim_volume("data", "data"), hostUsers=False))
    assert response["allowed"] is False
    assert response["status"]["code"] == 422
    assert response["status"]["message"].startswith("JuiceFS sidecar: the pod asks for a user namespace")
    running.api.failures["GET"] = [500, 500]
    response = await running.review(pod_with(claim_volume("data", "data")))
    assert response["allowed"] is False
    assert response["status"]["code"] == 503
    assert "made to fail" in response["status"]["message"]


async def test_internal_errors_never_show_a_trace(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("inner workings")

    monkeypatch.setattr(server_module, "inject", broken)
    response = await running.review(pod_with())
    assert response["allowed"] is False
    assert response["status"] == {
        "code": 500,
        "message": "JuiceFS sidecar: internal error of the webhook; its log says more",
    }
    assert "inner workings" in caplog.text


async def test_slow_lookup_is_refused_in_time(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(server_module, "resolve", never)
    monkeypatch.setattr(server_module, "ANSWER_SECONDS", 0.05)
    response = await running.review(pod_with())
    assert (response["allowed"], response["status"]["code"]) == (False, 504)


async def test_malformed_and_huge_requests(running: Running) -> None:
    status, text = await running.post(b"{")
    assert (status, text) == (400, "the request body is not valid JSON; send an AdmissionReview\n")
    status, text = await running.post(b"{}", "text/plain")
    assert (status, text) == (415, "send the AdmissionReview as application/json\n")
    status, text = await running.post(b" " * (server_module.BODY_LIMIT + 1))
    assert (status, text) == (413, "the request body is larger than 3145728 bytes\n")
    _, metrics = await running.get("/metrics")
    assert 'jfs_webhook_reviews_total{result="malformed"} 3.0' in metrics


async def test_huge_body_of_unknown_length(running: Running) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b" " * 1024 * 1024

    async with running.session.post(
        running.mutate,
        data=chunks(),
        headers={"Content-Type": "application/json"},
        ssl=running.tls,
        server_hostname="hook.system.svc",
    ) as response:
        assert response.status == 413
        assert await response.text() == "the request body is larger than 3145728 bytes\n"


async def test_health_and_an_orderly_end(running: Running) -> None:
    assert await running.get("/healthz") == (200, "ok\n")
    assert await running.get("/readyz") == (200, "ok\n")
    _, metrics = await running.get("/metrics")
    assert "jfs_webhook_certificate_expiry_timestamp_seconds" in metrics
    running.stop.set()
    async with asyncio.timeout(20):
        await running.task
    with pytest.raises(aiohttp.ClientError):
        await running.get("/healthz")


async def test_port_that_is_taken_is_an_error_before_anything_starts() -> None:
    with listen(0) as taken:
        address = taken.getsockname()
        with pytest.raises(OSError, match="in use"):
            listen(address[1])


async def test_the_last_look_refuses_a_pod_that_lost_its_sidecar(running: Running) -> None:
    running.api.put(claims("data"), {"metadata": {}, "spec": {"volumeName": "jfsv"}})
    running.api.put(persistent_volumes("jfsv"), {"metadata": {}, "spec": {"csi": {"driver": "sidecar.juicefs.io"}}})
    pod = pod_with(claim_volume("data", "data"))
    patch = json.loads(base64.b64decode((await running.review(pod))["patch"]))
    stored = patched(pod, patch)
    assert (await running.review(stored, path="/validate"))["allowed"] is True
    del stored["spec"]["initContainers"][0]["restartPolicy"]
    answer = await running.review(stored, path="/validate")
    assert answer["allowed"] is False
    assert "has lost its restartPolicy" in answer["status"]["message"]
