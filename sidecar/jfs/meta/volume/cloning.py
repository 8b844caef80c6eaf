"""Clones of files and whole trees, and the removal of those that were not finished (format §5.3 clone, §3.11).

A tree is built below a detached directory and gets its entry at the end, in one transaction. A failure removes what was built; what a
killed or cancelled client leaves is found by `gc` through the list of detached nodes. Directories are copied side by side, a few
entries of each at a time; memory is bounded by the directories that wait. Entries that vanish meanwhile are left out, and what
others add meanwhile may be.
"""

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from jfs.errors import FsError, JfsError
from jfs.format.constants import DIRECTORY, TRASH, align4k
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import DetachedKey, DirStat
from jfs.meta.operations import cloning
from jfs.meta.operations import create as making
from jfs.meta.operations import rules as common
from jfs.meta.operations.access import SUPERUSER, Caller
from jfs.meta.operations.cloning import Chunks, ChunksChanged, Copy, Place
from jfs.meta.operations.rules import Rules
from jfs.meta.store.base import Tx
from jfs.meta.volume.ranges import Ranges
from jfs.meta.volume.summary import summary
from jfs.meta.volume.tree import remove_below

log = logging.getLogger(__name__)
T = TypeVar("T")
Progress = Callable[[int, int], None]

_AT_ONCE: Final = 8  # entries of one directory
DAY: Final = 86400  # seconds after which a detached tree is taken for abandoned


def _quiet(done: int, total: int) -> None:
    return


class Clones(Ranges):
    """See the module. What this mount has written must be committed before."""

    async def clone(
        self,
        caller: Caller,
        source: int,
        parent: int,
        name: bytes,
        *,
        preserve: bool = False,
        umask: int = 0,
        workers: int = 4,
        progress: Progress = _quiet,
    ) -> int:
        """Copy *source* with everything below, as *name* in *parent*, without copying data; the number of inodes made. *progress* gets
        those made so far and the number expected. FsError: ENOENT, EEXIST, EACCES (also of anything below), EPERM, ENOTDIR,
        ENAMETOOLONG, ENOSPC, EDQUOT, EROFS."""
        source, parent = self._real(source), self._real(parent)
        await self.settle_all_attrs()
        node = await self._fresh_attr(source)
        if source >= TRASH:
            raise FsError(errno.EPERM)
        making.check_new(parent, name, node.kind, b"-")
        self._check_writable()
        await self._ensure_stats(parent)
        work = _Clone(self, caller, preserve=preserve, umask=umask, workers=workers, progress=progress)
        if node.kind == DIRECTORY:
            await work.tree(source, parent, name)
        else:
            await work.single(source, node, parent, name)
        return work.made

    async def drop_detached(self, ino: int) -> None:
        """Remove a detached tree. FsError and StoreError of the first failure; it stays in the list then."""
        await remove_below(self, SUPERUSER, ino, skip_trash=True)
        rules = self._rules()

        async def operation(tx: Tx) -> None:
            await cloning.drop_detached(tx, rules, ino)

        await self._commit(operation, rules, ino)
        self._cache.drop_attr(ino)

    async def drop_abandoned(self, before: int) -> int:
        """Remove the detached trees that are older than *before* (unix seconds); their number. Errors as `drop_detached`."""
        found = [
            key.ino async for key, since in self.store.scan(DetachedKey) if isinstance(since, int) and since < before
        ]
        for ino in found:
            await self.drop_detached(ino)
        return len(found)

    async def _commit(self, operation: Callable[[Tx], Awaitable[T]], rules: Rules, *near: int) -> T:
        done = await self.store.run(operation, near=near)
        if rules.quotas is not None:
            rules.quotas.settle()
        return done


class _Clone:
    """One clone under way."""

    def __init__(
        self, meta: Clones, caller: Caller, *, preserve: bool, umask: int, workers: int, progress: Progress
    ) -> None:
        self.made = 0
        self._meta = meta
        self._caller = caller
        self._preserve = preserve
        self._umask = umask
        self._workers = max(workers, 1)
        self._progress = progress
        self._expected = 1
        self._total = DirStat(0, 0, 0)
        self._waiting: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    async def single(self, source: int, node: Attr, parent: int, name: bytes) -> None:
        meta, now = self._meta, self._meta._clock()
        place = Place(await meta._inode_ids.take(), parent, name)

        async def attempt(rules: Rules, chunks: Chunks | None) -> tuple[Copy, Attr]:
            async def operation(tx: Tx) -> tuple[Copy, Attr]:
                return await cloning.attach_copy(
                    *(tx, self._caller, rules, source, place, now),
                    preserve=self._preserve,
                    umask=self._umask,
                    chunks=chunks,
                )

            return await meta._commit(operation, rules, parent)

        copy, directory = await self._with_chunks(source, attempt)
        self._count(place.ino, copy)
        meta._cache.set_attr(parent, directory)
        meta._cache.set_entry(parent, name, place.ino, node.kind)

    async def tree(self, source: int, parent: int, name: bytes) -> None:
        meta = self._meta
        below = await summary(meta.store, source, strict=True)
        self._expected = 1 + below.inodes
        total = DirStat(0, below.space + align4k(0), below.inodes + 1)
        rules = meta._rules()

        async def check(tx: Tx) -> None:
            await cloning.check_target(tx, self._caller, rules, parent, name, total)

        await meta.store.run(check)
        top = await self._copy(source, 0, b"", DIRECTORY, entry=(parent, name))
        try:
            self._waiting.put_nowait((source, top))
            await self._work()
            await self._attach(top, parent, name)
        except JfsError:
            await self._undo(top)
            raise

    async def _attach(self, top: int, parent: int, name: bytes) -> None:
        meta, total, now, rules = self._meta, self._total, self._meta._clock(), self._meta._rules()

        async def attach(tx: Tx) -> tuple[Attr, Attr]:
            return await cloning.attach(tx, self._caller, rules, top, parent, name, total, now)

        attr, directory = await meta._commit(attach, rules, parent)
        if meta._quotas is not None:
            meta._quotas.forget_chains()
        meta._cache.set_attr(top, attr)
        meta._cache.set_attr(parent, directory)
        meta._cache.set_entry(parent, name, top, DIRECTORY)

    async def _undo(self, top: int) -> None:
        try:
            await self._meta.drop_detached(top)
        except JfsError as error:
            log.warning("the unfinished clone %d is left to gc: %s", top, error)

    async def _work(self) -> None:
        """Copy the directories that wait until there are none."""
        tasks = [asyncio.create_task(self._worker(), name="clone") for _ in range(self._workers)]
        finished = asyncio.create_task(self._waiting.join(), name="clone")
        try:
            await asyncio.wait([*tasks, finished], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in (*tasks, finished):
                task.cancel()
            await asyncio.gather(*tasks, finished, return_exceptions=True)

    async def _worker(self) -> None:
        while True:
            source, target = await self._waiting.get()
            await self._directory(source, target)
            self._waiting.task_done()

    async def _directory(self, source: int, target: int) -> None:
        """Copy the entries of directory *source* into *target*, and set aside its subdirectories."""
        async for page in self._meta.store.list_directory(source, plus=False):
            entries = list(zip(page.names, page.entries, strict=True))
            for start in range(0, len(entries), _AT_ONCE):
                batch = entries[start : start + _AT_ONCE]
                copies = await asyncio.gather(
                    *(self._copy(entry.ino, target, name, entry.kind) for name, entry in batch), return_exceptions=True
                )
                for (_, entry), copy in zip(batch, copies, strict=True):
                    if isinstance(copy, BaseException):
                        if isinstance(copy, FsError) and copy.errno == errno.ENOENT:
                            continue  # removed meanwhile
                        raise copy
                    if entry.kind == DIRECTORY:
                        self._waiting.put_nowait((entry.ino, copy))

    async def _copy(
        self, source: int, parent: int, name: bytes, kind: int, *, entry: tuple[int, bytes] | None = None
    ) -> int:
        meta, now = self._meta, self._meta._clock()
        place = Place(await meta._inode_ids.take(), parent, name)

        async def attempt(rules: Rules, chunks: Chunks | None) -> Copy:
            async def operation(tx: Tx) -> Copy:
                return await cloning.copy_node(
                    *(tx, self._caller, rules, source, place, now),
                    preserve=self._preserve,
                    umask=self._umask,
                    chunks=chunks,
                    entry=entry,
                )

            # Subdirectories count as links of their directory, whose record each of them changes.
            return await meta._commit(operation, rules, *([parent] if parent and kind == DIRECTORY else []))

        self._count(place.ino, await self._with_chunks(source, attempt))
        return place.ino

    async def _with_chunks(self, source: int, attempt: Callable[[Rules, Chunks | None], Awaitable[T]]) -> T:
        """Call *attempt* with fresh rules, and for a file of very many chunks with those it has, until they have not changed."""
        chunks: Chunks | None = None
        while True:
            try:
                return await attempt(self._meta._rules(), chunks)
            except ChunksChanged:
                attr = await self._meta._fresh_attr(source)
                chunks = Chunks(attr, await self._meta.store.chunk_indexes(source, attr.length))

    def _count(self, ino: int, copy: Copy) -> None:
        meta, stat = self._meta, common.usage(copy.attr)
        meta._learn_acl(copy.acl)
        meta._usage.add(stat.space, stat.inodes)
        if copy.attr.kind == DIRECTORY:
            meta._know_stats(ino)
        self._total = DirStat(0, self._total.space + stat.space, self._total.inodes + stat.inodes)
        self.made += 1
        self._progress(self.made, max(self._expected, self.made))
