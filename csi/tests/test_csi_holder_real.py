"""The holder of descriptors: a process of its own that gives FUSE connections back to a node service that starts anew."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from csi_node_harness import Pod, a_running_node, fuse_descriptors, until
from jfs_csi.fuse.holder import HolderClient
from jfs_csi.fuse.init import Init
from jfs_csi.fuse.keeper import Keeper

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
INIT = Init(7, 38, 1 << 39, 1 << 20, 1 << 20, 64, 48, 1, 256)


def start(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-m", "jfs_csi.fuse.holder", "--socket", str(path)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert "Holding descriptors" in process.stderr.readline()
    return process


def stop(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(number)
    process.communicate(timeout=20)


@pytest.fixture
def connected() -> Iterator[int]:
    """A descriptor of a FUSE connection that lives: of a mount in a namespace of its own."""
    program = (
        "import ctypes,os,sys\n"
        "fd=int(sys.argv[1]); libc=ctypes.CDLL(None); libc.unshare(0x20000)\n"
        "libc.mount(None,b'/',None,0x44000,None)\n"
        "d=f'fd={fd},rootmode=40000,user_id=0,group_id=0'.encode()\n"
        "print(libc.mount(b'x',b'/mnt',b'fuse.juicefs',6,d),flush=True)\n"
        "sys.stdin.read()"
    )
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    keeping = subprocess.Popen(
        [sys.executable, "-c", program, str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert keeping.stdout is not None
    assert keeping.stdout.readline() == b"0\n"
    yield descriptor
    keeping.communicate()
    os.close(descriptor)


def reading(pod: Pod) -> "subprocess.Popen[bytes]":
    """A process of an application that reads."""
    return subprocess.Popen(["cat", str(pod.seen("data") / "large")], stdout=subprocess.PIPE)


def held_by(process: "subprocess.Popen[str]") -> int:
    return fuse_descriptors(process.pid)


def test_what_is_kept_is_held_and_given_back(tmp_path: Path, connected: int) -> None:
    path = tmp_path / "holder" / "s"
    holder = start(path)
    try:
        assert path.stat().st_mode & 0o777 == 0o600
        keeper = Keeper(HolderClient(path))
        keeper.synchronize()
        keeper.keep(("pod", "v"), os.dup(connected), INIT, "0:7")
        keeper.keep(("pod", "w"), os.dup(connected), INIT, "0:7")
        keeper.keep(("pod", "w"), os.dup(connected), INIT, "0:8")
        assert held_by(holder) == 2
        keeper.release(("pod", "v"))
        assert held_by(holder) == 1
        keeper.sent(("pod", "w"))
        keeper.close()
        successor = Keeper(HolderClient(path))
        assert successor.fetch() == 1
        kept = successor.live(("pod", "w"))
        assert kept is not None
        assert (kept.init, kept.device, kept.sent) == (INIT, "0:8", True)
        assert not os.get_inheritable(kept.descriptor)
        successor.close()
    finally:
        stop(holder)


def test_a_holder_that_was_away_is_brought_up_to_date(tmp_path: Path, connected: int) -> None:
    path = tmp_path / "holder" / "s"
    holder = start(path)
    keeper = Keeper(HolderClient(path))
    try:
        keeper.synchronize()
        keeper.keep(("pod", "v"), os.dup(connected), INIT, "")
        stop(holder, signal.SIGKILL)
        keeper.keep(("pod", "w"), os.dup(connected), INIT, "")
        keeper.release(("pod", "v"))
        keeper.synchronize()  # nobody there: said in the log, nothing is lost here
        assert keeper.live(("pod", "w")) is not None
        holder = start(path)
        keeper.synchronize()
        assert held_by(holder) == 1
    finally:
        keeper.close()
        stop(holder)


def test_what_is_no_fuse_descriptor_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "holder" / "s"
    holder = start(path)
    try:
        client = HolderClient(path)
        with open("/dev/null") as null, pytest.raises(OSError, match="the holder ended"):
            client.keep(("pod", "v"), null.fileno(), {})
        client.close()
        again = HolderClient(path)
        assert again.fetch() == []
        again.close()
    finally:
        stop(holder)


@pytest.mark.parametrize("mode", ["privileged", "restricted"])
async def test_both_die_and_the_application_only_waits(mode: str) -> None:
    """What without a holder costs the mount: the node service and the sidecar killed at once."""
    async with a_running_node() as node:
        node.stop(signal.SIGTERM)
        holder = start(node.plugin / "holder" / "s")
        try:
            node.arguments.append("--holder")
            await node.start()
            pod = Pod(node)
            await pod.publish_control(mode)
            await pod.publish("data")
            pod.start_small_sidecar(restricted=mode == "restricted")
            await until(lambda: pod.state("data")["ready"], f"served\n{pod.logs()}")
            await until(lambda: held_by(holder) == 1, "held")
            before = [mount.device for mount in node.mounts() if mount.path == pod.target("data") and mount.is_fuse]
            for _ in range(2):
                node.stop(signal.SIGKILL)
                pod.kill_container()
                waiting = reading(pod)
                await node.start()
                pod.start_small_sidecar(restricted=mode == "restricted")
                await pod.publish("data")
                assert waiting.communicate(timeout=30)[0] == bytes(range(256)) * 256
                await until(lambda: held_by(holder) == 1, "held")
            assert before == [
                mount.device for mount in node.mounts() if mount.path == pod.target("data") and mount.is_fuse
            ]
            assert "JuiceFSMountLost" not in node.log.read_text()
            pod.kill_container()
            await pod.unpublish("data")
            await pod.unpublish("juicefs-control")
            assert held_by(holder) == 0
            assert [mount for mount in node.mounts() if pod.uid in mount.path] == []
        finally:
            stop(holder)
