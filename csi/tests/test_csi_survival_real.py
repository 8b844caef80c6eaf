"""Mounts that outlive their sidecar, in both modes, with the real kernel and a sidecar of the tests' own."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from csi_node_harness import Node, Pod, a_running_node, fuse_descriptors, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
MODES = pytest.mark.parametrize("mode", ["privileged", "restricted"])


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_running_node() as node:
        yield node


def start(pod: Pod, mode: str, hold: Path | None = None) -> None:
    pod.start_small_sidecar(restricted=mode == "restricted", hold=hold)


async def started(node: Node, mode: str, *volumes: str, hold: Path | None = None) -> Pod:
    """A pod whose volumes are served."""
    pod = Pod(node)
    await pod.publish_control(mode)
    for volume in volumes:
        await pod.publish(volume)
    start(pod, mode, hold)
    for volume in volumes:
        await served(pod, volume)
    return pod


async def served(pod: Pod, volume: str = "data") -> None:
    """Wait until the sidecar that runs now said READY."""
    assert pod.sidecar is not None
    await until(lambda: pod.state(volume)["ready"] and who(pod, volume) is not None, f"served\n{pod.logs()}")


def who(pod: Pod, volume: str = "data") -> str | None:
    content = pod.reads(volume, "who")
    return None if content is None else content.decode()


def sidecars_pid(pod: Pod) -> str:
    assert pod.sidecar is not None
    return str(pod.sidecar.pid)


async def ended(pod: Pod, *volumes: str) -> None:
    for volume in (*volumes, "juicefs-control"):
        await pod.unpublish(volume)


def nothing_is_left(pod: Pod) -> None:
    assert [mount for mount in pod.node.mounts() if pod.uid in mount.path] == []
    assert not pod.directory.exists()
    assert not (pod.node.plugin / "state" / pod.uid).exists()
    assert pod.node.service is not None
    assert fuse_descriptors(pod.node.service.pid) == 0


def reader(pod: Pod, name: str, volume: str = "data") -> subprocess.Popen[bytes]:
    """A process of an application that reads one file."""
    return subprocess.Popen(["cat", str(pod.seen(volume) / name)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class OpenFile:
    """A file that another process has open: what this one has open, each of its children would close, and wait for that."""

    def __init__(self, path: Path) -> None:
        program = (
            "import os,sys\nf=os.open(sys.argv[1],0)\nfor _ in sys.stdin: print(os.pread(f,100,0).decode(),flush=True)"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self) -> str:
        """Its first bytes, through the descriptor that was opened at the start."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().decode().strip()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


async def output(process: subprocess.Popen[bytes]) -> tuple[bytes, bytes]:
    return await asyncio.to_thread(process.communicate, timeout=60)


@MODES
async def test_a_killed_sidecar_leaves_the_mount_alive(node: Node, mode: str) -> None:
    pod = await started(node, mode, "data")
    first = who(pod)
    assert first == sidecars_pid(pod)
    device = [mount.device for mount in node.mounts() if mount.path == pod.target("data") and mount.is_fuse]
    opened = OpenFile(pod.seen("data") / "who")
    try:
        assert await asyncio.to_thread(opened.read) == first
        for _ in range(3):
            pod.kill_container()
            waiting = reader(pod, "large")
            start(pod, mode)
            assert await output(waiting) == (bytes(range(256)) * 256, b"")
            # The file that was open before is answered by the successor.
            assert await asyncio.to_thread(opened.read) == sidecars_pid(pod)
            await served(pod)
    finally:
        opened.close()
    assert device == [mount.device for mount in node.mounts() if mount.path == pod.target("data") and mount.is_fuse]
    assert pod.state("data")["generation"] == 4
    log = node.log.read_text()
    assert log.count("Pod default/app: JuiceFSSidecarRestarted") == 3
    assert "JuiceFSMountLost" not in log
    pod.kill_container()
    await ended(pod, "data")
    nothing_is_left(pod)


@MODES
async def test_a_request_in_flight_is_answered_by_the_successor(node: Node, mode: str, tmp_path: Path) -> None:
    hold = node.root / "hold"
    node.root.chmod(0o755)
    hold.touch()
    pod = await started(node, mode, "data", hold=hold)
    waiting = reader(pod, "held")
    await until(lambda: "holding a read" in pod.log.read_text(), "the sidecar has the request")
    pod.kill_container()
    hold.unlink()
    start(pod, mode, hold)
    assert await output(waiting) == (b"held", b"")
    assert "resent 15" in pod.log.read_text()
    pod.kill_container()
    await ended(pod, "data")
    nothing_is_left(pod)


async def test_a_restricted_volume_waits_for_its_sidecar(node: Node) -> None:
    pod = Pod(node)
    await pod.publish_control("restricted")
    begin = time.monotonic()
    await pod.publish("data")
    print(f"NodePublishVolume in restricted mode: {(time.monotonic() - begin) * 1000:.1f} ms")
    [mount] = [mount for mount in node.mounts() if mount.path == pod.target("data") and mount.is_fuse]
    assert (mount.kind, mount.source) == ("fuse.juicefs", "JuiceFS:tiny")
    assert {"nosuid", "nodev"} <= set(mount.options.split(","))
    [control] = [mount for mount in node.mounts() if mount.path == pod.target("juicefs-control")]
    assert "ro" in control.options.split(",")
    await pod.publish("data")
    await pod.publish("data")
    assert len([mount for mount in node.mounts() if mount.path == pod.target("data")]) == 2
    waiting = reader(pod, "who")
    start(pod, "restricted")
    assert await output(waiting) == (sidecars_pid(pod).encode(), b"")
    await served(pod)
    assert pod.ready() == (0, "")
    assert "JuiceFSMounted" in node.log.read_text()
    pod.kill_container()
    await ended(pod, "data")
    nothing_is_left(pod)


async def test_the_order_of_publishes_does_not_matter(node: Node) -> None:
    pod = Pod(node)
    await pod.publish("data")
    await pod.publish("more")
    assert not any(mount.is_fuse for mount in node.mounts())
    await pod.publish_control("restricted")
    start(pod, "restricted")
    await served(pod, "data")
    await served(pod, "more")
    assert pod.ready() == (0, "")
    # One goes while the other works on.
    await pod.unpublish("data")
    assert who(pod, "more") == sidecars_pid(pod)
    pod.kill_container()
    # The control volume first: its file systems go with it, at once.
    await pod.unpublish("juicefs-control")
    await pod.unpublish("more")
    nothing_is_left(pod)


@MODES
async def test_a_node_service_that_restarts_has_the_descriptors_again(node: Node, mode: str) -> None:
    pod = await started(node, mode, "data")
    for _ in range(2):
        node.stop(signal.SIGKILL)
        assert who(pod) == sidecars_pid(pod)
        await node.start()
        await pod.publish("data")
        await pod.publish_control(mode)
        await until(lambda: "is connected" in node.log.read_text().rpartition("@@stopped@@")[2], "it came back")
        assert who(pod) == sidecars_pid(pod)
        pod.kill_container()
        start(pod, mode)
        await until(lambda: who(pod) == sidecars_pid(pod), f"taken over\n{pod.logs()}")
    assert "JuiceFSMountLost" not in node.log.read_text()
    pod.kill_container()
    await ended(pod, "data")
    nothing_is_left(pod)


@MODES
async def test_when_both_die_a_fresh_mount_heals_the_application(node: Node, mode: str) -> None:
    pod = await started(node, mode, "data")
    application = pod.start_application("data")
    assert (application / "who").read_text() == sidecars_pid(pod)
    node.stop(signal.SIGKILL)
    pod.kill_container()
    with pytest.raises(OSError, match=r"not connected|connection abort"):
        (application / "who").read_text()
    await node.start()
    await until(lambda: "JuiceFSMountLost" in node.log.read_text(), "the loss is told")
    await pod.publish("data")
    start(pod, mode)
    await until(lambda: who(pod) == sidecars_pid(pod), f"healed\n{pod.logs()}")
    assert (application / "who").read_text() == sidecars_pid(pod)
    pod.kill_container()
    await ended(pod, "data")
    nothing_is_left(pod)
