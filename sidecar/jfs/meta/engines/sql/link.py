"""Connections to a database server, lent out one at a time; what all drivers share.

`Link` keeps idle connections and opens more up to a limit; a waiter gets the next one that comes back. Invariant: a connection
that was given up in the middle of an answer (an error of the network, a cancelled task) is closed, never lent again.
Failures become `Conflict` (run the attempt again: nothing was done), `StoreUnavailable`, or what the server said no to. Each
connection has a name that the server knows it by, so that another one can have it ended.
"""

import abc
import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

from jfs.errors import Conflict, JfsError, StoreAway, StoreUnavailable
from jfs.meta.engines.sql.dialect import Dialect
from jfs.meta.engines.sql.kinds import Row
from jfs.meta.engines.sql.statements import Select
from jfs.meta.engines.sql.url import ServerAddress

C = TypeVar("C")
T = TypeVar("T")

MAX_CONNECTIONS: Final = 16
PATIENCE: Final = 10.0  # seconds that a server which does not answer is knocked at
_PAUSE: Final = 0.02


class Lost(Exception):
    """The connection broke; *sent* says whether the server may have done what was asked."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class Unanswered(StoreUnavailable):
    """The connection broke after a commit was sent; *name* is the server's for it, "" when it has none."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


def new_name() -> str:
    """A name no other connection has."""
    return f"juicefs-{uuid.uuid4().hex}"


class Link(abc.ABC, Generic[C]):
    """The connections of one store."""

    dialect: Dialect

    def __init__(self, address: ServerAddress, what: str) -> None:
        self.address = f"{what} at {address.where}"  # for messages
        self.prefix = address.table_prefix
        self._idle: list[C] = []
        self._slots = asyncio.Semaphore(address.max_connections or MAX_CONNECTIONS)
        self._closed = False

    # What a driver adds.

    @abc.abstractmethod
    async def _dial(self) -> C:
        """Open a connection. CredentialsRefused, VolumeError; Lost when nothing answers (yet)."""

    @abc.abstractmethod
    async def _hang_up(self, connection: C) -> None:
        """Close without waiting for anybody."""

    @abc.abstractmethod
    def _is_open(self, connection: C) -> bool: ...

    @abc.abstractmethod
    def _name(self, connection: C) -> str:
        """What the server knows it by; "" when it cannot be told."""

    @abc.abstractmethod
    async def _end(self, connection: C, name: str) -> bool:
        """Have the server end the connection of that name; whether it was there. It may be for a moment yet. Lost."""

    @abc.abstractmethod
    async def _ask(self, connection: C, selects: Sequence[Select]) -> list[Sequence[Row]]:
        """Rows of each query, in one round trip. Lost."""

    @abc.abstractmethod
    async def _run(self, connection: C, text: str) -> None:
        """Run a text of statements, in one round trip. Conflict, Lost, or what the server's refusal means."""

    @abc.abstractmethod
    async def _increment(self, connection: C, counter: str, count: int, initial: int) -> int:
        """As `increment`, once. Lost."""

    @abc.abstractmethod
    async def tables(self) -> dict[str, dict[str, str]]:
        """Types of columns by table and column, in the database (and schema) we use."""

    @abc.abstractmethod
    async def indexes(self) -> frozenset[str]:
        """Names of the indexes there."""

    # What everybody uses.

    async def open(self) -> None:
        """Try to connect. StoreUnavailable, CredentialsRefused, VolumeError."""
        async with self.lent():
            pass

    @asynccontextmanager
    async def lent(self) -> AsyncIterator[C]:
        """A connection for one request."""
        async with self._slots:
            connection = await self._take()
            try:
                yield connection
            except (Conflict, JfsError):
                if self._is_open(connection):
                    self._idle.append(connection)
                else:
                    await self._hang_up(connection)
                raise
            except BaseException:
                await self._hang_up(connection)
                raise
            self._idle.append(connection)

    async def _take(self) -> C:
        if self._closed:
            raise StoreUnavailable(f"the connection to {self.address} is closed")
        while self._idle:
            connection = self._idle.pop()
            if self._is_open(connection):
                return connection
            await self._hang_up(connection)
        deadline = asyncio.get_running_loop().time() + PATIENCE
        pause = _PAUSE
        while True:
            try:
                return await self._dial()
            except Lost as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise StoreAway(
                        f"{self.address} cannot be reached ({error}); check the address and that the server runs"
                    ) from error
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, 1.0)

    async def read(self, selects: Sequence[Select]) -> list[Sequence[Row]]:
        """Rows of each query; asked again while connections break."""
        return await self._repeated(lambda connection: self._ask(connection, selects))

    async def increment(self, counter: str, count: int, initial: int) -> int:
        """Add to a counter that is *initial* when missing; the new value. When an answer is lost it is done again: of ids some may
        remain unused."""
        return await self._repeated(lambda connection: self._increment(connection, counter, count, initial))

    async def end(self, name: str) -> bool:
        """Have the server end the connection of that name and wait until it is gone; whether that is certain. StoreAway."""
        if not name:
            return False
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while await self._repeated(lambda connection: self._end(connection, name)):
            if asyncio.get_running_loop().time() > deadline:
                return False
            await asyncio.sleep(_PAUSE)
        return True

    async def _repeated(self, request: Callable[[C], Awaitable[T]]) -> T:
        """The answer to a request that may be made twice. Connections that lie idle when one breaks are likely broken too."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                async with self.lent() as connection:
                    return await request(connection)
            except Lost as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise StoreAway(
                        f"{self.address} keeps breaking the connection ({error}); is it being restarted?"
                    ) from error
            await self._drop_idle()
            await asyncio.sleep(_PAUSE * random.random())

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await self._hang_up(connection)

    async def rows(self, text: str, values: tuple[Any, ...] = ()) -> Sequence[Row]:
        """Rows of one query."""
        (rows,) = await self.read([Select(text, values)])
        return rows

    async def run(self, text: str) -> None:
        """Run a commit. Conflict when nothing was done and it may be tried again; Unanswered when the outcome is unknown."""
        name = ""
        try:
            async with self.lent() as connection:
                name = self._name(connection)
                await self._run(connection, text)
        except Lost as error:
            await self._drop_idle()
            if error.sent:
                raise Unanswered(
                    f"{self.address} broke the connection ({error}); whether the change was made is unknown", name
                ) from error
            raise Conflict from error

    async def close(self) -> None:
        """Close all idle connections; those lent out are closed when they come back."""
        self._closed = True
        while self._idle:
            await self._hang_up(self._idle.pop())
