"""HTTP/2 as gRPC calls need it (RFC 9113; gRPC over HTTP/2): one connection, many calls at once, one message each way or a stream of them.

Own code because it is the hot path of etcd and TiKV: ARCHITECTURE says what a call by grpcio costs. Neither side keeps a dynamic table
of headers, so that blocks are constant bytes (`headers`). Invariant: a call ends once, with the bytes of its answer, `Status` as the
server said, or `Broken`, which tells whether the request may have reached it. One event loop.
"""

import asyncio
import struct
from collections import deque
from typing import Final

from hpack import HPACKError

from jfs.meta.engines.kv.call import LARGEST, Call
from jfs.meta.engines.kv.frames import (
    ACK,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FRAME,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    MAX_FRAME,
    MAX_STREAMS,
    MESSAGE,
    PING,
    PREFACE,
    PRIORITY,
    PUSH,
    RST,
    SETTING,
    SETTINGS,
    TABLE_SIZE,
    U32,
    WINDOW,
    frame,
    unpadded,
)
from jfs.meta.engines.kv.headers import AnswerHeaders, request_headers
from jfs.meta.engines.kv.statuses import (
    CANCEL,
    INTERNAL,
    REFUSED_STREAM,
    RESETS,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    Broken,
    Status,
)

_LARGEST_WINDOW: Final = (1 << 31) - 1
_FIRST_WINDOW: Final = 65_535  # of connections, and of streams until the peer says otherwise
_FRAME_SIZE: Final = 16_384
_TRIES: Final = 10  # of a request that the peer refuses for now
_AGAIN: Final = 0.01  # seconds between two of them
_LAST_STREAM: Final = (1 << 31) - 3


class Connection(asyncio.Protocol):
    """One connection. Made by `dial`."""

    def __init__(self, authority: str, *, secure: bool) -> None:
        self._authority = authority
        self._secure = secure
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._answers = AnswerHeaders()
        self._calls: dict[int, Call] = {}
        self._next = 1
        self._rest = b""
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags and headers that go on in the next frame
        self._window = _FIRST_WINDOW
        self._stream_window = _FIRST_WINDOW
        self._frame = _FRAME_SIZE
        self._streams = 1 << 30  # at a time, as the peer allows
        self._queue: deque[tuple[Call, bytes, bytes]] = deque()
        self._received = 0
        self._leaving = False
        self._sweep: asyncio.TimerHandle | None = None
        self.closed = ""
        self.settled: asyncio.Future[None] = self._loop.create_future()  # the peer's settings have come, or never will

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = b"".join(
            SETTING.pack(*one) for one in ((TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW, _LARGEST_WINDOW))
        )
        more = frame(WINDOW, 0, 0, U32.pack(_LARGEST_WINDOW - _FIRST_WINDOW))
        transport.write(PREFACE + frame(SETTINGS, 0, 0, settings) + more)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(str(exc or "the server closed the connection"))

    @property
    def usable(self) -> bool:
        """Whether a new call may be made here."""
        return not self.closed and not self._leaving and self._next < _LAST_STREAM

    def close(self, why: str = "closed") -> None:
        """Hang up; calls under way are broken."""
        if self._transport is not None:
            self._transport.abort()
        self._end(why)

    def _end(self, why: str) -> None:
        if self.closed:
            return
        self.closed = why
        if not self.settled.done():
            self.settled.set_result(None)
        if self._sweep is not None:
            self._sweep.cancel()
        calls, self._calls = list(self._calls.values()), {}
        waiting, self._queue = list(self._queue), deque()
        for call in calls:
            call.fail(Broken(why, sent=True))
        for call, _, _ in waiting:
            call.fail(Broken(why, sent=False))

    # Calls.

    def begin(self, path: str, message: bytes | None, *, token: str = "", unary: bool, within: float) -> Call:
        """Start a call; *message* None: of a stream whose messages come by `send`. `receive` waits for the answer. It is broken
        when that takes longer than *within* seconds; a stream has no such end."""
        call = Call(unary, self._loop.time() + within if unary else float("inf"))
        if self.closed:
            raise Broken(self.closed, sent=False)
        headers = request_headers(self._authority, path, token, secure=self._secure)
        body = b"" if message is None else MESSAGE.pack(0, len(message)) + message
        if len(self._calls) >= self._streams:
            self._queue.append((call, headers, body))
        else:
            self._open(call, headers, body)
        if self._sweep is None:
            self._sweep = self._loop.call_later(1.0, self._look)
        return call

    def _open(self, call: Call, headers: bytes, body: bytes) -> None:
        call.request, call.tries = (headers, body), call.tries + 1
        call.id = number = self._next
        self._next += 2
        call.window = self._stream_window
        self._calls[number] = call
        out = frame(HEADERS, END_HEADERS, number, headers)
        size = len(body)
        if call.unary and size <= self._frame and size <= call.window and size <= self._window:
            call.window -= size
            self._window -= size
            self._write(out + frame(DATA, END_STREAM, number, body))
            return
        self._write(out)
        call.unsent = memoryview(body + call.unsent)
        self._push(call)

    def send(self, call: Call, message: bytes) -> None:
        """Another message of a stream. Broken."""
        if call.ended or self.closed:
            raise Broken(self.closed or "the stream has ended", sent=False)
        call.unsent = memoryview(bytes(call.unsent) + MESSAGE.pack(0, len(message)) + message)
        if call.id:
            self._push(call)

    def _push(self, call: Call) -> None:
        """Send what the windows let through."""
        while call.unsent:
            size = min(len(call.unsent), self._frame, call.window, self._window)
            if size <= 0:
                return
            piece, call.unsent = call.unsent[:size], call.unsent[size:]
            call.window -= size
            self._window -= size
            last = call.unary and not call.unsent
            self._write(frame(DATA, END_STREAM if last else 0, call.id, piece))

    async def receive(self, call: Call) -> bytes:
        """The next message of the server. Status, Broken; a stream that ends well is Status 0. Cancelled, the call is given up."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        call.waiting.append(future)
        if call.buffer or call.ended:
            call.deliver()
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(call)
            raise

    def cancel(self, call: Call) -> None:
        """Tell the server that nobody waits any more."""
        call.ended = True
        if call.id and self._calls.pop(call.id, None) is not None and not self.closed:
            self._write(frame(RST, 0, call.id, U32.pack(CANCEL)))
            self._next_queued()
        else:
            self._queue = deque(one for one in self._queue if one[0] is not call)

    def _look(self) -> None:
        """Break calls that take too long; the oldest is the first."""
        self._sweep = None
        now = self._loop.time()
        late = [call for call in self._calls.values() if call.deadline < now]
        late += [call for call, _, _ in self._queue if call.deadline < now]
        for call in late:
            self.cancel(call)
            call.fail(Broken("no answer in time", sent=bool(call.id)))
        if self._calls or self._queue:
            self._sweep = self._loop.call_later(1.0, self._look)

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    # Frames.

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        try:
            while end - at >= 9:
                high, low, kind, flags, stream = FRAME.unpack_from(data, at)
                size = high << 16 | low
                if size > _FRAME_SIZE:
                    raise ValueError(f"a frame of {size} bytes")
                if end - at < 9 + size:
                    break
                at += 9
                self._take(kind, flags, stream & 0x7FFFFFFF, data[at : at + size])
                at += size
                if self.closed:
                    return
        except (ValueError, IndexError, struct.error, HPACKError) as error:
            self.close(f"the server does not speak HTTP/2 as agreed: {error}")
            return
        self._rest = data[at:]

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if self._block is not None and kind != CONTINUATION:
            raise ValueError("headers that do not go on")
        if kind == DATA:
            self._take_data(flags, stream, body)
        elif kind == HEADERS:
            body = unpadded(flags, body)
            if flags & PRIORITY:
                body = body[5:]
            if flags & END_HEADERS:
                self._take_headers(flags, stream, body)
            else:
                self._block = stream, flags, bytearray(body)
        elif kind == CONTINUATION:
            if self._block is None or self._block[0] != stream:
                raise ValueError("a continuation of nothing")
            self._block[2].extend(body)
            if flags & END_HEADERS:
                _, first, block = self._block
                self._block = None
                self._take_headers(first, stream, bytes(block))
        elif kind == WINDOW:
            self._take_window(stream, U32.unpack(body)[0] & 0x7FFFFFFF)
        elif kind == SETTINGS:
            if not flags & ACK:
                self._take_settings(body)
        elif kind == PING:
            if not flags & ACK:
                self._write(frame(PING, ACK, 0, body))
        elif kind == RST:
            self._take_reset(stream, U32.unpack(body)[0])
        elif kind == GOAWAY:
            self._take_goaway(U32.unpack_from(body)[0] & 0x7FFFFFFF)
        elif kind == PUSH:
            raise ValueError("a push")

    def _take_data(self, flags: int, stream: int, body: bytes) -> None:
        self._received += len(body)
        if self._received > _LARGEST_WINDOW // 2:
            self._write(frame(WINDOW, 0, 0, U32.pack(self._received)))
            self._received = 0
        call = self._calls.get(stream)
        if call is None:  # given up
            return
        call.buffer += unpadded(flags, body)
        if not call.unary:
            if body:
                self._write(frame(WINDOW, 0, stream, U32.pack(len(body))))
            call.deliver()
        elif len(call.buffer) > LARGEST:
            self.cancel(call)
            call.fail(Status(RESOURCE_EXHAUSTED, "the answer is too large"))
        if flags & END_STREAM:
            self._finish(call, Status(INTERNAL, "an answer without a status"))

    def _take_headers(self, flags: int, stream: int, block: bytes) -> None:
        answer = self._answers.read(block)
        call = self._calls.get(stream)
        if call is None:
            return
        if answer.http not in ("", "200"):
            self.cancel(call)
            call.fail(Status(UNAVAILABLE, f"HTTP status {answer.http}"))
        elif flags & END_STREAM:
            status = INTERNAL if answer.status is None else answer.status
            self._finish(call, Status(status, answer.text) if status or not call.unary else None)

    def _finish(self, call: Call, error: Status | None) -> None:
        """The server has said everything."""
        del self._calls[call.id]
        if call.unsent or not call.unary:  # it does not want to hear the rest
            self._write(frame(RST, 0, call.id, U32.pack(CANCEL)))
        if error is not None:
            call.fail(error)
        else:
            call.give()
        self._next_queued()

    def _next_queued(self) -> None:
        while self._queue and len(self._calls) < self._streams and not self.closed:
            self._open(*self._queue.popleft())
        if self._leaving and not self._calls and self._transport is not None:
            self._transport.close()

    def _take_window(self, stream: int, more: int) -> None:
        if not stream:
            self._window += more
            for call in list(self._calls.values()):
                if call.unsent:
                    self._push(call)
            return
        if (one := self._calls.get(stream)) is not None:
            one.window += more
            if one.unsent:
                self._push(one)

    def _take_settings(self, body: bytes) -> None:
        for name, value in SETTING.iter_unpack(body):
            if name == INITIAL_WINDOW:
                for call in self._calls.values():
                    call.window += value - self._stream_window
                self._stream_window = value
            elif name == MAX_STREAMS:
                self._streams = value
            elif name == MAX_FRAME:
                self._frame = value
        self._write(frame(SETTINGS, ACK, 0, b""))
        if not self.settled.done():
            self.settled.set_result(None)
        for call in list(self._calls.values()):
            if call.unsent:
                self._push(call)
        self._next_queued()

    def _take_reset(self, stream: int, code: int) -> None:
        call = self._calls.pop(stream, None)
        if call is None:
            return
        if code == REFUSED_STREAM and call.unary and call.tries < _TRIES:  # it was not looked at (RFC 9113, 8.7)
            self._queue.appendleft((call, *call.request))
            self._loop.call_later(_AGAIN, self._next_queued)
            return
        if code == REFUSED_STREAM:
            call.fail(Broken("the server refused the request for now", sent=False))
        else:
            call.fail(Status(RESETS.get(code, INTERNAL), f"the server gave up the request (code {code})"))
        self._next_queued()

    def _take_goaway(self, last: int) -> None:
        """The server ends the connection once it has answered what came up to stream *last*."""
        self._leaving = True
        for number in [number for number in self._calls if number > last]:
            self._calls.pop(number).fail(Broken("the server is about to end the connection", sent=False))
        while self._queue:
            self._queue.popleft()[0].fail(Broken("the server is about to end the connection", sent=False))
        self._next_queued()
