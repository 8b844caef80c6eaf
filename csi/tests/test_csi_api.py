"""Pod check and events against an HTTP server that speaks the API."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from csi_fake_api import FakeApi
from jfs_csi.api import ApiClient
from jfs_csi.events import EventReporter, Subject
from jfs_csi.injection import SidecarCheck

UID = "8f5c1a2e-0d5b-4a53-9f3b-2d8d3f6c1a77"
POD = Subject("Pod", "default", "app", UID)
VOLUME = Subject("PersistentVolume", "", "pv-1")


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with FakeApi().serving() as fake:
        yield fake


@pytest.fixture
async def api(fake: FakeApi, tmp_path: Path) -> AsyncIterator[ApiClient]:
    token = tmp_path / "token"
    token.write_text("token-1\n")
    client = ApiClient(fake.url, token)
    yield client
    await client.close()


@contextlib.asynccontextmanager
async def reporting(api: ApiClient | None) -> AsyncIterator[EventReporter]:
    reporter = EventReporter(api, "node-1", "sidecar.juicefs.io")
    task = asyncio.create_task(reporter.run())
    yield reporter
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_an_injected_pod_is_asked_about_once(fake: FakeApi, api: ApiClient) -> None:
    fake.add_pod("app", UID, ["main"], ["juicefs-sidecar"])
    check = SidecarCheck(api)
    for _ in range(3):
        assert await check.missing("default", "app", UID) is None
    assert fake.requests == [("GET", "/api/v1/namespaces/default/pods/app")]
    assert fake.authorizations == ["Bearer token-1"]


async def test_the_token_is_read_anew(fake: FakeApi, api: ApiClient, tmp_path: Path) -> None:
    fake.add_pod("app", UID, ["juicefs-sidecar"])
    await SidecarCheck(api).missing("default", "app", UID)
    (tmp_path / "token").write_text("token-2")
    await SidecarCheck(api).missing("default", "app", UID)
    assert fake.authorizations == ["Bearer token-1", "Bearer token-2"]


async def test_a_pod_without_sidecar_gets_a_sentence_that_helps(fake: FakeApi, api: ApiClient) -> None:
    fake.add_pod("app", UID, ["main"])
    sentence = await SidecarCheck(api).missing("default", "app", UID)
    assert sentence is not None
    assert "juicefs.io/inject=enabled" in sentence


async def test_pods_that_are_gone(fake: FakeApi, api: ApiClient) -> None:
    check = SidecarCheck(api)
    assert "does not exist" in (await check.missing("default", "app", UID) or "")
    fake.add_pod("app", "another-uid", ["juicefs-sidecar"])
    assert "replaced" in (await check.missing("default", "app", UID) or "")


async def test_without_an_answer_the_pod_counts_as_injected(
    fake: FakeApi, api: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refuse = 403
    assert await SidecarCheck(api).missing("default", "app", UID) is None
    assert "taken as injected" in caplog.text
    unreachable = ApiClient("http://127.0.0.1:1")
    assert await SidecarCheck(unreachable).missing("default", "app", UID) is None
    await unreachable.close()
    assert "not reachable" in caplog.text
    assert await SidecarCheck(None).missing("default", "app", UID) is None


async def test_a_server_that_hangs_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    api = ApiClient(f"http://127.0.0.1:{port}", seconds=0.1)
    assert await SidecarCheck(api).missing("default", "app", UID) is None
    await api.close()
    server.close()
    await server.wait_closed()
    assert "did not answer in time" in caplog.text


async def test_events_on_pod_and_volume(fake: FakeApi, api: ApiClient) -> None:
    async with reporting(api) as reporter:
        reporter.report(POD, "JuiceFSMountFailed", "No such host.")
        reporter.report(VOLUME, "JuiceFSMounted", "Volume pv-1 is mounted.")
        await reporter.drain()
    of_pod, of_volume = sorted(
        fake.events.values(), key=lambda event: str(event["involvedObject"]["kind"]), reverse=True
    )
    assert of_pod["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "app",
        "namespace": "default",
        "uid": UID,
    }
    assert (of_pod["type"], of_pod["reason"], of_pod["count"]) == ("Warning", "JuiceFSMountFailed", 1)
    assert of_pod["reportingComponent"] == "sidecar.juicefs.io"
    assert of_volume["metadata"]["namespace"] == "default"
    assert (of_volume["involvedObject"]["name"], of_volume["type"]) == ("pv-1", "Normal")


async def test_the_same_again_raises_the_count(fake: FakeApi, api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfs_csi.events._QUIET", 0.0)
    async with reporting(api) as reporter:
        for _ in range(3):
            reporter.report(POD, "JuiceFSMountFailed", "No such host.")
        await reporter.drain()
    assert [event["count"] for event in fake.events.values()] == [3]
    # A restarted node service goes on with the same event.
    async with reporting(api) as successor:
        successor.report(POD, "JuiceFSMountFailed", "No such host.")
        await successor.drain()
        assert [event["count"] for event in fake.events.values()] == [4]
        fake.events.clear()  # expired
        successor.report(POD, "JuiceFSMountFailed", "No such host.")
        await successor.drain()
    assert [event["count"] for event in fake.events.values()] == [1]


async def test_repetitions_within_seconds_are_not_posted(fake: FakeApi, api: ApiClient) -> None:
    async with reporting(api) as reporter:
        for _ in range(5):
            reporter.report(POD, "JuiceFSSidecarMissing", "No sidecar.")
        await reporter.drain()
    assert [method for method, _ in fake.requests] == ["POST"]


async def test_a_flood_about_one_pod_stops_there(fake: FakeApi, api: ApiClient) -> None:
    async with reporting(api) as reporter:
        for number in range(100):
            reporter.report(POD, "JuiceFSMountFailed", f"Attempt {number}.")
        reporter.report(VOLUME, "JuiceFSMountFailed", "No such host.")
        await reporter.drain()
    assert len(fake.events) == 21


async def test_events_that_cannot_be_posted_are_logged(
    fake: FakeApi, api: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refuse = 403
    async with reporting(api) as reporter:
        reporter.report(POD, "JuiceFSMountFailed", "No such host.")
        await reporter.drain()
        fake.refuse = None
        reporter.report(POD, "JuiceFSMountFailed", "No such host.")
        await reporter.drain()
    assert "could not be posted" in caplog.text
    assert len(fake.events) == 1


async def test_outside_a_cluster_events_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with reporting(None) as reporter:
        reporter.report(POD, "JuiceFSMountFailed", "No such host.")
        await reporter.drain()
    assert "No such host." in caplog.text


def test_in_cluster_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert ApiClient.in_cluster() is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    assert ApiClient.in_cluster() is not None
