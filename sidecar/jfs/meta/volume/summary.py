"""What lies below a directory in bytes and inodes: from the usage records of the directories there, or strictly from every inode.

Not a snapshot: what changes meanwhile may be counted or not. Memory is bounded by the directories that wait to be looked at.
"""

from jfs.format.constants import DIRECTORY, TRASH
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import DirStat, DirStatKey, NodeKey
from jfs.meta.operations import journal
from jfs.meta.operations import rules as common
from jfs.meta.store.base import Store, Tx


async def summary(store: Store, ino: int, *, strict: bool) -> DirStat:
    """Length, space and inodes of everything below directory *ino*, without itself; hard links count at each name. Directories
    without a usage record are counted from their inodes also when not *strict*."""
    length = space = inodes = 0
    waiting = [ino]
    while waiting:
        directory = waiting.pop()
        stat: DirStat | None = None
        if not strict:
            (stat,) = await store.get(DirStatKey(directory))
        if stat is not None:
            length, space, inodes = length + stat.length, space + stat.space, inodes + stat.inodes
        async for page in store.list_directory(directory, plus=stat is None):
            waiting += [entry.ino for entry in page.entries if entry.kind == DIRECTORY]
            if stat is not None:
                continue
            for attr in page.attrs or ():
                one = _usage(attr)
                length, space, inodes = length + one.length, space + one.space, inodes + one.inodes
    return DirStat(length, space, inodes)


def _usage(attr: Attr | None) -> DirStat:
    return DirStat(0, 0, 0) if attr is None else common.usage(attr)


async def count_directories(store: Store) -> int:
    """Count the children of every directory again and write the usage records that differ: their ground when keeping them is turned
    on. How many were written."""
    written = 0
    async for ino, attr in store.nodes():
        if attr.kind != DIRECTORY or ino == TRASH:
            continue
        length = space = inodes = 0
        async for page in store.list_directory(ino, plus=True):
            for child in page.attrs or ():
                one = _usage(child)
                length, space, inodes = length + one.length, space + one.space, inodes + one.inodes
        total = DirStat(length, space, inodes)

        async def operation(tx: Tx, ino: int = ino, total: DirStat = total) -> bool:
            node, kept = await tx.get(NodeKey(ino), DirStatKey(ino))
            if node is None or kept == total:
                return False
            tx.put(DirStatKey(ino), total)
            journal.counted(tx, ino, total)
            return True

        written += await store.run(operation)
    return written
