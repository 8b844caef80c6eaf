"""A worker process: `jfs worker` with pipes, one per mounted volume.

Started with posix_spawn (no fork of the supervisor's memory, no inherited descriptors), told what to do by JSON lines on
its standard input – credentials never appear in arguments or environment – and heard by JSON lines on its standard
output. Its standard error is the container's log. Non-blocking: the supervisor's loop says when to read and write.
"""

import fcntl
import json
import os
import signal
from collections.abc import Sequence
from typing import Any

_LONGEST_LINE = 1 << 16  # bytes; a worker's events are far shorter
_READ = 1 << 16


class Worker:
    """A running child. `reads` and `writes` are its pipes' descriptors, None once closed."""

    def __init__(self, command: Sequence[str], generation: int) -> None:
        """Raises OSError if it cannot be started."""
        self.generation = generation
        self.kill_at: float | None = None  # monotonic time of the SIGKILL
        self._unsent = bytearray()
        self._heard = bytearray()
        child_in, our_in = os.pipe()
        our_out, child_out = os.pipe()
        try:
            self.pid = os.posix_spawn(
                command[0],
                list(command),
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, child_in, 0), (os.POSIX_SPAWN_DUP2, child_out, 1)],
                setsigmask=[],
                setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE],
            )
        except OSError:
            os.close(our_in)
            os.close(our_out)
            raise
        finally:
            os.close(child_in)
            os.close(child_out)
        for descriptor in (our_in, our_out):
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        self.reads: int | None = our_out
        self.writes: int | None = our_in

    @property
    def wants_to_write(self) -> bool:
        return self.writes is not None and bool(self._unsent)

    def say(self, line: dict[str, Any]) -> None:
        """Queue a line; what does not fit the pipe now goes out when `write` is called."""
        self._unsent += json.dumps(line, separators=(",", ":")).encode() + b"\n"
        self.write()

    def write(self) -> None:
        """Send what the pipe takes. A worker that has closed its end is about to be reaped."""
        while self.writes is not None and self._unsent:
            try:
                written = os.write(self.writes, self._unsent)
            except BlockingIOError:
                return
            except BrokenPipeError:
                self._unsent.clear()
                return
            del self._unsent[:written]

    def read(self) -> list[dict[str, Any] | str]:
        """Lines that have come: events, and as text what is not a JSON object. Closes the pipe at its end."""
        lines: list[dict[str, Any] | str] = []
        while self.reads is not None:
            try:
                piece = os.read(self.reads, _READ)
            except BlockingIOError:
                break
            if not piece:
                os.close(self.reads)
                self.reads = None
                break
            self._heard += piece
            while (end := self._heard.find(b"\n")) >= 0:
                lines.append(_parse(bytes(self._heard[:end])))
                del self._heard[: end + 1]
            if len(self._heard) > _LONGEST_LINE:
                lines.append(_parse(bytes(self._heard)))
                self._heard.clear()
        return lines

    def signal(self, number: signal.Signals) -> None:
        """The worker has not been reaped yet, so that its pid is its own."""
        os.kill(self.pid, number)

    def close(self) -> None:
        for descriptor in (self.reads, self.writes):
            if descriptor is not None:
                os.close(descriptor)
        self.reads = self.writes = None


def _parse(line: bytes) -> dict[str, Any] | str:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict):
        return event
    return line[:200].decode("utf-8", "replace")
