"""Waiting for an answer right where the question was sent, when it is known to come within a moment.

A turn of the event loop (sleep, wake, read, call back) costs more CPU than a nearby server's answer takes. Where answers have been
coming within `MOMENT`, a request on an idle connection therefore waits for its own in select(2), and its caller goes on without
ever suspending. That serves one application that asks for one thing after the other; with several at once, packets of many
requests are better. Every `_SOUNDING`th request takes the ordinary way: when others join it before its answer, so do the next
`_CROWD`. A server that is late `_PATIENCE` times in a row is not waited for again for a while, which doubles each time.
Concurrency: the loop stands still for a moment at most; nothing here suspends.
"""

import asyncio
import select
from typing import Final

MOMENT: Final = 0.0005  # seconds; a server on this machine answers in a tenth of it
_SOUNDING: Final = 32
_CROWD: Final = 256
_PATIENCE: Final = 3
_LATE_FIRST: Final = 256  # requests that are not waited for after the server was late
_LATE_MOST: Final = 1 << 15
_FD_LIMIT: Final = 1024  # what select(2) can take


class Prompt:
    """The decision for one connection, made by its last requests."""

    __slots__ = ("_count", "_fd", "_lates", "_pass", "_sounding", "joined")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._fd = -1
        sock = transport.get_extra_info("socket")
        if sock is not None and transport.get_extra_info("ssl_object") is None and sock.fileno() < _FD_LIMIT:
            self._fd = sock.fileno()
        self._count = 0
        self._pass = 0  # requests that take the ordinary way before any is waited for again
        self._lates = 0
        self._sounding = False  # the request under way is there to see whether others join it
        self.joined = False  # whether any has: set by the connection

    def waits(self) -> bool:
        """Whether the request that has just been sent on an idle connection should be waited for."""
        if self._fd < 0:
            return False
        if self._sounding:  # it is answered by now
            self._sounding = False
            if self.joined:
                self._pass = max(self._pass, _CROWD)
        self.joined = False
        if self._pass:
            self._pass -= 1
            self._sounding = not self._pass
            return False
        self._count += 1
        if self._count % _SOUNDING == 0:
            self._sounding = True
            return False
        return True

    def answered(self) -> int:
        """The descriptor to read from when something came within the moment, else -1."""
        readable, _, _ = select.select((self._fd,), (), (), MOMENT)
        if readable:
            self._lates = 0
            return self._fd
        self._lates += 1
        if self._lates >= _PATIENCE:
            self._pass = min(_LATE_FIRST << min(self._lates - _PATIENCE, 10), _LATE_MOST)
        return -1
