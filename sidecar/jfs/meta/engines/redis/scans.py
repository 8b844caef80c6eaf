"""What is read of Redis in pieces and without a transaction: listings, queues, searches over all keys.

HSCAN and SCAN may give an element twice while others write; listings leave repeated names out, searches repeated keys. A cursor is a
place in the tables of one process: when another one answers (the server was started again, or a replica is the master now) it starts over.
Searches look at every key of the database, so only rare jobs use them, and each match is checked against the full form of
its name, since `s*` also finds `setting` (format §4.1.2).
"""

import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.engines.redis.connection import Command
from jfs.meta.engines.redis.layout import Layout
from jfs.meta.engines.redis.link import Link
from jfs.meta.model.attr import entry_columns
from jfs.meta.store.page import StoredPage

_PAGE: Final = 4096
_FIRST: Final = 384  # entries of a listing's first page: about what the kernel asks for at once
_LATER: Final = 2048  # of the others, which are read while earlier ones are taken in


async def _pages(link: Link, page: Callable[[bytes], list[Command]]) -> AsyncIterator[tuple[list[Any], bool]]:
    """What SCAN or HSCAN finds, piece by piece, and whether it is the last one; *page* makes the commands for a cursor."""
    cursor, turn = b"0", link.turn
    while True:
        asked = cursor
        reply = (await link.read(page(asked)))[-1]
        cursor, found = reply if isinstance(reply[0], bytes) else reply[-1]
        if link.turn != turn and not asked == cursor == b"0":
            cursor, turn = b"0", link.turn
            continue
        yield found, cursor == b"0"
        if cursor == b"0":
            return


async def list_directory(link: Link, layout: Layout, ino: int, plus: bool) -> AsyncIterator[StoredPage]:
    """The pages of a directory; with *plus* each page's attributes are one MGET."""
    seen: set[bytes] | None = None  # only a listing of several pages can repeat a name
    directory = layout.directory(ino)

    def page(cursor: bytes) -> list[Command]:
        return [(b"HSCAN", directory, cursor, b"COUNT", _FIRST if cursor == b"0" else _LATER)]

    async for flat, last in _pages(link, page):
        names, entries = flat[::2], flat[1::2]
        if seen is None and not last:
            seen = set()
        if seen is not None and names:
            pairs = {name: entry for name, entry in zip(names, entries, strict=True) if name not in seen}
            seen.update(pairs)
            names, entries = list(pairs), list(pairs.values())
        if names:
            attrs = None
            if plus:
                (attrs,) = await link.read([(b"MGET", *[layout.node(ino) for ino in entry_columns(entries)[1]])])
            yield StoredPage(names, entries, attrs)


async def keys(link: Link, layout: Layout, match: bytes) -> AsyncIterator[list[bytes]]:
    """Keys of the volume that match a glob, in pieces; a key may come twice."""
    match = layout.prefix + match

    def page(cursor: bytes) -> list[Command]:
        scan: Command = (b"SCAN", cursor, b"MATCH", match, b"COUNT", _PAGE)
        if not layout.prefix:
            return [scan]
        # A node of a Cluster gives the keys it has, be they all of the slot's or not. The question for a key that is never there
        # is refused when the slot is elsewhere or on its way.
        return [(b"MULTI",), (b"EXISTS", layout.prefix), scan, (b"EXEC",)]

    async for found, _ in _pages(link, page):
        if found:
            yield found


async def hash_items(link: Link, key: bytes) -> AsyncIterator[tuple[bytes, bytes]]:
    """Fields and values of a hash; a field may come twice while it is written to."""
    async for flat, _ in _pages(link, lambda cursor: [(b"HSCAN", key, cursor, b"COUNT", _PAGE)]):
        for at in range(0, len(flat), 2):
            yield flat[at], flat[at + 1]


async def nodes(link: Link, layout: Layout) -> AsyncIterator[tuple[int, bytes]]:
    """Inodes and stored attributes of all inode records."""
    seen: set[int] = set()
    form = layout.pattern(rb"i(\d+)")
    async for found in keys(link, layout, b"i*"):
        inodes = [int(match[1]) for key in found if (match := form.fullmatch(key))]
        inodes = [ino for ino in dict.fromkeys(inodes) if ino not in seen]
        if not inodes:
            continue
        seen.update(inodes)
        (attrs,) = await link.read([(b"MGET", *[layout.node(ino) for ino in inodes])])
        for ino, raw in zip(inodes, attrs, strict=True):
            if raw is not None:
                yield ino, raw


async def chunks(link: Link, layout: Layout) -> AsyncIterator[tuple[int, int, list[bytes]]]:
    """Inode, index and list of all chunks."""
    seen: set[bytes] = set()
    form = layout.pattern(rb"c(\d+)_(\d+)")
    async for found in keys(link, layout, b"c*_*"):
        fresh = [match for key in dict.fromkeys(found) if key not in seen and (match := form.fullmatch(key))]
        if not fresh:
            continue
        seen.update(match[0] for match in fresh)
        commands: list[Command] = [(b"LRANGE", match[0], 0, -1) for match in fresh]
        for match, records in zip(fresh, await link.read(commands), strict=True):
            if records:
                yield int(match[1]), int(match[2]), records


async def chunk_indexes(link: Link, layout: Layout, ino: int, below: int | None) -> list[int]:
    """Indexes of an inode's chunks that have a list: looked at one by one up to *below* indexes, else searched for."""
    if below is not None:
        found = []
        for start in range(0, below, 1000):
            indexes = range(start, min(start + 1000, below))
            replies = await link.read([(b"EXISTS", layout.chunk(ino, indx)) for indx in indexes])
            found += [indx for indx, exists in zip(indexes, replies, strict=True) if exists]
        return found
    indexes_found: set[int] = set()
    form = layout.pattern(rb"c%d_(\d+)" % ino)
    async for names in keys(link, layout, b"c%d_*" % ino):
        indexes_found.update(int(match[1]) for key in names if (match := form.fullmatch(key)))
    return sorted(indexes_found)


async def is_blank(link: Link, layout: Layout) -> bool:
    """Whether no key of the database has the form of a volume's."""
    if not layout.prefix:
        (count,) = await link.read([(b"DBSIZE",)])
        if not count:
            return True
    counters = [layout.counters[name] for name in ("nextInode", "nextChunk", "totalInodes")]
    (known,) = await link.read([(b"EXISTS", layout.setting, layout.node(1), *counters)])
    if known:
        return False
    form = layout.volume_keys()
    async for found in keys(link, layout, b"*"):
        if any(form.fullmatch(key) for key in found):
            return False
    return True


async def remove_volume(link: Link, layout: Layout) -> None:
    """Remove every key that has the form of a volume's; others of the database stay."""
    form = layout.volume_keys()
    async for found in keys(link, layout, b"*"):
        ours = [key for key in found if form.fullmatch(key)]
        if ours:
            await link.change([(b"UNLINK", *ours)])


async def forget_session(link: Link, layout: Layout, sid: int) -> None:
    """Remove a session: the locks it holds in every inode it has locked, its sustained set, its records (format §7.1).

    A shared flock of a real client that died is not in `locked<sid>` and stays (format §4.1.2).
    """
    locked = layout.locks.of_session(sid)
    (names,) = await link.read([(b"SMEMBERS", locked)])
    form = layout.pattern(rb"lock[fp]\d+")
    lock_keys = [name for name in names if form.fullmatch(name)]
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
        *[(b"ZREM", name, sid) for name in (layout.sessions, layout.old_sessions) if name],
        (b"HDEL", layout.session_infos, sid),
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
