"""Removing a whole tree (`rmr`, emptying the trash): files of a directory in batches, directories side by side, bounded memory.

A page of a listing is removed before the next one is read; at most *workers* directories are worked on at once, and no worker
waits for a place while it holds one. Entries that others add meanwhile are removed too, or end it with ENOTEMPTY.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Protocol

from jfs.errors import FsError
from jfs.format.constants import DIRECTORY
from jfs.meta.model.attr import Attr
from jfs.meta.operations.access import Caller
from jfs.meta.store.base import DirectoryPage

_BATCH: Final = 100
_ROUNDS: Final = 5


class Tree(Protocol):
    """What the removal needs of the volume."""

    async def lookup(self, caller: Caller, parent: int, name: bytes) -> tuple[int, Attr]: ...

    def list_directory(self, caller: Caller, ino: int, *, plus: bool) -> AsyncIterator[DirectoryPage]: ...

    async def unlink(self, caller: Caller, parent: int, name: bytes, *, skip_trash: bool = False) -> int: ...

    async def unlink_many(
        self, caller: Caller, parent: int, entries: Sequence[tuple[bytes, int]], *, skip_trash: bool = False
    ) -> None: ...

    async def rmdir(self, caller: Caller, parent: int, name: bytes, *, skip_trash: bool = False) -> None: ...


async def remove_tree(
    tree: Tree,
    caller: Caller,
    parent: int,
    name: bytes,
    *,
    skip_trash: bool = False,
    workers: int = 50,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Remove an entry with everything below; the number of entries removed, which *progress* gets on the way. FsError as unlink and
    rmdir; stops at the first."""
    ino, attr = await tree.lookup(caller, parent, name)
    if attr.kind != DIRECTORY:
        await tree.unlink(caller, parent, name, skip_trash=skip_trash)
        if progress is not None:
            progress(1)
        return 1
    removal = _Removal(tree, caller, skip_trash, max(workers, 1), progress)
    await removal.directory(parent, name, ino)
    return removal.count


async def remove_below(tree: Tree, caller: Caller, ino: int, *, skip_trash: bool = False, workers: int = 50) -> int:
    """Remove everything below directory *ino*; the number of entries removed. FsError as unlink and rmdir."""
    removal = _Removal(tree, caller, skip_trash, max(workers, 1))
    await removal.empty(ino)
    return removal.count


class _Removal:
    def __init__(
        self,
        tree: Tree,
        caller: Caller,
        skip_trash: bool,
        workers: int,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._progress = progress
        self.count = 0
        self._tree = tree
        self._caller = caller
        self._skip_trash = skip_trash
        self._free = workers

    async def directory(self, parent: int, name: bytes, ino: int) -> None:
        """Empty directory *ino* and remove it."""
        for attempt in range(_ROUNDS):
            await self.empty(ino)
            try:
                await self._tree.rmdir(self._caller, parent, name, skip_trash=self._skip_trash)
            except FsError as error:
                if error.errno == errno.ENOENT:
                    return
                if error.errno != errno.ENOTEMPTY or attempt == _ROUNDS - 1:
                    raise
            else:
                self._removed(1)
                return

    async def empty(self, ino: int) -> None:
        """Remove what is in directory *ino* now."""
        async for page in self._tree.list_directory(self._caller, ino, plus=False):
            below = [(n, e.ino) for n, e in zip(page.names, page.entries, strict=True) if e.kind == DIRECTORY]
            files = [(n, e.ino) for n, e in zip(page.names, page.entries, strict=True) if e.kind != DIRECTORY]
            for start in range(0, len(files), _BATCH):
                batch = files[start : start + _BATCH]
                await self._tree.unlink_many(self._caller, ino, batch, skip_trash=self._skip_trash)
                self._removed(len(batch))
            await self._side_by_side(ino, below)

    def _removed(self, entries: int) -> None:
        self.count += entries
        if self._progress is not None:
            self._progress(self.count)

    async def _side_by_side(self, ino: int, directories: list[tuple[bytes, int]]) -> None:
        """Remove subdirectories, in tasks of their own while there are free workers, else one after the other."""
        running: set[asyncio.Task[None]] = set()
        try:
            for name, child in directories:
                if self._free > 0:
                    self._free -= 1
                    running.add(asyncio.create_task(self._worker(self.directory(ino, name, child))))
                else:
                    await self.directory(ino, name, child)
                done = {task for task in running if task.done()}
                running -= done
                for task in done:
                    task.result()
            if running:
                await asyncio.gather(*running)
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.wait(running)

    async def _worker(self, work: Awaitable[None]) -> None:
        try:
            await work
        finally:
            self._free += 1
