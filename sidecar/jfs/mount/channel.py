"""The worker's conversation with its supervisor: JSON lines on a Unix stream socket that also carries descriptors, or, started by
hand, on two pipes that do not.

A line that brings a descriptor says `"fds": 1`; descriptors arrive in the order of their lines and are close-on-exec. Reading
suspends; saying does not (events are small, and a supervisor that does not read is as good as gone).
Concurrency: one reader task, any number of speakers, one event loop.
"""

import asyncio
import contextlib
import json
import logging
import os
import select
import socket
import stat
from collections import deque
from typing import Any, Final

log = logging.getLogger("jfs.worker")
_PIECE: Final = 1 << 16
_LONGEST: Final = 4 << 20  # bytes of a line: a document with a large Secret
_DESCRIPTORS: Final = 4
_PATIENCE: Final = 1.0  # seconds that an event waits for room in the socket


class Channel:
    """See the module. *reads* and *writes* are descriptors that now belong to it; the same one for a socket."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes = reads, writes
        self._socket: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(reads).st_mode):
            self._socket = socket.socket(fileno=reads)
            self._writes = reads
        os.set_blocking(reads, False)
        self._heard = bytearray()
        self._descriptors: deque[int] = deque()
        self._ended = False
        self._come = asyncio.Event()
        self._reading = False

    @property
    def is_supervised(self) -> bool:
        """Whether a supervisor is at the other end, which can be sent descriptors."""
        return self._socket is not None

    async def readline(self) -> bytes:
        """The next line without its end; b"" when there will be none."""
        loop = asyncio.get_running_loop()
        if not self._reading and not self._ended:
            self._reading = True
            loop.add_reader(self._reads, self._readable)
        while True:
            end = self._heard.find(b"\n")
            if end >= 0:
                line = bytes(self._heard[:end])
                del self._heard[: end + 1]
                return line
            if self._ended or len(self._heard) > _LONGEST:
                return b""
            self._come.clear()
            await self._come.wait()

    def descriptor(self) -> int | None:
        """The descriptor of the line that was read last, which said that it brings one."""
        return self._descriptors.popleft() if self._descriptors else None

    def _readable(self) -> None:
        try:
            if self._socket is None:
                piece = os.read(self._reads, _PIECE)
            else:
                piece, descriptors, _, _ = socket.recv_fds(self._socket, _PIECE, _DESCRIPTORS)
                for descriptor in descriptors:
                    os.set_inheritable(descriptor, False)
                self._descriptors += descriptors
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("the supervisor cannot be heard: %s", error)
            piece = b""
        if not piece:
            self._ended = True
            self._stop_reading()
        self._heard += piece
        self._come.set()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            asyncio.get_running_loop().remove_reader(self._reads)

    def say(self, event: dict[str, Any], descriptor: int | None = None) -> None:
        """Send an event; a supervisor that is gone is not an error."""
        if descriptor is not None:
            event = {**event, "fds": 1}
        line = json.dumps(event).encode() + b"\n"
        descriptors = [] if descriptor is None else [descriptor]
        try:
            while line:
                select.select([], [self._writes], [], _PATIENCE)
                sent = self._send(line, descriptors)
                line, descriptors = line[sent:], []
        except (BlockingIOError, BrokenPipeError, ConnectionError):
            log.warning("nobody reads the worker's events any more")

    def _send(self, line: bytes, descriptors: list[int]) -> int:
        if self._socket is None:
            return os.write(self._writes, line)
        return socket.send_fds(self._socket, [line], descriptors)

    def close(self) -> None:
        """Stop reading; descriptors that nobody took are closed. The channel itself ends with the process."""
        if not self._ended:
            self._stop_reading()
            self._ended = True
        while self._descriptors:
            with contextlib.suppress(OSError):
                os.close(self._descriptors.popleft())
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
