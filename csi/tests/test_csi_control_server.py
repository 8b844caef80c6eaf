"""The control sockets with real connections: sessions, refusals, and the shared packets that break the protocol."""

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from csi_frame_cases import Case, cases
from jfs_csi.control import frames
from jfs_csi.control.peer import ForeignPeer, authenticate, belongs
from jfs_csi.control.server import ControlServer
from jfs_csi.directories import Tree
from jfs_csi.fuse.custody import Custody
from jfs_csi.fuse.keeper import Keeper
from jfs_csi.layout import Layout
from jfs_csi.mounts import FuseConnections
from jfs_csi.state import DATA, StateStore, VolumeState

UID = "8f5c1a2e-0d5b-4a53-9f3b-2d8d3f6c1a77"
OTHER = "11111111-2222-3333-4444-555555555555"
HELLO = {"type": "HELLO", "proto": [1], "session": "s1", "sidecarVersion": "0.1"}
SECRETS = {"metaurl": "redis://db/1"}


class Fixture:
    """A control server with one pod."""

    def __init__(self, base: Path) -> None:
        self.tree, self.layout = Tree(base), Layout(base)
        self.states = StateStore(self.tree, self.layout)
        self.notified: list[tuple[str, str]] = []
        self.keeper = Keeper()
        self.custody = Custody(self.tree, self.layout, self.states, self.keeper, FuseConnections())
        self.server = ControlServer(
            self.tree,
            self.layout,
            self.states,
            "node-1",
            lambda reason, _pod, volume, _: self.notified.append((reason, volume)),
            self.custody,
        )

    async def listen(self) -> None:
        async with self.server.lock(UID):
            await self.server.listen(UID)

    async def publish(self, volume: str, secrets: dict[str, Any] | None = None) -> None:
        if self.states.get(UID, volume) is None:
            self.states.save(VolumeState(UID, volume, DATA, "handle", f"/target/{volume}", persistent=True))
        async with self.server.lock(UID):
            await self.server.published(UID, volume, False, (), secrets or SECRETS)

    async def connect(self) -> "Client":
        client = Client()
        directory = os.open(self.layout.absolute(self.layout.pod(UID)), os.O_PATH)
        try:
            await asyncio.get_running_loop().sock_connect(client.socket, f"/proc/self/fd/{directory}/s")
        finally:
            os.close(directory)
        return client


class Client:
    """A sidecar's end."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * frames.LIMIT)

    async def send(self, frame: dict[str, Any] | bytes) -> None:
        packet = frame if isinstance(frame, bytes) else json.dumps(frame).encode()
        await asyncio.get_running_loop().sock_sendall(self.socket, packet)

    async def receive(self) -> dict[str, Any] | None:
        """The next frame; None at the end of the connection."""
        async with asyncio.timeout(10):
            try:
                packet = await asyncio.get_running_loop().sock_recv(self.socket, frames.LIMIT + 1)
            except ConnectionResetError:
                return None  # closed with our packet unread
        return None if not packet else dict(json.loads(packet))

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Fixture]:
    fixture = Fixture(tmp_path)
    await fixture.listen()
    yield fixture
    await fixture.server.close()
    fixture.keeper.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the state of another task, which announces nothing
            await asyncio.sleep(0.01)


async def test_a_session(pod: Fixture) -> None:
    await pod.publish("v")
    async with await pod.connect() as client:
        await client.send(HELLO)
        assert await client.receive() == {"type": "WELCOME", "proto": 1, "node": "node-1", "podUID": UID}
        attach = await client.receive()
        assert attach is not None
        assert (attach["type"], attach["gen"], attach["secrets"]) == ("ATTACH", 1, SECRETS)
        await client.send({"type": "READY", "volume": "v", "gen": 1})
        await until(lambda: pod.notified == [("JuiceFSMounted", "v")])
        state = pod.states.get(UID, "v")
        assert state is not None
        assert (state.generation, state.ready) == (1, True)
        assert (pod.server.attached(), pod.server.sessions()) == (1, 1)
        [entry] = pod.server.attachments()
        assert (entry.volume, entry.pod_uid, entry.state, entry.generation) == ("v", UID, "Attached", 1)
        assert entry.since
        await pod.publish("w")
        later = await client.receive()
        assert later is not None
        assert (later["type"], later["volume"]) == ("ATTACH", "w")
    await until(lambda: pod.server.sessions() == 0)
    assert {(entry.volume, entry.state) for entry in pod.server.attachments()} == {("v", "Waiting"), ("w", "Pending")}
    await pod.server.release(UID, "v", 5.0)
    assert [entry.volume for entry in pod.server.attachments()] == ["w"]


async def test_release_asks_for_flush_and_detach(pod: Fixture) -> None:
    await pod.publish("v")
    async with await pod.connect() as client:
        await client.send({**HELLO, "attached": [{"volume": "v", "gen": 5}]})
        await client.receive()
        release = asyncio.create_task(pod.server.release(UID, "v", 5.0))
        assert await client.receive() == {"type": "QUIESCE", "volume": "v", "gen": 5, "deadlineMs": 5000}
        await client.send({"type": "FLUSHED", "volume": "v", "gen": 5, "dirtyBytes": 0})
        assert await client.receive() == {"type": "DETACH", "volume": "v", "gen": 5}
        await client.send({"type": "DETACHED", "volume": "v", "gen": 5})
        async with asyncio.timeout(10):
            await release


async def test_release_ends_at_its_deadline_and_when_the_sidecar_dies(pod: Fixture) -> None:
    await pod.publish("v")
    await pod.publish("w")
    async with await pod.connect() as client:
        await client.send({**HELLO, "attached": [{"volume": "v", "gen": 5}, {"volume": "w", "gen": 1}]})
        await client.receive()
        async with asyncio.timeout(10):
            await pod.server.release(UID, "v", 0.05)  # nobody answers
        assert pod.notified[-1] == ("JuiceFSForcedUnmount", "v")
        release = asyncio.create_task(pod.server.release(UID, "w", 60.0))
        assert (await client.receive() or {})["volume"] == "v"
        assert (await client.receive() or {})["volume"] == "w"
    async with asyncio.timeout(10):
        await release
        await pod.server.release(UID, "no such volume", 60.0)


async def test_two_sidecars_at_once(pod: Fixture) -> None:
    async with await pod.connect() as first, await pod.connect() as second:
        await first.send(HELLO)
        assert (await first.receive() or {})["type"] == "WELCOME"
        await second.send({**HELLO, "session": "s2"})
        refused = await second.receive()
        assert refused is not None
        assert refused["type"] == "REFUSED"
        assert await second.receive() is None
        await first.send({"type": "BEAT", "volumes": []})
        # The same sidecar again: its older connection is over.
        async with await pod.connect() as again:
            await again.send(HELLO)
            assert (await again.receive() or {})["type"] == "WELCOME"
            assert await first.receive() is None
            assert pod.server.sessions() == 1


@pytest.mark.parametrize(
    "case", [*cases("truncated.json", "node"), *cases("oversized.json", "node"), *cases("out_of_order.json", "node")]
)
async def test_a_broken_protocol_closes_with_one_sentence(
    pod: Fixture, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    async with await pod.connect() as client:
        before = case.after
        if "first frame" not in case.says and not before:
            before = [HELLO]
        for frame in before:
            await client.send(frame)
            assert await client.receive() is not None
        await client.send(case.packet)
        assert await client.receive() is None
    await until(lambda: pod.server.sessions() == 0)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert case.says in warnings[0]


@pytest.mark.parametrize("case", cases("wrong_proto.json", "node"))
async def test_another_protocol_is_refused(pod: Fixture, case: Case) -> None:
    async with await pod.connect() as client:
        await client.send(case.packet)
        refused = await client.receive()
        assert refused is not None
        assert refused["type"] == "REFUSED"
        assert case.says in refused["message"]
        assert await client.receive() is None


@pytest.mark.parametrize("case", cases("unknown.json", "node"))
async def test_unknown_types_are_ignored_with_one_line(
    pod: Fixture, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with await pod.connect() as client:
        await client.send(HELLO)
        await client.receive()
        for _ in range(3):
            await client.send(case.packet)
        await pod.publish("v")
        assert (await client.receive() or {})["type"] == "ATTACH"
        await client.send({"type": "READY", "volume": "v", "gen": 1})
        await until(lambda: pod.notified)
    assert caplog.text.count("unknown here and ignored") == 1


async def test_a_retry_comes_after_its_delay(pod: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jfs_csi.control.pod.RETRY_FIRST", 0.01)
    await pod.publish("v")
    async with await pod.connect() as client:
        await client.send(HELLO)
        await client.receive()
        await client.receive()
        await client.send({"type": "ERROR", "volume": "v", "gen": 1, "code": "c", "message": "m", "retryable": True})
        assert (await client.receive() or {})["gen"] == 2
    assert pod.notified == [("JuiceFSMountFailed", "v")]


async def test_a_large_secret_fits_a_packet(pod: Fixture) -> None:
    async with await pod.connect() as client:
        await client.send(HELLO)
        await client.receive()
        await pod.publish("v", {**SECRETS, "envs": {"A": "x" * 150_000}})
        attach = await client.receive()
        assert attach is not None
        assert len(attach["secrets"]["envs"]["A"]) == 150_000


async def test_a_successor_listens_on_the_same_path(pod: Fixture, tmp_path: Path) -> None:
    await pod.server.close()
    successor = Fixture(tmp_path)
    await successor.listen()
    try:
        async with await successor.connect() as client:
            await client.send(HELLO)
            assert (await client.receive() or {})["type"] == "WELCOME"
    finally:
        await successor.server.close()


async def test_closing_the_pod_removes_its_socket(pod: Fixture) -> None:
    path = Path(pod.layout.absolute(pod.layout.pod(UID))) / "s"
    assert path.stat().st_mode & 0o777 == 0o666
    assert path.parent.stat().st_mode & 0o777 == 0o711
    async with await pod.connect() as client:
        await client.send(HELLO)
        await client.receive()
        async with pod.server.lock(UID):
            await pod.server.close_pod(UID)
        assert await client.receive() is None
    assert not path.exists()


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        (f"0::/kubepods/burstable/pod{UID}/abc\n", True),
        (f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-abc.scope\n", True),
        (f"0::/../../pod{UID}/abc\n", True),
        (f"4:memory:/kubepods/pod{OTHER}/x/kubelet/kubepods/pod{UID}/y\n", True),
        ("0::/\n", False),
        ("0::/user.slice/session.scope\n", False),
    ],
)
def test_a_cgroup_that_names_the_pod_or_none(cgroup: str, expected: bool) -> None:
    assert belongs(cgroup, UID) is expected


def test_a_cgroup_of_another_pod_is_refused() -> None:
    with pytest.raises(ForeignPeer, match="belongs to pod"):
        belongs(f"0::/kubepods/pod{OTHER}/abc\n", UID)


def test_peers_are_identified_by_their_process(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        process = tmp_path / str(os.getpid())
        process.mkdir()
        (process / "cgroup").write_text(f"0::/kubepods/pod{UID}/abc\n")
        peer = authenticate(ours, UID, tmp_path)
        assert (peer.pid, peer.proven) == (os.getpid(), True)
        with pytest.raises(ForeignPeer):
            authenticate(ours, OTHER, tmp_path)
        (process / "cgroup").unlink()
        with pytest.raises(ForeignPeer, match="cannot be identified"):
            authenticate(ours, UID, tmp_path)
