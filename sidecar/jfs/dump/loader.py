"""Records of a dump into a blank database, in transactions of bounded size.

`Batch` collects records and stores them a hundred at a time, several such transactions at once. `TreeLoader` takes the tree as it
is parsed, entry by entry, and computes what a dump does not hold: link counts, parents of hard links, usage of directories and of
the volume, slice references.
Invariant: the setting record is stored last, so that a load which was interrupted leaves no volume behind that looks whole.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from jfs.dump.form import attr_of, rule_of, slice_of, unescape
from jfs.errors import VolumeError
from jfs.format.constants import DIRECTORY, FILE, ROOT, SYMLINK, TRASH, align4k
from jfs.meta.model.acl import AclKey, Rule
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    NodeKey,
    ParentKey,
    SliceRefKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.store.base import Store, Tx

TOGETHER: Final = 90  # records of a transaction: etcd takes 128 operations
_BYTES: Final = 512 << 10  # and of so many bytes
_PAGE_BITS: Final = 16


class Batch:
    """Records on their way into the store, by *together* transactions at once. Of a key that is put twice, `flush` has to be called
    between. An async context, which leaves no transaction behind."""

    def __init__(self, store: Store, stored: Callable[[int], None] = lambda count: None, *, together: int = 1) -> None:
        self._store = store
        self._stored = stored
        self._together = together
        self._waiting: dict[Any, Any] = {}
        self._bytes = 0
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Batch":
        return self

    async def __aexit__(self, *failure: object) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)

    async def put(self, key: Any, record: Any) -> None:
        """Store a record, now or later. What a former one failed with."""
        self._waiting[key] = record
        self._bytes += len(record) if isinstance(record, bytes) else 100
        if len(self._waiting) >= TOGETHER or self._bytes >= _BYTES:
            await self._start()

    async def flush(self) -> None:
        """Store what waits; afterwards everything is stored."""
        await self._start()
        await self._settle(0)

    async def _start(self) -> None:
        records, self._waiting, self._bytes = self._waiting, {}, 0
        if records:
            await self._settle(self._together - 1)
            self._running.add(asyncio.create_task(self._store_all(records)))

    async def _settle(self, limit: int) -> None:
        """Wait until no more than *limit* run."""
        while len(self._running) > limit:
            done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            for failure in [task.exception() for task in done]:
                if failure is not None:
                    raise failure

    async def _store_all(self, records: dict[Any, Any]) -> None:
        async def operation(tx: Tx) -> None:
            for key, record in records.items():
                tx.put(key, record)

        await self._store.run(operation)
        self._stored(len(records))


class References:
    """How often each slice is named. One that is named once takes a bit here, the others their count."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._seen: dict[int, bytearray] = {}
        self._counts: dict[SliceRefKey, int] = {}

    async def add(self, slice_id: int, size: int) -> None:
        """A record names the slice."""
        if not slice_id:
            return
        page = self._seen.get(slice_id >> _PAGE_BITS)
        if page is None:
            page = self._seen[slice_id >> _PAGE_BITS] = bytearray(1 << (_PAGE_BITS - 3))
        place = slice_id & ((1 << _PAGE_BITS) - 1)
        key = SliceRefKey(slice_id, size)
        if page[place >> 3] & 1 << (place & 7):
            self._counts[key] = self._counts.get(key, 1) + 1
        else:
            page[place >> 3] |= 1 << (place & 7)
            await self._batch.put(key, 1)

    async def finish(self) -> None:
        """Store the counts of slices that are named several times."""
        await self._batch.flush()
        for key, count in self._counts.items():
            await self._batch.put(key, count)


@dataclass(slots=True)
class _Directory:
    """A directory whose entries are being read."""

    ino: int
    attr: Attr
    length: int = 0
    space: int = 0
    inodes: int = 0
    subdirectories: int = 0


@dataclass(slots=True)
class _Linked:
    """A file with several entries."""

    attr: Attr
    parents: Counter[int]


class TreeLoader:
    """Takes `begin`, entries and `end`s in the order of the document."""

    def __init__(self, batch: Batch, *, statistics: bool) -> None:
        self._batch = batch
        self._statistics = statistics
        self._references = References(batch)
        self._rules: dict[Rule, int] = {}
        self._open: list[_Directory] = []
        self._linked: dict[int, _Linked] = {}
        self.used_space = 0
        self.inodes = 0
        self.entries = 0
        self.last_inode = 1
        self.last_slice = 0

    async def root(self, members: Mapping[str, Any], ino: int) -> None:
        """The top of a tree, which becomes inode *ino*."""
        _, attr = attr_of(members["attr"], parent=ROOT)
        if attr.kind_mode >> 12 != DIRECTORY:
            raise VolumeError("the top of the dump's tree is no directory")
        attr = await self._side_records(ino, attr, members)
        self._open.append(_Directory(ino, attr))

    async def entry(self, name: str, members: Mapping[str, Any], *, has_entries: bool) -> None:
        """An entry of the directory that is open; with *has_entries* it becomes the open one."""
        parent = self._open[-1]
        if "attr" not in members:
            raise VolumeError(f"entry {name!r} of the dump has no attributes; it was not made by dump")
        ino, attr = attr_of(members["attr"], parent=parent.ino)
        kind = attr.kind_mode >> 12
        self.entries += 1
        self.last_inode = max(self.last_inode, ino if ino < TRASH else 1)
        await self._batch.put(EdgeKey(parent.ino, unescape(name)), Entry(kind, ino))
        space = align4k(attr.length if kind == FILE else 0)
        parent.length += attr.length if kind == FILE else 0
        parent.space += space
        parent.inodes += 1
        if kind == DIRECTORY:
            parent.subdirectories += 1
            attr = await self._side_records(ino, attr, members)
            self._count(space)
            self._open.append(_Directory(ino, attr))
            if not has_entries:
                await self.end()
            return
        known = self._linked.get(ino)
        if known is not None:
            known.parents[parent.ino] += 1
            return
        self._count(space)
        links = attr.nlink
        attr = await self._side_records(ino, attr, members)
        if links > 1:
            self._linked[ino] = _Linked(attr, Counter({parent.ino: 1}))
        else:
            await self._batch.put(NodeKey(ino), attr._replace(nlink=1))

    def _count(self, space: int) -> None:
        self.used_space += space
        self.inodes += 1

    async def _side_records(self, ino: int, attr: Attr, members: Mapping[str, Any]) -> Attr:
        """Store what belongs to an inode; the attributes with the numbers of its ACL rules."""
        if (target := members.get("symlink")) is not None and attr.kind_mode >> 12 == SYMLINK:
            raw = unescape(target)
            attr = attr._replace(length=len(raw))  # which a dump has as 0
            await self._batch.put(SymlinkKey(ino), raw)
        for xattr in members.get("xattrs") or ():
            await self._batch.put(XattrKey(ino, unescape(xattr["name"])), unescape(xattr["value"]))
        for chunk in members.get("chunks") or ():
            records = [slice_of(one) for one in chunk["slices"]]
            for record in records:
                self.last_slice = max(self.last_slice, record.id)
                await self._references.add(record.id, record.size)
            if records:
                await self._batch.put(ChunkKey(ino, chunk["index"]), b"".join(one.pack() for one in records))
        for name, member in (("access_acl", "posix_acl_access"), ("default_acl", "posix_acl_default")):
            if rule := members.get(member):
                attr = attr._replace(**{name: await self._rule(rule_of(rule))})
        return attr

    async def _rule(self, rule: Rule) -> int:
        number = self._rules.get(rule)
        if number is None:
            number = self._rules[rule] = len(self._rules) + 1
            await self._batch.put(AclKey(number), rule)
        return number

    async def end(self) -> None:
        """The open directory has no more entries."""
        directory = self._open.pop()
        attr = directory.attr
        if directory.ino < TRASH:  # those of the trash are not counted by anybody
            attr = attr._replace(nlink=2 + directory.subdirectories)
        await self._batch.put(NodeKey(directory.ino), attr)
        if self._statistics and directory.ino != TRASH:
            usage = DirStat(directory.length, directory.space, directory.inodes)
            await self._batch.put(DirStatKey(directory.ino), usage)

    async def finish(self) -> None:
        """All trees are in: store what is known only now."""
        for ino, linked in self._linked.items():
            links = sum(linked.parents.values())
            if links > 1:
                attr = linked.attr._replace(nlink=links, parent=0)
                for parent, count in linked.parents.items():
                    await self._batch.put(ParentKey(ino, parent), count)
            else:  # the other names lie outside of what was dumped
                attr = linked.attr._replace(nlink=1)
            await self._batch.put(NodeKey(ino), attr)
        await self._references.finish()
        if self._rules:
            await self._batch.put(CounterKey("aclMaxId"), len(self._rules))
        await self._batch.flush()
