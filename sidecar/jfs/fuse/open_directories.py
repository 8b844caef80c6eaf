"""The requests on open directories. A part of `Handlers`, under the same rules. A listing is answered from the handle's snapshot
(`vfs.directories`) with what this mount has changed since left out; hosts that pack replies themselves may look at it ahead.
"""

import os
from collections.abc import Awaitable, Callable

from jfs.format.constants import DIRECTORY, ROOT
from jfs.fuse.requests import Opened, Timeouts, request_number
from jfs.meta.volume import Caller, Meta
from jfs.survival import handle_table
from jfs.vfs.directories import Directories, DirectoryHandle, Item, Window
from jfs.vfs.files import Files
from jfs.vfs.virtual import VirtualFiles


class OpenDirectories:
    """See the module."""

    meta: Meta
    files: Files
    directories: Directories
    virtual: VirtualFiles
    timeouts: Timeouts
    _root: int
    _readdir_cache: bool
    _access_checked: bool
    _listed: dict[int, tuple[int, int]]
    _forget_unanswered: Callable[[Caller], Awaitable[None]]

    async def opendir(self, caller: Caller, ino: int) -> Opened:
        """Open a directory; nothing is read yet."""
        shown = ino
        if ino == ROOT:
            ino = self._root
        if (caller.checked or not self._access_checked) and self.meta.gone(ino) is None:
            await self.meta.access(caller, ino, os.R_OK)
        fh = self.files.table.take(handle_table.DIRECTORY, ino, 0, read_only=True, request=request_number(caller))
        directory = self.restore_directory(fh, shown, ino)
        await self._forget_unanswered(caller)
        if self._readdir_cache:
            attr = await self.meta.getattr(ino)
            now = (attr.mtime, attr.mtimensec)
            keep = self._listed.get(ino) == now
            self._listed[ino] = now
            return Opened(directory.fh, keep_cache=keep, cache_directory=True)
        return Opened(directory.fh)

    def restore_directory(self, fh: int, shown: int, ino: int) -> DirectoryHandle:
        """The open directory *ino*, which the kernel knows as *shown*, under a number of the table."""
        return self.directories.open(fh, ino, lambda: self._first(shown))

    def _first(self, ino: int) -> list[Item]:
        first = self.virtual.listing() if ino == ROOT else []
        return [*first, Item(b".", ino, DIRECTORY, None), Item(b"..", ROOT, DIRECTORY, None)]

    async def readdir(self, caller: Caller, ino: int, fh: int, cookie: int, size: int, plus: bool) -> Window:
        """Entries from position *cookie* on, at most what *size* bytes of reply can hold and none only at the end; the one at index
        i has the next cookie *cookie*+i+1."""
        handle = self.directories.get(fh)
        if cookie == 0 or not handle.started:
            self.directories.suspect(self.files.by_inode)  # what is written there may not be committed yet
            pages = self.meta.list_directory(caller, handle.ino, plus=plus)
            await (
                handle.resume(pages) if cookie else handle.start(pages)
            )  # one of a predecessor's goes on where it was
        count = _fitting(size, plus)
        await handle.fill(cookie, count)
        return self.directories.current(handle, handle.window(cookie, count, freshness=self.timeouts.attr))

    def listed(self, fh: int, cookie: int, size: int, plus: bool) -> Window | None:
        """What `readdir` would answer now, None when it would have to wait for it or the handle is closed."""
        handle = self.directories.find(fh)
        if handle is None or not handle.known(cookie):
            return None
        count = _fitting(size, plus)
        handle.take_ahead(cookie + count)
        window = handle.window(cookie, count, freshness=self.timeouts.attr)
        return self.directories.current(handle, window)

    def told(self, window: Window, count: int) -> None:
        """The kernel is given the attributes of the first *count* entries."""
        self.files.tell_listed(window.inos[:count], window.attrs[:count])

    async def releasedir(self, caller: Caller, ino: int, fh: int) -> None:
        """Close a directory."""
        handle: DirectoryHandle = self.directories.get(fh)
        self.directories.close(fh)
        self.files.table.free(fh)
        await handle.close()

    async def fsyncdir(self, caller: Caller, ino: int, fh: int, datasync: bool) -> None:
        """Nothing to do: names are durable when their operation returns."""


def _fitting(size: int, plus: bool) -> int:
    """How many entries a reply of *size* bytes holds at most."""
    return size // (160 if plus else 32) + 1
