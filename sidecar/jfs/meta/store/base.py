"""The record store: what an engine offers to the operations, and the retry around an attempt.

A transaction reads typed records (`get`, one round trip for a batch), buffers writes and commits them all or not at all.
Reads are remembered within the attempt, so re-reading never changes what was decided on; an error that an attempt raises
is revalidated before it escapes, since torn reads make false ENOENT. `add` and `append` commute and are never a cause of a
conflict. Between two awaits of an attempt nothing is locked but the in-process locks of the inodes named in `run(near=…)`,
which only save retries: correctness comes from the engine's commit. Times, ids and randomness are arguments of the operations.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, overload

from jfs.format.slices import Slice
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import ChunkKey, CounterKey, DirStat, DirStatKey, Key, ParentKey, Session, SliceRefKey
from jfs.meta.model.quota import QuotaKey
from jfs.meta.store.change_log import ChangeLog, LogEntry

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
F = TypeVar("F")
K = TypeVar("K")
T = TypeVar("T")


class Tx(Protocol):
    """One attempt of a transaction. Not shared between tasks. *journal* takes the operation's entries for the change log; None on volumes
    without one."""

    journal: list[LogEntry] | None

    @overload
    async def get(self, a: Key[A], /) -> tuple[A | None]: ...
    @overload
    async def get(self, a: Key[A], b: Key[B], /) -> tuple[A | None, B | None]: ...
    @overload
    async def get(self, a: Key[A], b: Key[B], c: Key[C], /) -> tuple[A | None, B | None, C | None]: ...
    @overload
    async def get(
        self, a: Key[A], b: Key[B], c: Key[C], d: Key[D], /
    ) -> tuple[A | None, B | None, C | None, D | None]: ...
    @overload
    async def get(
        self, a: Key[A], b: Key[B], c: Key[C], d: Key[D], e: Key[E], /
    ) -> tuple[A | None, B | None, C | None, D | None, E | None]: ...
    @overload
    async def get(
        self, a: Key[A], b: Key[B], c: Key[C], d: Key[D], e: Key[E], f: Key[F], /
    ) -> tuple[A | None, B | None, C | None, D | None, E | None, F | None]: ...
    @overload
    async def get(self, *keys: Key[A]) -> tuple[A | None, ...]: ...
    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        """The records of *keys*, None where there is none; own buffered writes are seen. One round trip for what is not known yet."""
        ...

    async def is_empty(self, ino: int) -> bool:
        """Whether directory *ino* has no entry. A read: it conflicts with a create or remove in that directory."""
        ...

    async def xattr_names(self, ino: int) -> list[bytes]:
        """Names of all extended attributes of *ino* (a read of all of them)."""
        ...

    async def parents(self, ino: int) -> dict[int, int]:
        """Parents of a hard-linked file with the number of entries in each; counts below 1 are left out."""
        ...

    def put(self, key: Key[A], record: A) -> None:
        """Write *record* at commit."""
        ...

    def delete(self, key: Key[Any]) -> None:
        """Remove the record at commit; a missing one is no error."""
        ...

    def clear_xattrs(self, ino: int) -> None:
        """Remove all extended attributes of *ino* at commit."""
        ...

    def clear_parents(self, ino: int) -> None:
        """Remove all parent counts of *ino* at commit."""
        ...

    def add(self, key: CounterKey | ParentKey | SliceRefKey, delta: int) -> None:
        """Add to a number at commit; commutes with others' additions (a missing number counts as 0, a slice's as the engine's default)."""
        ...

    def add_stat(self, key: DirStatKey, change: DirStat) -> None:
        """Add to a directory's usage at commit; commutes. A directory without a record is left without one: its usage is not
        known (volumes of old clients, format §3.8); `put` a full count to make one."""
        ...

    def add_quota(self, key: QuotaKey, space: int, inodes: int) -> None:
        """Add to a quota's usage at commit; commutes. A directory without a quota is left without one, a user or group without a
        record gets one without limits (format §3.8)."""
        ...

    def append(self, key: ChunkKey, record: Slice, *, existing_only: bool = False) -> None:
        """Append a slice record to a chunk's list at commit; with *existing_only* nothing happens when there is no list. Commutes
        except for the order of two appends, which the commits decide."""
        ...


class DirectoryPage(Protocol):
    """A piece of a listing: names with entries, and attributes when asked (None where an inode record is missing)."""

    @property
    def names(self) -> Sequence[bytes]: ...
    @property
    def entries(self) -> Sequence[Entry]: ...
    @property
    def attrs(self) -> Sequence[Attr | None] | None: ...

    @property
    def raw_entries(self) -> Sequence[bytes] | None:
        """The stored form of `entries` (format §3.3) where the engine has it."""
        ...

    @property
    def raw_attrs(self) -> Sequence[bytes | None] | None:
        """The stored form of `attrs` (format §3.1) where the engine has it, else None though `attrs` may be there."""
        ...


class Store(Protocol):
    """A volume's records in one engine. Safe for all tasks of one event loop; one instance belongs to one loop. Commits write the
    *change_log* of volumes that have one."""

    change_log: ChangeLog | None
    on_presence: Callable[[str], None] | None

    def presence(self) -> str:
        """What the server knows this client's connections by, opaque; "" when they cannot be told. *on_presence* is called with it
        whenever it changes."""
        ...

    async def cut_off(self, presence: str) -> bool:
        """Have the server end the connections of a client that is dead, so that nothing that it had sent is done later; whether that
        is certain."""
        ...

    @property
    def name(self) -> str:
        """The engine's name as in its URL: redis, sqlite3, memory."""
        ...

    @property
    def initial_counters(self) -> Mapping[str, int]:
        """Counters that formatting a new volume puts, with their values; empty where a missing one does (format §3.7)."""
        ...

    @property
    def missing_slice(self) -> int:
        """What a slice without a record of its references reads as (see `SliceRefKey`)."""
        ...

    @property
    def restarts(self) -> int:
        """How many attempts had to be run again since the store was opened, for the metrics (format §8.4)."""
        ...

    async def run(self, operation: Callable[[Tx], Awaitable[T]], *, near: Sequence[int] = (), directory: int = 0) -> T:
        """Run *operation* in a transaction until its commit succeeds: at most 50 attempts with random growing pauses, then
        FsError(EAGAIN); see format §5.1. In-process locks of the inodes *near* are held meanwhile, taken in order, and that of
        *directory*, in which entries change, where attempts of one client can conflict.
        An exception of *operation* escapes only when the reads it rests on still hold. StoreUnavailable when the outcome is unknown.
        *operation* must await nothing but its Tx: calling the store inside (allot, get, run) may wait for itself."""
        ...

    async def run_then_get(
        self, operation: Callable[[Tx], Awaitable[T]], key: Key[A], *, near: Sequence[int] = ()
    ) -> tuple[T, A | None]:
        """As `run`, and the record of *key* as it is after the commit, in the same round trip where the engine can."""
        ...

    async def get(self, *keys: Key[Any]) -> tuple[Any, ...]:
        """Untracked reads outside a transaction, one round trip; records as in Tx.get."""
        ...

    async def lookup(self, parent: int, name: bytes) -> tuple[Entry, Attr | None] | None:
        """Entry and attributes in one round trip; None when there is no entry."""
        ...

    def list_directory(self, ino: int, *, plus: bool) -> AsyncIterator[DirectoryPage]:
        """The whole directory in pages, in the engine's order; entries created or removed meanwhile may or may not be seen."""
        ...

    async def allot(self, counter: str, count: int) -> int:
        """Take *count* ids of nextInode, nextChunk (atomically); the first one. Engine arithmetic of format §3.7 is hidden here,
        but for this: the very first batch of inodes may begin at 1, and the caller skips the reserved 0 and 1."""
        ...

    async def next_id(self, counter: str) -> int:
        """The next single id of nextSession or nextTrash (first is 1)."""
        ...

    def sessions(self) -> AsyncIterator[tuple[int, Session]]:
        """All sessions (of 1.x clients; engines also yield old-style heartbeat records with their expiry computed, format §7.1)."""
        ...

    def sustained(self, sid: int) -> AsyncIterator[int]:
        """Inodes sustained by session *sid*."""
        ...

    async def forget_session(self, sid: int) -> None:
        """Remove the session's records and every lock it holds (flocks, plocks; format §7.1). Sustained inodes must be handled
        before; records of those that were not are removed too."""
        ...

    def deleted_files(self) -> AsyncIterator[tuple[int, int, int]]:
        """(inode, length, deletion time) of the queue, oldest first where the engine can."""
        ...

    def delayed_slices(self) -> AsyncIterator[tuple[int, int, bytes]]:
        """(new slice id, unix seconds, 12-byte records) of the delayed lists."""
        ...

    def unreferenced_slices(self) -> AsyncIterator[tuple[int, int]]:
        """(id, size) of slices whose reference count says that their objects are to be deleted (n <= 0 normalised)."""
        ...

    async def chunk_indexes(self, ino: int, length: int | None = None) -> list[int]:
        """Indexes of the chunks of *ino* that have a list, sorted. Where the engine would have to search the whole database
        (Redis), a given *length* in bytes makes it look at the chunks below that only, as the real client does (format §7.5)."""
        ...

    def nodes(self) -> AsyncIterator[tuple[int, Attr]]:
        """All inode records (for destroy, checks and tests), in no order."""
        ...

    def chunks(self) -> AsyncIterator[tuple[int, int, bytes]]:
        """(inode, index, records) of all chunk lists, in no order."""
        ...

    def scan(self, kind: type[K]) -> AsyncIterator[tuple[K, Any]]:
        """Every record with a key of class *kind* in the database, in no order; one that does not decode comes as a CorruptRecord in
        its place. Kinds: NodeKey, EdgeKey, SymlinkKey, XattrKey (without values), ChunkKey, ParentKey (of inodes with several;
        where the engine keeps none, from the entries), SliceRefKey (stored ones only), DirStatKey, SustainedKey, DetachedKey,
        AclKey, QuotaKey (also used by mounts: there are few).
        A search of the whole database: for checks."""
        ...

    async def flaws(self, *, repair: bool) -> list[str]:
        """What is wrong with the form of the engine's records that the records themselves do not show, a sentence each; with *repair*
        it is put right, and what is left comes back."""
        ...

    async def logged(self) -> int:
        """How many entries the change log has."""
        ...

    async def oldest_logged(self, count: int) -> list[bytes]:
        """The first entries of the change log, at most *count*."""
        ...

    async def last_logged(self) -> int:
        """The version of the newest entry of the change log, 0 when it has none."""
        ...

    async def logged_after(self, version: int, count: int) -> list[tuple[int, bytes]]:
        """Entries of the change log with later versions than *version*, by version, at most *count*. Where others commit at the same
        time an entry may appear that is older than one seen before, but on Redis and SQLite, where versions have no gaps either."""
        ...

    async def forget_logged(self, count: int) -> None:
        """Remove the first *count* entries of the change log."""
        ...

    async def is_blank(self) -> bool:
        """Whether the database (below the volume's prefix) holds no record of a volume at all."""
        ...

    async def reset(self) -> None:
        """Remove every record of the volume. Only `destroy` and a failed `format` call it."""
        ...

    async def close(self) -> None:
        """Close connections. Idempotent."""
        ...
