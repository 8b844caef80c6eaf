"""The SQLite file: opening it, completing its tables, the one transaction at a time, waiting while others hold its lock.

Flow: `SqliteStore` calls `transaction()` for writes and `read()` for everything else. Invariants: the turn is held from BEGIN
to COMMIT, so the connection has one transaction at most; a file that is missing or holds no volume is made or changed by
the first write only, and until then an empty database in memory answers the reads. SQLite's own waiting is off: a busy
database is waited for by asyncio.sleep.
"""

import asyncio
import os
import random
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from jfs.errors import JfsError, StoreUnavailable
from jfs.meta.engines.sqlite import schema
from jfs.meta.engines.sqlite.checkpoint import LONGEST, Checkpoints
from jfs.meta.engines.sqlite.failures import converted, is_busy
from jfs.meta.engines.sqlite.records import Records
from jfs.meta.engines.sqlite.url import SqliteAddress

T = TypeVar("T")


class SqliteDatabase:
    """The connection of one store."""

    def __init__(self, address: SqliteAddress) -> None:
        self._address = address
        self._taken = False  # the turn
        self._arrivals: deque[asyncio.Future[None]] = deque()
        self._owner: asyncio.Task[object] | None = None
        self._stalled: asyncio.Future[None] | None = None  # while a COMMIT waits, with writes that nobody must see yet
        self._connection: sqlite3.Connection | None = None
        self._made = False  # whether `_connection` is the file
        self._checkpoints: Checkpoints | None = None
        self.records: Records

    @property
    def table_prefix(self) -> str:
        return self._address.table_prefix

    async def open(self) -> None:
        """Open the file when it holds a volume. VolumeError when it is no database, StoreUnavailable when it cannot be opened."""
        if await self._holds_volume():
            await self._open_file()
        else:
            folder = os.path.dirname(os.path.abspath(self._address.path))
            if not os.path.isdir(folder):
                raise StoreUnavailable(f"the directory {folder} of the SQLite database does not exist; create it")
            self._use(self._new_connection(":memory:"))
            schema.sync(self.connection, self.table_prefix)

    async def _holds_volume(self) -> bool:
        if not os.path.exists(self._address.path):
            return False
        connection = self._new_connection(self._address.path)
        try:
            return "setting" in (await self._patiently(lambda: schema.inspect(connection, self.table_prefix))).tables
        finally:
            connection.close()

    def _new_connection(self, path: str) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(path, timeout=0, isolation_level=None, cached_statements=256)
        except sqlite3.Error as error:
            raise self.converted(error) from error
        connection.text_factory = bytes  # TEXT columns hold arbitrary bytes, and slices that SQLite calls TEXT
        return connection

    def _use(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        present = schema.inspect(connection, self.table_prefix)
        self.records = Records(connection, self.table_prefix, present.tables)

    @property
    def connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreUnavailable(f"the SQLite database {self._address.path} is closed")
        return self._connection

    async def _open_file(self) -> None:
        connection = self._new_connection(self._address.path)
        try:
            await self._patiently(lambda: self._prepare(connection))
            if self._connection is not None:
                self._connection.close()
            self._use(connection)
        except BaseException:
            connection.close()
            raise
        self._made = True
        if self._address.journal_mode == "WAL":
            self._checkpoints = Checkpoints(self._address.path)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Of a database that already is in this mode nothing is asked.
        connection.execute(f"PRAGMA journal_mode={self._address.journal_mode}").fetchone()
        # As the real client's driver has it in WAL mode: a power cut may take the last commits back but breaks nothing.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA cache_size=-8192")
        connection.execute(f"PRAGMA wal_autocheckpoint={LONGEST}")
        if schema.missing_statements(schema.inspect(connection, self.table_prefix), self.table_prefix):
            connection.execute("BEGIN IMMEDIATE")
            try:
                schema.sync(connection, self.table_prefix)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise

    async def _patiently(self, step: Callable[[], T]) -> T:
        """Run *step* until no other process holds the lock it needs, for as long as the address allows."""
        deadline = 0.0
        pause = 0.0005
        while True:
            try:
                return step()
            except sqlite3.Error as error:
                now = asyncio.get_running_loop().time()
                deadline = deadline or now + self._address.patience
                if not is_busy(error) or now > deadline:
                    raise self.converted(error) from error
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 1.5, 0.02)

    async def read(self, step: Callable[[], T]) -> T:
        """Run a reading *step* on `records` or `connection`. Does not suspend unless another process locks the file."""
        if not self._made:
            await self._take_turn()
            try:
                if not self._made and await self._holds_volume():
                    await self._open_file()
            finally:
                self._give_turn()
        while self._stalled is not None:
            await asyncio.shield(self._stalled)
        return await self._patiently(step)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """BEGIN IMMEDIATE … COMMIT, or ROLLBACK when the body raises or returns to nobody."""
        await self.begin()
        self.enter()
        try:
            yield
        except BaseException as error:
            self.leave()
            self.rollback()
            if isinstance(error, sqlite3.Error):
                raise self.converted(error) from error
            raise
        self.leave()
        await self.commit()

    async def _take_turn(self) -> None:
        while self._taken:
            await self._wait_for_turn()
        self._taken = True

    async def _wait_for_turn(self) -> None:
        """Returns when the turn may be free."""
        arrival: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals.append(arrival)
        try:
            await arrival
        except BaseException:
            if not arrival.cancelled():  # it is another's
                self._call_next()
            raise

    def _give_turn(self) -> None:
        self._taken = False
        self._call_next()

    def _call_next(self) -> bool:
        """Wake who has waited longest; False when nobody does."""
        while self._arrivals:
            arrival = self._arrivals.popleft()
            if not arrival.done():
                arrival.set_result(None)
                return True
        return False

    def enter(self) -> None:
        """The current task works in the transaction, which must not wait for another one meanwhile."""
        self._owner = asyncio.current_task()

    def leave(self) -> None:
        """It does not any more."""
        self._owner = None

    async def begin(self) -> None:
        """Take the turn and the file's write lock."""
        if self._owner is not None and self._owner is asyncio.current_task():
            raise RuntimeError("a transaction was started inside a transaction")
        await self._take_turn()
        try:
            if not self._made:
                await self._open_file()
            try:
                self.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise self.converted(error) from error
                await self._patiently(lambda: self.connection.execute("BEGIN IMMEDIATE"))
        except BaseException:
            self._give_turn()
            raise

    def commit_at_once(self) -> bool:
        """COMMIT and give the turn on. False when readers of other processes have to be waited for, outside WAL mode: `commit` does."""
        try:
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            if is_busy(error):
                return False
            self.rollback()
            raise self.converted(error) from error
        except BaseException:
            self.rollback()
            raise
        self._give_turn()
        if self._checkpoints is not None:
            self._checkpoints.committed()
        return True

    async def commit(self) -> None:
        """COMMIT and give the turn on, after readers of other processes that are in the way."""
        if self.commit_at_once():
            return
        stalled = self._stalled = asyncio.get_running_loop().create_future()
        try:
            await self._patiently(lambda: self.connection.execute("COMMIT"))
        except BaseException:
            self.rollback()
            raise
        finally:
            self._stalled = None
            stalled.set_result(None)
        self._give_turn()

    def rollback(self) -> None:
        """ROLLBACK and give the turn on."""
        try:
            if self._connection is not None and self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        finally:
            self._give_turn()

    def converted(self, error: sqlite3.Error) -> JfsError:
        """See `failures.converted`."""
        return converted(error, self._address.path)

    async def close(self) -> None:
        """Close the file. Idempotent."""
        if self._checkpoints is not None:
            await self._checkpoints.finish()
        if self._connection is not None:
            self._connection.close()
            self._connection = None
