"""Calls of gRPC services by server: connections are made when they are needed, shared by all tasks, and made anew when they break.

Between the engines, which know messages and what refusals mean, and `http2`. One event loop.
"""

import asyncio
import socket
import ssl
from typing import Any, Final, Protocol, TypeVar

from jfs.errors import ConfigError
from jfs.meta.engines.kv.call import Call
from jfs.meta.engines.kv.http2 import Connection
from jfs.meta.engines.kv.statuses import Broken
from jfs.meta.engines.kv.url import KvAddress

ANSWER_WITHIN: Final = 20.0  # seconds
_CONNECT_WITHIN: Final = 5.0

M = TypeVar("M")


class Message(Protocol):
    """A message of protobuf."""

    def SerializeToString(self) -> bytes: ...


class Servers:
    """The servers of an address, each by its `host:port`."""

    def __init__(self, address: KvAddress) -> None:
        self._address = address
        self._tls: ssl.SSLContext | None = None
        self._connections: dict[str, Connection] = {}
        self._dialling: dict[str, asyncio.Task[Connection]] = {}

    async def ask(self, server: str, path: str, request: Message, answer: type[M], token: str = "") -> M:
        """The answer to one request. Status, Broken."""
        body = request.SerializeToString()
        connection = self._connections.get(server)
        if connection is not None and connection.usable:
            try:
                return await self._call(connection, path, body, answer, token)
            except Broken as error:
                if error.sent:
                    raise
        return await self._call(await self.connection(server), path, body, answer, token)

    async def _call(self, connection: Connection, path: str, body: bytes, answer: type[M], token: str) -> M:
        try:
            call = connection.begin(path, body, token=token, unary=True, within=ANSWER_WITHIN)
            reply: M = answer.FromString(await connection.receive(call))  # type: ignore[attr-defined]
        except Broken as error:
            if error.sent:  # it may stall for ever
                self._give_up(connection)
            raise
        return reply

    def _give_up(self, connection: Connection) -> None:
        """Make the next request take another connection, unless it would anyway."""
        for server, present in list(self._connections.items()):
            if present is connection:
                self.drop(server)

    async def stream(self, server: str, path: str) -> "Stream":
        """A stream of messages both ways. Broken."""
        connection = await self.connection(server)
        return Stream(connection, connection.begin(path, None, unary=False, within=ANSWER_WITHIN))

    async def connection(self, server: str) -> Connection:
        """The connection to a server, made when there is none. Broken."""
        connection = self._connections.get(server)
        if connection is not None and connection.usable:
            return connection
        task = self._dialling.get(server)
        if task is None:
            task = self._dialling[server] = asyncio.create_task(self._dial(server), name=f"connect to {server}")
        return await asyncio.shield(task)

    async def _dial(self, server: str) -> Connection:
        address = self._address
        try:
            if address.tls and self._tls is None:
                self._tls = _context(address)
            connection = await _dial(server, self._tls, address.server_name, _CONNECT_WITHIN)
            self._connections[server] = connection
            return connection
        finally:
            self._dialling.pop(server, None)

    def drop(self, server: str) -> None:
        """Hang up on a server; the next request makes a new connection."""
        connection = self._connections.pop(server, None)
        if connection is not None:
            connection.close("the connection is made anew")

    async def close(self) -> None:
        """Hang up on all."""
        dialling = list(self._dialling.values())
        for task in dialling:
            task.cancel()
        await asyncio.gather(*dialling, return_exceptions=True)
        for server in list(self._connections):
            self.drop(server)


class Stream:
    """One stream."""

    def __init__(self, connection: Connection, call: Call) -> None:
        self._connection = connection
        self._call = call

    async def ask(self, request: Message, answer: type[M]) -> M:
        """Send a message and wait for the next one of the server. Status, Broken; TimeoutError after 20 s."""
        self._connection.send(self._call, request.SerializeToString())
        async with asyncio.timeout(ANSWER_WITHIN):
            reply: M = answer.FromString(await self._connection.receive(self._call))  # type: ignore[attr-defined]
        return reply

    def end(self) -> None:
        """Give it up."""
        self._connection.cancel(self._call)


def _context(address: KvAddress) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=address.ca or None)
        if address.certificate:
            context.load_cert_chain(address.certificate, address.key or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"a certificate of the metadata address cannot be used: {error}") from error
    context.set_alpn_protocols(["h2"])
    return context


async def _dial(server: str, tls: ssl.SSLContext | None, name: str, within: float) -> Connection:
    """A connection to `host:port`; with *tls* the server must be *name*. Broken."""
    host, _, port = server.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    secure = tls is not None
    more: dict[str, Any] = {"ssl": tls, "server_hostname": name or host} if secure else {}
    try:
        async with asyncio.timeout(within):
            transport, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(name or server, secure=secure), host, int(port), **more
            )
    except (OSError, ValueError, TimeoutError) as error:
        raise Broken(str(error) or "no connection in time", sent=False) from error
    if secure and transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
        connection.close()
        raise Broken("the server does not speak HTTP/2 over TLS", sent=False)
    _stay_awake(transport.get_extra_info("socket"))
    try:
        async with asyncio.timeout(within):
            await connection.settled  # how many calls it takes at a time, for one
    except BaseException as error:
        connection.close("nobody waits for it")
        if isinstance(error, TimeoutError):
            raise Broken("no HTTP/2 in time", sent=False) from error
        raise
    if connection.closed:
        raise Broken(connection.closed, sent=False)
    return connection


def _stay_awake(connection: socket.socket) -> None:
    """Have the kernel notice a peer that is gone without a word: within a minute when idle, 20 s when something is unanswered (tcp(7))."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
