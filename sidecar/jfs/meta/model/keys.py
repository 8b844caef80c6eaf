"""Typed keys of the records a volume's metadata consists of. An engine maps each to JuiceFS's layout (format §4).

Keys are tuples with a constant `kind` behind their fields, so that they hash and compare in C and no two kinds are ever
equal. `record` tells the type checker what a key reads as; it is never called.
"""

from typing import Literal, NamedTuple, Protocol, TypeVar

from jfs.meta.model.attr import Attr, Entry

R_co = TypeVar("R_co", covariant=True)


class Key(Protocol[R_co]):
    """What every key is: hashable, and typed by the record it stands for."""

    @property
    def kind(self) -> str: ...

    @property
    def record(self) -> type[R_co]: ...


class DirStat(NamedTuple):
    """Usage of a directory's direct children, or a change of it: bytes of files, space (align4k), inodes (format §3.8)."""

    length: int
    space: int
    inodes: int


class Session(NamedTuple):
    """A mounted client: expiry (unix seconds) and its JSON info (format §3.6, §7.1)."""

    expire: int
    info: bytes


class SettingKey(NamedTuple):
    """The JSON of the setting record, as bytes."""

    kind: Literal["setting"] = "setting"

    @property
    def record(self) -> type[bytes]:
        return bytes


class NodeKey(NamedTuple):
    """Attributes of an inode."""

    ino: int
    kind: Literal["node"] = "node"

    @property
    def record(self) -> type[Attr]:
        return Attr


class EdgeKey(NamedTuple):
    """A directory entry."""

    parent: int
    name: bytes
    kind: Literal["edge"] = "edge"

    @property
    def record(self) -> type[Entry]:
        return Entry


class SymlinkKey(NamedTuple):
    """Target of a symbolic link."""

    ino: int
    kind: Literal["symlink"] = "symlink"

    @property
    def record(self) -> type[bytes]:
        return bytes


class XattrKey(NamedTuple):
    """Value of an extended attribute."""

    ino: int
    name: bytes
    kind: Literal["xattr"] = "xattr"

    @property
    def record(self) -> type[bytes]:
        return bytes


class ChunkKey(NamedTuple):
    """Slice records of a chunk, concatenated, oldest first."""

    ino: int
    indx: int
    kind: Literal["chunk"] = "chunk"

    @property
    def record(self) -> type[bytes]:
        return bytes


class CounterKey(NamedTuple):
    """A counter by its logical name (format §3.7). A missing one reads as None.

    nextInode and nextChunk read as the engine counts them (last id given out, or first one not yet): take ids with `allot`.
    """

    name: str
    kind: Literal["counter"] = "counter"

    @property
    def record(self) -> type[int]:
        return int


class ParentKey(NamedTuple):
    """How many entries of directory *parent* name the hard-linked file *ino* (format §3.9; SQL derives it from edges)."""

    ino: int
    parent: int
    kind: Literal["parent"] = "parent"

    @property
    def record(self) -> type[int]:
        return int


class SliceRefKey(NamedTuple):
    """Number of slice records that name slice *id* of *size* bytes.

    Normalised: the true number n, though Redis and TKV store n-1 and leave out 1 (format §3.12). A slice that was never
    referenced in the engine's records reads as 1 there (and in memory) and as 0 in SQL, never as None; `put(…, 1)` of a new
    slice writes what the engine needs.
    """

    id: int
    size: int
    kind: Literal["sliceref"] = "sliceref"

    @property
    def record(self) -> type[int]:
        return int


class DirStatKey(NamedTuple):
    """Usage of a directory's direct children."""

    ino: int
    kind: Literal["dirstat"] = "dirstat"

    @property
    def record(self) -> type[DirStat]:
        return DirStat


class SessionKey(NamedTuple):
    """A session."""

    sid: int
    kind: Literal["session"] = "session"

    @property
    def record(self) -> type[Session]:
        return Session


class SustainedKey(NamedTuple):
    """Inode *ino* has no name left but is open in session *sid*. Reads as True or None."""

    sid: int
    ino: int
    kind: Literal["sustained"] = "sustained"

    @property
    def record(self) -> type[bool]:
        return bool


class DeletedFileKey(NamedTuple):
    """A removed file whose chunks wait for deletion; reads as the deletion time in unix seconds (format §3.11)."""

    ino: int
    length: int
    kind: Literal["delfile"] = "delfile"

    @property
    def record(self) -> type[int]:
        return int


class DelayedKey(NamedTuple):
    """Slices replaced by a compaction, kept for the trash days: 12-byte records (format §3.5), key new slice id and unix seconds."""

    id: int
    time: int
    kind: Literal["delayed"] = "delayed"

    @property
    def record(self) -> type[bytes]:
        return bytes


class DetachedKey(NamedTuple):
    """The top of a tree that a clone is building, or left when it died; reads as unix seconds (format §3.11)."""

    ino: int
    kind: Literal["detached"] = "detached"

    @property
    def record(self) -> type[int]:
        return int
