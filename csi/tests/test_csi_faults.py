"""The node service is killed between any two steps of a publish and of an unpublish: each change that it makes to the node is
once the one before which it died. The kubelet calls again, the pod works and ends, and nothing is left.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc.aio
import pytest
from csi_node_harness import PATIENCE, TESTS, Node, Pod, a_node
from test_csi_unhappy_real import ended, served

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
MODES = pytest.mark.parametrize("mode", ["privileged", "restricted"])
MOST = 100  # changes of one call; more is a loop


class Faulty:
    """A node whose service can be killed before the N-th change of a call."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.fault: Path = node.root / "fault"
        node.program = [str(TESTS / "tested_node_service.py")]
        node.environment = {"JFS_TEST_FAULT": str(self.fault)}

    async def dies(self, number: int, call: Callable[[], Awaitable[None]]) -> bool:
        """Make the call while the service dies before its N-th change; False if the call has fewer changes."""
        self.fault.write_text(str(number))
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017 - any other is a failure
        else:
            return False
        finally:
            self.fault.unlink()
        service = self.node.service
        assert service is not None
        assert await asyncio.to_thread(service.wait, PATIENCE) == -signal.SIGKILL
        self.node.stop()
        await self.node.start()
        return True


@pytest.fixture
async def faulty() -> AsyncIterator[Faulty]:
    with a_node() as node:
        faulty = Faulty(node)
        await node.start()
        yield faulty


@pytest.mark.parametrize(
    ("mode", "order"),
    [
        ("privileged", ("juicefs-control", "data")),
        ("restricted", ("juicefs-control", "data")),
        ("restricted", ("data", "juicefs-control")),
    ],
)
async def test_killed_between_any_two_steps_of_a_publish(faulty: Faulty, mode: str, order: tuple[str, str]) -> None:
    """In either order, where the order matters: the kubelet takes any. Then it publishes everything again."""
    node = faulty.node
    for number in range(1, MOST):
        pod = Pod(node, f"pod{number}")

        async def publish(pod: Pod = pod) -> None:
            for volume in order:
                await (pod.publish(volume) if volume == "data" else pod.publish_control(mode))

        died = await faulty.dies(number, publish)
        await publish()
        pod.start_small_sidecar(restricted=mode == "restricted")
        await served(pod)
        assert pod.state("data")["generation"] == 1
        pod.kill_container()
        await ended(pod)
        if not died:
            break
    else:
        pytest.fail("publish makes changes without end")
    print(f"{mode}: {number - 1} steps of a publish")
    assert number > 10
    assert "JuiceFSMountLost" not in node.log.read_text()


@MODES
async def test_killed_between_any_two_steps_of_an_unpublish(faulty: Faulty, mode: str) -> None:
    """The kubelet unpublishes again; also when it has forgotten the pod and only the sweep is left."""
    node = faulty.node
    for number in range(1, MOST):
        pod = Pod(node, f"pod{number}")
        await pod.publish_control(mode)
        await pod.publish("data")
        pod.start_small_sidecar(restricted=mode == "restricted")
        await served(pod)
        pod.kill_container()
        died = await faulty.dies(number, lambda pod=pod: ended(pod))
        await ended(pod)
        if not died:
            break
    else:
        pytest.fail("unpublish makes changes without end")
    print(f"{mode}: {number - 1} steps of an unpublish")
    assert number > 10
