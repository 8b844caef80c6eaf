"""Open directories: a snapshot per handle, read from the metadata page by page as the kernel asks (format §5.3 readdir).

Cookies are positions in the snapshot, so a listing neither repeats nor skips an entry that exists all the time, whatever is
created or removed meanwhile; offset 0 starts a new snapshot. The snapshot is kept in columns, attributes as they are stored,
since most of them are only copied into replies; the page after the last one asked for is read ahead.
Attributes in a snapshot age: those of inodes that this mount changed since (`Directories.changed`) or had open at its start,
and those older than the attribute time-out are left out, and entries that this mount removed are not given to the kernel any
more – otherwise it would bring back what it has just seen go.
Concurrency: one task reads pages of a handle at a time (its lock); everything else does not suspend. A request that is interrupted
leaves the reading of its page under way: a broken generator would look like the end of the directory.
"""

import asyncio
import errno
import logging
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from jfs import eager
from jfs.errors import FsError
from jfs.meta.model.attr import Attr, entry_columns, unpack_attr
from jfs.meta.store.base import DirectoryPage
from jfs.survival.snapshots import ENTRY, FITS, Snapshot, Snapshots

log = logging.getLogger(__name__)

_KEPT_ATTRS: Final = 20_000  # of what a listing has handed out; taking them out one by one costs as much as listing
_FORGET_ATTRS: Final = 100_000  # changed inodes remembered before all snapshots lose their attributes instead
_MANY: Final = 128  # names of a page that make another one likely: it is read ahead


class Item(NamedTuple):
    """One name of a listing; *attr* is None when the kernel shall look it up itself."""

    name: bytes
    ino: int
    kind: int
    attr: Attr | None


class Window:
    """Consecutive entries of a listing in columns: a name is None for one that is gone, attributes are None where the kernel shall
    ask itself, and in the stored form (format §3.1) where the engine had it so. Iterating gives them as items."""

    __slots__ = ("attrs", "inos", "kinds", "names")

    def __init__(
        self,
        names: Sequence[bytes | None],
        inos: Sequence[int],
        kinds: Sequence[int],
        attrs: Sequence[Attr | bytes | None],
    ) -> None:
        self.names = names
        self.inos = inos
        self.kinds = kinds
        self.attrs = attrs

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Item | None]:
        for name, ino, kind, attr in zip(self.names, self.inos, self.kinds, self.attrs, strict=True):
            if name is None:
                yield None
            else:
                yield Item(name, ino, kind, unpack_attr(attr) if isinstance(attr, bytes) else attr)


class DirectoryHandle:
    """One opendir(3)."""

    __slots__ = (
        "_ahead",
        "_attrs",
        "_failure",
        "_inos",
        "_kinds",
        "_lock",
        "_names",
        "_pages",
        "_read",
        "_snapshot",
        "_sort",
        "_starts",
        "_stripped",
        "fh",
        "first",
        "ino",
    )

    def __init__(
        self,
        fh: int,
        ino: int,
        first: Callable[[], list[Item]],
        *,
        sort: bool = False,
        snapshot: Snapshot | None = None,
    ) -> None:
        self.fh = fh
        self._snapshot = snapshot  # what a successor needs of a listing that does not fit one reply
        self.ino = ino
        self.first = first  # the entries that are in no record: `.`, `..`, virtual files
        self._names: list[bytes | None] = []
        self._inos: list[int] = []
        self._kinds: list[int] = []
        self._attrs: list[Attr | bytes | None] = []
        self._starts: list[int] = []  # where each page begins, and when it was read
        self._read: list[float] = []
        self._pages: AsyncIterator[DirectoryPage] | None = None
        self._ahead: asyncio.Future[DirectoryPage | None] | None = None
        self._failure: Exception | None = None
        self._lock = asyncio.Lock()
        self._sort = sort  # `--sort-dir`: by name, so that the first answer waits for the last page
        self._stripped = 0

    async def close(self) -> None:
        """End a listing that was not read to its end."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if isinstance(ahead, asyncio.Task):
                ahead.cancel()
            await asyncio.wait((ahead,))
            if not ahead.cancelled():
                ahead.exception()  # nobody asks any more
        pages, self._pages = self._pages, None
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()
        if self._snapshot is not None:
            self._snapshot.clear()

    async def start(self, pages: AsyncIterator[DirectoryPage]) -> None:
        """A new snapshot."""
        await self.close()
        first = self.first()
        self._names = [item.name for item in first]
        self._inos = [item.ino for item in first]
        self._kinds = [item.kind for item in first]
        self._attrs = [item.attr for item in first]
        self._starts, self._read = [], []
        self._pages = pages
        self._failure = None
        self._stripped = 0

    async def resume(self, pages: AsyncIterator[DirectoryPage]) -> None:
        """The snapshot of a predecessor: names have the positions that it gave them, those that are gone keep theirs empty, and what
        it had not come to follows."""
        recorded = self._snapshot.names() if self._snapshot is not None else []
        await self.start(pages)
        while self._pages is not None:
            await self.fill(len(self._names), 1)
        if not recorded:  # all fitted one reply
            return
        at = {name: index for index, name in enumerate(self._names) if name is not None}
        order = [at.pop(name, -1) for name in recorded]
        order += at.values()
        names, inos, kinds, attrs = self._names, self._inos, self._kinds, self._attrs
        self._names = [names[index] if index >= 0 else None for index in order]
        self._inos = [inos[index] if index >= 0 else 0 for index in order]
        self._kinds = [kinds[index] if index >= 0 else 0 for index in order]
        self._attrs = [attrs[index] if index >= 0 else None for index in order]
        del self._starts[1:], self._read[1:]  # all as old as the oldest
        self._record(0)

    def _record(self, since: int) -> None:
        """Keep the names from position *since* on for a successor, before they are handed out."""
        snapshot = self._snapshot
        if snapshot is None:
            return
        if not snapshot.is_kept:
            since = 0
            if sum(len(name or b"") + ENTRY for name in self._names) <= FITS:
                return
        try:
            snapshot.add([name or b"" for name in self._names[since:]])
        except OSError as error:
            log.warning("a listing under way would not survive a crash: %s", error)
            self._snapshot = None

    @property
    def started(self) -> bool:
        """Whether there is a snapshot."""
        return self._pages is not None or bool(self._names)

    def known(self, cookie: int) -> bool:
        """Whether something at *cookie* can be shown without waiting."""
        return len(self._names) > cookie and bool(self._starts or self._pages is None)

    async def fill(self, cookie: int, count: int) -> None:
        """Read until there is something at *cookie*, or the snapshot is complete; up to *count* items of what need not be waited
        for. All of it when it is to be sorted."""
        if self._sort:
            await self._fill_sorted()
            return
        while self._pages is not None and not self.known(cookie):
            async with self._lock:
                if self._pages is not None and not self.known(cookie):
                    await self._fill_page(self._pages, restarted=not cookie)
        self.take_ahead(cookie + count)

    def take_ahead(self, until: int) -> None:
        """Take in the page that was read ahead, if it is there and position *until* is beyond what is known."""
        ahead, pages = self._ahead, self._pages
        if ahead is None or pages is None or len(self._names) >= until or self._lock.locked():
            return
        if ahead.done() and not ahead.cancelled() and ahead.exception() is None:
            self._ahead = None
            self._add(ahead.result(), pages)

    async def _fill_page(self, pages: AsyncIterator[DirectoryPage], *, restarted: bool) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            if self._ahead is None and restarted:  # when interrupted, the kernel begins anew
                page = await anext(pages, None)
            else:
                ahead = self._ahead
                if ahead is None:
                    ahead = self._ahead = eager.begin(_next(pages))  # most often the end, which is known already
                page = ahead.result() if ahead.done() else await asyncio.shield(ahead)
                self._ahead = None
        except Exception as error:
            self._failure, self._ahead = error, None
            raise
        self._add(page, pages)

    def _add(self, page: DirectoryPage | None, pages: AsyncIterator[DirectoryPage]) -> None:
        if page is None:
            self._pages = None
            return
        self._take(page)
        if len(page.names) >= _MANY:
            self._ahead = asyncio.create_task(_next(pages))

    def _take(self, page: DirectoryPage) -> None:
        self._starts.append(len(self._names))
        self._read.append(time.monotonic())
        self._names += page.names
        raw = page.raw_entries
        kinds, inos = zip(*page.entries, strict=True) if raw is None and page.names else entry_columns(raw or ())
        self._kinds += kinds
        self._inos += inos
        self._attrs += page.raw_attrs or page.attrs or [None] * len(page.names)
        if self._snapshot is not None and not self._sort:
            self._record(self._starts[-1])

    async def _fill_sorted(self) -> None:
        async with self._lock:
            pages = self._pages
            if pages is None:
                return
            first = len(self._names)
            async for page in pages:
                self._take(page)
            self._pages = None
            order = sorted(range(first, len(self._names)), key=lambda at: self._names[at] or b"")
            self._names[first:] = [self._names[at] for at in order]
            self._inos[first:] = [self._inos[at] for at in order]
            self._kinds[first:] = [self._kinds[at] for at in order]
            self._attrs[first:] = [self._attrs[at] for at in order]
            del self._starts[1:], self._read[1:]  # all as old as the oldest
            self._record(0)

    def window(self, cookie: int, count: int, *, freshness: float) -> Window:
        """The entries at [cookie, cookie+count). Drops the attributes of what was handed out before – a listing of a
        million entries must not keep them all – and of pages read more than *freshness* seconds ago."""
        if cookie > self._stripped + _KEPT_ATTRS:
            end = min(cookie, len(self._attrs))
            self._attrs[self._stripped : end] = [None] * (end - self._stripped)
            self._stripped = cookie
        end = cookie + count
        names, attrs = self._names[cookie:end], self._attrs[cookie:end]
        page = bisect_right(self._starts, cookie) - 1
        if page >= 0 and time.monotonic() - self._read[page] > freshness:
            attrs = [None] * len(names)
        return Window(names, self._inos[cookie:end], self._kinds[cookie:end], attrs)


async def _next(pages: AsyncIterator[DirectoryPage]) -> DirectoryPage | None:
    return await anext(pages, None)


class Directories:
    """The table of open directories of a mount, and what changed while there are any."""

    def __init__(self, *, sort: bool = False, snapshots: Snapshots | None = None) -> None:
        self._sort = sort
        self._snapshots = snapshots or Snapshots(None)
        self._handles: dict[int, DirectoryHandle] = {}
        self._changed: set[int] = set()
        self._gone: set[tuple[int, bytes]] = set()
        self._renewed: set[tuple[int, bytes]] = set()
        self._distrust = False
        self.version = 0  # counts what may make a reply that was packed ahead wrong

    def open(self, fh: int, ino: int, first: Callable[[], list[Item]]) -> DirectoryHandle:
        """A new handle of the number *fh*."""
        handle = DirectoryHandle(fh, ino, first, sort=self._sort, snapshot=self._snapshots.of(fh))
        self._handles[fh] = handle
        return handle

    def get(self, fh: int) -> DirectoryHandle:
        """The handle of this number; FsError(EBADF) when there is none."""
        handle = self._handles.get(fh)
        if handle is None:
            raise FsError(errno.EBADF)
        return handle

    def find(self, fh: int) -> DirectoryHandle | None:
        """The handle of this number or None."""
        return self._handles.get(fh)

    def is_open(self, ino: int) -> bool:
        """Whether any handle is of directory *ino*."""
        return any(handle.ino == ino for handle in self._handles.values())

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
            self.suspect((ino,))

    def suspect(self, inodes: Iterable[int]) -> None:
        """What the metadata says of *inodes* is not all that this mount knows of them."""
        self.version += 1
        self._changed.update(inodes)
        if len(self._changed) > _FORGET_ATTRS:
            self._changed.clear()
            self._distrust = True

    def removed(self, parent: int, name: bytes) -> None:
        """This mount took the name away."""
        if self._handles:
            self.suspect((parent,))
            self._gone.add((parent, name))

    def added(self, parent: int, name: bytes) -> None:
        """This mount made the name, or made it stand for another inode."""
        if self._handles:
            self.suspect((parent,))
            self._gone.discard((parent, name))
            self._renewed.add((parent, name))

    def current(self, handle: DirectoryHandle, window: Window) -> Window:
        """*window* as it may be shown now: no name for removed entries (their positions stay), no attributes where changed."""
        changed, gone, renewed = self._changed, self._gone, self._renewed
        if not changed and not gone and not renewed and not self._distrust:
            return window
        parent = handle.ino
        names, attrs = list(window.names), list(window.attrs)
        for at, (name, ino) in enumerate(zip(window.names, window.inos, strict=True)):
            if name is None:
                continue
            if gone and (parent, name) in gone:
                names[at] = attrs[at] = None
            elif self._distrust or ino in changed or (renewed and (parent, name) in renewed):
                attrs[at] = None
        return Window(names, window.inos, window.kinds, attrs)
