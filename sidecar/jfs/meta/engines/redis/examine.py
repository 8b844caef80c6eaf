"""Whole kinds of records out of Redis, for checks: what a search of all keys finds, damaged records included.

Each function is one pass over the keys or one hash, in pieces; a record that others write meanwhile may come in either state, and
once only. Nothing here raises for what a single record holds: it comes as a CorruptRecord.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from jfs.errors import CorruptRecord
from jfs.meta.engines.redis import scans
from jfs.meta.engines.redis.connection import Command
from jfs.meta.engines.redis.layout import DECODING, Layout, score
from jfs.meta.engines.redis.link import Link
from jfs.meta.model.acl import AclKey
from jfs.meta.model.keys import (
    ChunkKey,
    DetachedKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    Key,
    NodeKey,
    ParentKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.model.locks import FlockKey, PlockKey
from jfs.meta.model.quota import QuotaKey

Found = tuple[Any, Any]  # a key and its record
_SMALL: Final = 10_000  # entries of a hash that are asked for at once


async def _keys(link: Link, layout: Layout, pattern: bytes) -> AsyncIterator[list[bytes]]:
    """Keys that match, behind the prefix, a regular expression which begins with a letter, each once, in pieces of at most 512."""
    expression = layout.pattern(pattern)
    seen: set[bytes] = set()
    async for names in scans.keys(link, layout, pattern[:1] + b"*"):
        fresh = [name for name in dict.fromkeys(names) if name not in seen and expression.fullmatch(name)]
        seen.update(fresh)
        for start in range(0, len(fresh), 512):
            yield fresh[start : start + 512]


def _number(layout: Layout, name: bytes, letters: int) -> int:
    """The number in a key behind its prefix and so many letters."""
    return int(name[len(layout.prefix) + letters :])


def _decoded(key: Key[Any], *replies: Any) -> Found:
    try:
        return key, DECODING[key.kind](key, replies)
    except (CorruptRecord, ValueError) as error:
        corrupt = error if isinstance(error, CorruptRecord) else CorruptRecord(f"the record of {key} is malformed")
        return key, corrupt


async def _strings(link: Link, layout: Layout, pattern: bytes, make: Callable[[int], Key[Any]]) -> AsyncIterator[Found]:
    async for names in _keys(link, layout, pattern):
        (values,) = await link.read([(b"MGET", *names)])
        for name, value in zip(names, values, strict=True):
            if value is not None:
                yield _decoded(make(_number(layout, name, 1)), value)


async def _hashes(link: Link, layout: Layout, pattern: bytes) -> AsyncIterator[tuple[int, bytes, bytes]]:
    """Number in the key, field and value of all hashes of one kind."""
    async for names in _keys(link, layout, pattern):
        sizes = await link.read([(b"HLEN", name) for name in names])
        small = [name for name, size in zip(names, sizes, strict=True) if size <= _SMALL]
        for name, flat in zip(small, await link.read([(b"HGETALL", name) for name in small]), strict=True):
            for at in range(0, len(flat), 2):
                yield _number(layout, name, 1), flat[at], flat[at + 1]
        for name in (name for name, size in zip(names, sizes, strict=True) if size > _SMALL):
            seen: set[bytes] = set()
            async for field, value in scans.hash_items(link, name):
                if field not in seen:
                    seen.add(field)
                    yield _number(layout, name, 1), field, value


async def _edges(link: Link, layout: Layout) -> AsyncIterator[Found]:
    async for ino, name, value in _hashes(link, layout, rb"d\d+"):
        yield _decoded(EdgeKey(ino, name), value)


async def _xattrs(link: Link, layout: Layout) -> AsyncIterator[Found]:
    async for names in _keys(link, layout, rb"x\d+"):
        for key, fields in zip(names, await link.read([(b"HKEYS", key) for key in names]), strict=True):
            for field in fields:
                yield XattrKey(_number(layout, key, 1), field), b""


async def _chunks(link: Link, layout: Layout) -> AsyncIterator[Found]:
    async for names in _keys(link, layout, rb"c\d+_\d+"):
        commands: list[Command] = [(b"LRANGE", name, 0, -1) for name in names]
        for name, records in zip(names, await link.read(commands), strict=True):
            ino, indx = name[len(layout.prefix) + 1 :].split(b"_")
            if records:
                yield _decoded(ChunkKey(int(ino), int(indx)), records)


async def _parents(link: Link, layout: Layout) -> AsyncIterator[Found]:
    async for ino, parent, count in _hashes(link, layout, rb"p\d+"):
        if parent.isdigit():
            yield _decoded(ParentKey(ino, int(parent)), count)
        else:
            yield ParentKey(ino, 0), CorruptRecord(f"the parents of inode {ino} name {parent!r}, which is no inode")


async def _slice_refs(link: Link, layout: Layout) -> AsyncIterator[Found]:
    seen: set[bytes] = set()
    async for field, value in scans.hash_items(link, layout.slice_refs):
        if field in seen:
            continue
        seen.add(field)
        try:
            key = SliceRefKey(*scans.split_slice_field(field))
        except CorruptRecord as error:
            yield SliceRefKey(0, 0), error
        else:
            yield _decoded(key, value)


async def _dir_stats(link: Link, layout: Layout) -> AsyncIterator[Found]:
    totals: dict[bytes, list[bytes | None]] = {}
    for place, name in enumerate((layout.dir_length, layout.dir_space, layout.dir_inodes)):
        async for field, value in scans.hash_items(link, name):
            totals.setdefault(field, [None] * 3)[place] = value
    for field, values in totals.items():
        if not field.isdigit():
            yield DirStatKey(0), CorruptRecord(f"the usage of directories has a field {field!r}, which is no inode")
        elif None in values:  # the real client takes a usage in part for none
            yield DirStatKey(int(field)), CorruptRecord(f"the usage of directory {int(field)} is incomplete")
        else:
            yield DirStatKey(int(field)), DirStat._make(int(value or 0) for value in values)


async def _sustained(link: Link, layout: Layout) -> AsyncIterator[Found]:
    async for names in _keys(link, layout, rb"session\d+"):
        for key, members in zip(names, await link.read([(b"SMEMBERS", key) for key in names]), strict=True):
            for member in members:
                yield SustainedKey(_number(layout, key, 7), int(member)), True


async def _detached(link: Link, layout: Layout) -> AsyncIterator[Found]:
    (pairs,) = await link.read([(b"ZRANGE", layout.detached, 0, -1, b"WITHSCORES")])
    for member, since in zip(pairs[::2], pairs[1::2], strict=True):
        yield DetachedKey(int(member)), score(since)


async def _acls(link: Link, layout: Layout) -> AsyncIterator[Found]:
    seen: set[bytes] = set()
    async for field, value in scans.hash_items(link, layout.acls):
        if field.isdigit() and field not in seen:
            seen.add(field)
            yield _decoded(AclKey(int(field)), value)


async def _quotas(link: Link, layout: Layout) -> AsyncIterator[Found]:
    sizes = await link.read([(b"HLEN", names[0]) for names in layout.quotas.hashes])
    for what, (names, size) in enumerate(zip(layout.quotas.hashes, sizes, strict=True)):
        if not size:
            continue
        found: list[dict[bytes, bytes]] = [{}, {}, {}]
        for values, name in zip(found, names, strict=True):
            async for field, value in scans.hash_items(link, name):
                values[field] = value
        limits, space, inodes = found
        for field, raw in limits.items():
            if field.isdigit():
                yield _decoded(QuotaKey(what, int(field)), raw, space.get(field), inodes.get(field))


async def _locks(link: Link, layout: Layout, pattern: bytes, make: Callable[[int], Key[Any]]) -> AsyncIterator[Found]:
    async for names in _keys(link, layout, pattern):
        for name, flat in zip(names, await link.read([(b"HGETALL", name) for name in names]), strict=True):
            if flat:
                yield _decoded(make(_number(layout, name, 5)), flat)


SCANS: Final[dict[type, Callable[[Link, Layout], AsyncIterator[Found]]]] = {
    NodeKey: lambda link, layout: _strings(link, layout, rb"i\d+", NodeKey),
    EdgeKey: _edges,
    SymlinkKey: lambda link, layout: _strings(link, layout, rb"s\d+", SymlinkKey),
    XattrKey: _xattrs,
    ChunkKey: _chunks,
    ParentKey: _parents,
    SliceRefKey: _slice_refs,
    DirStatKey: _dir_stats,
    SustainedKey: _sustained,
    DetachedKey: _detached,
    FlockKey: lambda link, layout: _locks(link, layout, rb"lockf\d+", FlockKey),
    PlockKey: lambda link, layout: _locks(link, layout, rb"lockp\d+", PlockKey),
    AclKey: _acls,
    QuotaKey: _quotas,
}
