"""What a hostile pod can do with its control socket: nothing that harms anybody but itself."""

import array
import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from jfs_csi.control import connection as connection_module
from jfs_csi.control import frames, server, sessions
from jfs_csi.control.peer import authenticate
from jfs_csi.control.processes import container, containers, others_live
from jfs_csi.control.server import ControlServer
from jfs_csi.directories import Tree
from jfs_csi.fuse import passing
from jfs_csi.fuse.custody import Custody
from jfs_csi.fuse.device import is_connected, is_fuse_device
from jfs_csi.fuse.init import Init
from jfs_csi.fuse.keeper import Keeper
from jfs_csi.layout import Layout
from jfs_csi.mounts import FuseConnections
from jfs_csi.state import DATA, StateStore, VolumeState

UID = "8f5c1a2e-0d5b-4a53-9f3b-2d8d3f6c1a77"
OTHER = "11111111-2222-3333-4444-555555555555"
INIT = Init(7, 38, 1 << 39, 1 << 20, 1 << 20, 64, 48, 1, 256)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Pod:
    """A control server with one pod, and the pod's end of its socket."""

    def __init__(self, base: Path) -> None:
        self.layout = Layout(base)
        tree, self.states = Tree(base), StateStore(Tree(base), self.layout)
        self.keeper = Keeper()
        self.told: list[str] = []
        custody = Custody(tree, self.layout, self.states, self.keeper, FuseConnections())
        self.server = ControlServer(
            tree, self.layout, self.states, "node-1", lambda reason, *_: self.told.append(reason), custody
        )

    async def publish(self, volume: str = "v") -> None:
        self.states.save(VolumeState(UID, volume, DATA, "handle", f"/target/{volume}"))
        async with self.server.lock(UID):
            await self.server.listen(UID)
            await self.server.published(UID, volume, False, (), {"metaurl": "redis://db/1"})

    async def connect(self) -> socket.socket:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        directory = os.open(self.layout.absolute(self.layout.pod(UID)), os.O_PATH)
        try:
            await asyncio.get_running_loop().sock_connect(ours, f"/proc/self/fd/{directory}/s")
        finally:
            os.close(directory)
        return ours

    async def session(self, name: str = "s1") -> socket.socket:
        ours = await self.connect()
        await send(ours, type="HELLO", proto=[1, 2], session=name, sidecarVersion="0")
        assert (await receive(ours) or {})["type"] == "WELCOME"
        return ours


async def send(ours: socket.socket, passed: tuple[int, ...] = (), **frame: Any) -> None:
    packet = json.dumps(frame).encode()
    if not passed:
        await asyncio.get_running_loop().sock_sendall(ours, packet)
        return
    ours.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", passed))])


async def receive(ours: socket.socket) -> dict[str, Any] | None:
    async with asyncio.timeout(10):
        try:
            packet = await asyncio.get_running_loop().sock_recv(ours, frames.LIMIT)
        except ConnectionResetError:
            return None
    return dict(json.loads(packet)) if packet else None


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the state of another task, which announces nothing
            await asyncio.sleep(0.01)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    fixture = Pod(tmp_path)
    await fixture.publish()
    yield fixture
    await fixture.server.close()
    fixture.keeper.close()


@pytest.fixture
def null() -> Iterator[int]:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


async def answered(ours: socket.socket) -> None:
    """A round trip: everything sent before has been dealt with, and the session goes on."""
    await send(ours, type="ENDING")
    while (frame := await receive(ours)) is not None and frame["type"] != "END":
        pass
    assert frame is not None


async def test_descriptors_that_nobody_asked_for_are_closed(pod: Pod, null: int) -> None:
    with await pod.session() as ours:
        await answered(ours)
        before = descriptors()
        for fds in ((null,), (null, null), (null,) * 4):
            await send(ours, fds, type="BEAT", volumes=[])
            await send(ours, fds, type="LATER")
            await send(ours, fds, type="READY", volume="v", gen=1)
        await answered(ours)
        assert descriptors() == before


async def test_more_descriptors_than_anybody_may_send_are_dropped(pod: Pod, null: int) -> None:
    with await pod.session() as ours:
        await answered(ours)
        before = descriptors()
        await send(ours, (null,) * 50, type="DEPOSIT", volume="v", gen=1, fds=1, init=INIT.to_json())
        await answered(ours)
        assert descriptors() == before
        assert len(pod.keeper) == 0


async def test_descriptors_before_hello_are_closed(pod: Pod, null: int) -> None:
    before = descriptors()
    with await pod.connect() as ours:
        await send(ours, (null, null), type="HELLO", proto=[2], session="s", sidecarVersion="0")
        assert (await receive(ours) or {})["type"] == "WELCOME"
    await until(lambda: pod.server.sessions() == 0)
    # The pidfd of the last session's process stays, to prove its death.
    await until(lambda: descriptors() <= before + 1)


@pytest.mark.parametrize("what", ["null", "fuse", "none"])
async def test_only_the_volumes_own_connection_is_kept(pod: Pod, what: str, caplog: pytest.LogCaptureFixture) -> None:
    with await pod.session() as ours:
        await send(ours, type="READY", volume="v", gen=1)
        await answered(ours)
        before = descriptors()
        wrong = os.open("/dev/fuse" if what == "fuse" and os.path.exists("/dev/fuse") else "/dev/null", os.O_RDWR)
        try:
            fds = () if what == "none" else (wrong,)
            await send(ours, fds, type="DEPOSIT", volume="v", gen=1, fds=1, init=INIT.to_json())
            await answered(ours)
        finally:
            os.close(wrong)
        assert len(pod.keeper) == 0
        assert descriptors() == before
    assert caplog.text.count("is not kept" if what != "none" else "is dropped") == 1


async def test_a_flood_is_read_at_a_pace_and_others_are_served(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "BURST", 5.0)
    monkeypatch.setattr(connection_module, "RATE", 20.0)
    with await pod.session() as ours:
        await receive(ours)
        beat = json.dumps({"type": "BEAT", "volumes": [], "padding": "x" * 1000}).encode()
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 5000:
                sent += ours.send(beat) // len(beat)
        # The kernel holds a few hundred, no more are taken; publishes of the same pod go on meanwhile.
        assert sent < 5000
        async with asyncio.timeout(5):
            await pod.publish("w")
        assert (await receive(ours) or {})["volume"] == "w"


async def test_the_pace_counts_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    reader = connection_module.Connection(theirs)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for _ in range(3):
            ours.send(b"x" * 100_000)
            packet = await reader.receive()
            assert len(packet.data) == 100_000
        assert reader._allowance == pytest.approx(connection_module.BURST - 3 * 7, abs=3)
    finally:
        reader.close()
        ours.close()


async def test_too_many_connections_of_a_pod_are_closed(pod: Pod) -> None:
    first = await pod.session()
    others = [await pod.connect() for _ in range(20)]
    try:
        await until(lambda: len(pod.server._pods[UID].tasks) <= server._MOST_CONNECTIONS)
        await answered(first)
    finally:
        for each in (first, *others):
            each.close()
    await until(lambda: pod.server.sessions() == 0)
    with await pod.session() as again:
        await answered(again)


async def test_a_process_of_another_pod_is_refused(pod: Pod, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = tmp_path / "proc" / str(os.getpid())
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(f"0::/kubepods/pod{OTHER}/abc\n")
    monkeypatch.setattr(sessions, "authenticate", lambda c, uid: authenticate(c, uid, tmp_path / "proc"))
    with await pod.connect() as ours:
        await send(ours, type="HELLO", proto=[1, 2], session="s", sidecarVersion="0")
        assert await receive(ours) is None
    assert pod.server.sessions() == 0


CLIENT = """
import json, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
s.send(json.dumps({"type": "HELLO", "proto": [1, 2], "session": sys.argv[2], "sidecarVersion": "0"}).encode())
while packet := s.recv(1 << 20):
    print(json.loads(packet)["type"], flush=True)
    if sys.argv[3] == "hang up":
        s.close()
        sys.stdin.read()
        break
print("end", flush=True)
"""


class Process:
    """A sidecar that is a process of its own."""

    def __init__(self, pod: Pod, session: str, then: str = "") -> None:
        path = f"{pod.layout.absolute(pod.layout.pod(UID))}/s"
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CLIENT, path, session, then],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def line(self) -> str:
        assert self.process.stdout is not None
        return (await asyncio.to_thread(self.process.stdout.readline)).strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


async def test_a_second_sidecar_is_not_heard_while_the_first_ones_process_lives(
    pod: Pod, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "FORMER_ENDS_WITHIN", 0.3)
    first = Process(pod, "s1", "hang up")
    second = third = None
    try:
        assert await first.line() == "WELCOME"
        await until(lambda: pod.server.sessions() == 0)
        second = Process(pod, "s2")
        assert (await second.line(), await second.line()) == ("REFUSED", "end")
        # Stolen name of a session: another process is another sidecar.
        third = Process(pod, "s1")
        assert await third.line() == "REFUSED"
        third.end()
        monkeypatch.setattr(sessions, "FORMER_ENDS_WITHIN", 10.0)
        third = Process(pod, "s3")
        await until(lambda: len(pod.server._pods[UID].tasks) == 1)
        os.kill(first.process.pid, signal.SIGKILL)
        assert (await third.line(), await third.line()) == ("WELCOME", "ATTACH")
    finally:
        for each in (first, second, third):
            if each is not None:
                each.end()


async def test_the_last_process_is_proven_dead_by_a_descriptor_not_by_its_number(pod: Pod) -> None:
    first = Process(pod, "s1")
    try:
        assert await first.line() == "WELCOME"
        peer = pod.server._pods[UID].peer
        assert peer is not None
        assert (peer.pid, peer.is_dead()) == (first.process.pid, False)
    finally:
        first.end()
    assert peer.is_dead()


def test_a_packet_with_descriptors_is_close_on_exec_from_the_start(null: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        passing.send(ours, b"x", [null])
        packet = passing.receive(theirs, 10)
        assert not os.get_inheritable(packet.descriptors[0])
        taken = packet.take()
        os.close(taken)
        with pytest.raises(ValueError, match="exactly one"):
            packet.take()
        passing.send(ours, b"x", [null, null])
        packet = passing.receive(theirs, 10)
        with pytest.raises(ValueError, match="exactly one"):
            packet.take()
        packet.close()
        assert packet.descriptors == []


def test_what_is_no_fuse_descriptor(null: int) -> None:
    assert not is_fuse_device(null)
    read, write = os.pipe()
    try:
        assert not is_fuse_device(read)
    finally:
        os.close(read)
        os.close(write)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        is_fuse_device(read)
    assert is_connected(null)


# --- which processes of a pod live -------------------------------------------------------------------------------


class Proc:
    """A /proc with a few processes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, pid: int, cgroup: str, comm: str = "app", state: str = "S", cmdline: bytes = b"/app\0-x\0") -> None:
        place = self.root / str(pid)
        place.mkdir()
        (place / "cgroup").write_text(cgroup)
        (place / "comm").write_text(f"{comm}\n")
        (place / "cmdline").write_bytes(cmdline)
        (place / "stat").write_text(f"{pid} ({comm}) {state} 1 1")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    root = tmp_path / "proc"
    root.mkdir()
    (root / "self").mkdir()
    made = Proc(root)
    made.add(1, "0::/init.scope\n")
    made.add(2, f"0::/kubepods/pod{OTHER}/zzz\n")
    made.add(3, f"0::/kubepods/pod{UID}/sandbox\n", "pause", cmdline=b"/pause\0")
    made.add(4, f"0::/kubepods/pod{UID}/sidecar\n")
    return made


SPELLINGS = pytest.mark.parametrize(
    "pattern",
    [
        f"0::/kubepods/burstable/pod{UID}/{{}}\n",
        f"5:memory:/kubepods/pod{UID}/{{}}\n1:name=systemd:/kubepods/pod{UID}/{{}}\n",
        f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{{}}.scope\n",
        f"0::/outer/pod{OTHER}/x/kubepods/pod{UID}/{{}}\n",
    ],
)


@SPELLINGS
def test_containers_are_told_apart_by_their_cgroups(pattern: str) -> None:
    first, second = container(pattern.replace("{}", "aaa"), UID), container(pattern.replace("{}", "bbb"), UID)
    assert first is not None
    assert second is not None
    assert first != second
    assert container("0::/init.scope\n", UID) is None
    assert container(f"0::/kubepods/pod{OTHER}/a\n", UID) is None
    assert container(f"0::/kubepods/pod{UID}\n", UID) is None


def test_a_pod_whose_application_is_gone_ends(proc: Proc) -> None:
    own = f"0::/kubepods/pod{UID}/sidecar\n"
    assert not others_live(UID, own, proc.root)
    proc.add(5, f"0::/kubepods/pod{UID}/app\n", state="Z")
    assert not others_live(UID, own, proc.root)
    proc.add(6, f"0::/kubepods/pod{UID}/app\n")
    assert others_live(UID, own, proc.root)
    found = {name: sorted(pids) for name, pids in containers(UID, proc.root).items()}
    assert found == {"sidecar": [4], "app": [5, 6]}


def test_an_application_called_pause_is_one(proc: Proc) -> None:
    proc.add(7, f"0::/kubepods/pod{UID}/app\n", "pause", cmdline=b"/bin/pause\0--for\0ever\0")
    assert others_live(UID, f"0::/kubepods/pod{UID}/sidecar\n", proc.root)


def test_where_cgroups_tell_nothing_the_pod_ends(proc: Proc) -> None:
    proc.add(6, f"0::/kubepods/pod{UID}/app\n")
    assert not others_live(UID, "0::/\n", proc.root)
