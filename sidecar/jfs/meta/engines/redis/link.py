"""The way to one Redis server: making connections, greeting it, coming back after a loss, reading with retries.

`shared()` is the one multiplexed connection for everything that needs no WATCH; `borrow()` lends a private one.
Invariants: at most one dial for the shared connection is under way, and everybody waits for that one; requests that only
read are repeated after a loss, everything else is the caller's decision. Belongs to one event loop.
"""

import asyncio
import random
import re
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from jfs.errors import CredentialsRefused, StoreAway, StoreUnavailable
from jfs.meta.engines.redis.connection import Command, Connection, pack_all
from jfs.meta.engines.redis.failures import ConnectionLost, converted, first_error
from jfs.meta.engines.redis.sentinel import ask_sentinels
from jfs.meta.engines.redis.url import RedisAddress

_DIAL_TIMEOUT: Final = 5.0  # seconds, the real client's
_PATIENCE: Final = 10.0  # seconds for which a server that was there before is looked for
_TRIES: Final = 10
_RUN_ID: Final = re.compile(rb"run_id:([0-9a-f]+)")
_MAX_IDLE: Final = 8  # private connections kept


class Link:
    """Connections to the server at one address."""

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self._shared: Connection | None = None
        self._dial: asyncio.Task[Connection] | None = None
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._closed = False
        self.dialled: Callable[[], None] | None = None  # called when there is one connection more

    async def dial(self) -> Connection:
        """One try to make a greeted connection. StoreUnavailable or CredentialsRefused say why not."""
        address = self.address
        name = str(address)
        loop = asyncio.get_running_loop()

        def protocol() -> Connection:
            return Connection(name, address.read_timeout, address.write_timeout)

        try:
            async with asyncio.timeout(_DIAL_TIMEOUT):
                context = address.tls_context()
                host, port = address.host, address.port
                if address.sentinels:
                    host, port = await ask_sentinels(address)
                if address.socket_path:
                    _, connection = await loop.create_unix_connection(protocol, address.socket_path)
                else:
                    transport, connection = await loop.create_connection(
                        protocol,
                        host,
                        port,
                        ssl=context,
                        server_hostname=(address.tls_server_name or host) if context else None,
                    )
                    _keep_alive(transport.get_extra_info("socket"))
                try:
                    await self._greet(connection)
                except BaseException:
                    connection.abort("the greeting failed")
                    raise
        except TimeoutError as error:
            raise StoreAway(f"Redis at {name} cannot be reached: no answer within {_DIAL_TIMEOUT:g} seconds") from error
        except OSError as error:  # ssl.SSLError is one
            raise StoreAway(f"Redis at {name} cannot be reached: {error}") from error
        self._all = {known for known in self._all if not known.lost}
        self._all.add(connection)
        if self.dialled is not None:
            self.dialled()
        return connection

    def clients(self) -> tuple[str, list[int]]:
        """The server's process, and its numbers of all connections; "" when it does not tell."""
        known = [connection for connection in self._all if connection.run_id and not connection.lost]
        server = known[-1].run_id if known else b""
        return server.decode(), sorted(one.client_id for one in known if one.run_id == server)

    async def end_clients(self, server: str, clients: Sequence[int]) -> bool:
        """Have the server end connections of another client that is dead; whether it certainly does nothing for them any more. One
        that was started again has none. StoreError."""
        connection = await self.shared()
        if not server or not connection.run_id:
            return False
        if connection.run_id != server.encode():  # another process, to which they never led
            return True
        answers = await connection.request(
            pack_all([(b"CLIENT", b"KILL", b"ID", client) for client in clients]), len(clients)
        )
        return first_error(answers) is None

    async def _greet(self, connection: Connection) -> None:
        address = self.address
        commands: list[Command] = []
        if address.password:
            commands.append(("AUTH", address.user, address.password) if address.user else ("AUTH", address.password))
        if address.db:
            commands.append(("SELECT", address.db))
        commands.append(("PING",))
        identity: list[Command] = [("CLIENT", "ID"), ("INFO", "server")]  # a server may refuse to tell
        replies = await connection.request(pack_all([*commands, *identity]), len(commands) + len(identity))
        *replies, client_id, server = replies
        if isinstance(client_id, int) and isinstance(server, bytes) and (found := _RUN_ID.search(server)):
            connection.client_id, connection.run_id = client_id, found.group(1)
        if error := first_error(replies):
            if error.text.startswith("ERR DB index"):
                raise StoreUnavailable(
                    f"Redis at {address} has no database {address.db}; use a lower number"
                ) from error
            raise converted(error, str(address)) from error

    async def _redial(self) -> Connection:
        """Dial until the server is back, for as long as `_PATIENCE`."""
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        pause = self.address.min_retry_backoff
        while True:
            try:
                connection = await self.dial()
            except CredentialsRefused:
                raise
            except StoreUnavailable:
                if asyncio.get_running_loop().time() + pause > deadline:
                    raise
            else:
                if self._closed:
                    connection.abort("the store is closed")
                return connection
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, self.address.max_retry_backoff)

    def shared_now(self) -> Connection | None:
        """The shared connection when it is there."""
        shared = self._shared
        return shared if shared is not None and not shared.lost else None

    async def shared(self) -> Connection:
        """The shared connection, made again when it was lost."""
        if shared := self.shared_now():
            return shared
        if self._closed:
            raise StoreUnavailable(f"the connection to Redis at {self.address} is closed")
        if self._dial is None:
            self._dial = asyncio.create_task(self._redial())
            self._dial.add_done_callback(self._dialled)
        return await asyncio.shield(self._dial)

    def _dialled(self, task: "asyncio.Task[Connection]") -> None:
        self._dial = None
        if not task.cancelled() and task.exception() is None:
            self._shared = task.result()

    def adopt(self, connection: Connection) -> None:
        """Use a connection that was dialled at start as the shared one."""
        self._shared = connection

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Connection]:
        """A connection nobody else uses. The borrower leaves it without WATCHes and without answers to come, or aborts it."""
        connection = None
        while self._idle and connection is None:
            connection = self._idle.pop()
            if connection.lost:
                connection = None
        if connection is None:
            if self._closed:
                raise StoreUnavailable(f"the connection to Redis at {self.address} is closed")
            connection = await self._redial()
        try:
            yield connection
        finally:
            if connection.is_clean and len(self._idle) < _MAX_IDLE and not self._closed:
                self._idle.append(connection)
            else:
                connection.abort("a transaction was broken off")

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Replies, error replies among them, to commands that may be given twice; repeated after a loss. None to none, which no
        server would answer."""
        if not commands:
            return []
        packet = pack_all(commands)
        pause = self.address.min_retry_backoff
        for number in range(_TRIES):
            try:
                connection = self.shared_now() or await self.shared()
                return await connection.request(packet, len(commands))
            except ConnectionLost as error:
                if number == _TRIES - 1:
                    raise StoreAway(str(error)) from error
            await asyncio.sleep(pause * random.random())
            pause = min(pause * 2, self.address.max_retry_backoff)
        raise AssertionError

    async def read(self, commands: Sequence[Command]) -> list[Any]:
        """Replies to commands that only read; repeated after a loss and after errors that pass. Error replies are raised."""
        pause = self.address.min_retry_backoff
        for number in range(_TRIES):
            replies = await self.ask(commands)
            failure = first_error(replies)
            if failure is None:
                return replies
            if not failure.passing or number == _TRIES - 1:
                raise converted(failure, str(self.address)) from failure
            await asyncio.sleep(pause * random.random())
            pause = min(pause * 2, self.address.max_retry_backoff)
        raise AssertionError

    async def change(self, commands: Sequence[Command], *, twice: bool = False) -> list[Any]:
        """Replies to one command that changes something, or to several that may be repeated. What may have been received is not
        sent again unless it may be done *twice*: StoreUnavailable when its fate is unknown. After an error that passes, nothing
        was done, and it is repeated."""
        packet = pack_all(commands)
        pause = self.address.min_retry_backoff
        for _ in range(_TRIES):
            connection = self.shared_now() or await self.shared()
            try:
                replies = await connection.request(packet, len(commands))
            except ConnectionLost as error:
                if error.sent and not twice:
                    raise
                continue
            failure = first_error(replies)
            if failure is None:
                return replies
            if not failure.passing:
                raise converted(failure, str(self.address)) from failure
            await asyncio.sleep(pause * random.random())
            pause = min(pause * 2, self.address.max_retry_backoff)
        raise StoreAway(f"Redis at {self.address} takes no changes")

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        if self._dial is not None:
            self._dial.cancel()
            await asyncio.gather(self._dial, return_exceptions=True)
        connections, self._all = self._all, set()
        self._idle.clear()
        for connection in connections:
            await connection.close()


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel find out that an idle peer is gone, before a request waits for it."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
