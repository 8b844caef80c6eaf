"""What the handlers take and give beyond plain numbers and names; no host's types appear here."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from jfs.fuse.connection import Connection
from jfs.meta.volume import NOW, AttrChange, Caller

# Bits of SetAttr.valid: those of the FUSE protocol (linux/fuse.h FATTR_*), which the access log shows.
MODE = 1 << 0
UID = 1 << 1
GID = 1 << 2
SIZE = 1 << 3
ATIME = 1 << 4
MTIME = 1 << 5
FH = 1 << 6
ATIME_NOW = 1 << 7
MTIME_NOW = 1 << 8


class SetAttr(NamedTuple):
    """What setattr is to change: the members whose bit is set in *valid*; times in nanoseconds since the epoch."""

    valid: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    atime: int = 0
    mtime: int = 0

    def change(self) -> AttrChange | None:
        """All but the size; None when that is nothing."""
        valid = self.valid
        if not valid & (MODE | UID | GID | ATIME | MTIME | ATIME_NOW | MTIME_NOW):
            return None
        return AttrChange(
            mode=self.mode & 0o7777 if valid & MODE else None,
            uid=self.uid if valid & UID else None,
            gid=self.gid if valid & GID else None,
            atime=NOW if valid & ATIME_NOW else self.atime if valid & ATIME else None,
            mtime=NOW if valid & MTIME_NOW else self.mtime if valid & MTIME else None,
        )

    def describe(self) -> str:
        """As the access log shows it."""
        valid, out = self.valid, []
        if valid & MODE:
            out.append(f"mode=0{self.mode & 0o7777:o}")
        if valid & UID:
            out.append(f"uid={self.uid}")
        if valid & GID:
            out.append(f"gid={self.gid}")
        if valid & ATIME:
            out.append("atime=NOW" if valid & ATIME_NOW else f"atime={self.atime // 1_000_000_000}")
        if valid & MTIME:
            out.append("mtime=NOW" if valid & MTIME_NOW else f"mtime={self.mtime // 1_000_000_000}")
        if valid & SIZE:
            out.append(f"size={self.size}")
        return ",".join(out)


class Opened(NamedTuple):
    """An opened file or directory: its handle number and what the kernel may cache."""

    fh: int
    keep_cache: bool = False
    direct_io: bool = False
    cache_directory: bool = False


def request_number(caller: Caller) -> int:
    """The kernel's number of the request, where it is kept."""
    return caller.request.number if caller.request is not None else 0


class Timeouts(NamedTuple):
    """How long the kernel may believe what it was told, in seconds (`--attr-cache` …)."""

    attr: float = 1.0
    entry: float = 1.0
    dir_entry: float = 1.0
    negative: float = 0.0


class Invalidator(Protocol):
    """Where a host takes notes to the kernel that something it caches is not so any more."""

    def entry(self, parent: int, name: bytes) -> None:
        """The name may stand for something else now; told in the background."""
        ...

    def inode(self, ino: int) -> None:
        """Attributes and pages of the inode are not what they were; told in the background."""
        ...

    def attributes(self, ino: int) -> None:
        """The attributes are not what they were; told when this returns. Never waits for requests under way."""
        ...


class Host(Protocol):
    """What feeds the handlers: mounts, serves until it is unmounted or stopped, and gives up its descriptor."""

    @property
    def invalidator(self) -> Invalidator: ...
    async def mount(self) -> None:
        """Attach to the mountpoint; MountError when it cannot be."""
        ...

    async def serve(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Answer requests until the file system is unmounted; *ready* runs beside once the first may be sent."""
        ...

    def unmount(self) -> None:
        """Detach the mountpoint (lazily when busy); `serve` then returns. Idempotent."""
        ...

    async def close(self) -> None:
        """End what is running and close the descriptor."""
        ...

    def leave(self) -> None:
        """Answer nothing more, and leave the mount to a successor: `serve` returns, and `close` does not detach it."""
        ...

    @property
    def connection(self) -> Connection | None:
        """What a successor needs once the first request was answered; None when there can be none."""
        ...

    @property
    def oldest(self) -> float:
        """Seconds that the oldest request has been waiting, those that wait for locks apart."""
        ...

    @property
    def repeated(self) -> int:
        """Requests that a predecessor had read and not answered."""
        ...

    @property
    def inflight(self) -> int:
        """Requests being worked on."""
        ...
