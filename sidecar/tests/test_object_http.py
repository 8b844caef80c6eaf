"""The HTTP client of blocks: framings of bodies, connections used again and replaced, servers that misbehave, TLS."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from jfs.object.http import BrokenAnswer, HttpClient

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]


class Server:
    """*talk* is called for each connection with its number."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.connections = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._talk(reader, writer, self.connections)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    talk: Talk, *, context: ssl.SSLContext | None = None, verify: bool = True, idle_timeout: float = 20.0
) -> AsyncIterator[tuple[HttpClient, Server]]:
    server = Server(talk)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    client = HttpClient(
        f"http{'s' if context else ''}://127.0.0.1:{port}", verify=verify, limit=4, idle_timeout=idle_timeout
    )
    try:
        yield client, server
    finally:
        await client.close()
        listening.close()
        await listening.wait_closed()


async def head(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def answering(*answers: bytes) -> Talk:
    """Each request of a connection gets the next answer; the connection ends behind the last."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        for answer in answers:
            await head(reader)
            writer.write(answer)
            await writer.drain()

    return talk


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK, b"hello"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nup to the end", b"up to the end"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n",
            b"hello world",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n0\r\n\r\n0\r\nA-Trailer: 1\r\n\r\n", b"0\r\n"),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    ],
)
async def test_bodies_of_every_framing_in_pieces_of_any_size(answer: bytes, body: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await head(reader)
        step = len(answer) if number == 1 else 1
        for at in range(0, len(answer), step):
            writer.write(answer[at : at + step])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(talk) as (client, _):
        for _ in range(2):
            got = await client.request("GET", "/key", {"x-amz-date": "today"})
            assert bytes(got.body) == body
            assert got.status in (200, 204)


async def test_large_bodies_both_ways_over_one_connection() -> None:
    data = bytes(range(256)) * (20_000)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        for _ in range(3):
            asked = await head(reader)
            assert asked.startswith(b"PUT /a%20b HTTP/1.1\r\nHost: 127.0.0.1:")
            assert f"Content-Length: {len(data)}\r\n".encode() in asked
            assert await reader.readexactly(len(data)) == data
            writer.write(b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            await writer.drain()

    async with serving(talk) as (client, server):
        for _ in range(3):
            got = await client.request("PUT", "/a%20b", {}, memoryview(data))
            assert got.body == data
            assert got.headers["etag"] == "x"
        assert server.connections == 1


async def test_head_has_no_body_whatever_its_length_says() -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4194304\r\n\r\n", OK)) as (client, server):
        got = await client.request("HEAD", "/k", {})
        assert (got.body, got.headers["content-length"]) == (b"", "4194304")
        assert (await client.request("GET", "/k", {})).body == b"hello"
        assert server.connections == 1


async def test_connections_are_used_again_and_closed_ones_replaced() -> None:
    async with serving(answering(OK, OK)) as (client, server):
        for _ in range(4):  # the server hangs up behind every second answer without saying so
            assert (await client.request("GET", "/k", {})).body == b"hello"
        assert server.connections == 2
    async with serving(answering(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) as (client, server):
        for _ in range(3):
            await client.request("GET", "/k", {})
        assert server.connections == 3


async def test_no_more_connections_than_allowed() -> None:
    gate, four = asyncio.Event(), asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await head(reader)
            if number == 4:
                four.set()
            await gate.wait()
            writer.write(OK)

    async with serving(talk) as (client, server):
        asked = [asyncio.create_task(client.request("GET", "/k", {})) for _ in range(12)]
        await four.wait()
        gate.set()
        assert [(await each).status for each in asked] == [200] * 12
        assert server.connections == 4


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nmore than that",
        b"HTTP/1.1 200 OK\r\nContent-Length: -7\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz0\r\nhello\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 what\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 70_000,
    ],
)
async def test_what_is_not_an_answer_is_broken(answer: bytes) -> None:
    async with serving(answering(answer)) as (client, server):
        with pytest.raises(BrokenAnswer):
            await client.request("GET", "/k", {})
        assert server.connections == 1  # a fresh connection: nothing is tried twice behind the caller's back


async def test_a_silent_server_is_a_timeout_and_a_slow_one_is_not() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await head(reader)
        await reader.read()

    async with serving(silent, idle_timeout=0.05) as (client, _):
        with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
            await client.request("GET", "/k", {})

    async def full(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await asyncio.Event().wait()  # never reads

    async with serving(full, idle_timeout=0.05) as (client, _):
        with pytest.raises(TimeoutError):
            await client.request("PUT", "/k", {}, memoryview(bytes(64 << 20)))


async def test_an_early_refusal_is_the_answer() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await head(reader)
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read()

    async with serving(talk) as (client, server):
        for _ in range(2):
            got = await client.request("PUT", "/k", {}, memoryview(bytes(64 << 20)))
            assert (got.status, got.body) == (403, b"no")
        assert server.connections == 2  # the first one still waits for the rest of the body


async def test_a_cancelled_request_breaks_its_connection_off() -> None:
    begun = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await head(reader)
        if number > 1:
            writer.write(OK)
            await head(reader)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegin")
            begun.set()
            await reader.read()

    async with serving(talk) as (client, server):
        asked = asyncio.create_task(client.request("GET", "/k", {}))
        await begun.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert (await client.request("GET", "/k", {})).body == b"hello"
        assert server.connections == 2


async def test_nobody_there_is_an_error_of_the_system() -> None:
    async with serving(answering(OK)) as (client, _):
        pass
    with pytest.raises(ConnectionRefusedError):
        await client.request("GET", "/k", {})


async def test_headers_cannot_be_split() -> None:
    async with serving(answering(OK)) as (client, server):
        with pytest.raises(ValueError, match="line break"):
            await client.request("GET", "/k", {"x-amz-storage-class": "A\r\nx-evil: 1"})
        assert not server.connections


def certificate(path: Path) -> ssl.SSLContext:
    """A server's context with a certificate that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_tls_is_spoken_and_certificates_are_verified(tmp_path: Path) -> None:
    context = certificate(tmp_path / "server.pem")
    data = bytes(1 << 20)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await head(reader)
            await reader.readexactly(len(data))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
            await writer.drain()

    async with serving(talk, context=context, verify=False) as (client, server):
        for _ in range(2):
            assert (await client.request("PUT", "/k", {}, memoryview(data))).body == data
        assert server.connections == 1
    async with serving(talk, context=context) as (client, _):
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.request("PUT", "/k", {}, memoryview(data))
