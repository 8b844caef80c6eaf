"""Paths of a volume without a mount: what commands that are given one look up, by no user's rights and without following links."""

from typing import Final

from jfs.format.constants import DIRECTORY, ROOT, TRASH, TRASH_NAME
from jfs.meta.model.attr import Entry
from jfs.meta.store.base import Store

_TOP: Final = Entry(DIRECTORY, ROOT)


async def find(store: Store, path: bytes) -> Entry | None:
    """Kind and inode of what is at *path*, which begins at the root with or without a slash; None when nothing is. `/.trash` is the
    trash."""
    at = _TOP
    for name in path.split(b"/"):
        if name in (b"", b"."):
            continue
        if at.ino == ROOT and name == TRASH_NAME:
            at = Entry(DIRECTORY, TRASH)
            continue
        found = await store.lookup(at.ino, name) if at.kind == DIRECTORY else None
        if found is None:
            return None
        at = found[0]
    return at
