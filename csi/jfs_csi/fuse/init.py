"""INIT of mounts that the node service makes: the mount options that matter to the kernel, and the answer. Pure.

A connection is initialised once, in restricted mode inside NodePublish, before any sidecar runs. So what is agreed here
must be what the client itself would have chosen (`jfs.fuse.kernel.session`; a test compares the two), and where the
client would look at the volume first, what is safe for every volume: ACLs are always on, because without the flag the
kernel would not check those that a volume has. The `Init` travels with the descriptor to every sidecar that serves it.
"""

import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_INIT_IN = struct.Struct("<IIII")
_INIT_IN_FLAGS2 = struct.Struct("<I")
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
_INIT = 26

ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
FLOCK_LOCKS = 1 << 10
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
WRITEBACK_CACHE = 1 << 16
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
INIT_EXT = 1 << 30  # the flags have a second half
HAS_RESEND = 1 << 39  # Linux 6.9: a successor can have unanswered requests again
_WANTED: Final = (
    ASYNC_READ
    | ATOMIC_O_TRUNC
    | EXPORT_SUPPORT
    | BIG_WRITES
    | AUTO_INVAL_DATA
    | DO_READDIRPLUS
    | READDIRPLUS_AUTO
    | ASYNC_DIO
    | PARALLEL_DIROPS
    | MAX_PAGES
    | CACHE_SYMLINKS
)
_MAJOR, _OLDEST_MINOR, _MINOR = 7, 31, 38
_MAX_BACKGROUND: Final = 64
_CONGESTION: Final = 48
_PAGE: Final = 4096
_MOST_IO, _LEAST_IO = 1 << 20, 128 << 10

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_SYNCHRONOUS, MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME = 16, 128, 1024, 2048
_FLAGS: Final = {
    "noexec": MS_NOEXEC,
    "sync": MS_SYNCHRONOUS,
    "dirsync": MS_DIRSYNC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
}
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20}


class InitError(OSError):
    """The kernel's INIT cannot be answered; the text is the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Init:
    """What was agreed on a connection: the answer given to INIT. `flags` has 64 bits (flags | flags2 << 32)."""

    major: int
    minor: int
    flags: int
    max_write: int
    max_readahead: int
    max_background: int
    congestion_threshold: int
    time_gran: int
    max_pages: int

    @property
    def resends(self) -> bool:
        """Whether FUSE_NOTIFY_RESEND gives a successor what its predecessor read and did not answer."""
        return bool(self.flags & HAS_RESEND)

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Any) -> Self:
        """Raises ValueError if a field is missing or no whole number; fields of later versions are dropped."""
        if not isinstance(document, dict):
            raise ValueError("it is not an object")
        values: dict[str, int] = {}
        for name in cls.__slots__:
            value = document.get(name)
            if type(value) is not int or not 0 <= value < 1 << 64:
                raise ValueError(f"its field {name} is missing or not a whole number")
            values[name] = value
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Handover:
    """What goes with a descriptor to the next sidecar: INIT, and whether another one has had the descriptor before – then
    requests may be under way that it read and did not answer."""

    init: Init
    resume: bool


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the volume's options ask of the mount: flags of mount(2), permission check, largest request in bytes."""

    flags: int
    default_permissions: bool
    max_io: int
    read_only: bool
    resend: bool
    writeback: bool


def wishes(options: Iterable[str], read_only: bool) -> Wishes:
    """Of the mount options of a publish. Set-user-ID programs and devices are never allowed: the kernel would believe a
    process of the pod. An option with a bad value counts as not given, because the client refuses it with a sentence."""
    flags, default_permissions, max_io, resend, writeback = MS_NOSUID | MS_NODEV, True, _MOST_IO, True, False
    for option in options:
        name, _, value = option.partition("=")
        flags |= _FLAGS.get(name, 0)
        if name in ("ro", "read-only"):
            read_only = True
        elif name == "non-default-permission" or (name == "all-squash" and value):
            default_permissions = False
        elif name == "max-fuse-io":
            max_io = _size(value)
        elif name == "fuse-resend":
            resend = value != "off"
        elif name == "writeback_cache":
            writeback = True
    return Wishes(flags | (MS_RDONLY if read_only else 0), default_permissions, max_io, read_only, resend, writeback)


def _size(text: str) -> int:
    number = text.upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in ("K", "M") else ""
    digits = number.removesuffix(unit)
    size = int(digits) * _UNITS[unit] if digits.isdecimal() else 0
    return size if _LEAST_IO <= size <= _MOST_IO and size % _PAGE == 0 else _MOST_IO


def answer(request: bytes, wished: Wishes) -> tuple[bytes, Init]:
    """The reply to the kernel's first request, and what it agrees. Raises `InitError`.

    Structures: linux/fuse.h, fuse_init_in and fuse_init_out.
    """
    _, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
    if opcode != _INIT:
        raise InitError(f"the kernel's first request is not INIT but {opcode}")
    major, minor, readahead, offered = _INIT_IN.unpack_from(request, _IN_HEADER.size)
    if major != _MAJOR or minor < _OLDEST_MINOR:
        raise InitError(f"the kernel speaks FUSE {major}.{minor}; {_MAJOR}.{_OLDEST_MINOR} (Linux 5.4) is needed")
    second = _IN_HEADER.size + _INIT_IN.size
    if offered & INIT_EXT and len(request) >= second + _INIT_IN_FLAGS2.size:
        offered |= _INIT_IN_FLAGS2.unpack_from(request, second)[0] << 32
    locks = 0 if wished.read_only else POSIX_LOCKS | FLOCK_LOCKS
    resend = HAS_RESEND | INIT_EXT if wished.resend else 0
    writeback = WRITEBACK_CACHE if wished.writeback else 0
    flags = (_WANTED | locks | resend | writeback | POSIX_ACL | DONT_MASK) & offered
    max_write = wished.max_io if flags & MAX_PAGES else min(wished.max_io, 32 * _PAGE)
    agreed = Init(
        major=_MAJOR,
        minor=min(minor, _MINOR),
        flags=flags,
        max_write=max_write,
        max_readahead=max(readahead, max_write),
        max_background=_MAX_BACKGROUND,
        congestion_threshold=_CONGESTION,
        time_gran=1,
        max_pages=max_write // _PAGE,
    )
    body = _INIT_OUT.pack(
        agreed.major,
        agreed.minor,
        agreed.max_readahead,
        agreed.flags & 0xFFFFFFFF,
        agreed.max_background,
        agreed.congestion_threshold,
        agreed.max_write,
        agreed.time_gran,
        agreed.max_pages,
        0,
        agreed.flags >> 32,
    )
    return _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body, agreed
