"""Open directories: a snapshot per handle, read from the metadata page by page as the kernel asks (format §5.3 readdir).

Cookies are positions in the snapshot, so a listing neither repeats nor skips an entry that exists all the time, whatever is
created or removed meanwhile; offset 0 starts a new snapshot. Attributes in a snapshot age: those of inodes that this mount
changed since (`Directories.changed`) and those older than the attribute time-out are left out, and entries that this mount
removed are not given to the kernel any more – otherwise it would bring back what it has just seen go.
Concurrency: one task reads pages of a handle at a time (its lock); everything else does not suspend.
"""

import asyncio
import errno
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from operator import attrgetter
from typing import Final, NamedTuple

from jfs.errors import FsError
from jfs.meta.model.attr import Attr
from jfs.meta.store.base import DirectoryPage

_KEPT_ATTRS: Final = 20_000  # of what a listing has handed out; taking them out one by one costs as much as listing
_FORGET_ATTRS: Final = 100_000  # changed inodes remembered before all snapshots lose their attributes instead


class Item(NamedTuple):
    """One name of a listing; *attr* is None when the kernel shall look it up itself."""

    name: bytes
    ino: int
    kind: int
    attr: Attr | None


class DirectoryHandle:
    """One opendir(3)."""

    __slots__ = ("_age", "_lock", "_pages", "_sort", "_stripped", "fh", "first", "ino", "items")

    def __init__(self, fh: int, ino: int, first: Callable[[], list[Item]], *, sort: bool = False) -> None:
        self.fh = fh
        self.ino = ino
        self.first = first  # the entries that are in no record: `.`, `..`, virtual files
        self.items: list[Item] = []
        self._pages: AsyncIterator[DirectoryPage] | None = None
        self._lock = asyncio.Lock()
        self._sort = sort  # `--sort-dir`: by name, so that the first answer waits for the last page
        self._stripped = 0
        self._age = 0.0

    async def close(self) -> None:
        """End a listing that was not read to its end."""
        pages, self._pages = self._pages, None
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()

    async def start(self, pages: AsyncIterator[DirectoryPage]) -> None:
        """A new snapshot."""
        await self.close()
        self.items = self.first()
        self._pages = pages
        self._stripped = 0

    async def fill(self, until: int) -> None:
        """Read pages until the snapshot has *until* items or is complete; all of them when it is to be sorted."""
        if self._sort:
            await self._fill_sorted()
            return
        while len(self.items) < until and self._pages is not None:
            async with self._lock:
                pages = self._pages
                if pages is None or len(self.items) >= until:
                    return
                page = await anext(pages, None)
                if page is None:
                    self._pages = None
                    return
                self._age = time.monotonic()
                self.items += _items(page)

    async def _fill_sorted(self) -> None:
        async with self._lock:
            pages = self._pages
            if pages is None:
                return
            self._age = time.monotonic()
            found: list[Item] = []
            async for page in pages:
                found += _items(page)
            found.sort(key=attrgetter("name"))
            self.items += found
            self._pages = None

    def window(self, cookie: int, count: int, *, freshness: float) -> list[Item]:
        """The items at [cookie, cookie+count). Drops the attributes of what was handed out before – a listing of a
        million entries must not keep them all – and of pages read more than *freshness* seconds ago."""
        if cookie > self._stripped + _KEPT_ATTRS:
            items = self.items
            for at in range(self._stripped, min(cookie, len(items))):
                if items[at].attr is not None:
                    items[at] = items[at]._replace(attr=None)
            self._stripped = cookie
        found = self.items[cookie : cookie + count]
        if found and time.monotonic() - self._age > freshness:
            return [item._replace(attr=None) for item in found]
        return found


def _items(page: DirectoryPage) -> list[Item]:
    attrs = page.attrs or [None] * len(page.names)
    make = Item._make
    return [
        make((name, ino, kind, attr)) for name, (kind, ino), attr in zip(page.names, page.entries, attrs, strict=True)
    ]


class Directories:
    """The table of open directories of a mount, and what changed while there are any."""

    def __init__(self, new_number: Callable[[], int], *, sort: bool = False) -> None:
        self._sort = sort
        self._handles: dict[int, DirectoryHandle] = {}
        self._new_number = new_number
        self._changed: set[int] = set()
        self._gone: set[tuple[int, bytes]] = set()
        self._renewed: set[tuple[int, bytes]] = set()
        self._distrust = False

    def open(self, ino: int, first: Callable[[], list[Item]]) -> DirectoryHandle:
        """A new handle."""
        handle = DirectoryHandle(self._new_number(), ino, first, sort=self._sort)
        self._handles[handle.fh] = handle
        return handle

    def get(self, fh: int) -> DirectoryHandle:
        """The handle of this number; FsError(EBADF) when there is none."""
        handle = self._handles.get(fh)
        if handle is None:
            raise FsError(errno.EBADF)
        return handle

    def inode(self, fh: int) -> int:
        """The directory of this handle, 0 when there is none."""
        handle = self._handles.get(fh)
        return handle.ino if handle is not None else 0

    def close(self, fh: int) -> None:
        """Forget the handle; with the last one, what changed meanwhile."""
        self._handles.pop(fh, None)
        if not self._handles:
            self._changed.clear()
            self._gone.clear()
            self._renewed.clear()
            self._distrust = False

    def changed(self, ino: int) -> None:
        """This mount changed attributes or data of *ino*."""
        if self._handles:
            self._changed.add(ino)
            if len(self._changed) > _FORGET_ATTRS:
                self._changed.clear()
                self._distrust = True

    def removed(self, parent: int, name: bytes) -> None:
        """This mount took the name away."""
        if self._handles:
            self._gone.add((parent, name))

    def added(self, parent: int, name: bytes) -> None:
        """This mount made the name, or made it stand for another inode."""
        if self._handles:
            self._gone.discard((parent, name))
            self._renewed.add((parent, name))

    def current(self, handle: DirectoryHandle, items: list[Item]) -> list[Item | None]:
        """*items* as they may be shown now: None for removed ones (their positions stay), no attributes where changed."""
        changed, gone, renewed = self._changed, self._gone, self._renewed
        if not changed and not gone and not renewed and not self._distrust:
            return list(items)
        parent = handle.ino
        shown: list[Item | None] = []
        for item in items:
            if gone and (parent, item.name) in gone:
                shown.append(None)
            elif item.attr is not None and (
                self._distrust or item.ino in changed or (renewed and (parent, item.name) in renewed)
            ):
                shown.append(item._replace(attr=None))
            else:
                shown.append(item)
        return shown
