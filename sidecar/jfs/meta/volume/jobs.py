"""The hourly background jobs, each run by one client per period (format §7.2): deleted files, slices, trash.

A job asks for its election first, then works through a stream of records with bounded memory; whatever stops it in the middle
leaves work for the next period. One task per mount; the first round comes minutes after the start, so that short mounts help too.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, TypeVar

from jfs.errors import FsError, JfsError
from jfs.format.constants import TRASH
from jfs.format.setting import Setting
from jfs.meta.model.keys import DelayedKey, SliceRefKey
from jfs.meta.operations import journal
from jfs.meta.operations.compaction import split_delayed
from jfs.meta.operations.rules import SECOND
from jfs.meta.operations.sessions import elect
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume.deletion import Deletion

log = logging.getLogger(__name__)
T = TypeVar("T")

HOUR: Final = 3600
PERIOD: Final = 3240  # seconds that must have passed since the last run of any client
_FIRST: Final = 600.0
_BUDGET: Final = 50 * 60.0  # seconds a job may take
_FILES_AT_MOST: Final = 600_000
_BATCH: Final = 256
_TRIMMED: Final = 300.0  # seconds between two looks at the change log
_LINES: Final = 1000  # of the change log that are looked at together

RemoveTree = Callable[[int, bytes], Awaitable[None]]


class Jobs:
    """The jobs of a mount; *remove_tree* removes an entry of the trash with everything below, for good."""

    def __init__(
        self,
        store: Store,
        deletion: Deletion,
        *,
        setting: Callable[[], Setting],
        remove_tree: RemoveTree,
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._deletion = deletion
        self._setting = setting
        self._remove_tree = remove_tree
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Run the jobs every hour from now on."""
        self._tasks = [
            asyncio.create_task(self._run_on(), name="background jobs"),
            asyncio.create_task(self._trim_on(), name="change log"),
        ]

    async def stop(self) -> None:
        """Run them no more; one in the middle is cut off."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run_on(self) -> None:
        pause = _FIRST
        while True:
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))
            await self.run()
            pause = HOUR

    async def _trim_on(self) -> None:
        while True:
            await asyncio.sleep(_TRIMMED * random.uniform(1.0, 1.1))
            try:
                await self.change_log()
            except JfsError as error:
                log.warning("the change log was not trimmed, the next round does it: %s", error)

    async def run(self) -> None:
        """One round of all jobs. What fails is logged and left to the next round."""
        for name, job in (
            ("deleted files", self.deleted_files),
            ("unreferenced slices", self.unreferenced_slices),
            ("trash", self.trash),
        ):
            try:
                await job()
            except JfsError as error:
                log.warning("background job %s stopped, the next one goes on: %s", name, error)

    def _seconds(self) -> int:
        return self._clock() // SECOND

    async def _elected(self, counter: str, period: int = PERIOD) -> bool:
        now = self._seconds()

        async def operation(tx: Tx) -> bool:
            return await elect(tx, counter, now, period)

        return await self._store.run(operation)

    async def deleted_files(self) -> bool:
        """Delete the data of files that have been in the queue for an hour: their client died. Whether this client was elected."""
        if not await self._elected("lastCleanupFiles"):
            return False
        edge = self._seconds() - HOUR
        deadline = time.monotonic() + _BUDGET
        waiting = ((ino, length) async for ino, length, since in self._store.deleted_files() if since < edge)
        count = 0
        async for batch in _batches(waiting):
            await self._deletion.delete_files(batch)
            count += len(batch)
            if count >= _FILES_AT_MOST or time.monotonic() > deadline:
                break
        return True

    async def unreferenced_slices(self) -> bool:
        """Delete the objects of slices that nothing refers to: a client died between its commit and the deletion."""
        if not await self._elected("nextCleanupSlices"):
            return False
        async for batch in _batches(self._store.unreferenced_slices()):
            await self._deletion.delete_unreferenced(batch)
        return True

    async def trash(self) -> bool:
        """Remove what has been in the trash, and slices replaced by compactions, for the volume's trash days."""
        if not await self._elected("lastCleanupTrash"):
            return False
        await self.expire_trash()
        await self.expire_delayed()
        return True

    async def change_log(self) -> bool:
        """Drop the oldest entries of the change log, by age and number (format §7.2); volumes without a log have no job."""
        setting = self._setting()
        if not setting.change_log or not await self._elected("lastCleanupChangelog", int(_TRIMMED * 0.9)):
            return False
        edge = self._seconds() - setting.change_log_age if setting.change_log_age else 0
        while True:
            oldest = await self._store.oldest_logged(_LINES)
            excess = await self._store.logged() - setting.change_log_lines if setting.change_log_lines else 0
            count = max(min(excess, len(oldest)), 0)
            while count < len(oldest) and _logged_at(oldest[count]) < edge:
                count += 1
            if count:
                await self._store.forget_logged(count)
            if not count or count < len(oldest):
                return True

    async def expire_trash(self) -> None:
        """Remove hour directories older than the trash days and two hours, with their entries (format §7.2)."""
        edge = self._seconds() - self._setting().trash_days * 24 * HOUR - 2 * HOUR
        deadline = time.monotonic() + _BUDGET
        old: list[bytes] = []
        async for page in self._store.list_directory(TRASH, plus=False):
            old += [name for name in page.names if (begin := hour_of(name)) is not None and begin < edge]
        for name in sorted(old):
            if time.monotonic() > deadline:
                break
            try:
                await self._remove_tree(TRASH, name)
            except FsError as error:
                log.warning("trash of %s could not be emptied: %s", name.decode(errors="replace"), error)

    async def expire_delayed(self) -> None:
        """Drop the references of delayed slices older than the trash days, and their objects when none is left (format §3.13)."""
        edge = self._seconds() - self._setting().trash_days * 24 * HOUR
        async for id, since, _ in self._store.delayed_slices():
            if since >= edge:
                continue
            key = DelayedKey(id, since)

            async def operation(tx: Tx, key: DelayedKey = key) -> list[tuple[int, int]]:
                (records,) = await tx.get(key)
                if records is None:  # another client was faster
                    return []
                slices = [(slice_id, size) for slice_id, size in split_delayed(records) if slice_id]
                for slice_id, size in slices:
                    tx.add(SliceRefKey(slice_id, size), -1)
                tx.delete(key)
                journal.expired_slices(tx, key.id, key.time)
                return slices

            await self._deletion.delete_unreferenced(set(await self._store.run(operation)))


def _logged_at(line: bytes) -> int:
    """Unix seconds of an entry of the change log; 0 of one that has none, so that it goes first."""
    seconds = line.partition(b".")[0]
    return int(seconds) if seconds.isdigit() else 0


def hour_name(now: int) -> bytes:
    """Name of the trash directory of time *now* (ns): `YYYY-MM-DD-HH` in UTC (format §3.13)."""
    return _name_of_hour(now // (3600 * SECOND))


@lru_cache(maxsize=4)
def _name_of_hour(hour: int) -> bytes:
    return datetime.fromtimestamp(hour * 3600, UTC).strftime("%Y-%m-%d-%H").encode()


def hour_of(name: bytes) -> int | None:
    """Unix seconds at the begin of the hour that a trash directory is named after; None for other names."""
    try:
        return int(datetime.strptime(name.decode(), "%Y-%m-%d-%H").replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None


async def _batches(items: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    batch: list[T] = []
    async for item in items:
        batch.append(item)
        if len(batch) >= _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
