"""What each operation says in the change log, in the words of the real client 1.4 (format §3.14). Pure.

Every function adds to the journal of its transaction, and does nothing on volumes without a log. *now* is the operation's time (ns),
which followers take for the times it sets. Names and other bytes are escaped, so that a line can be taken apart at its commas.
"""

from collections.abc import Sequence
from typing import Final

from jfs.meta.model.acl import ACCESS, Rule
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import ChunkKey, DirStat
from jfs.meta.model.quota import DIRECTORY, USER, QuotaKey
from jfs.meta.store.base import Tx
from jfs.meta.store.change_log import SECOND, LogEntry

_SYSTEM: Final = "linux"
_ESCAPED: Final = [
    f"%{byte:02X}" if byte < 32 or byte >= 127 or byte in b',%()"\\' else chr(byte) for byte in range(256)
]

# What a SETATTR changed.
MODE: Final = 1
UID: Final = 2
GID: Final = 4
ATIME: Final = 16
MTIME: Final = 32
ATIME_NOW: Final = 128
MTIME_NOW: Final = 256
TIER: Final = 1024
FLAGS: Final = 8192


def escaped(raw: bytes) -> str:
    """*raw* in the log's form."""
    return "".join([_ESCAPED[byte] for byte in raw])


def _flag(value: bool) -> str:
    return "true" if value else "false"


def note(tx: Tx, text: str, now: int | None = None) -> None:
    """An entry in words of its own."""
    if tx.journal is not None:
        tx.journal.append(LogEntry(text, now))


def created(
    tx: Tx,
    now: int,
    parent: int,
    name: bytes,
    owner: tuple[int, int],
    kind: int,
    mode: int,
    umask: int,
    target: bytes,
    ino: int,
    *,
    touched: bool,
) -> None:
    """An entry with a new inode. *owner* is the caller, *mode* what was asked for, *touched* whether the directory's record changed."""
    if tx.journal is not None:
        uid, gid = owner
        note(
            tx,
            f"CREATE({parent},{escaped(name)},{uid},{gid},{kind},{mode},{umask},{escaped(target)},{_SYSTEM},"
            f"{_flag(touched)}):{ino}",
            now,
        )


def linked(tx: Tx, now: int, ino: int, parent: int, name: bytes, links: int, *, touched: bool) -> None:
    """Another entry for an inode, which has *links* now."""
    if tx.journal is not None:
        note(tx, f"LINK({ino},{parent},{escaped(name)},{_flag(touched)}):{links}", now)


def unlinked(
    tx: Tx, now: int, parent: int, name: bytes, ino: int, *, trash: int, sustained: bool, touched: bool
) -> None:
    """An entry less. *trash* is the hour directory it went to, *sustained* whether this client still has it open."""
    if tx.journal is not None:
        note(tx, f"UNLINK({parent},{escaped(name)},{trash},{_flag(sustained)},{_flag(touched)}):{ino}", now)


def unlinked_many(
    tx: Tx, now: int, parent: int, entries: Sequence[tuple[bytes, int]], *, trash: int, touched: bool
) -> None:
    """Many entries (name, inode) less."""
    if tx.journal is not None and entries:
        names = ",".join(escaped(name) for name, _ in entries)
        inodes = ",".join(str(ino) for _, ino in entries)
        note(tx, f"UNLINKBATCH({parent},{names},{trash},{_flag(touched)}):{inodes}", now)


def removed_directory(tx: Tx, now: int, parent: int, name: bytes, ino: int, *, trash: int) -> None:
    """A directory less."""
    if tx.journal is not None:
        note(tx, f"RMDIR({parent},{escaped(name)},{trash}):{ino}", now)


def moved(
    tx: Tx,
    now: int,
    source: tuple[int, bytes],
    target: tuple[int, bytes],
    flags: int,
    other: int,
    ino: int,
    *,
    trash: int,
) -> None:
    """An entry went elsewhere; *other* is the inode that was there, which went to *trash* unless that is 0."""
    if tx.journal is not None:
        (src, name), (dst, newname) = source, target
        note(tx, f"MOVE({src},{escaped(name)},{dst},{escaped(newname)},{flags},{other},{trash}):{ino}", now)


def wrote(tx: Tx, now: int, chunk: ChunkKey, pos: int, id: int, size: int, mtime: int) -> None:
    """A slice became visible."""
    if tx.journal is not None:
        seconds, nanoseconds = divmod(mtime, SECOND)
        text = f"WRITE({chunk.ino},{chunk.indx},{pos},{id},{size},{seconds},{nanoseconds})"
        tx.journal.append(LogEntry(text, now, chunk))


def truncated(tx: Tx, now: int, ino: int, old: int, new: int, *, opened: bool) -> None:
    """A file's length changed."""
    if tx.journal is not None:
        note(tx, f"TRUNCATE({ino},{old},{new},{int(opened)})", now)


def allocated(tx: Tx, now: int, ino: int, offset: int, size: int, mode: int) -> None:
    """A fallocate."""
    if tx.journal is not None:
        note(tx, f"FALLOCATE({ino},{offset},{size},{mode})", now)


def copied(tx: Tx, now: int, source: int, offset: int, target: int, position: int, size: int, done: int) -> None:
    """A copy_file_range of *size* bytes that copied *done*."""
    if tx.journal is not None:
        note(tx, f"COPYFILERANGE({source},{offset},{target},{position},{size}):{done}", now)


def changed(tx: Tx, now: int, ino: int, what: int, attr: Attr) -> None:
    """Attributes were set; *what* is made of the bits above."""
    if tx.journal is not None:
        note(
            tx,
            f"SETATTR({ino},{what},0,{attr.uid},{attr.gid},{attr.mode},{attr.flags},{attr.atime},{attr.mtime},"
            f"{attr.atimensec},{attr.mtimensec},{attr.ctime},{attr.ctimensec},{attr.access_acl})",
            now,
        )


def accessed(tx: Tx, now: int, ino: int) -> None:
    """atime is now."""
    if tx.journal is not None:
        note(tx, f"ACCESS({ino})", now)


def set_xattr(tx: Tx, ino: int, name: bytes, value: bytes, flags: int) -> None:
    """An extended attribute was set."""
    if tx.journal is not None:
        note(tx, f"SETXATTR({ino},{escaped(name)},{escaped(value)},{flags})")


def removed_xattr(tx: Tx, ino: int, name: bytes) -> None:
    """An extended attribute is gone."""
    if tx.journal is not None:
        note(tx, f"REMOVEXATTR({ino},{escaped(name)})")


def set_acl(tx: Tx, now: int, ino: int, name: bytes, rule: Rule) -> None:
    """An ACL was set, or with an empty rule removed."""
    if tx.journal is not None:
        note(tx, f"SETFACL({ino},{1 if name == ACCESS else 2},{escaped(rule.pack())})", now)


def compacted(tx: Tx, chunk: ChunkKey, skipped: int, replaced: int, pos: int, id: int, size: int) -> None:
    """Records of a chunk became one."""
    if tx.journal is not None:
        note(tx, f"COMPACTCHUNK({chunk.ino},{chunk.indx},{skipped},{replaced},{pos},{id},{size})")


def dropped_chunk(tx: Tx, chunk: ChunkKey) -> None:
    """A chunk list of a removed file is gone."""
    if tx.journal is not None:
        note(tx, f"DELCHUNK({chunk.ino},{chunk.indx})")


def deleted_slice(tx: Tx, id: int, size: int) -> None:
    """The objects of a slice are gone."""
    if tx.journal is not None:
        note(tx, f"DELETESLICE({id},{size})")


def released(tx: Tx, now: int, sid: int, ino: int) -> None:
    """The last open handle of an inode without names was closed."""
    if tx.journal is not None:
        note(tx, f"DELSUSTAINED({sid},{ino})", now)


def cloned(
    tx: Tx, now: int, source: int, parent: int, name: bytes, ino: int, mode: int, umask: int, *, top: bool
) -> None:
    """An inode was copied."""
    if tx.journal is not None:
        note(tx, f"CLONE({source},{parent},{escaped(name)},{ino},{mode},{umask},{_flag(top)}):{ino}", now)


def attached(tx: Tx, now: int, ino: int, parent: int, name: bytes) -> None:
    """A cloned tree got its entry."""
    if tx.journal is not None:
        note(tx, f"ATTACH({ino},{parent},{escaped(name)})", now)


def cleaned(tx: Tx, ino: int) -> None:
    """A detached tree is gone."""
    if tx.journal is not None:
        note(tx, f"CLEANUP({ino})")


def locked(tx: Tx, ino: int, owner: int, kind: str) -> None:
    """A flock: R, W or U."""
    if tx.journal is not None:
        note(tx, f"FLOCK({ino},{owner},{kind})")


def locked_range(tx: Tx, ino: int, owner: int, kind: str, start: int, end: int, pid: int) -> None:
    """A POSIX lock: R, W or U."""
    if tx.journal is not None:
        note(tx, f"SETLK({ino},{owner},{kind},{start},{end},{pid})")


def started_session(tx: Tx, sid: int, expire: int, info: bytes) -> None:
    """A session began."""
    if tx.journal is not None:
        note(tx, f"NEWSESSION({sid},{expire},{escaped(info)})")


def cleaned_session(tx: Tx, sid: int) -> None:
    """A session ended."""
    if tx.journal is not None:
        note(tx, f"CLEANSESSION({sid})")


def set_counter(tx: Tx, counter: str, value: int) -> None:
    """A client was elected for a job."""
    if tx.journal is not None:
        note(tx, f"SET({counter},{value})")


def counted(tx: Tx, ino: int, stat: DirStat) -> None:
    """The usage record of a directory was made or put right."""
    if tx.journal is not None:
        note(tx, f"DIRSTAT({ino},{stat.length},{stat.space},{stat.inodes})")


def repaired_directory(tx: Tx, ino: int) -> None:
    """The inode record of a directory was put right."""
    if tx.journal is not None:
        note(tx, f"REPAIRDIR({ino})")


def _kind_of_quota(key: QuotaKey) -> int:
    return 0 if key.what == DIRECTORY else 1 if key.what == USER else 2


def set_quota(tx: Tx, key: QuotaKey, space: int, inodes: int) -> None:
    """Limits were set (-1: none)."""
    if tx.journal is not None:
        note(tx, f"SETQUOTA({_kind_of_quota(key)},{key.id},{space},{inodes})")


def deleted_quota(tx: Tx, key: QuotaKey) -> None:
    """A quota is gone."""
    if tx.journal is not None:
        note(tx, f"DELQUOTA({_kind_of_quota(key)},{key.id})")


def expired_slices(tx: Tx, id: int, since: int) -> None:
    """An entry of the delayed list has expired."""
    if tx.journal is not None:
        note(tx, f"CLEANUP_TRASH_SLICES({id},{since})")
