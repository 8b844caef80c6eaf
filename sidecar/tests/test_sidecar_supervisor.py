"""The supervisor as a process, with a fake worker and a node service played by the test. No mounts, no privileges."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jfs.sidecar.actions import Start
from jfs.sidecar.supervisor import Supervisor
from test_sidecar_frames import packets

HERE = Path(__file__).parent
RUN = (
    "import sys; from jfs.sidecar.supervisor import main;"
    "sys.exit(main(['--control', sys.argv[1]], worker=lambda: [sys.executable, *sys.argv[2:]]))"
)
PATIENCE = 20.0
WELCOME = {"type": "WELCOME", "proto": 1, "node": "node-1", "podUID": "uid"}


class Pod:
    """A control directory, the node service's listening socket in it, and the supervisor."""

    def __init__(self, control: Path) -> None:
        self.control = control
        (control / "volumes").mkdir(parents=True)
        self.listener: socket.socket | None = None
        self.connection: socket.socket | None = None
        self.process: subprocess.Popen[str] | None = None
        self.log = control.parent / "log"

    def listen(self) -> None:
        path = self.control / "s"
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        descriptor = os.open(self.control, os.O_PATH)
        self.listener.bind(f"/proc/self/fd/{descriptor}/s")
        os.close(descriptor)
        self.listener.listen()
        self.listener.settimeout(PATIENCE)

    def start(self, **environment: str) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, str(self.control), str(HERE / "sidecar_fake_worker.py")],
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    "JFS_GRACE_SECONDS": "20",
                    "JFS_STATE": str(self.control.parent),
                    **environment,
                },
            )

    def accept(self) -> dict[str, Any]:
        """The supervisor's next connection; its HELLO."""
        assert self.listener is not None
        self.hang_up()
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(PATIENCE)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        hello = self.receive()
        assert hello["type"] == "HELLO"
        return hello

    def welcome(self) -> dict[str, Any]:
        hello = self.accept()
        self.send(WELCOME)
        return hello

    def send(self, frame: dict[str, Any] | bytes) -> None:
        assert self.connection is not None
        self.connection.send(frame if isinstance(frame, bytes) else json.dumps(frame).encode())

    def receive(self) -> dict[str, Any]:
        assert self.connection is not None
        packet = self.connection.recv(1 << 20)
        assert packet, f"the supervisor closed the connection\n{self.log.read_text()}"
        return dict(json.loads(packet))

    def attach(self, volume: str, generation: int, *options: str) -> None:
        (self.control / "volumes" / volume).mkdir(exist_ok=True)
        self.send(
            {
                "type": "ATTACH",
                "volume": volume,
                "gen": generation,
                "mode": "privileged",
                "mountpoint": f"volumes/{volume}",
                "readOnly": False,
                "config": {"options": list(options)},
                "secrets": {"metaurl": str(self.report(volume)), "secret-key": "hush-hush"},
            }
        )

    def report(self, volume: str) -> Path:
        """Where the fake worker writes what it was given."""
        return self.control.parent / f"{volume}.report"

    def given(self, volume: str) -> dict[str, Any]:
        return dict(json.loads(self.report(volume).read_text()))

    def until_logged(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, f"not logged: {text}\n{self.log.read_text()}"
            time.sleep(0.01)

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.hang_up()
        if self.listener is not None:
            self.listener.close()
        if self.process is not None and self.process.poll() is None:
            for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
            self.process.kill()
            self.process.wait(PATIENCE)


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    pod = Pod(tmp_path / "control")
    yield pod
    pod.close()


@pytest.fixture
def connected(pod: Pod) -> Pod:
    pod.listen()
    pod.start()
    pod.welcome()
    return pod


def test_attach_ready_quiesce_detach(connected: Pod) -> None:
    pod = connected
    pod.attach("v", 1, "cache-size=1")
    assert pod.receive() == {"type": "READY", "volume": "v", "gen": 1}
    given = pod.given("v")
    assert given["document"]["mountpoint"] == str(pod.control / "volumes/v")
    assert given["document"]["options"] == ["cache-size=1"]
    assert given["document"]["storage"] == {"secret_key": "hush-hush"}
    assert given["document"]["replace"] is False
    assert "hush-hush" not in json.dumps([given["argv"], given["environment"]])
    pod.send({"type": "QUIESCE", "volume": "v", "gen": 1, "deadlineMs": 1000})
    assert pod.receive() == {"type": "FLUSHED", "volume": "v", "gen": 1, "dirtyBytes": 0}
    pod.send({"type": "DETACH", "volume": "v", "gen": 1})
    assert pod.receive() == {"type": "DETACHED", "volume": "v", "gen": 1}
    assert not Path(f"/proc/{given['pid']}").exists()
    assert pod.terminate() == 0
    assert "hush-hush" not in pod.log.read_text()


def test_the_socket_may_come_later(pod: Pod) -> None:
    pod.start()
    pod.until_logged("cannot be reached")
    pod.listen()
    hello = pod.welcome()
    assert (hello["proto"], hello["attached"]) == ([1, 2], [])
    assert pod.terminate() == 0
    assert pod.log.read_text().count("cannot be reached") == 1


def test_errors_of_workers_reach_the_node_service(connected: Pod) -> None:
    pod = connected
    pod.attach("v", 1, "fail=WrongCredentials")
    error = pod.receive()
    assert (error["type"], error["code"], error["message"], error["retryable"]) == (
        "ERROR",
        "WrongCredentials",
        "No such volume.",
        False,
    )
    pod.attach("v", 2, "die")
    error = pod.receive()
    assert (error["gen"], error["code"], error["retryable"]) == (2, "WorkerEnded", True)
    assert "exit status 3" in error["message"]
    pod.attach("v", 3, "chatter")
    assert pod.receive()["type"] == "READY"
    assert pod.log.read_text().count("not an event") == 2


def test_a_killed_worker_is_reported_as_a_lost_mount(connected: Pod) -> None:
    pod = connected
    pod.attach("v", 1)
    assert pod.receive()["type"] == "READY"
    os.kill(pod.given("v")["pid"], signal.SIGKILL)
    error = pod.receive()
    assert (error["code"], error["message"]) == ("MountLost", "the client ended by signal 9")
    pod.attach("v", 2)
    assert pod.receive() == {"type": "READY", "volume": "v", "gen": 2}


def test_a_worker_that_dies_while_flushing_does_not_hang_the_node_service(connected: Pod) -> None:
    pod = connected
    pod.attach("v", 1, "die-later")
    pod.receive()
    pod.send({"type": "QUIESCE", "volume": "v", "gen": 1, "deadlineMs": 1000})
    assert {pod.receive()["type"], pod.receive()["type"]} == {"ERROR", "FLUSHED"}


def test_a_newer_generation_replaces_the_worker(connected: Pod) -> None:
    pod = connected
    pod.attach("v", 1)
    pod.receive()
    former = pod.given("v")["pid"]
    pod.attach("v", 2)
    assert pod.receive() == {"type": "READY", "volume": "v", "gen": 2}
    assert pod.given("v")["pid"] != former
    assert not Path(f"/proc/{former}").exists()


def test_mounts_outlive_the_connection(connected: Pod) -> None:
    pod = connected
    pod.attach("v", 3)
    pod.receive()
    worker = pod.given("v")["pid"]
    first = pod.accept  # the node service is started again
    hello = first()
    assert hello["attached"] == [{"volume": "v", "gen": 3}]
    pod.send(WELCOME)
    os.kill(worker, 0)
    # The worker dies while nobody is connected: the next HELLO does not list it.
    pod.hang_up()
    os.kill(worker, signal.SIGKILL)
    pod.until_logged("by signal 9")
    hello = pod.accept()
    while hello["attached"]:  # it may have connected again before the worker's end was seen
        hello = pod.accept()
    assert hello["attached"] == []


def test_termination_flushes_all_volumes(connected: Pod) -> None:
    pod = connected
    for volume in ("v", "w"):
        pod.attach(volume, 1)
        pod.receive()
    assert pod.terminate() == 0
    assert not any(Path(f"/proc/{pod.given(volume)['pid']}").exists() for volume in ("v", "w"))


def test_a_worker_that_ignores_the_end_is_killed_at_the_deadline(pod: Pod) -> None:
    pod.listen()
    pod.start(JFS_GRACE_SECONDS="0.2")
    pod.welcome()
    pod.attach("v", 1, "stubborn")
    pod.receive()
    assert pod.terminate() == 0
    assert "is killed" in pod.log.read_text()


def test_refusal_is_logged_and_tried_again(pod: Pod) -> None:
    pod.listen()
    pod.start()
    pod.accept()
    pod.send({"type": "REFUSED", "message": "Use images of the same release."})
    pod.until_logged("Use images of the same release.")
    pod.welcome()


@pytest.mark.parametrize(
    ("packet", "says", "after"), packets("truncated.json", "oversized.json", "out_of_order.json", "wrong_proto.json")
)
def test_a_broken_protocol_closes_the_connection_with_one_sentence(
    pod: Pod, packet: bytes, says: str, after: list[dict[str, Any]]
) -> None:
    pod.listen()
    pod.start()
    pod.accept()
    before = after or ([] if "WELCOME" in says or b'"proto": 3' in packet else [WELCOME])
    for frame in before:
        pod.send(frame)
    pod.send(packet)
    assert pod.connection is not None
    with contextlib.suppress(ConnectionResetError):
        assert pod.connection.recv(1 << 20) == b""
    pod.until_logged(says)
    # It comes back, and nothing was started.
    pod.welcome()
    assert not pod.report("pv-1").exists()


def test_unknown_frames_are_ignored(connected: Pod) -> None:
    pod = connected
    pod.send({"type": "NOVELTY", "volume": "v"})
    pod.attach("v", 1)
    assert pod.receive()["type"] == "READY"
    assert "type NOVELTY is unknown here and ignored" in pod.log.read_text()


def test_orphans_are_reaped(connected: Pod) -> None:
    """As process 1 the supervisor inherits children it never started; a subreaper is the same without a container."""
    pod = connected
    pod.attach("v", 1)
    pod.receive()
    assert pod.process is not None
    os.kill(pod.given("v")["pid"], signal.SIGKILL)
    assert pod.receive()["type"] == "ERROR"
    children = Path(f"/proc/{pod.process.pid}/task/{pod.process.pid}/children").read_text()
    assert children == ""


def test_a_large_document_reaches_the_worker(connected: Pod) -> None:
    pod = connected
    (pod.control / "volumes" / "v").mkdir()
    envs = {f"KEY_{number}": "x" * 1000 for number in range(150)}
    pod.send(
        {
            "type": "ATTACH",
            "volume": "v",
            "gen": 1,
            "mode": "privileged",
            "mountpoint": "volumes/v",
            "readOnly": False,
            "config": {"options": []},
            "secrets": {"metaurl": str(pod.report("v")), "envs": envs},
        }
    )
    assert pod.receive()["type"] == "READY"
    assert pod.given("v")["document"]["envs"] == envs


@pytest.mark.parametrize(("dead", "replace", "cleared"), [(0, False, 0), (1, True, 0), (15, True, 0), (16, False, 1)])
def test_a_new_mount_goes_on_top_of_dead_ones_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dead: int, replace: bool, cleared: int
) -> None:
    calls: list[str] = []

    def clear(path: str) -> int:
        calls.append(path)
        return dead

    monkeypatch.setattr("jfs.sidecar.supervisor.mounts.kinds_at", lambda _path: ["fuse.juicefs"] * dead)
    monkeypatch.setattr("jfs.sidecar.supervisor.mounts.clear", clear)
    said = tmp_path / "said"
    supervisor = Supervisor(str(tmp_path), ["/bin/sh", "-c", f"head -n 1 > {said}.new; mv {said}.new {said}"], 1.0)
    supervisor._do([Start("v", 1, "volumes/v", {})])
    worker = supervisor._workers._workers["v"]
    os.waitpid(worker.pid, 0)
    worker.close()
    supervisor._selector.close()
    assert json.loads(said.read_text()) == {"mountpoint": f"{tmp_path}/volumes/v", "replace": replace}
    assert calls == [f"{tmp_path}/volumes/v"] * cleared


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [
        (["--control", "/no/such"], {}, "is not a directory"),
        ([], {}, "--control"),
        (["--control", "/"], {"JFS_GRACE_SECONDS": "soon"}, "is not a number of seconds"),
    ],
)
def test_bad_arguments(arguments: list[str], environment: dict[str, str], sentence: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import sys; from jfs.sidecar.supervisor import main; sys.exit(main())", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=PATIENCE,
        check=False,
    )
    assert result.returncode == 2
    assert sentence in result.stderr


def test_only_the_standard_library_is_imported() -> None:
    """It lives in every pod: what it imports is memory of every pod."""
    check = (
        "import sys; import jfs.sidecar.supervisor, jfs.sidecar.ready;"
        "names = {name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names);"
        "print(sorted(name for name in names if not name.startswith(('_', 'sitecustomize'))));"
        "print(sorted(name for name in sys.modules if name.startswith('jfs.')));"
        "print('asyncio' in sys.modules, 'dataclasses' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    first, second, third = output.splitlines()
    assert first == "['jfs']"
    assert all(name.startswith(("'jfs.sidecar", "jfs.sidecar")) for name in second.strip("[]").split(", "))
    assert third == "False False"
