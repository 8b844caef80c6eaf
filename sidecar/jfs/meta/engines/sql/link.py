"""Connections to a database server, lent out one at a time; what all drivers share.

`Link` keeps idle connections and opens more up to a limit; a waiter gets the next one that comes back. Invariant: a connection
that was given up in the middle of an answer (an error of the network, a cancelled task) is closed, never lent again.
Failures become `Conflict` (run the attempt again: nothing was done), `StoreUnavailable`, or what the server said no to.
"""

import abc
import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

from jfs.errors import Conflict, JfsError, StoreAway, StoreUnavailable
from jfs.meta.engines.sql.dialect import Dialect
from jfs.meta.engines.sql.kinds import Row
from jfs.meta.engines.sql.statements import Select
from jfs.meta.engines.sql.url import ServerAddress

C = TypeVar("C")

MAX_CONNECTIONS: Final = 16
PATIENCE: Final = 10.0  # seconds that a server which does not answer is knocked at


class Lost(Exception):
    """The connection broke; *sent* says whether the server may have done what was asked."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


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
    async def _ask(self, connection: C, selects: Sequence[Select]) -> list[Sequence[Row]]:
        """Rows of each query, in one round trip. Lost."""

    @abc.abstractmethod
    async def _run(self, connection: C, text: str) -> None:
        """Run a text of statements, in one round trip. Conflict, Lost, or what the server's refusal means."""

    @abc.abstractmethod
    async def increment(self, counter: str, count: int, initial: int) -> int:
        """Add to a counter that is *initial* when missing; the new value."""

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
        pause = 0.02
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
        """Rows of each query; a broken connection is replaced once."""
        try:
            async with self.lent() as connection:
                return await self._ask(connection, selects)
        except Lost:
            pass
        try:
            async with self.lent() as connection:
                return await self._ask(connection, selects)
        except Lost as error:
            raise StoreAway(f"{self.address} broke the connection ({error}); is it being restarted?") from error

    async def rows(self, text: str, values: tuple[Any, ...] = ()) -> Sequence[Row]:
        """Rows of one query."""
        (rows,) = await self.read([Select(text, values)])
        return rows

    async def run(self, text: str) -> None:
        """Run a commit. Conflict when nothing was done and it may be tried again; StoreUnavailable when the outcome is unknown."""
        try:
            async with self.lent() as connection:
                await self._run(connection, text)
        except Lost as error:
            if error.sent:
                raise StoreUnavailable(
                    f"{self.address} broke the connection ({error}); whether the change was made is unknown"
                ) from error
            raise Conflict from error

    async def close(self) -> None:
        """Close all idle connections; those lent out are closed when they come back."""
        self._closed = True
        while self._idle:
            await self._hang_up(self._idle.pop())
