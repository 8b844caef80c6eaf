"""Group commit: attempts of one mount that come together share a transaction of SQLite, and so one write of its log.

Place: what the store runs its attempts and reads on. An attempt runs inside the transaction that those before it have left open; then it
waits for the COMMIT, which comes when the loop has run what was ready, and only then its result or error leaves. Invariants: nothing
that was seen in an open group is told to anybody before the COMMIT, plain reads included; an attempt that fails before it writes leaves
the others alone; when one fails while it writes, or the COMMIT fails, all is undone, and every member is run again, alone, to find its
own result or error. Members go on in the order of their attempts, and before any later attempt that is alone: caches learn in the
order of commits. Waiting for others costs a lonely application 25 µs a transaction, so attempts are committed at once, but for every
`PROBE`th and for the groups after one that had several members. Concurrency: one event loop; an attempt may suspend.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from jfs.errors import Conflict, JfsError
from jfs.meta.engines.sqlite.database import SqliteDatabase
from jfs.meta.engines.sqlite.transaction import SqliteTx
from jfs.meta.engines.sqlite.url import SqliteAddress
from jfs.meta.store.base import Tx
from jfs.meta.store.change_log import ChangeLog

T = TypeVar("T")
_Member = asyncio.Future[JfsError | None]  # why what it did has not happened

MEMBERS: Final = 64  # of one group
PROBE: Final = 16


class GroupedDatabase(SqliteDatabase):
    """The connection of one store, its open group if there is one, and whether the next attempt begins one."""

    def __init__(self, address: SqliteAddress) -> None:
        super().__init__(address)
        self._open = False  # a transaction that others may join
        self._at_work = False  # an attempt is inside it
        self._due = False  # it is to be committed when that attempt has left
        self._members: list[_Member] = []
        self._resuming = 0  # members of ended groups that have not gone on yet
        self._resumed = asyncio.Event()  # they have
        self._gathering = False  # the last group had several members
        self._until_probe = PROBE
        self._ending: asyncio.Task[None] | None = None

    async def run(self, operation: Callable[[Tx], Awaitable[T]], log: ChangeLog | None, *, alone: bool) -> T:
        """Run *operation* in a transaction and commit, with others unless *alone*. Conflict when it has to be run again, alone."""
        if (alone or not self._open or self._at_work) and await self._begin_own(alone):
            alone = alone or not self._expects_others()
        tx = SqliteTx(self.records)
        tx.keep_journal(log)
        self.enter()
        self._at_work = True
        writes = False
        try:
            result = await operation(tx)
            if tx.changes_anything():
                writes = True
                tx.flush()
        except BaseException as error:
            self._at_work = False
            self.leave()
            await self._failed(error, torn=writes or isinstance(error, sqlite3.Error))
            raise
        self._at_work = False
        self.leave()
        if not self._members:
            if not writes:
                self.rollback()
                return result
            if alone:
                await self.commit()
                return result
        await self._committed()
        return result

    async def _begin_own(self, alone: bool) -> bool:
        """Open a transaction after those that are under way; False when there is a group to be joined meanwhile."""
        if not self._at_work:
            self.end()
        while True:
            if self._open and not self._at_work and not alone:
                return False
            if self._taken:
                await self._wait_for_turn()
            elif self._resuming and (alone or not self._gathering):
                await self._resumed.wait()
            else:
                break
        await self.begin()
        return True

    def _expects_others(self) -> bool:
        if self._gathering:
            return True
        self._until_probe -= 1
        if self._until_probe > 0:
            return False
        self._until_probe = PROBE
        return True

    async def _failed(self, error: BaseException, *, torn: bool) -> None:
        """An attempt raised *error*; *torn*: part of its writes may be in the transaction. Returns when *error* may be told."""
        if not self._members:
            self.rollback()
            if isinstance(error, sqlite3.Error):
                raise self.converted(error) from error
        elif torn:
            members = self._closed()
            self.rollback()
            self._dissolve(members)
            if isinstance(error, Exception):
                raise Conflict from error
        elif isinstance(error, Exception):
            await self._committed()  # it may rest on what the others wrote
        elif self._due:
            self.end()

    async def _committed(self) -> None:
        """Become a member and wait for the COMMIT; Conflict, or its error, when there was none."""
        loop = asyncio.get_running_loop()
        member: _Member = loop.create_future()
        self._members.append(member)
        if not self._open:
            self._open = True
            while self._call_next():
                pass
            loop.call_soon(self.end)
        elif self._due or len(self._members) >= MEMBERS:
            self.end()
        try:
            failure = await member
        finally:
            if not member.cancelled():
                self._resuming -= 1
                if not self._resuming:
                    self._resumed.set()
        if failure is not None:
            raise failure

    async def read(self, step: Callable[[], T]) -> T:
        """As every database's; what *step* saw of an open group is told when that is committed."""
        while True:
            result = await super().read(step)
            if not self._members:
                return result
            try:
                await self._committed()
            except JfsError:
                continue  # what was seen has not happened
            return result

    def end(self) -> None:
        """Commit the open group, if there is one, now or when the attempt inside it has left."""
        if not self._open:
            return
        if self._at_work:
            self._due = True
            return
        members = self._closed()
        try:
            done = self.commit_at_once()
        except JfsError as error:
            self._refuse(members, error)
        else:
            if done:
                self._dismiss(members)
            else:
                self._ending = asyncio.create_task(self._end_patiently(members), name="commit")

    async def _end_patiently(self, members: list[_Member]) -> None:
        try:
            await self.commit()
        except JfsError as error:
            self._refuse(members, error)
        else:
            self._dismiss(members)
        finally:
            self._ending = None

    def _closed(self) -> list[_Member]:
        """Close the group for others; its members."""
        members, self._members = self._members, []
        self._open = self._due = False
        return members

    def _dismiss(self, members: list[_Member]) -> None:
        self._gathering = len(members) > 1
        for member in members:
            self._resume(member, None)

    def _refuse(self, members: list[_Member], error: JfsError) -> None:
        """The COMMIT failed: a single member hears why, several find out for themselves."""
        if len(members) == 1:
            self._resume(members[0], error)
        else:
            self._dissolve(members)

    def _dissolve(self, members: list[_Member]) -> None:
        self._gathering = False
        for member in members:
            self._resume(member, Conflict())

    def _resume(self, member: _Member, failure: JfsError | None) -> None:
        if not member.done():  # cancelled
            self._resuming += 1
            self._resumed.clear()
            member.set_result(failure)

    async def close(self) -> None:
        """Commit what is open, and close the file. Idempotent."""
        self.end()
        if self._ending is not None:
            await asyncio.wait([self._ending])
        await super().close()
