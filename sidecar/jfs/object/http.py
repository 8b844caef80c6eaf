"""A small HTTP/1.1 client for requests of blocks: bodies are received straight into one buffer and sent without being gathered.

Place in the flow: `s3` → here → asyncio's transports (TLS included). It costs a third of what a general client does, because it knows what
it is for: whole bodies in memory, no redirects, cookies, compression or pipelining. Invariants: a connection carries one request at a
time and is used again only when its answer was read to the end and the server keeps it open; one that was idle and turns out to be closed
is replaced without the caller's knowing, for every request here may be repeated.
Concurrency: one event loop; any number of requests, of which at most *limit* are under way. Errors: OSError for whatever breaks,
TimeoutError when the server is silent for too long.
"""

import asyncio
import ssl
import time
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from jfs.object.base import Data

_HEAD_LIMIT: Final = 64 << 10  # bytes of an answer's head
_PIECE: Final = 256 << 10  # bytes handed to the transport at once
_IDLE: Final = 55.0  # seconds after which an unused connection is closed; servers close them after a minute
_LARGEST: Final = 1 << 30  # bytes of a body that are believed before they come


class BrokenAnswer(OSError):
    """The server closed the connection early, or what it sent is not HTTP: asking again may help."""


class HttpAnswer(NamedTuple):
    """Status, headers by lower-case name (the last one of each name), body."""

    status: int
    headers: dict[str, str]
    body: Data


class _Connection(asyncio.BufferedProtocol):
    """One connection: `exchange` sends a request and waits for its answer."""

    def __init__(self, idle_timeout: float) -> None:
        self._idle_timeout = idle_timeout
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._head = memoryview(bytearray(_HEAD_LIMIT))
        self._got = 0  # bytes of the head, or of what follows it, in `_head`
        self._body: memoryview | None = None  # of known length
        self._at = 0
        self._pieces: bytearray | None = None  # of a body whose length is not known
        self._chunked = False
        self._without_body = False
        self._status = 0
        self._headers: dict[str, str] = {}
        self._answer: asyncio.Future[HttpAnswer] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._active = 0.0  # when a byte went either way last
        self.keep = True  # whether another request may follow
        self.since = 0.0  # when it became idle
        self.begun = False  # whether anything of the present answer has come

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.keep = False
        self._transport = None
        self._fail(exc if isinstance(exc, OSError) else BrokenAnswer("the server closed the connection"))

    def eof_received(self) -> bool:
        if self._pieces is not None and not self._chunked:  # a body that ends with the connection
            self._finish(bytes(self._pieces))
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._active = self._loop.time()
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._body is not None:
            return self._body[self._at :]
        return self._head[self._got :]

    def buffer_updated(self, nbytes: int) -> None:
        self._active = self._loop.time()
        self.begun = True
        if self._body is not None:
            self._at += nbytes
            if self._at == len(self._body):
                self._finish(self._body)
            return
        self._got += nbytes
        try:
            if self._pieces is not None:
                self._take_piece()
            elif self._answer is None or self._answer.done():
                self.close()  # nobody asked for anything
            else:
                self._take_head()
        except (ValueError, IndexError) as error:
            self._fail(BrokenAnswer(f"the server's answer is not HTTP: {error}"))
            self.close()

    # -- parsing

    def _take_head(self) -> None:
        data = bytes(self._head[: self._got])
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if self._got == _HEAD_LIMIT:
                raise ValueError("its head has no end")
            return
        lines = data[:end].decode("latin-1").split("\r\n")
        version, _, rest = lines[0].partition(" ")
        if not version.startswith("HTTP/1."):
            raise ValueError("it does not begin with HTTP/1")
        self._status = int(rest[:3])
        left = data[end + 4 :]
        if 100 <= self._status < 200:
            self._head[: len(left)] = left
            self._got = len(left)
            if left:
                self._take_head()
            return
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        self._headers = headers
        connection = headers.get("connection", "").lower()
        self.keep = connection != "close" and (version != "HTTP/1.0" or connection == "keep-alive")
        self._got = 0
        self._begin_body(left)

    def _begin_body(self, left: bytes) -> None:
        length = self._headers.get("content-length")
        if self._without_body or self._status in (204, 304):
            self._finish(b"")
        elif "chunked" in self._headers.get("transfer-encoding", "").lower():
            self._chunked = True
            self._pieces = bytearray(left)
            self._take_chunks()
        elif length is None:
            self.keep = False
            self._pieces = bytearray(left)
        else:
            size = int(length)
            if not 0 <= size <= _LARGEST or len(left) > size:
                raise ValueError(f"its length of {size} bytes cannot be")
            if len(left) == size:
                self._finish(left)
                return
            body = memoryview(bytearray(size))
            body[: len(left)] = left
            self._body, self._at = body, len(left)

    def _take_piece(self) -> None:
        assert self._pieces is not None
        self._pieces += self._head[: self._got]
        self._got = 0
        if len(self._pieces) > _LARGEST:
            raise ValueError("its body has no end")
        if self._chunked:
            self._take_chunks()

    def _take_chunks(self) -> None:
        """Finish when the last chunk has come; until then only its end is looked for."""
        pieces = self._pieces
        assert pieces is not None
        if b"0\r\n" not in pieces[-1024:]:
            return
        body, at = bytearray(), 0
        while True:
            end = pieces.find(b"\r\n", at)
            if end < 0:
                return
            size = int(bytes(pieces[at:end]).split(b";")[0], 16)
            at = end + 2
            if not size:
                if pieces.find(b"\r\n", at) == at or pieces.find(b"\r\n\r\n", at) >= 0:  # perhaps behind trailers
                    self._finish(bytes(body))
                return
            if len(pieces) < at + size + 2:
                return
            body += pieces[at : at + size]
            at += size + 2

    def _finish(self, body: Data) -> None:
        self._body = self._pieces = None
        self._chunked = False
        self._got = 0
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(HttpAnswer(self._status, self._headers, body))

    def _fail(self, error: OSError) -> None:
        self.keep = False
        for waiter in (self._answer, self._writable):
            if waiter is not None and not waiter.done():
                waiter.set_exception(error)

    # -- the caller's side

    @property
    def usable(self) -> bool:
        """Whether a request may be sent."""
        transport = self._transport
        return self.keep and transport is not None and not transport.is_closing()

    def close(self) -> None:
        """Break the connection off."""
        self.keep = False
        if self._transport is not None:
            self._transport.abort()

    async def exchange(self, head: bytes, body: memoryview | None, *, without_body: bool) -> HttpAnswer:
        """Send a request and return its answer; *without_body*: it has none whatever its headers say."""
        transport = self._transport
        if transport is None:
            raise BrokenAnswer("the server closed the connection")
        self._answer = self._loop.create_future()
        self._without_body = without_body
        self.begun = False
        self._active = self._loop.time()
        self._timer = self._loop.call_later(self._idle_timeout, self._look)
        done = False
        try:
            if body is None:
                transport.write(head)
            elif len(body) < _PIECE:
                transport.write(b"".join((head, body)))
            else:
                transport.write(head)
                await self._send(transport, body)
            answer = await self._answer
            done = True
            return answer
        finally:
            self._timer.cancel()
            answer_future, self._answer = self._answer, None
            if not done:
                self.close()
                if answer_future.done() and not answer_future.cancelled():
                    answer_future.exception()  # it was told otherwise

    async def _send(self, transport: asyncio.Transport, body: memoryview) -> None:
        """Send a large body piece by piece, unless the server has answered already (it refuses it) or has gone."""
        answer = self._answer
        assert answer is not None
        for at in range(0, len(body), _PIECE):
            if answer.done():
                self.keep = False  # it has not read everything
                return
            transport.write(body[at : at + _PIECE])
            if self._paused:
                self._writable = self._loop.create_future()
                try:
                    await asyncio.wait((self._writable, answer), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiter, self._writable = self._writable, None
                    if waiter.done() and not waiter.cancelled():
                        waiter.exception()

    def _look(self) -> None:
        """Whether the server has been silent for too long."""
        left = self._active + self._idle_timeout - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        for waiter in (self._answer, self._writable):
            if waiter is not None and not waiter.done():
                waiter.set_exception(TimeoutError(f"no answer within {self._idle_timeout:g} s"))
        self.close()


class HttpClient:
    """Requests to one server, *base* being `http://host[:port]` or `https://…`. *verify*: whether its certificate is checked."""

    def __init__(
        self,
        base: str,
        *,
        verify: bool = True,
        limit: int = 256,
        connect_timeout: float = 10.0,
        idle_timeout: float = 60.0,
        user_agent: str = "jfs",
    ) -> None:
        parts = urlsplit(base)
        self._host = parts.hostname or ""
        secure = parts.scheme == "https"
        self._port = parts.port or (443 if secure else 80)
        self._verify = verify
        self._secure = secure
        self._context: ssl.SSLContext | None = None
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._turn = asyncio.Semaphore(limit)
        self._idle: list[_Connection] = []  # those used last at the end
        self._fixed = f" HTTP/1.1\r\nHost: {parts.netloc}\r\nUser-Agent: {user_agent}\r\nAccept: */*\r\nAccept-Encoding: identity\r\n"
        self._closed = False

    async def request(
        self, method: str, path: str, headers: Mapping[str, str], body: memoryview | None = None
    ) -> HttpAnswer:
        """Send a request for *path* (percent-encoded) and return the answer. OSError, TimeoutError."""
        head = self._head(method, path, headers, body)
        async with self._turn:
            while True:
                connection = self._take()
                reused = connection is not None
                if connection is None:
                    connection = await self._connect()
                try:
                    answer = await connection.exchange(head, body, without_body=method == "HEAD")
                except TimeoutError:
                    raise
                except OSError:
                    if reused and not connection.begun:
                        continue  # the server had closed it
                    raise
                if connection.usable and not self._closed:
                    connection.since = time.monotonic()
                    self._idle.append(connection)
                else:
                    connection.close()
                return answer

    async def close(self) -> None:
        """Close the connections; requests under way fail."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        await asyncio.sleep(0)  # the transports take leave in the loop's next turn

    def _head(self, method: str, path: str, headers: Mapping[str, str], body: memoryview | None) -> bytes:
        lines = [method, " ", path, self._fixed]
        for name, value in headers.items():
            lines += (name, ": ", value, "\r\n")
        if body is not None:
            lines += ("Content-Length: ", str(len(body)), "\r\n")
        lines.append("\r\n")
        text = "".join(lines)
        if text.count("\n") != len(headers) + 6 + (body is not None):
            raise ValueError("a header holds a line break")
        return text.encode("latin-1")

    def _take(self) -> _Connection | None:
        """An idle connection that may be used; those too old are closed."""
        oldest = time.monotonic() - _IDLE
        while self._idle and self._idle[0].since < oldest:
            self._idle.pop(0).close()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        if self._secure and self._context is None:
            self._context = ssl.create_default_context()
            if not self._verify:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE
        async with asyncio.timeout(self._connect_timeout):
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self._idle_timeout),
                self._host,
                self._port,
                ssl=self._context,
                ssl_handshake_timeout=self._connect_timeout if self._secure else None,
            )
        return connection
