"""An attempt on a database server: reads without a transaction, each with the rows it gave, and the one text that commits.

The commit first takes locks on the rows that were read, checking that they are unchanged, then checks what is not one row
(emptiness, names of attributes, locks, derived numbers), which now cannot change any more, then writes. Values that are
compared are as good as versions. As a wrong read only costs another attempt, inodes and entries may come from `Remembered`.
Used by one task.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Final

from jfs.meta.engines.sql.kinds import DerivedKind, ListKind, Row, decode, kind_of, row_kind
from jfs.meta.engines.sql.statements import UNREAD, Select, Statements
from jfs.meta.model.keys import CounterKey, EdgeKey, Key, ParentKey, SliceRefKey, XattrKey
from jfs.meta.store.change_log import LogEntry
from jfs.meta.store.remembered import UNKNOWN, Remembered
from jfs.meta.store.tracking import TrackedTx

Reader = Callable[[Sequence[Select]], Awaitable[list[Sequence[Row]]]]

REMEMBERED: Final = frozenset(("node", "edge"))
_COUNTED: Final = -(1 << 62)  # stands for a number that only the server knows


class SqlTx(TrackedTx):
    """One attempt."""

    __slots__ = ("_read", "_remembered", "_statements", "_trust", "batches", "guessed", "rows")

    MISSING_SLICE: ClassVar[int] = 0

    def __init__(
        self, read: Reader, statements: Statements, remembered: Remembered[Key[Any], Sequence[Row]], *, trust: bool
    ) -> None:
        super().__init__()
        self._read = read
        self._statements = statements
        self._remembered = remembered
        self._trust = trust
        self.rows: dict[Key[Any], Sequence[Row]] = {}  # of every key in `reads`
        self.batches = 0  # round trips for reads
        self.guessed = False  # whether a remembered row was used

    # Reads.

    async def _fetch(self, keys: Sequence[Key[Any]]) -> Sequence[Any]:
        rows: dict[Key[Any], Sequence[Row]] = {}
        asked: list[Key[Any]] = []
        for key in keys:
            known = self._remembered.get(key) if self._trust and key.kind in REMEMBERED else UNKNOWN
            if known is UNKNOWN:
                asked.append(key)
            else:
                self.guessed = True
                rows[key] = known
        if asked:
            found = await self._ask([self._statements.read(key) for key in asked])
            for key, one in zip(asked, found, strict=True):
                rows[key] = one
                if key.kind in REMEMBERED:
                    self._remembered.put(key, one)
        self.rows.update(rows)
        return [decode(kind_of(key), key, rows[key]) for key in keys]

    async def _ask(self, selects: Sequence[Select]) -> list[Sequence[Row]]:
        self.batches += 1
        return await self._read(selects)

    async def _fetch_count(self, ino: int, limit: int) -> int:
        (rows,) = await self._ask([self._statements.count_entries(ino, limit)])
        return rows[0][0] if rows else 0  # no row: the tables are not made yet

    async def _fetch_xattr_names(self, ino: int) -> list[bytes]:
        (rows,) = await self._ask([self._statements.xattr_names(ino)])
        return [name for (name,) in rows]

    async def _fetch_parents(self, ino: int) -> dict[int, int]:
        (rows,) = await self._ask([self._statements.parent_counts(ino)])
        return dict(tuple(row) for row in rows)

    async def parents(self, ino: int) -> dict[int, int]:
        """From the edges, own buffered ones included: there is no record of parents in SQL (format §3.9)."""
        if ino not in self.parented:
            self.parented[ino] = await self._fetch_parents(ino)
        counts = Counter(self.parented[ino])
        edges = [key for key in self.writes if isinstance(key, EdgeKey)]
        if unknown := [key for key in edges if key not in self.reads]:
            self.reads.update(zip(unknown, await self._fetch(unknown), strict=True))
        for key in edges:
            entry, stored = self.writes[key], self.reads[key]
            counts[key.parent] += int(entry is not None and entry.ino == ino)
            counts[key.parent] -= int(stored is not None and stored.ino == ino)
        return {parent: count for parent, count in counts.items() if count > 0}

    def add(self, key: CounterKey | ParentKey | SliceRefKey, delta: int) -> None:
        """As for every engine, but parents are not counted apart from the edges."""
        if not isinstance(key, ParentKey):
            super().add(key, delta)

    @property
    def needs_check(self) -> bool:
        """Whether what was read may never have been true at one moment."""
        return self.guessed or self.batches > 1

    # The end.

    def checks(self, *, locking: bool) -> tuple[list[str], list[str]]:
        """Conditions on single rows, and those on more, which hold their meaning only when the former have their locks."""
        statements, dialect = self._statements, self._statements.dialect
        single: list[str] = []
        wide: list[str] = []
        for key in sorted(self.rows, key=lambda one: (one.kind, one)):
            kind = kind_of(key)
            lock = ""
            if locking:
                lock = dialect.for_update if self._changes(key) else dialect.for_share
            if isinstance(kind, ListKind) and locking:
                single.append(statements.lock_inode(key[0]))  # type: ignore[index]
            place = wide if isinstance(kind, (ListKind, DerivedKind)) else single
            place.append(statements.check(key, self.rows[key], lock))
        for ino, (count, limit) in self.counted.items():
            wide.append(statements.check_number(statements.count_entries(ino, limit), count))
        wide += [statements.check_names(ino, names) for ino, names in self.named.items()]
        wide += [statements.check_parents(ino, counts) for ino, counts in self.parented.items()]
        return single, wide

    def _changes(self, key: Any) -> bool:
        return key in self.writes or key in self.adds or key in self.stats or key in self.quotas or key in self.appends

    def script(self) -> str:
        """The text of the commit."""
        statements, dialect = self._statements, self._statements.dialect
        single, wide = self.checks(locking=True)
        texts = [dialect.demand(conditions) for conditions in (single, wide) if conditions]
        texts += [statements.clear_xattrs(ino) for ino in self.cleared_xattrs]
        # Removals first, so that a row may move to another key; then by kind and key, so that two commits seldom wait for each
        # other crosswise; what everybody adds to comes last, so that it is held for the shortest time.
        for key in sorted(self.writes, key=lambda one: (self.writes[one] is not None, one.kind, one)):
            known = (
                UNREAD if isinstance(key, XattrKey) and key.ino in self.cleared_xattrs else self.rows.get(key, UNREAD)
            )
            texts += statements.write(key, self.writes[key], known)
        for chunk, appended in self.appends.items():
            texts += [statements.append(chunk, packed, existing_only) for packed, existing_only in appended]
        texts += [statements.add_stat(key, self.stats[key]) for key in sorted(self.stats)]
        texts += [statements.add_quota(key, self.quotas[key]) for key in sorted(self.quotas)]
        texts += [
            statements.add(key, self.adds[key])
            for key in sorted(self.adds, key=lambda one: (one.kind, one))
            if not isinstance(key, ParentKey)
        ]
        if self.journal and self.log is not None:
            texts += [self._log_entry(entry) for entry in self.journal]
        return dialect.script(texts)

    def _log_entry(self, entry: LogEntry) -> str:
        """The statement for a line; where it ends with the number of a chunk's records, the server counts them."""
        assert self.log is not None
        if entry.counted is None:
            return self._statements.log_entry(self.log.lines([entry])[0])
        (line,) = self.log.lines([entry], lambda chunk: _COUNTED)
        before, _, after = line.partition(b"%d" % _COUNTED)
        return self._statements.log_entry(before, entry.counted, after)

    def remember_writes(self) -> None:
        """What the commit has stored may serve the next attempt."""
        for key, record in self.writes.items():
            if key.kind not in REMEMBERED:
                continue
            if record is None:
                if key.kind == "node":
                    self._remembered.drop(key)  # an inode never comes back
                else:
                    self._remembered.put(key, ())
            else:
                self._remembered.put(key, (row_kind(key.kind).encode(record),))

    def forget(self) -> None:
        """Drop what the attempt has read, since some of it is wrong."""
        for key in self.rows:
            if key.kind in REMEMBERED:
                self._remembered.drop(key)
