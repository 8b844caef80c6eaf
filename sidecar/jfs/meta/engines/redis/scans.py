"""What is read of Redis in pieces and without a transaction: listings, queues, searches over all keys.

HSCAN and SCAN may give an element twice while others write; listings leave repeated names out, searches repeated keys.
Searches look at every key of the database, so only rare jobs use them, and each match is checked against the full form of
its name, since `s*` also finds `setting` (format §4.1.2).
"""

import re
from collections.abc import AsyncIterator
from typing import Final

from jfs.errors import CorruptRecord
from jfs.meta.engines.redis import layout
from jfs.meta.engines.redis.connection import Command
from jfs.meta.engines.redis.link import Link
from jfs.meta.model.attr import entry_columns
from jfs.meta.store.page import StoredPage

_PAGE: Final = 4096
_FIRST: Final = 384  # entries of a listing's first page: about what the kernel asks for at once
_LATER: Final = 2048  # of the others, which are read while earlier ones are taken in
_VOLUME_KEY: Final = re.compile(layout.VOLUME_KEYS)
_CHUNK_KEY: Final = re.compile(rb"c(\d+)_(\d+)")
_NODE_KEY: Final = re.compile(rb"i(\d+)")


async def list_directory(link: Link, ino: int, plus: bool) -> AsyncIterator[StoredPage]:
    """The pages of a directory; with *plus* each page's attributes are one MGET."""
    cursor = b"0"
    count = _FIRST
    seen: set[bytes] | None = None  # only a listing of several pages can repeat a name
    while True:
        ((cursor, flat),) = await link.read([(b"HSCAN", layout.directory(ino), cursor, b"COUNT", count)])
        count = _LATER
        names, entries = flat[::2], flat[1::2]
        if seen is None and cursor != b"0":
            seen = set()
        if seen is not None and names:
            pairs = {name: entry for name, entry in zip(names, entries, strict=True) if name not in seen}
            seen.update(pairs)
            names, entries = list(pairs), list(pairs.values())
        if names:
            attrs = None
            if plus:
                (attrs,) = await link.read([(b"MGET", *[b"i%d" % ino for ino in entry_columns(entries)[1]])])
            yield StoredPage(names, entries, attrs)
        if cursor == b"0":
            return


async def keys(link: Link, match: bytes) -> AsyncIterator[list[bytes]]:
    """Keys of the database that match a glob, in pieces; a key may come twice."""
    cursor = b"0"
    while True:
        ((cursor, found),) = await link.read([(b"SCAN", cursor, b"MATCH", match, b"COUNT", _PAGE)])
        if found:
            yield found
        if cursor == b"0":
            return


async def hash_items(link: Link, key: bytes) -> AsyncIterator[tuple[bytes, bytes]]:
    """Fields and values of a hash; a field may come twice while it is written to."""
    cursor = b"0"
    while True:
        ((cursor, flat),) = await link.read([(b"HSCAN", key, cursor, b"COUNT", _PAGE)])
        for at in range(0, len(flat), 2):
            yield flat[at], flat[at + 1]
        if cursor == b"0":
            return


async def nodes(link: Link) -> AsyncIterator[tuple[int, bytes]]:
    """Inodes and stored attributes of all inode records."""
    seen: set[int] = set()
    async for found in keys(link, b"i*"):
        inodes = [int(match[1]) for key in found if (match := _NODE_KEY.fullmatch(key))]
        inodes = [ino for ino in dict.fromkeys(inodes) if ino not in seen]
        if not inodes:
            continue
        seen.update(inodes)
        (attrs,) = await link.read([(b"MGET", *[layout.node(ino) for ino in inodes])])
        for ino, raw in zip(inodes, attrs, strict=True):
            if raw is not None:
                yield ino, raw


async def chunks(link: Link) -> AsyncIterator[tuple[int, int, list[bytes]]]:
    """Inode, index and list of all chunks."""
    seen: set[bytes] = set()
    async for found in keys(link, b"c*_*"):
        fresh = [key for key in dict.fromkeys(found) if key not in seen and _CHUNK_KEY.fullmatch(key)]
        if not fresh:
            continue
        seen.update(fresh)
        commands: list[Command] = [(b"LRANGE", key, 0, -1) for key in fresh]
        for key, records in zip(fresh, await link.read(commands), strict=True):
            if records:
                ino, indx = key[1:].split(b"_")
                yield int(ino), int(indx), records


async def chunk_indexes(link: Link, ino: int, below: int | None) -> list[int]:
    """Indexes of an inode's chunks that have a list: looked at one by one up to *below* indexes, else searched for."""
    if below is not None:
        found = []
        for start in range(0, below, 1000):
            indexes = range(start, min(start + 1000, below))
            replies = await link.read([(b"EXISTS", layout.chunk(ino, indx)) for indx in indexes])
            found += [indx for indx, exists in zip(indexes, replies, strict=True) if exists]
        return found
    indexes_found: set[int] = set()
    async for names in keys(link, b"c%d_*" % ino):
        indexes_found.update(int(match[2]) for key in names if (match := _CHUNK_KEY.fullmatch(key)))
    return sorted(indexes_found)


async def is_blank(link: Link) -> bool:
    """Whether no key of the database has the form of a volume's."""
    (count,) = await link.read([(b"DBSIZE",)])
    if not count:
        return True
    (known,) = await link.read([(b"EXISTS", layout.SETTING, b"i1", b"nextinode", b"nextchunk", b"totalInodes")])
    if known:
        return False
    async for found in keys(link, b"*"):
        if any(_VOLUME_KEY.fullmatch(key) for key in found):
            return False
    return True


async def remove_volume(link: Link) -> None:
    """Remove every key that has the form of a volume's; others of the database stay."""
    async for found in keys(link, b"*"):
        ours = [key for key in found if _VOLUME_KEY.fullmatch(key)]
        if ours:
            await link.change([(b"UNLINK", *ours)])


async def forget_session(link: Link, sid: int) -> None:
    """Remove a session: the locks it holds in every inode it has locked, its sustained set, its records (format §7.1).

    A shared flock of a real client that died is not in `locked<sid>` and stays (format §4.1.2).
    """
    locked = b"locked%d" % sid
    (names,) = await link.read([(b"SMEMBERS", locked)])
    lock_keys = [name for name in names if re.fullmatch(rb"lock[fp]\d+", name)]
    removals: list[Command] = []
    if lock_keys:
        mine = b"%d_" % sid
        owners = await link.read([(b"HKEYS", key) for key in lock_keys])
        for key, fields in zip(lock_keys, owners, strict=True):
            held = [field for field in fields if field.startswith(mine)]
            if held:
                removals.append((b"HDEL", key, *held))
    removals += [
        (b"DEL", locked),
        (b"DEL", layout.sustained(sid)),
        (b"ZREM", layout.SESSIONS, sid),
        (b"ZREM", layout.OLD_SESSIONS, sid),
        (b"HDEL", layout.SESSION_INFOS, sid),
    ]
    await link.change(removals)


def split_slice_field(field: bytes) -> tuple[int, int]:
    """`k<id>_<size>` as numbers; CorruptRecord."""
    match = re.fullmatch(rb"k(\d+)_(\d+)", field)
    if match is None:
        raise CorruptRecord(f"the slice reference {field!r} is malformed")
    return int(match[1]), int(match[2])


def split_pair(text: bytes, separator: bytes) -> tuple[int, int]:
    """`<number><separator><number>` as numbers; CorruptRecord."""
    first, found, second = text.partition(separator)
    if not (found and first.isdigit() and second.isdigit()):
        raise CorruptRecord(f"the queue entry {text!r} is malformed")
    return int(first), int(second)
