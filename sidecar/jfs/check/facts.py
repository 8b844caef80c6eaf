"""Everything an examination knows of a volume's metadata, gathered in one pass over each kind of record.

Invariant: nothing is judged here; a record that does not decode becomes a line in `corrupt`. Entries are counted as they come, so
that of each inode only the first parent and, for the few that have several, a table is kept. Concurrency: the passes run one
after the other; what others change meanwhile can make facts disagree, which is why a live volume is examined twice.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jfs.errors import CorruptRecord
from jfs.format.constants import DIRECTORY, FILE, ROOT, TRASH, align4k
from jfs.format.setting import Setting
from jfs.format.slices import Slice, unpack
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
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
from jfs.meta.model.quota import GROUP, USER, Quota, QuotaChange, QuotaKey
from jfs.meta.operations.compaction import split_delayed
from jfs.meta.store.base import Store


class Node(NamedTuple):
    """What the examination keeps of an inode."""

    kind: int
    nlink: int
    length: int
    parent: int


class Impossible(NamedTuple):
    """A slice record that cannot be: of chunk *indx* of *ino*."""

    ino: int
    indx: int
    record: Slice


@dataclass(slots=True)
class Facts:
    """See the module. Counts by inode unless said otherwise."""

    setting: Setting
    missing_reference: int  # how often a slice without a record of it is named (format §3.12)
    counts_from_next: bool  # nextInode and nextChunk are the first id not yet given out, not the last one that was
    now: int  # unix seconds
    corrupt: list[tuple[Key[Any], str]] = field(default_factory=list)
    nodes: dict[int, Node] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)  # inodes whose record is there and does not decode
    first_parent: dict[int, int] = field(default_factory=dict)
    all_parents: dict[int, Counter[int]] = field(default_factory=dict)  # of inodes with several entries
    subdirectories: Counter[int] = field(default_factory=Counter)
    usage: dict[int, DirStat] = field(default_factory=dict)  # of directories, from their entries
    dangling: list[tuple[EdgeKey, Entry]] = field(default_factory=list)
    mistyped: list[tuple[EdgeKey, Entry]] = field(default_factory=list)
    misnamed: list[EdgeKey] = field(default_factory=list)
    homeless: Counter[int] = field(
        default_factory=Counter
    )  # entries of parents that have no inode record or are no directory
    kept_usage: dict[int, DirStat] = field(default_factory=dict)
    kept_parents: dict[int, dict[int, int]] = field(default_factory=dict)
    symlinks: set[int] = field(default_factory=set)
    xattrs: set[int] = field(default_factory=set)
    chunks: Counter[int] = field(default_factory=Counter)  # number of lists
    chunk_indexes: dict[int, list[int]] = field(default_factory=dict)  # of lists without an inode record
    torn_lists: bool = False
    impossible: list[Impossible] = field(default_factory=list)
    references: Counter[tuple[int, int]] = field(default_factory=Counter)  # by (slice, size), from lists
    doomed: Counter[tuple[int, int]] = field(default_factory=Counter)  # those of lists whose inode does not exist
    delayed: Counter[tuple[int, int]] = field(default_factory=Counter)  # by (slice, size), from the delayed lists
    kept_references: dict[tuple[int, int], int] = field(default_factory=dict)
    queued: dict[int, tuple[int, int]] = field(default_factory=dict)  # length, since
    sustained: dict[int, set[int]] = field(default_factory=dict)  # sessions
    sessions: dict[int, int] = field(default_factory=dict)  # expiry
    detached: dict[int, int] = field(default_factory=dict)  # since
    quotas: dict[QuotaKey, Quota] = field(default_factory=dict)
    hours: int = 0  # hour directories of the trash
    owned: dict[QuotaKey, QuotaChange] = field(default_factory=dict)  # by user and group, when the volume keeps that
    counters: dict[str, int | None] = field(default_factory=dict)
    flaws: list[str] = field(default_factory=list)

    @property
    def is_mounted(self) -> bool:
        """Whether a session is alive, so that the records may have changed between the passes."""
        return any(expire >= self.now for expire in self.sessions.values())

    def parents(self, ino: int) -> Counter[int]:
        """Number of entries that name *ino* by parent."""
        several = self.all_parents.get(ino)
        if several is not None:
            return several
        parent = self.first_parent.get(ino)
        return Counter() if parent is None else Counter({parent: 1})

    def links(self, ino: int) -> int:
        """Number of entries that name *ino*."""
        several = self.all_parents.get(ino)
        return several.total() if several is not None else int(ino in self.first_parent)


COUNTERS = ("usedSpace", "totalInodes", "nextInode", "nextChunk")


async def gather(store: Store, setting: Setting, *, now: int) -> Facts:
    """Read the volume; *now* in unix seconds. StoreError when the database fails, never for a damaged record."""
    facts = Facts(
        setting, missing_reference=store.missing_slice, counts_from_next=bool(store.initial_counters), now=now
    )
    facts.sessions = {sid: session.expire async for sid, session in store.sessions()}
    async for key, attr in store.scan(NodeKey):
        if _is_corrupt(facts, key, attr):
            facts.unreadable.add(key.ino)
        else:
            facts.nodes[key.ino] = Node(attr.kind, attr.nlink, attr.length, attr.parent)
            facts.hours += key.ino > TRASH
            if setting.user_group_quota and key.ino != ROOT and key.ino < TRASH:
                space = align4k(attr.length if attr.kind == FILE else 0)
                for owner in (QuotaKey(USER, attr.uid), QuotaKey(GROUP, attr.gid)):
                    facts.owned[owner] = facts.owned.get(owner, QuotaChange(0, 0)).plus(space, 1)
    await _gather_entries(store, facts)
    await _gather_side_records(store, facts)
    await _gather_slices(store, facts)
    facts.counters = dict(zip(COUNTERS, await store.get(*map(CounterKey, COUNTERS)), strict=True))
    facts.flaws = await store.flaws(repair=False)
    return facts


def _is_corrupt(facts: Facts, key: Key[Any], record: Any) -> bool:
    if not isinstance(record, CorruptRecord):
        return False
    facts.corrupt.append((key, str(record)))
    return True


async def _gather_entries(store: Store, facts: Facts) -> None:
    usage: dict[int, list[int]] = {}
    async for key, entry in store.scan(EdgeKey):
        if _is_corrupt(facts, key, entry):
            continue
        parent, name = key.parent, key.name
        ino = entry.ino
        if not name or len(name) > 255 or b"/" in name or b"\0" in name or name in (b".", b".."):
            facts.misnamed.append(key)
        above = facts.nodes.get(parent)
        if above is None or above.kind != DIRECTORY:
            facts.homeless[parent] += 1
        first = facts.first_parent.get(ino)
        if first is None:
            facts.first_parent[ino] = parent
        else:
            facts.all_parents.setdefault(ino, Counter({first: 1}))[parent] += 1
        node = facts.nodes.get(ino)
        if node is None:
            if ino not in facts.unreadable:
                facts.dangling.append((key, entry))
            continue
        if node.kind != entry.kind:
            facts.mistyped.append((key, entry))
        length = node.length if node.kind == FILE else 0
        total = usage.setdefault(parent, [0, 0, 0])
        total[0] += length
        total[1] += align4k(length)
        total[2] += 1
        if node.kind == DIRECTORY:
            facts.subdirectories[parent] += 1
    facts.usage = {ino: DirStat._make(total) for ino, total in usage.items()}


async def _gather_side_records(store: Store, facts: Facts) -> None:
    async for key, record in store.scan(DirStatKey):
        if not _is_corrupt(facts, key, record):
            facts.kept_usage[key.ino] = record
    async for link, count in store.scan(ParentKey):
        if not _is_corrupt(facts, link, count) and count > 0:
            facts.kept_parents.setdefault(link.ino, {})[link.parent] = count
    facts.symlinks = {key.ino async for key, _ in store.scan(SymlinkKey)}
    facts.xattrs = {key.ino async for key, _ in store.scan(XattrKey)}
    async for held, _ in store.scan(SustainedKey):
        facts.sustained.setdefault(held.ino, set()).add(held.sid)
    async for top, since in store.scan(DetachedKey):
        facts.detached[top.ino] = since
    async for limited, quota in store.scan(QuotaKey):
        if not _is_corrupt(facts, limited, quota):
            facts.quotas[limited] = quota
    async for ino, length, since in store.deleted_files():
        facts.queued[ino] = length, since


async def _gather_slices(store: Store, facts: Facts) -> None:
    async for key, raw in store.scan(ChunkKey):
        facts.chunks[key.ino] += 1
        if key.ino not in facts.nodes:
            facts.chunk_indexes.setdefault(key.ino, []).append(key.indx)
        if _is_corrupt(facts, key, raw):
            facts.torn_lists = True
            continue
        for record in unpack(raw):
            if not is_possible(record):
                facts.impossible.append(Impossible(key.ino, key.indx, record))
            if record.id:
                facts.references[record.id, record.size] += 1
                if key.ino not in facts.nodes:
                    facts.doomed[record.id, record.size] += 1
    async for _, _, raw in store.delayed_slices():
        facts.delayed.update(one for one in split_delayed(raw) if one[0])
    async for slice, count in store.scan(SliceRefKey):
        if not _is_corrupt(facts, slice, count):
            facts.kept_references[slice.id, slice.size] = count


def is_possible(record: Slice) -> bool:
    """Whether a record keeps the format's bounds (format §3.2)."""
    if not record.len or record.pos + record.len > 1 << 26:
        return False
    return not record.id or record.off + record.len <= record.size
