"""The way to one Redis server: making connections, greeting it, coming back after a loss, reading with retries. Of a Cluster it is the
node that has the volume's slot; when that changes (MOVED) the next connections are made to the new one, and the old ones end.

`shared()` is the one multiplexed connection for everything that needs no WATCH; `borrow()` lends a private one.
Invariants: at most one dial for the shared connection is under way, and everybody waits for that one; requests that only
read are repeated after a loss, everything else is the caller's decision. Belongs to one event loop.
"""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

from jfs.errors import CredentialsRefused, StoreAway, StoreUnavailable
from jfs.meta.engines.redis.cluster import Cluster
from jfs.meta.engines.redis.connection import Command, Connection, pack_all
from jfs.meta.engines.redis.dialling import reach
from jfs.meta.engines.redis.failures import ConnectionLost, ServerError, converted, first_error
from jfs.meta.engines.redis.moving import Beyond
from jfs.meta.engines.redis.sentinel import ask_sentinels
from jfs.meta.engines.redis.url import RedisAddress

_DIAL_TIMEOUT: Final = 5.0  # seconds, the real client's
_PATIENCE: Final = 10.0  # seconds for which a server that was there before is looked for
_TRIES: Final = 10
_RUN_ID: Final = re.compile(rb"run_id:([0-9a-f]+)")
_MAX_IDLE: Final = 8  # private connections kept
_HOPS: Final = 3  # nodes that are asked in a row because the one before says that they have the slot


class PartOfCluster(StoreUnavailable):
    """What was taken for a single server is a node of a Cluster; *address* is the Cluster's, None when its nodes cannot be reached so."""

    def __init__(self, found: RedisAddress) -> None:
        super().__init__(
            f"Redis at {found} is part of a cluster now; mount again"
            if found.host
            else f"Redis at {found} is part of a cluster; write its address as redis://host1:6379,host2:6379/{found.db}"
        )
        self.address = replace(found, host="", nodes=((found.host, found.port),)) if found.host else None


class Link:
    """Connections to the server at one address."""

    def __init__(self, address: RedisAddress) -> None:
        self.address = address
        self._cluster = Cluster(address) if address.nodes else None
        self._beyond = Beyond(address)
        self.prefix = b"{%d}" % address.db if address.nodes else b""  # of all keys
        self.turn = 0  # grows when the shared connection leads to another process than before
        self._process = b""
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
        try:
            async with asyncio.timeout(_DIAL_TIMEOUT):
                if self._cluster is not None:
                    connection = await self._join(self._cluster)
                else:
                    place = await ask_sentinels(address) if address.sentinels else (address.host, address.port)
                    connection = await self._greeted(await reach(address, *place))
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

    async def _join(self, cluster: Cluster) -> Connection:
        """A greeted connection to the node that has the slot."""
        for hop in range(_HOPS):
            connection = await reach(self.address, *await cluster.owner(), self._moved)
            try:
                return await self._greeted(connection)
            except StoreAway:
                if not connection.retired or hop == _HOPS - 1:
                    raise
        raise AssertionError

    def _moved(self, connection: Connection, text: str) -> None:
        """A node that had the slot has it no more."""
        assert self._cluster is not None
        if connection.retired:
            return
        self._cluster.moved(text, connection.place[0])
        if connection is self._shared:
            self._shared = None
        for idle in self._idle:
            idle.retire()
        self._idle.clear()
        connection.retire()

    async def _greeted(self, connection: Connection) -> Connection:
        try:
            await self._greet(connection)
        except BaseException:
            connection.abort("the greeting failed")
            raise
        return connection

    async def _greet(self, connection: Connection) -> None:
        address = self.address
        commands: list[Command] = [*address.authentication()]
        # A server may refuse to tell about itself.
        identity: list[Command] = [("CLIENT", "ID"), ("INFO", "server")]
        if self._cluster is not None:
            commands.append((b"EXISTS", self.prefix))  # which no key is; it tells whether the slot is there
        else:
            if address.db:
                commands.append(("SELECT", address.db))
            commands.append(("PING",))
            identity.append(("CLUSTER", "INFO"))
        replies = await connection.request(pack_all([*commands, *identity]), len(commands) + len(identity))
        replies, (client_id, server, *told) = replies[: len(commands)], replies[len(commands) :]
        if isinstance(client_id, int) and isinstance(server, bytes) and (found := _RUN_ID.search(server)):
            connection.client_id, connection.run_id = client_id, found.group(1)
        if self._cluster is None and any(_shows_cluster(reply) for reply in (*replies, server, *told)):
            raise PartOfCluster(address)
        if isinstance(replies[-1], ServerError) and replies[-1].asking:
            replies.pop()  # the slot is being moved away, and still is there
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
            self.adopt(task.result())

    def adopt(self, connection: Connection) -> None:
        """Use a connection that was dialled as the shared one."""
        self._shared = connection
        if not connection.run_id or connection.run_id != self._process:
            self.turn += 1
        self._process = connection.run_id

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
            if failure.asking and self._shared is not None:
                complete = await self._beyond.complete(commands, replies, self._shared.place[0])
                if complete is not None:
                    return complete
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
        failure: ServerError | None = None
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
        if failure is not None:
            raise converted(failure, str(self.address)) from failure
        raise StoreAway(f"Redis at {self.address} takes no changes")

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed = True
        if self._dial is not None:
            self._dial.cancel()
            await asyncio.gather(self._dial, return_exceptions=True)
        await self._beyond.close()
        connections, self._all = self._all, set()
        self._idle.clear()
        for connection in connections:
            await connection.close()


def _shows_cluster(reply: Any) -> bool:
    """Whether this reply to a greeting is that of a node of a Cluster, by any of the ways in which one can be told."""
    if isinstance(reply, ServerError):
        return "not allowed in cluster mode" in reply.text
    return isinstance(reply, bytes) and (b"cluster_state:" in reply or b"redis_mode:cluster" in reply)
