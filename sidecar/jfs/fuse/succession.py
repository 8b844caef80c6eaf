"""Taking over what a dead predecessor had open: from its handle table back to handles that answer.

Runs once, after the session goes on under its id and before the first request is read. Files are opened again by inode, without
a question about rights: the kernel holds them open. Directories begin with the snapshot that their predecessor recorded.
What does not exist any more (the session had expired meanwhile) has no handle, and its users get EBADF.
Concurrency: one coroutine, nothing else runs in the handlers.
"""

import logging

from jfs.errors import FsError
from jfs.format.constants import ROOT
from jfs.fuse.handlers import Handlers
from jfs.survival.handle_table import DIRECTORY, FILE, VIRTUAL, Handle

log = logging.getLogger("jfs.fuse")


async def restore(handlers: Handlers) -> int:
    """Bring back every handle of the table; how many there are. StoreError."""
    table, meta = handlers.files.table, handlers.meta
    handles = table.handles()
    files = [handle for handle in handles if handle.kind == FILE]
    attrs = await meta.reopen([handle.ino for handle in files])
    await meta.locks.restore({handle.ino for handle in files if handle.owners and handle.ino in attrs})
    lost = 0
    for handle in files:
        attr = attrs.get(handle.ino)
        if attr is None:
            lost += 1
            table.free(handle.fh)
            continue
        opened = handlers.files.restore(handle.fh, handle.ino, handle.flags, attr)
        opened.owners = set(handle.owners) or None
        if meta.holds_mtime(handle.ino):
            handlers.files.set_times(handle.ino)
    if lost:
        log.warning("%d files that were open without a name are gone", lost)
    for handle in handles:
        if handle.kind == DIRECTORY:
            handlers.restore_directory(handle.fh, ROOT if handle.ino == meta.root else handle.ino, handle.ino)
        elif handle.kind == VIRTUAL:
            await _restore_virtual(handlers, handle)
        if handle.request:
            handlers.files.opened_by[handle.request] = handle.fh
    return len(handles) - lost


async def _restore_virtual(handlers: Handlers, handle: Handle) -> None:
    try:
        await handlers.virtual.open(handle.ino, handle.flags, handle.fh)
    except FsError:  # another set of options shows other virtual files
        handlers.files.table.free(handle.fh)
