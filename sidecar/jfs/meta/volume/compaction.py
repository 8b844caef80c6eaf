"""Background compaction of chunks (format §6.9): when, one at a time for each chunk, and what happens to the new slice.

Triggers: a write commit that makes a chunk's list long, a read that found it in pieces, and `compact` by hand. The data are copied by
a callable from outside, since metadata does not know blocks. Invariants: objects of the new slice exist before the transaction
that makes it visible; objects of replaced slices go after it; objects of a slice whose commit has an unknown outcome are
never deleted here. Concurrency: one event loop; at most `WAITING` chunks are taken up, `RUNNING` of them copied at once; a chunk that
is still being written to is left until it has been quiet, except when its list is so long that its writer waits.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Protocol

from jfs.errors import FsError, JfsError, ObjectError, ObjectNotFound, StoreError, StoreUnavailable
from jfs.format.constants import CHUNK, DIRECTORY, FILE
from jfs.format.slices import Segment, Slice, unpack, view
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import ChunkKey, NodeKey
from jfs.meta.operations.access import SUPERUSER, Caller
from jfs.meta.operations.compaction import MAX_RECORDS, Plan, mark_wasted, plan, replace, was_replaced
from jfs.meta.operations.rules import SECOND
from jfs.meta.store.base import DirectoryPage, Store, Tx
from jfs.meta.volume.deletion import DeleteObjects, Deletion

log = logging.getLogger(__name__)

PIECES: Final = 5  # of a chunk's list or view from which on a read asks for compaction
EVERY: Final = 100  # commits; the last of them asks
LONG: Final = 350  # records from which on every commit asks
FULL: Final = 2500  # records at which a writer waits
WAITING: Final = 10
RUNNING: Final = 2
QUIET: Final = 2.0  # seconds without an own commit before a chunk is rewritten because of a read
_KNOWN: Final = 20_000  # chunks whose length is remembered
_UNKNOWN_LENGTH: Final = EVERY - 10  # taken for a list of others' making, so that it is soon looked at

# (new slice id, size, segments, storage tier): store the segments' bytes as the blocks of the new slice. ObjectError.
CopySlice = Callable[[int, int, Sequence[Segment], int], Awaitable[None]]


class Compaction:
    """The compactions of a mount. *trash* tells whether replaced slices are kept for the trash days."""

    def __init__(
        self,
        store: Store,
        deletion: Deletion,
        *,
        copy: CopySlice,
        delete_objects: DeleteObjects,
        new_id: Callable[[], Awaitable[int]],
        trash: Callable[[], bool],
        changed: Callable[[int, int], None],
        clock: Callable[[], int],
    ) -> None:
        self._store = store
        self._deletion = deletion
        self._copy = copy
        self._delete_objects = delete_objects
        self._new_id = new_id
        self._trash = trash
        self._changed = changed
        self._clock = clock
        self._lengths: OrderedDict[tuple[int, int], int] = OrderedDict()  # records of a list, as far as known
        self._settled: OrderedDict[tuple[int, int], int] = OrderedDict()  # length at which nothing was to be gained
        self._written: dict[tuple[int, int], float] = {}  # time of the last own commit of chunks taken up
        self._tasks: dict[tuple[int, int], asyncio.Task[bool]] = {}
        self._asked: set[tuple[int, int]] = set()  # chunks that a read found in pieces while they were taken up
        self._commits: set[asyncio.Task[bool]] = set()
        self._running = asyncio.Semaphore(RUNNING)
        self._closed = False

    # -- triggers -------------------------------------------------------------------------------------------------

    def read(self, ino: int, indx: int, records: Sequence[Slice]) -> None:
        """A chunk's list was read to be shown."""
        count = len(records)
        key = (ino, indx)
        if count < 2 or self._settled.get(key) == count:
            return
        if count < PIECES and sum(1 for segment in view(list(records)) if segment.id) < PIECES:
            return
        if key in self._tasks:
            self._asked.add(key)
            return
        self._remember(self._lengths, key, count)
        self._start(key, quiet=True)

    def committed(self, ino: int, indx: int, length_before: int) -> bool:
        """A slice was appended to a chunk of a file of *length_before* bytes; whether the writer must wait (`make_room`)."""
        key = (ino, indx)
        if key in self._tasks:
            self._written[key] = time.monotonic()
        known = self._lengths.get(key)
        if known is None:
            known = _UNKNOWN_LENGTH if length_before > indx * CHUNK else 0
        count = known + 1
        self._remember(self._lengths, key, count)
        if count % EVERY == EVERY - 1 or count > LONG:
            if count >= FULL:
                return True
            self._start(key, quiet=False)
        return False

    async def make_room(self, ino: int, indx: int) -> None:
        """Compact a chunk whose list is full until it is not, or nothing more can be gained; failures are logged."""
        key = (ino, indx)
        task = self._tasks.get(key)
        if task is not None:
            await asyncio.wait([task])
        try:
            while not self._closed and await self.compact(ino, indx) and self._lengths.get(key, 0) >= LONG:
                pass
        except JfsError as error:
            log.warning("compaction of chunk %d of inode %d failed: %s", indx, ino, error)

    def _remember(self, table: OrderedDict[tuple[int, int], int], key: tuple[int, int], count: int) -> None:
        table[key] = count
        table.move_to_end(key)
        if len(table) > _KNOWN:
            table.popitem(last=False)

    def _start(self, key: tuple[int, int], *, quiet: bool) -> None:
        if self._closed or key in self._tasks or len(self._tasks) >= WAITING:
            return
        self._written[key] = time.monotonic() if quiet else 0.0
        task = asyncio.create_task(self._in_background(key, quiet), name="compaction")
        self._tasks[key] = task

    async def _in_background(self, key: tuple[int, int], quiet: bool) -> bool:
        try:
            while quiet and (pause := self._written[key] + QUIET - time.monotonic()) > 0:  # noqa: ASYNC110 - quiet is no event
                await asyncio.sleep(pause)
            async with self._running:
                return await self.compact(*key, at_least=2 if quiet else EVERY - 1)
        except FsError as error:
            log.warning("compaction of chunk %d of inode %d was given up: %s", key[1], key[0], error)
            self._remember(self._settled, key, self._lengths.get(key, 0))  # until its list changes
        except ObjectNotFound as error:  # the chunk was changed meanwhile, or its data are lost: reads will tell
            log.info("compaction of chunk %d of inode %d was given up: %s", key[1], key[0], error)
            self._remember(self._settled, key, self._lengths.get(key, 0))
        except (ObjectError, StoreError) as error:
            log.warning("compaction of chunk %d of inode %d failed: %s", key[1], key[0], error)
            self._remember(self._settled, key, self._lengths.get(key, 0))
        finally:
            del self._tasks[key]
            self._written.pop(key, None)
            if key in self._asked:
                self._asked.discard(key)
                self._start(key, quiet=True)
        return False

    async def close(self) -> None:
        """Stop: copies under way are given up and what they stored is deleted; a transaction under way ends first."""
        self._closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._commits:
            await asyncio.gather(*self._commits, return_exceptions=True)

    # -- one compaction -------------------------------------------------------------------------------------------

    async def compact(self, ino: int, indx: int, *, at_least: int = 2) -> bool:
        """Rewrite the beginning of a chunk's list now when it has *at_least* so many records; whether it became shorter.
        ObjectError, StoreError, FsError."""
        key = (ino, indx)
        raw, node = await self._store.get(ChunkKey(ino, indx), NodeKey(ino))
        records = unpack(raw or b"")
        self._remember(self._lengths, key, len(records))
        if len(records) < at_least:
            return False
        made = plan(records)
        if made is None:
            self._remember(self._settled, key, len(records))
            return False
        new_id = await self._new_id()
        await self._copy(new_id, made.size, made.segments, node.tier if node is not None else 0)
        commit = asyncio.create_task(self._commit(ino, indx, made, new_id), name="compaction commit")
        self._commits.add(commit)
        commit.add_done_callback(self._commits.discard)
        if not await asyncio.shield(commit):
            return False
        left = len(records) - len(made.replaced) + 1
        self._remember(self._lengths, key, left)
        if len(records) <= MAX_RECORDS:
            self._remember(self._settled, key, left)
        log.debug("chunk %d of inode %d: %d records became 1", indx, ino, len(made.replaced))
        return True

    async def _commit(self, ino: int, indx: int, made: Plan, new_id: int) -> bool:
        delay_from = self._clock() // SECOND if self._trash() else None

        async def operation(tx: Tx) -> set[tuple[int, int]] | None:
            return await replace(tx, ino, indx, made, new_id, delay_from=delay_from)

        try:
            freed = await self._store.run(operation, near=(ino,))
        except StoreUnavailable:
            return await self._settle_unknown(ino, indx, made, new_id, delay_from)
        except JfsError:  # refused as a whole
            await self._waste(new_id, made.size)
            raise
        if freed is None:
            log.info("compaction of chunk %d of inode %d was wasted: the chunk has changed", indx, ino)
            await self._waste(new_id, made.size)
            return False
        self._changed(ino, indx)
        await self._deletion.delete_unreferenced(freed)
        return True

    async def _waste(self, new_id: int, size: int) -> None:
        """Delete the objects of a slice that certainly is in no list; what cannot be is left to the hourly job."""
        try:
            await self._delete_objects(new_id, size)
        except ObjectError as error:
            log.warning("the objects of the unused slice %d are deleted later: %s", new_id, error)

            async def mark(tx: Tx) -> None:
                await mark_wasted(tx, new_id, size)

            await self._store.run(mark)

    async def _settle_unknown(self, ino: int, indx: int, made: Plan, new_id: int, delay_from: int | None) -> bool:
        """The connection broke during the commit: look whether it was made (format §6.9 step 6)."""

        async def operation(tx: Tx) -> bool | None:
            return await was_replaced(tx, ino, indx, made, new_id)

        done = await self._store.run(operation, near=(ino,))
        if not done:
            outcome = "left to gc" if done is None else "deleted by the hourly job"
            log.warning("whether slice %d was committed is not known, its objects are %s", new_id, outcome)
            return False
        self._changed(ino, indx)
        if delay_from is None:
            await self._deletion.delete_unreferenced({(old.id, old.size) for old in made.replaced if old.id})
        return True


class Files(Protocol):
    """What `compact_tree` needs of the volume."""

    async def getattr(self, ino: int) -> Attr: ...

    def list_directory(self, caller: Caller, ino: int, *, plus: bool) -> AsyncIterator[DirectoryPage]: ...

    async def file_chunks(self, ino: int) -> list[tuple[int, list[Slice]]]: ...


async def compact_tree(files: Files, compaction: Compaction, top: int, at_once: int) -> tuple[int, int]:
    """Compact file *top*, or all files below directory *top*; see `Meta.compact`. Memory: the directories still to be walked."""
    chunks = size = 0

    async def compact_file(ino: int) -> None:
        nonlocal chunks, size
        for indx, records in await files.file_chunks(ino):
            chunks += 1
            made = plan(records)
            if made is not None and await compaction.compact(ino, indx):
                size += made.size
                while await compaction.compact(ino, indx):  # very long lists take several
                    pass

    attr = await files.getattr(top)
    if attr.kind != DIRECTORY:
        if attr.kind == FILE:
            await compact_file(top)
        return chunks, size
    pending = [top]
    while pending:
        async for page in files.list_directory(SUPERUSER, pending.pop(), plus=False):
            pending += [entry.ino for entry in page.entries if entry.kind == DIRECTORY]
            inodes = [entry.ino for entry in page.entries if entry.kind == FILE]
            for start in range(0, len(inodes), at_once):
                tasks = [asyncio.create_task(compact_file(ino)) for ino in inodes[start : start + at_once]]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)
    return chunks, size
