"""Our calls of gRPC services: against the servers of grpcio, and against one that says exactly what a test wants."""

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from hpack import Encoder
from jfs.meta.engines.kv import statuses
from jfs.meta.engines.kv.calls import Servers
from jfs.meta.engines.kv.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    MAX_STREAMS,
    PADDED,
    PING,
    PREFACE,
    RST,
    SETTING,
    SETTINGS,
    WINDOW,
    frame,
)
from jfs.meta.engines.kv.headers import request_headers
from jfs.meta.engines.kv.statuses import Broken, Status
from jfs.meta.engines.kv.url import KvAddress


class Text:
    """A message that is its bytes."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    def SerializeToString(self) -> bytes:
        return self.value

    @classmethod
    def FromString(cls, value: bytes) -> "Text":
        return cls(value)


async def ask(servers: Servers, where: str, method: str, value: bytes = b"x", token: str = "") -> bytes:
    return (await servers.ask(where, f"/a.Service/{method}", Text(value), Text, token)).value


class Service(grpc.GenericRpcHandler):
    """echo: the request; upper: of each message of a stream; fail: the status that the request names; wait: until told; token: the
    token."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.release = asyncio.Event()

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method.rpartition("/")[2]
        if method == "upper":
            return grpc.stream_stream_rpc_method_handler(self.upper)
        return grpc.unary_unary_rpc_method_handler(getattr(self, method)) if hasattr(self, method) else None

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def fail(self, request: bytes, context: Any) -> bytes:
        code = next(one for one in grpc.StatusCode if one.value[0] == int(request))
        await context.abort(code, "no – 100 %\n")
        raise AssertionError

    async def wait(self, request: bytes, context: Any) -> bytes:
        self.called.set()
        await self.release.wait()
        return request

    async def token(self, request: bytes, context: Any) -> bytes:
        return dict(context.invocation_metadata())["token"].encode()

    async def upper(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            if request == b"end":
                return
            yield request.upper()


@asynccontextmanager
async def grpc_server(*options: tuple[str, Any], port: int = 0) -> AsyncIterator[tuple[grpc.aio.Server, Service, str]]:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 << 20), *options])
    service = Service()
    server.add_generic_rpc_handlers((service,))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield server, service, f"127.0.0.1:{bound}"
    finally:
        service.release.set()
        await server.stop(None)


@pytest.fixture
async def servers() -> AsyncIterator[Servers]:
    servers = Servers(KvAddress((), b""))
    yield servers
    await servers.close()


@pytest.mark.parametrize("size", [0, 1, 16_000, 16_379, 16_384, 65_530, 65_535, 70_000, 5_000_000])
async def test_messages_of_any_size(servers: Servers, size: int) -> None:
    async with grpc_server() as (_, _, where):
        message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert await ask(servers, where, "echo", message) == message


async def test_many_calls_share_one_connection_and_its_windows(servers: Servers) -> None:
    async with grpc_server(("grpc.max_concurrent_streams", 7)) as (_, _, where):
        messages = [b"%d" % number * 9000 for number in range(100)]
        assert await asyncio.gather(*(ask(servers, where, "echo", one) for one in messages)) == messages
        assert len(servers._connections) == 1
        assert not (await servers.connection(where))._calls


async def test_what_a_server_refuses(servers: Servers) -> None:
    async with grpc_server() as (_, _, where):
        for code in (1, 5, 7, 14, 16):
            with pytest.raises(Status, match="no – 100 %") as caught:
                await ask(servers, where, "fail", b"%d" % code)
            assert caught.value.code == code
        with pytest.raises(Status) as caught:
            await ask(servers, where, "nothing")
        assert caught.value.code == 12


async def test_metadata_and_streams(servers: Servers) -> None:
    async with grpc_server() as (_, _, where):
        long = "t" * 300
        assert await ask(servers, where, "token", token=long) == long.encode()
        stream = await servers.stream(where, "/a.Service/upper")
        for word in (b"one", b"two", b"x" * 100_000):
            assert (await stream.ask(Text(word), Text)).value == word.upper()
        with pytest.raises((Status, Broken)):
            await stream.ask(Text(b"end"), Text)
        with pytest.raises((Status, Broken)):
            await stream.ask(Text(b"more"), Text)
        other = await servers.stream(where, "/a.Service/upper")
        other.end()
        assert await ask(servers, where, "echo") == b"x"


async def test_a_call_that_nobody_waits_for_is_given_up(servers: Servers) -> None:
    async with grpc_server() as (_, service, where):
        task = asyncio.create_task(ask(servers, where, "wait"))
        await service.called.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not (await servers.connection(where))._calls
        assert await ask(servers, where, "echo") == b"x"


async def test_a_call_without_an_answer_ends(servers: Servers) -> None:
    async with grpc_server() as (_, _, where):
        connection = await servers.connection(where)
        call = connection.begin("/a.Service/wait", b"x", unary=True, within=0.01)
        with pytest.raises(Broken, match="no answer in time") as caught:
            await connection.receive(call)
        assert caught.value.sent
        assert await ask(servers, where, "echo") == b"x"


async def test_a_server_that_is_started_anew(servers: Servers) -> None:
    async with grpc_server() as (server, service, where):
        task = asyncio.create_task(ask(servers, where, "wait", b"slow"))
        await service.called.wait()
        stopping = asyncio.create_task(server.stop(20))  # GOAWAY: what is under way is answered
        await asyncio.sleep(0.05)
        service.release.set()
        assert await task == b"slow"
        await stopping
    with pytest.raises(Broken) as caught:
        await ask(servers, where, "echo")
    assert not caught.value.sent
    async with grpc_server(port=int(where.rpartition(":")[2])) as (_, _, again):
        assert await ask(servers, again, "echo") == b"x"


# A server that says exactly what a test wants.

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = struct.pack(">BI", 0, 5) + b"hello"


def headers(*pairs: tuple[str, str]) -> bytes:
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode(pairs)


GOOD = headers((":status", "200"), ("content-type", "application/grpc"))
DONE = headers(("grpc-status", "0"))


async def next_frame(reader: asyncio.StreamReader, wanted: int) -> tuple[int, int, bytes]:
    """Flags, stream and content of the next frame of a kind."""
    while True:
        head = await reader.readexactly(9)
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        body = await reader.readexactly(int.from_bytes(head[:3], "big"))
        if kind == wanted:
            return flags, stream, body


@asynccontextmanager
async def scripted(script: Script, settings: bytes = b"") -> AsyncIterator[str]:
    serving: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                assert await reader.readexactly(len(PREFACE)) == PREFACE
                writer.write(frame(SETTINGS, 0, 0, settings))
                await script(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def answering(*frames: Callable[[int], bytes]) -> Script:
    """Answers requests with frames, each made for its stream: the first in one piece, others byte by byte."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in (1 << 20, *[1] * 20):
            _, stream, _ = await next_frame(reader, DATA)
            data = b"".join(one(stream) for one in frames)
            for at in range(0, len(data), piece):
                writer.write(data[at : at + piece])
                await writer.drain()
                await asyncio.sleep(0)

    return script


async def test_frames_in_every_form(servers: Servers) -> None:
    script = answering(
        lambda _: frame(PING, 0, 0, b"12345678"),
        lambda _: frame(99, 0, 0, b"of a later version"),
        lambda number: frame(HEADERS, 0, number, GOOD[:5]),
        lambda number: frame(CONTINUATION, END_HEADERS, number, GOOD[5:]),
        lambda number: frame(DATA, PADDED, number, b"\x03" + ANSWER[:4] + b"\0\0\0"),
        lambda number: frame(DATA, 0, number, ANSWER[4:]),
        lambda number: frame(HEADERS, END_HEADERS | END_STREAM, number, DONE),
    )
    async with scripted(script) as where:
        for _ in range(2):
            assert await ask(servers, where, "x") == b"hello"


@pytest.mark.parametrize(
    ("frames", "kind", "text"),
    [
        ([lambda n: frame(RST, 0, n, struct.pack(">I", 7))], Broken, "for now"),
        ([lambda n: frame(RST, 0, n, struct.pack(">I", 2))], Status, "gave up"),
        ([lambda n: frame(HEADERS, END_HEADERS | END_STREAM, n, headers((":status", "502")))], Status, "502"),
        ([lambda n: frame(HEADERS, END_HEADERS | END_STREAM, n, GOOD)], Status, "status 13"),
        (
            [lambda n: frame(HEADERS, END_HEADERS, n, GOOD), lambda n: frame(DATA, END_STREAM, n, ANSWER)],
            Status,
            "without",
        ),
        (
            [
                lambda n: frame(DATA, 0, n, ANSWER + b"more"),
                lambda n: frame(HEADERS, END_HEADERS | END_STREAM, n, DONE),
            ],
            Status,
            "not one message",
        ),
        ([lambda n: frame(HEADERS, END_HEADERS, n, b"\xff\xff\xff\xff\xff\xff")], Broken, "as agreed"),
        ([lambda n: frame(DATA, PADDED, n, b"\x09abc")], Broken, "as agreed"),
        ([lambda n: frame(HEADERS, 0, n, GOOD), lambda n: frame(PING, 0, 0, b"12345678")], Broken, "as agreed"),
        ([lambda n: b"\xff" * 64], Broken, "as agreed"),
        ([lambda n: frame(GOAWAY, 0, 0, struct.pack(">II", 0, 0))], Broken, "about to end"),
    ],
)
async def test_answers_that_are_none(
    servers: Servers, frames: list[Callable[[int], bytes]], kind: type[Exception], text: str
) -> None:
    async with scripted(answering(*frames)) as where:
        with pytest.raises(kind, match=text):
            await ask(servers, where, "x")


async def test_small_windows_are_kept_to(servers: Servers) -> None:
    seen = bytearray()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flags = stream = 0
        while len(seen) < 5 + 100:
            flags, stream, body = await next_frame(reader, DATA)
            assert len(body) <= 10
            seen.extend(body)
            writer.write(frame(WINDOW, 0, stream, struct.pack(">I", len(body))))
        assert flags & END_STREAM
        writer.write(frame(HEADERS, END_HEADERS, stream, GOOD) + frame(DATA, 0, stream, ANSWER))
        writer.write(frame(HEADERS, END_HEADERS | END_STREAM, stream, DONE))
        await reader.read()

    async with scripted(script, SETTING.pack(INITIAL_WINDOW, 10) + SETTING.pack(MAX_STREAMS, 1)) as where:
        assert await ask(servers, where, "x", b"y" * 100) == b"hello"
    assert seen[5:] == b"y" * 100


async def test_what_a_connection_knows_not_to_have_sent(servers: Servers) -> None:
    """Of two calls where one is allowed at a time the second never left."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next_frame(reader, DATA)

    async with scripted(script, SETTING.pack(MAX_STREAMS, 1)) as where:
        connection = await servers.connection(where)
        calls = [connection.begin("/a.Service/x", b"", unary=True, within=20) for _ in range(2)]
        ended = await asyncio.gather(*map(connection.receive, calls), return_exceptions=True)
    assert [isinstance(one, Broken) and one.sent for one in ended] == [True, False]


async def test_nobody_there(servers: Servers) -> None:
    async with scripted(answering()) as where:
        pass
    for server in (where, "no-such-host.invalid:1", "nonsense"):
        with pytest.raises(Broken) as caught:
            await ask(servers, server, "x")
        assert not caught.value.sent


def test_a_request_is_constant_bytes() -> None:
    from hpack import Decoder

    for token in ("", "secret"):
        block = request_headers("host:1", "/a.B/C" * 40, token, secure=True)
        decoded = dict(Decoder().decode(block, raw=True))
        assert decoded[b":path"] == b"/a.B/C" * 40
        assert decoded.get(b"token", b"") == token.encode()
    assert statuses.RESETS[statuses.CANCEL] == statuses.CANCELLED
