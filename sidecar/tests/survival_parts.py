"""A pod's sidecar on this machine: the real supervisor with real workers, and a node service played by the test, which keeps the
deposited descriptor. Nothing else of Kubernetes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mount_parts import eventually, is_mounted, run

VOLUME = "pv"
PROGRAM = ("-m", "jfs", "sidecar")


class Keeper:
    """The node service's end of the control socket. Frames are collected by a thread; the newest deposit is kept."""

    def __init__(self, directory: Path, *, keep: bool = False) -> None:
        self.directory = directory
        (directory / "volumes" / VOLUME).mkdir(parents=True)
        self.frames: list[dict[str, Any]] = []
        self.deposit: tuple[int, dict[str, Any]] | None = None
        self.keep = keep  # the answer to ENDING
        self.generation = 0
        self._connection: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(directory / "s"))
        self._listener.listen()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(ConnectionError):
                    self._hear(connection)

    def _hear(self, connection: socket.socket) -> None:
        while True:
            packet, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
            if not packet:
                return
            frame = json.loads(packet)
            with self._changed:
                if frame["type"] == "HELLO":
                    self._connection = connection
                    welcome = {"type": "WELCOME", "proto": 2, "node": "n", "podUID": "u"}
                    connection.send(json.dumps(welcome).encode())
                elif frame["type"] == "DEPOSIT":
                    self._replace_deposit(descriptors[0], frame["init"])
                elif frame["type"] == "ENDING":
                    connection.send(json.dumps({"type": "END", "keep": self.keep}).encode())
                self.frames.append(frame)
                self._changed.notify_all()

    def _replace_deposit(self, descriptor: int, init: dict[str, Any]) -> None:
        if self.deposit is not None:
            os.close(self.deposit[0])
        self.deposit = descriptor, init

    def wait(self, kind: str, after: int = 0) -> dict[str, Any]:
        """The first frame of that type after the first *after* frames."""
        deadline = time.monotonic() + 30.0
        with self._changed:
            while True:
                for frame in self.frames[after:]:
                    if frame["type"] == kind:
                        return frame
                    assert frame["type"] != "ERROR" or kind == "ERROR", frame
                left = deadline - time.monotonic()
                assert left > 0, f"no {kind}: {self.frames}"
                self._changed.wait(left)

    def send(self, frame: dict[str, Any], *descriptors: int) -> None:
        assert self._connection is not None
        socket.send_fds(self._connection, [json.dumps(frame).encode()], descriptors)

    def attach(self, url: str, *options: str, restricted: bool = False, resume: bool = True) -> None:
        """ATTACH of the next generation, with the deposited connection if there is one."""
        self.generation += 1
        descriptors = () if self.deposit is None else (self.deposit[0],)
        self.send(
            {
                "type": "ATTACH",
                "volume": VOLUME,
                "gen": self.generation,
                "mode": "restricted" if restricted else "privileged",
                "mountpoint": "" if restricted else f"volumes/{VOLUME}",
                "readOnly": False,
                "config": {"options": list(options)},
                "secrets": {"metaurl": url},
                "fds": len(descriptors),
                "init": None if self.deposit is None else self.deposit[1],
                "resume": self.deposit is not None and resume,
            },
            *descriptors,
        )

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        if self.deposit is not None:
            os.close(self.deposit[0])


class Sidecar:
    """The supervisor as a process; its workers are its children."""

    process: "subprocess.Popen[bytes]"

    def __init__(self, keeper: Keeper, state: Path, program: tuple[str, ...] = PROGRAM, **environment: str) -> None:
        self.keeper = keeper
        self._program = program
        self.log = keeper.directory / "log"
        self._environment = environment
        self.start(state)

    def start(self, state: Path, *prefix: str) -> None:
        """Start it, for the first time or in place of one that has ended. The caller has nothing open in the mount: the new
        process would close it before it serves."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, *self._program, "--control", str(self.keeper.directory)],
                stdout=log,
                stderr=log,
                env={**os.environ, "JFS_STATE": str(state), **self._environment},
            )

    @property
    def worker(self) -> int | None:
        """The process that serves the volume, as far as it can be told: a child that is not the zygote."""
        with contextlib.suppress(OSError, IndexError):
            pid = self.process.pid
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                if self._is_worker(child):
                    return int(child)
        return None

    def _is_worker(self, pid: str) -> bool:
        """Only workers have the FUSE connection open."""
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/fuse":
                        return True
        return False

    def kill_worker(self) -> None:
        """SIGKILL to the worker, once there is one."""
        pid = eventually(lambda: self.worker, f"a worker serves: {self.log.read_text()}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def kill(self) -> None:
        """As the end of the container: everything dies at once."""
        self.process.kill()
        self.process.wait(30)
        eventually(lambda: self.worker is None, "the workers die with their supervisor")

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


@contextlib.contextmanager
def sidecar(
    tmp_path: Path, url: str, *options: str, program: tuple[str, ...] = PROGRAM, **environment: str
) -> Iterator[tuple[Keeper, Sidecar, Path]]:
    """A volume mounted by a sidecar in privileged mode: the keeper, the sidecar and the mountpoint."""
    keeper = Keeper(tmp_path / "control")
    where = keeper.directory / "volumes" / VOLUME
    state = tmp_path / "state"
    state.mkdir()
    process = Sidecar(keeper, state, program, **environment)
    try:
        keeper.wait("HELLO")
        keeper.attach(url, *options)
        keeper.wait("READY")
        yield keeper, process, where
        if process.process.poll() is None:
            keeper.keep = False
            assert process.end() == 0, process.log.read_text()
    finally:
        if process.process.poll() is None:
            process.kill()
        keeper.close()
        if is_mounted(where):
            run("umount", "-l", str(where))
