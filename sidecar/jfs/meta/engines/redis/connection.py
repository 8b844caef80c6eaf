"""One connection to Redis: requests are packed commands, answered in order; nothing is ever sent twice.

Many tasks may have requests under way at once (pipelining). While an answer is outstanding, further requests of one turn of
the event loop leave in one packet; a request on an idle connection leaves at once, and may have its answer before its caller
first looks (see `prompt`). Invariant: `_waiting` has exactly the
requests whose replies are still to come, in the order they were written. A cancelled waiter leaves its place in the queue.
Losing the connection fails every waiting request with `ConnectionLost(sent=True)`; a lost connection never comes back.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import hiredis

from jfs.meta.engines.redis.failures import ConnectionLost, ServerError
from jfs.meta.engines.redis.prompt import Prompt

_NOTHING: Final = object()
_PIECE: Final = 1 << 18  # bytes read at once

Command = tuple[bytes | str | int, ...]

# A command in the protocol's form. (The library's annotation means a tuple of one by mistake.)
pack: Final[Callable[[Command], bytes]] = cast("Any", hiredis.pack_command)


def pack_all(commands: Iterable[Command]) -> bytes:
    """Several commands as one packet."""
    return b"".join(map(pack, commands))


class _Request:
    __slots__ = ("answer", "missing", "replies")

    def __init__(self, answer: "asyncio.Future[list[Any]]", missing: int) -> None:
        self.answer = answer
        self.missing = missing
        self.replies: list[Any] = []


class Connection(asyncio.Protocol):
    """A connection that has been made; `Link` makes and greets it."""

    def __init__(
        self,
        address: str,
        read_timeout: float,
        write_timeout: float,
        moved: "Callable[[Connection, str], None] | None" = None,
    ) -> None:
        """*moved* is called with each reply MOVED of a node of a Cluster, before its request is answered."""
        self._address = address
        self._read_timeout = read_timeout
        self._write_timeout = write_timeout
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            replyError=ServerError if moved is None else self._refusal, notEnoughData=_NOTHING
        )
        self._moved = moved
        self.retired = False  # whether nobody should ask anything here any more
        self._waiting: deque[_Request] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._prompt: Prompt
        self._watch: asyncio.TimerHandle | None = None
        self._heard = 0.0  # when the server last answered while something was outstanding, or the first request left
        self._blocked_since: float | None = None  # since when the server takes no more of what we write
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self.lost: str = ""  # why the connection is gone
        # How the server knows this connection, for when it must end it; empty where it does not tell.
        self.client_id = 0
        self.run_id = b""  # of the server's process
        self.place: tuple[str, int] = ("", 0)  # host and port it leads to; set by who made it
        self.watching = False  # whether keys are WATCHed on it; set by who does

    @property
    def is_clean(self) -> bool:
        """Whether the next user finds nothing of the last one's."""
        return not (self.lost or self.watching or self._waiting or self.retired)

    # The requesting side.

    def request(self, packet: bytes, count: int) -> "asyncio.Future[list[Any]]":
        """Send *count* packed commands; their replies (error replies as `ServerError` objects among them)."""
        if self.lost or self._transport is None:
            raise ConnectionLost(self.lost or f"the connection to Redis at {self._address} is closed", sent=False)
        answer: asyncio.Future[list[Any]] = self._loop.create_future()
        if self._waiting:
            self._prompt.joined = True
            if not self._unsent:
                self._loop.call_soon(self._flush)
            self._unsent.append(packet)
            self._waiting.append(_Request(answer, count))
            return answer
        self._heard = self._loop.time()
        if self._watch is None:
            self._arm()
        self._waiting.append(_Request(answer, count))
        self._transport.write(packet)
        if self._prompt.waits():
            self._read_at_once(answer)
        return answer

    def _read_at_once(self, answer: "asyncio.Future[list[Any]]") -> None:
        """Have *answer* done when this returns, if it comes within a moment."""
        while not answer.done() and (fd := self._prompt.answered()) >= 0:
            try:
                data = os.read(fd, _PIECE)
            except OSError:  # the transport will find the same, and say so
                return
            if not data:
                return
            self.data_received(data)

    def _refusal(self, text: str) -> ServerError:
        if self._moved is not None and text.startswith("MOVED "):
            self._moved(self, text)
        return ServerError(text)

    def retire(self) -> None:
        """Close when every request under way is answered."""
        self.retired = True
        for request in reversed(self._waiting):
            if not request.answer.done():
                request.answer.add_done_callback(lambda _: self.retire())
                return
        self.abort(f"the connection to Redis at {self._address} is closed")

    def _flush(self) -> None:
        if self._transport is not None and self._unsent:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def abort(self, reason: str) -> None:
        """Drop the connection; every waiting request fails with *reason*."""
        if not self.lost:
            self.lost = reason
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Close and wait until the socket is gone."""
        if not self.lost:
            self.lost = f"the connection to Redis at {self._address} is closed"
        if self._transport is not None:
            self._flush()
            self._transport.close()
            await self._closed

    # Time-outs: one timer, looked at rarely, instead of one for each request.

    def _arm(self) -> None:
        self._watch = self._loop.call_later(min(self._read_timeout, self._write_timeout) / 4, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._waiting or self._transport is None:
            return
        now = self._loop.time()
        if now - self._heard > self._read_timeout:
            self.abort(f"Redis at {self._address} has not answered for {self._read_timeout:g} seconds")
        elif self._blocked_since is not None and now - self._blocked_since > self._write_timeout:
            self.abort(f"Redis at {self._address} has taken no request for {self._write_timeout:g} seconds")
        else:
            self._arm()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._prompt = Prompt(transport)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                request = waiting[0]
                request.replies.append(reply)
                request.missing -= 1
                if not request.missing:
                    waiting.popleft()
                    if not request.answer.done():
                        request.answer.set_result(request.replies)
        except (hiredis.ProtocolError, IndexError):
            self.abort(f"what answers at {self._address} does not speak Redis's protocol")

    def pause_writing(self) -> None:
        self._blocked_since = self._loop.time()

    def resume_writing(self) -> None:
        self._blocked_since = None

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = f"the connection to Redis at {self._address} was lost" + (f" ({exc})" if exc else "")
        self._transport = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._waiting:
            answer = self._waiting.popleft().answer
            if not answer.done():
                answer.set_exception(ConnectionLost(self.lost, sent=True))
        self._unsent.clear()
        if not self._closed.done():
            self._closed.set_result(None)
