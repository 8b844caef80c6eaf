"""A worker process: `jfs worker` at the other end of a Unix stream socket, one per volume that is served.

Forked from the zygote, or started with posix_spawn where there is none (no fork of the supervisor's memory, no inherited
descriptors). It is told what to do by JSON lines – credentials never appear in arguments or environment – and heard by JSON
lines; a line that brings a descriptor says `"fds": 1`. Its standard error is the container's log. Non-blocking: the supervisor's
loop says when to read and write.
"""

import json
import os
import signal
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

from jfs.sidecar.passing import receive

_LONGEST_LINE = 1 << 16  # bytes; a worker's events are far shorter
_READ = 1 << 16
_DESCRIPTORS = 4


class Worker:
    """A running child. `socket` is our end, None once it has closed its own."""

    def __init__(self, ours: socket.socket, pid: int, generation: int) -> None:
        self.pid, self.generation = pid, generation
        self.kill_at: float | None = None  # monotonic time of the SIGKILL
        ours.setblocking(False)
        self.socket: socket.socket | None = ours
        self._unsent: deque[tuple[bytes, int]] = deque()  # with a descriptor of ours, or -1
        self._heard = bytearray()
        self._descriptors: deque[int] = deque()

    @classmethod
    def spawn(cls, command: Sequence[str], generation: int) -> "Worker":
        """A child that runs the command. Raises OSError if it cannot be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            pid = spawn(command, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(ours, pid, generation)

    @property
    def wants_to_write(self) -> bool:
        return self.socket is not None and bool(self._unsent)

    def say(self, line: dict[str, Any], descriptor: int = -1) -> None:
        """Queue a line, with a copy of the descriptor if one is given, which stays the caller's; what does not fit the socket now
        goes out when `write` is called."""
        self._unsent.append((json.dumps(line, separators=(",", ":")).encode() + b"\n", _copy(descriptor)))
        self.write()

    def write(self) -> None:
        """Send what the socket takes. A worker that has closed its end is about to be reaped."""
        while self.socket is not None and self._unsent:
            line, descriptor = self._unsent[0]
            try:
                if descriptor < 0:
                    sent = self.socket.send(line)
                else:
                    sent = socket.send_fds(self.socket, [line], [descriptor])
                    os.close(descriptor)
            except BlockingIOError:
                return
            except OSError:
                self._forget_unsent()
                return
            if sent < len(line):
                self._unsent[0] = line[sent:], -1
            else:
                self._unsent.popleft()

    def _forget_unsent(self) -> None:
        for _, descriptor in self._unsent:
            if descriptor >= 0:
                os.close(descriptor)
        self._unsent.clear()

    def read(self) -> list[dict[str, Any] | str]:
        """Lines that have come: events, and as text what is not a JSON object. Closes the socket at its end."""
        lines: list[dict[str, Any] | str] = []
        while self.socket is not None:
            try:
                piece, descriptors = receive(self.socket, _READ, _DESCRIPTORS)
            except BlockingIOError:
                break
            except ConnectionError:
                piece, descriptors = b"", []
            self._descriptors += descriptors
            if not piece:
                self._close_socket()
                break
            self._heard += piece
            while (end := self._heard.find(b"\n")) >= 0:
                lines.append(_parse(bytes(self._heard[:end])))
                del self._heard[: end + 1]
            if len(self._heard) > _LONGEST_LINE:
                lines.append(_parse(bytes(self._heard)))
                self._heard.clear()
        return lines

    def descriptor(self) -> int:
        """The descriptor of the next line that brings one, now the caller's; -1 if there is none."""
        return self._descriptors.popleft() if self._descriptors else -1

    def signal(self, number: signal.Signals) -> None:
        """The worker has not been reaped yet, so that its pid is its own."""
        os.kill(self.pid, number)

    def _close_socket(self) -> None:
        self._forget_unsent()
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def close(self) -> None:
        self._close_socket()
        while self._descriptors:
            os.close(self._descriptors.popleft())


def spawn(command: Sequence[str], channel: socket.socket) -> int:
    """Start the command with the channel as its standard input and output; its pid. Raises OSError."""
    return os.posix_spawn(
        command[0],
        list(command),
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, channel.fileno(), 0), (os.POSIX_SPAWN_DUP2, channel.fileno(), 1)],
        setsigmask=[],
        setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE],
    )


def _copy(descriptor: int) -> int:
    return os.dup(descriptor) if descriptor >= 0 else -1


def _parse(line: bytes) -> dict[str, Any] | str:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict):
        return event
    return line[:200].decode("utf-8", "replace")
