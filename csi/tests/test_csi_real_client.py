"""Node service, sidecar and the real client together, on volumes that the real JuiceFS made."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from csi_node_harness import Node, Pod, a_running_node, children, until

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
WORKER = ("-m", "jfs", "worker")
JUICEFS = Path(sys.executable).parent / "juicefs"


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_running_node() as node:
        yield node


@pytest.fixture
def volume(tmp_path: Path) -> str:
    """The metadata URL of a fresh volume by the real JuiceFS."""
    url = f"sqlite3://{tmp_path}/meta.db"
    subprocess.run(
        [JUICEFS, "format", url, "vol", "--storage", "file", "--bucket", f"{tmp_path}/objects", "--trash-days", "0"],
        check=True,
        capture_output=True,
    )
    return url


async def started(node: Node, url: str, **fields: object) -> Pod:
    pod = Pod(node)
    await pod.publish_control()
    await pod.publish("data", secrets={"metaurl": url, "name": "vol"}, **fields)
    pod.start_sidecar(*WORKER)
    await until(lambda: pod.is_mounted("data"), f"mounted\n{pod.logs()}")
    return pod


async def test_two_pods_share_a_volume(node: Node, volume: str) -> None:
    first, second = await started(node, volume), await started(node, volume)
    assert first.ready() == (0, "")
    (first.seen("data") / "hello").write_text("from the first pod")
    assert (second.seen("data") / "hello").read_text() == "from the first pod"
    assert os.stat(second.seen("data")).st_ino == 1
    kinds = {mount.kind: mount.source for mount in node.mounts() if mount.path == first.target("data")}
    assert kinds["fuse.juicefs"] == "JuiceFS:vol"
    assert first.sidecar is not None
    first.sidecar.terminate()
    assert first.sidecar.wait(20) == 0
    for pod in (first, second):
        await pod.unpublish("data")
        await pod.unpublish("juicefs-control")
        assert not pod.directory.exists()
    assert [mount for mount in node.mounts() if "/pods/" in mount.path] == []


async def test_a_killed_sidecar_loses_nothing_that_was_closed(node: Node, volume: str) -> None:
    pod = await started(node, volume)
    application = pod.start_application("data")
    (pod.seen("data") / "kept").write_bytes(b"x" * 100_000)
    pod.kill_container()
    pod.start_sidecar(*WORKER)
    await until(lambda: pod.reads("data", "kept") == b"x" * 100_000, f"mounted again\n{pod.logs()}")
    assert pod.state("data")["generation"] == 2
    assert pod.ready() == (0, "")
    assert (application / "kept").read_bytes() == b"x" * 100_000
    (application / "more").write_text("written after the crash")
    assert pod.reads("data", "more") == b"written after the crash"
    await pod.unpublish("data")
    await pod.unpublish("juicefs-control")
    assert not pod.directory.exists()


async def test_a_read_only_volume_refuses_writes(node: Node, volume: str) -> None:
    pod = await started(node, volume, readonly=True)
    with pytest.raises(OSError, match="Read-only"):
        (pod.seen("data") / "new").touch()


async def test_a_database_without_volume_is_reported(node: Node, tmp_path: Path) -> None:
    pod = Pod(node)
    await pod.publish_control()
    await pod.publish("data", secrets={"metaurl": f"sqlite3://{tmp_path}/none.db"})
    pod.start_sidecar(*WORKER)
    await until(lambda: "JuiceFSMountFailed" in node.log.read_text(), f"reported\n{pod.logs()}")
    code, sentence = pod.ready()
    assert (code, sentence) == (1, "Not ready: volume data is not mounted.\n")
    await pod.unpublish("data")
    await pod.unpublish("juicefs-control")
    assert not pod.directory.exists()


async def test_memory_of_an_idle_sidecar(node: Node, volume: str) -> None:
    """The bar of an idle sidecar with one volume: 100 MiB, supervisor and worker together."""
    pod = await started(node, volume)
    assert pod.sidecar is not None
    pids = [pod.sidecar.pid, *children(pod.sidecar.pid)]
    resident = {pid: resident_kib(pid) for pid in pids}
    print(f"idle sidecar: {sum(resident.values()) / 1024:.1f} MiB {resident}")
    assert len(resident) == 2
    assert sum(resident.values()) <= 100 * 1024


def resident_kib(pid: int) -> int:
    """VmRSS of proc_pid_status(5): shared pages count in full, so that the sum is an upper bound."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS in status")
