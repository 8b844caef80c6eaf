"""Damages to a volume's records, each as a change of records, for the tests of the checks."""

from collections.abc import Callable
from typing import NamedTuple

from jfs.format.constants import ROOT
from jfs.format.slices import Slice
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DeletedFileKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    NodeKey,
    ParentKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.store.base import Tx
from jfs.meta.volume import SUPERUSER, Meta
from meta_volumes import new_file, write


class Parts(NamedTuple):
    """Inodes and slices of `build`."""

    directory: int
    sub: int
    file: int
    linked: int
    symlink: int
    slice: tuple[int, int]
    long: int


async def build(meta: Meta) -> Parts:
    """A tree with every kind of record."""
    directory, _ = await meta.mkdir(SUPERUSER, ROOT, b"dir", 0o755)
    sub, _ = await meta.mkdir(SUPERUSER, directory, b"sub", 0o755)
    file = await new_file(meta, b"file", parent=directory)
    (slice,) = await write(meta, file, 0, 5000)
    linked = await new_file(meta, b"linked", parent=directory)
    await write(meta, linked, 0, 100)
    await meta.link(SUPERUSER, linked, sub, b"again")
    await meta.setxattr(SUPERUSER, file, b"user.x", b"y", 0)
    symlink, _ = await meta.symlink(SUPERUSER, sub, b"symlink", b"../file")
    long = await new_file(meta, b"long")
    for at in range(4):
        await write(meta, long, at * 50, 100)
    return Parts(directory, sub, file, linked, symlink, slice, long)


class Case(NamedTuple):
    """*damage* changes records; then damages of the *kinds* are found, and afterwards a repair leaves those of *left*."""

    name: str
    damage: Callable[[Tx, Parts], object]
    kinds: set[str]
    left: frozenset[str] | set[str] = frozenset()


async def _nlink(tx: Tx, ino: int, nlink: int) -> None:
    (attr,) = await tx.get(NodeKey(ino))
    assert attr is not None
    tx.put(NodeKey(ino), attr._replace(nlink=nlink))


async def _parent(tx: Tx, ino: int, parent: int) -> None:
    (attr,) = await tx.get(NodeKey(ino))
    assert attr is not None
    tx.put(NodeKey(ino), attr._replace(parent=parent))


async def _removed(tx: Tx, parts: Parts) -> None:
    """A file without a name that nobody holds open, as a client leaves that did not get to the end."""
    (attr,) = await tx.get(NodeKey(parts.file))
    assert attr is not None
    tx.put(NodeKey(parts.file), attr._replace(nlink=0))
    tx.delete(EdgeKey(parts.directory, b"file"))
    tx.add_stat(DirStatKey(parts.directory), DirStat(-5000, -8192, -1))


async def _stale_sustained(tx: Tx, parts: Parts) -> None:
    await _removed(tx, parts)
    tx.put(SustainedKey(77, parts.file), True)


async def _append(tx: Tx, parts: Parts) -> None:
    (raw,) = await tx.get(ChunkKey(parts.file, 0))
    tx.put(ChunkKey(parts.file, 0), (raw or b"") + Slice(0, *parts.slice, 4990, 20).pack())


async def _leaked(tx: Tx) -> None:
    tx.put(ChunkKey(10**6, 3), Slice(0, 998, 10, 0, 10).pack())
    tx.put(SliceRefKey(998, 10), 1)


async def _loop(tx: Tx, parts: Parts) -> None:
    tx.delete(EdgeKey(ROOT, b"dir"))
    tx.put(EdgeKey(parts.sub, b"dir"), Entry(2, parts.directory))


CASES = [
    Case("directory nlink", lambda tx, p: _nlink(tx, p.directory, 9), {"nlink"}),
    Case("root nlink", lambda tx, p: _nlink(tx, ROOT, 9), {"nlink"}),
    Case("file nlink", lambda tx, p: _nlink(tx, p.file, 2), {"nlink"}),
    Case("linked file nlink", lambda tx, p: _nlink(tx, p.linked, 1), {"nlink"}),
    Case("parent of a file", lambda tx, p: _parent(tx, p.file, p.sub), {"parent"}),
    Case("parent of a directory", lambda tx, p: _parent(tx, p.sub, ROOT), {"parent"}),
    Case("usage of a directory", lambda tx, p: tx.put(DirStatKey(p.directory), DirStat(1, 2, 3)), {"usage"}),
    Case("no usage of a directory", lambda tx, p: tx.delete(DirStatKey(p.directory)), {"usage"}),
    Case("space of the volume", lambda tx, p: tx.add(CounterKey("usedSpace"), 4096), {"counter"}),
    Case("inodes of the volume", lambda tx, p: tx.add(CounterKey("totalInodes"), -1), {"counter"}),
    Case("next inode", lambda tx, p: tx.put(CounterKey("nextInode"), 2), {"counter"}),
    Case("next slice", lambda tx, p: tx.put(CounterKey("nextChunk"), 2), {"counter"}),
    Case("too many references", lambda tx, p: tx.add(SliceRefKey(*p.slice), 1), {"references"}),
    Case("too few references", lambda tx, p: tx.put(SliceRefKey(*p.slice), 0), {"references"}),
    Case("references without use", lambda tx, p: tx.put(SliceRefKey(999, 10), 2), {"references"}),
    Case(
        "attributes of a directory",
        lambda tx, p: tx.delete(NodeKey(p.sub)),
        {"attributes", "counter", "nlink", "usage"},
    ),
    Case(
        "attributes of a file",
        lambda tx, p: tx.delete(NodeKey(p.file)),
        {"dangling", "counter", "usage", "leaked"},
        {"dangling", "leaked"},
    ),
    Case("entry of nothing", lambda tx, p: tx.put(EdgeKey(p.sub, b"x"), Entry(1, 10**6)), {"dangling"}, {"dangling"}),
    Case(
        "inode without entry", lambda tx, p: tx.delete(EdgeKey(p.directory, b"file")), {"orphan", "usage"}, {"orphan"}
    ),
    Case("wrong type", lambda tx, p: tx.put(EdgeKey(p.directory, b"file"), Entry(3, p.file)), {"type"}, {"type"}),
    Case("no link target", lambda tx, p: tx.delete(SymlinkKey(p.symlink)), {"target"}, {"target"}),
    Case("queued though there", lambda tx, p: tx.put(DeletedFileKey(p.file, 5000), 1_700_000_000), {"queue"}),
    Case("removed by half", _removed, {"removed"}),
    Case("held by nobody", _stale_sustained, {"sustained"}),
    Case("sustained with a name", lambda tx, p: tx.put(SustainedKey(77, p.file), True), {"sustained"}),
    Case("list of no inode", lambda tx, p: _leaked(tx), {"leaked"}),
    Case("impossible record", _append, {"record", "references"}, {"record"}),
    Case("left-over attribute", lambda tx, p: tx.put(XattrKey(10**6, b"user.x"), b""), {"leftover"}),
    Case("left-over target", lambda tx, p: tx.put(SymlinkKey(10**6), b"x"), {"leftover"}),
    Case("left-over usage", lambda tx, p: tx.put(DirStatKey(10**6), DirStat(0, 0, 0)), {"leftover"}),
    Case("directories in one another", _loop, {"loop", "nlink", "parent", "usage"}, {"loop"}),
]
# What only engines with records of parents can have.
PARENTS = Case("parents of a linked file", lambda tx, p: tx.put(ParentKey(p.linked, p.sub), 5), {"parents"})
