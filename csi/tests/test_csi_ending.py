"""Pods that are over while requests wait in the kernel: their connections are ended, others' never."""

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from csi_fake_api import FakeApi
from csi_node_harness import TESTS, Node, Pod, a_node, until
from jfs_csi.api import ApiClient
from jfs_csi.ending import PodEnd, says_over
from test_csi_unhappy_real import ended, reading, started

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def limited(seconds: int) -> dict[str, Any]:
    """A pod that began a minute ago, with a deadline and half a minute of grace."""
    spec = {"activeDeadlineSeconds": seconds, "terminationGracePeriodSeconds": 30}
    return {"spec": spec, "status": {"phase": "Running", "startTime": "2026-05-01T11:59:00Z"}}


@pytest.mark.parametrize(
    ("pod", "over"),
    [
        ({}, False),
        ({"metadata": {"deletionTimestamp": "2026-05-01T12:00:00Z"}}, True),
        ({"metadata": {"deletionTimestamp": "2026-05-01T12:00:01Z"}}, False),
        ({"status": {"phase": "Running"}}, False),
        (limited(30), True),
        (limited(31), False),
        ({"status": {"phase": "Failed"}}, True),
        ({"status": {"phase": "Succeeded"}}, True),
    ],
)
def test_what_a_pods_object_says(pod: dict[str, Any], over: bool) -> None:
    assert says_over(pod, NOW) is over


async def test_only_an_answer_ends_a_pod(caplog: pytest.LogCaptureFixture) -> None:
    """A pod that is gone or replaced is over; while nobody can tell, it lives."""
    async with FakeApi().serving() as fake:
        api = ApiClient(fake.url)
        end = PodEnd(api)
        try:
            assert await end.is_over("default", "app", "uid")
            fake.add_pod("app", "uid", ["main"])
            assert not await end.is_over("default", "app", "uid")
            assert await end.is_over("default", "app", "former")
            fake.refuse = 500
            assert not await end.is_over("default", "app", "uid")
        finally:
            await api.close()
    unreachable = ApiClient("http://127.0.0.1:1")
    try:
        assert not await PodEnd(unreachable).is_over("default", "app", "uid")
    finally:
        await unreachable.close()
    assert caplog.text.count("cannot be told") == 2
    assert not await PodEnd(None).is_over("default", "app", "uid")


@pytest.fixture
async def asked() -> AsyncIterator[tuple[Node, FakeApi]]:
    """A node whose service has an API server."""
    with a_node() as node:
        async with FakeApi().serving() as fake:
            node.program = [str(TESTS / "tested_node_service.py")]
            node.environment = {"JFS_TEST_API": fake.url}
            await node.start()
            yield node, fake


@pytest.mark.real
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["privileged", "restricted"])
async def test_a_killed_application_ends_with_its_pod_and_waits_until_then(
    asked: tuple[Node, FakeApi], mode: str
) -> None:
    """Its request was read by a sidecar that is dead: no signal ends it, and before it has ended nobody unpublishes."""
    node, fake = asked
    hold = node.root / "hold"
    hold.touch()

    def told(pod: Pod, **metadata: Any) -> None:
        fake.pods[f"default/{pod.name}"] = {
            "metadata": {"name": pod.name, "uid": pod.uid, **metadata},
            "spec": {"containers": [], "initContainers": [{"name": "juicefs-sidecar"}]},
        }

    def asks() -> int:
        return sum(path.endswith("/pods/app") for _, path in fake.requests)

    pod = Pod(node)
    told(pod)
    pod = await started(node, mode, hold=hold, pod=pod)
    stuck = reading(pod, "held")
    await until(lambda: "holding a read" in pod.log.read_text(), "the sidecar has the request")
    pod.kill_container()
    stuck.send_signal(signal.SIGKILL)

    # in its grace period, and before: the mount is kept, whoever asks
    told(pod, deletionTimestamp=(datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"))
    before = asks()
    await until(lambda: asks() >= before + 2, "the API server was asked")
    assert stuck.poll() is None

    told(pod, deletionTimestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    await asyncio.to_thread(stuck.communicate, timeout=30)
    assert stuck.returncode == -signal.SIGKILL
    await ended(pod)
    assert node.log.read_text().count("what waits for an answer is ended") == 1
    assert "JuiceFSMountLost" not in node.log.read_text()
