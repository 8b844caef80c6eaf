"""Directories too large to be made entry by entry: their records are put into the store, a great many in each transaction."""

import time

from jfs.format.constants import FILE
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import CounterKey, DirStat, DirStatKey, EdgeKey, NodeKey
from jfs.meta.operations.rules import new_attr
from jfs.meta.store.base import Store, Tx


async def populate(store: Store, directory: int, count: int, *, together: int = 5000) -> None:
    """Files `old-N` in a directory, *together* in a transaction."""
    first = await store.allot("nextInode", count + 2) + 2  # the very first ids are reserved
    now = time.time_ns()
    for begin in range(0, count, together):
        some = range(begin, min(begin + together, count))

        async def make(tx: Tx, some: range = some) -> None:
            for number in some:
                tx.put(NodeKey(first + number), new_attr(FILE, 0o644, 0, 0, now, directory))
                tx.put(EdgeKey(directory, b"old-%d" % number), Entry(FILE, first + number))
            tx.add_stat(DirStatKey(directory), DirStat(0, 4096 * len(some), len(some)))
            tx.add(CounterKey("usedSpace"), 4096 * len(some))
            tx.add(CounterKey("totalInodes"), len(some))

        await store.run(make)
