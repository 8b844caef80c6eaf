"""What an operation costs in a volume of many files: the metadata layer alone, without a mount, at growing numbers of entries.

A volume is filled by large transactions of the record store, up to each size; there a sample of operations runs, one after the
other. What counts is CPU, of this process and of the database's, which other work on the machine changes little, and this process's
memory. Names and inodes are spread evenly, in directories of a thousand entries.
"""

import asyncio
import random
import resource
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from jfs.format.constants import DIRECTORY, FILE, ROOT
from jfs.format.setting import new_setting
from jfs.meta.connect import connect
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import DirStat, DirStatKey, EdgeKey, NodeKey
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume import SUPERUSER, AttrChange, Meta, MetaOptions, format_volume

SIZES = (1_000, 10_000, 100_000, 1_000_000)
_SAMPLE = 300
_IN_DIRECTORY = 1000
_TOGETHER = 500
_NOW = 1_700_000_000
_UUID = "2d4dbcce-1357-42d9-91c0-a26ae5ebcd1a"
_NO_CACHES = MetaOptions(attr_timeout=0, entry_timeout=0, dir_entry_timeout=0, no_bgjob=True)

Operation = Callable[[Meta, int, int], Awaitable[object]]  # of a directory and the number of a file in it


async def _list(meta: Meta, directory: int, number: int) -> None:
    async for _ in meta.store.list_directory(directory, plus=True):
        pass


OPERATIONS: dict[str, Operation] = {
    "lookup": lambda meta, at, number: meta.lookup(SUPERUSER, at, b"f%d" % number),
    "list 1,000": _list,
    "create": lambda meta, at, number: meta.mknod(SUPERUSER, at, b"new%d" % number, FILE, 0o644),
    "setattr": lambda meta, at, number: meta.setattr(SUPERUSER, at + 1 + number, AttrChange(mode=0o600 + number % 8)),
    "rename": lambda meta, at, number: meta.rename(SUPERUSER, at, b"new%d" % number, at, b"moved%d" % number, 0),
    "unlink": lambda meta, at, number: meta.unlink(SUPERUSER, at, b"moved%d" % number),
}


def report(engine: str, url: str, server: int, most: int) -> str:
    """The curve as Markdown. *server* is the database's process, 0 for one in this process."""
    rows = asyncio.run(_measure(url, server, [size for size in SIZES if size <= most]))
    head = ["entries", *(f"{name}, µs" for name in OPERATIONS), "fill, µs an entry", "MiB"]
    lines = [
        f"# {engine}: CPU of client and database an operation",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


async def _measure(url: str, server: int, sizes: list[int]) -> list[list[str]]:
    store = await connect(url)
    setting = new_setting("bench", _UUID, trash_days=0, bucket="/var/jfs/")
    await format_volume(store, setting, force=False, no_update=False, now=_NOW * 10**9)
    meta = await Meta.load(store, _NO_CACHES, delete_objects=_no_objects)
    await meta.start_session()
    rows = []
    directories: list[int] = []
    try:
        for size in sizes:
            before = _cpu(server)
            added = await _fill(store, directories, size)
            filled = (_cpu(server) - before) / max(added, 1) * 1e6
            costs = await _sample(meta, directories, server)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append([f"{size:,}", *(f"{cost:.0f}" for cost in costs), f"{filled:.0f}", f"{peak:.0f}"])
            print(" ".join(rows[-1]), flush=True)
    finally:
        await meta.close()
    return rows


async def _no_objects(id: int, size: int) -> None:
    return


async def _fill(store: Store, directories: list[int], size: int) -> int:
    """Bring the volume to *size* files; how many came."""
    added = 0
    while len(directories) * _IN_DIRECTORY < size:
        first = await store.allot("nextInode", _IN_DIRECTORY + 3)
        directory = max(first, 2)  # the very first batch begins with the reserved numbers
        pieces: list[tuple[Any, Any]] = [
            (EdgeKey(ROOT, b"d%d" % directory), Entry(DIRECTORY, directory)),
            (NodeKey(directory), _attr(DIRECTORY, ROOT)),
            # As whoever made the files would have left it; counting what is missing would be part of a first create.
            (DirStatKey(directory), DirStat(0, _IN_DIRECTORY * 4096, _IN_DIRECTORY)),
        ]
        for number in range(_IN_DIRECTORY):
            ino = directory + 1 + number
            pieces += [(EdgeKey(directory, b"f%d" % number), Entry(FILE, ino)), (NodeKey(ino), _attr(FILE, directory))]
        for start in range(0, len(pieces), _TOGETHER):

            async def operation(tx: Tx, some: list[tuple[Any, Any]] = pieces[start : start + _TOGETHER]) -> None:
                for key, record in some:
                    tx.put(key, record)

            await store.run(operation)
        directories.append(directory)
        added += _IN_DIRECTORY
    return added


def _attr(kind: int, parent: int) -> Attr:
    nlink, length = (2, 4096) if kind != FILE else (1, 0)
    return Attr(0, 0o755 | kind << 12, 0, 0, _NOW, 0, _NOW, 0, _NOW, 0, nlink, length, 0, parent)


async def _sample(meta: Meta, directories: list[int], server: int) -> list[float]:
    """CPU of each operation in µs, over files chosen at random (but always the same)."""
    chance = random.Random(1)
    places = [(chance.choice(directories), number) for number in chance.sample(range(_IN_DIRECTORY), _SAMPLE)]
    costs = []
    for operation in OPERATIONS.values():
        before = _cpu(server)
        for directory, number in places:
            await operation(meta, directory, number)
        costs.append((_cpu(server) - before) / len(places) * 1e6)
    return costs


def _cpu(server: int) -> float:
    """Seconds that this process and the database's have used."""
    return time.process_time() + sum(map(_used, _family(server)))


def _family(server: int) -> list[int]:
    """A process, and those of PostgreSQL's connections; Redis' children rewrite its file now and then, for no operation."""
    if not server:
        return []
    if Path(f"/proc/{server}/comm").read_text().strip() != "postgres":
        return [server]
    tasks = Path(f"/proc/{server}/task").iterdir()
    return [server, *(int(pid) for task in tasks for pid in (task / "children").read_text().split())]


def _used(process: int) -> float:
    """Seconds of CPU of all threads there are."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
