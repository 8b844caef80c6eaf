"""Replies to READDIR and READDIRPLUS (linux/fuse.h fuse_dirent, fuse_direntplus), packed from the columns of a listing.

Stored attributes go into a reply without an `Attr` between: both forms have the same fields, only in another byte order. While the
kernel takes a reply in – some 5 µs an entry – the next one is packed, and given when it is asked for exactly as foreseen
and nothing has changed since (`Directories.version`, `FRESH`).
Concurrency: event loop only; the packing ahead runs between requests and never waits.
"""

import asyncio
import struct
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NamedTuple, Protocol, cast

from jfs.format.constants import DIRECTORY
from jfs.fuse.kernel import planes
from jfs.fuse.kernel.protocol import BLKSIZE, GENERATION, Valid
from jfs.meta.model.attr import FORMATS
from jfs.meta.volume import Caller
from jfs.vfs.directories import Directories, Window

FRESH: Final = 0.1  # seconds that a reply packed ahead is worth giving

_STORED: Final = struct.Struct(">BHIIqIqIqIIQI").unpack_from  # flags … rdev of an inode record (format §3.1)
_DT: Final = {kind: mode >> 12 for kind, mode in FORMATS.items()}
_LONGEST: Final = 255
# By the length of the name: the whole record, its name padded to eight bytes.
_PLAIN: Final = [struct.Struct(f"<QQII{length + (-length & 7)}s") for length in range(_LONGEST + 1)]
_PLUS: Final = [
    struct.Struct(f"<QQQQIIQQQqqqIIIIIIIIIIQQII{length + (-length & 7)}s").pack for length in range(_LONGEST + 1)
]
_PADDING: Final = [bytes(-length & 7) for length in range(_LONGEST + 1)]
_UNKNOWN: Final = bytes(128)  # a fuse_entry_out with node id 0: the kernel looks the name up itself


class Packed(NamedTuple):
    """A reply, and how many entries of the window it covers, removed ones included."""

    body: bytes
    taken: int


def plain(window: Window, cookie: int, size: int) -> Packed:
    """fuse_dirent records from position *cookie* on, as many as *size* bytes hold."""
    out: list[bytes] = []
    room = size
    first = cookie
    for name, ino, kind in zip(window.names, window.inos, window.kinds, strict=True):
        if name is not None:
            length = len(name)
            form = _PLAIN[length]
            room -= form.size
            if room < 0:
                break
            out.append(form.pack(ino, cookie + 1, length, _DT.get(kind, 0), name))
        cookie += 1
    return Packed(b"".join(out), cookie - first)


def plus(window: Window, cookie: int, size: int, valid: Valid) -> Packed:
    """fuse_direntplus records; an entry without attributes, or whose record does not decode, the kernel looks up itself."""
    if len(window) >= planes.WORTH:
        packed = _at_once(window, cookie, size, valid)
        if packed is not None:
            return packed
    out: list[bytes] = []
    room = size
    first = cookie
    seconds, nsec = valid.attr
    modes: dict[int, tuple[int, int, int]] = {}
    for name, ino, kind, attr in zip(window.names, window.inos, window.kinds, window.attrs, strict=True):
        if name is not None:
            length = len(name)
            room -= 152 + length + (-length & 7)
            if room < 0:
                break
            fields: tuple[Any, ...] | None
            try:
                fields = _STORED(attr) if isinstance(attr, bytes) else attr
            except struct.error:
                fields = None
            if fields is None:
                out.append(_UNKNOWN + _PLAIN[length].pack(ino, cookie + 1, length, _DT.get(kind, 0), name))
                cookie += 1
                continue
            _, kind_mode, uid, gid, at, an, mt, mn, ct, cn, nlink, total, rdev, *_ = fields
            known = modes.get(kind_mode)
            if known is None:
                entry = valid.dir_entry if kind_mode >> 12 == DIRECTORY else valid.entry
                known = modes[kind_mode] = (FORMATS.get(kind_mode >> 12, 0) | kind_mode & 0o7777, *entry)
            mode, entry_seconds, entry_nsec = known
            out.append(
                _PLUS[length](
                    ino, GENERATION, entry_seconds, seconds, entry_nsec, nsec, ino, total, (total + 511) >> 9, at, mt, ct,
                    an, mn, cn, mode, nlink, uid, gid, rdev, BLKSIZE, 0, ino, cookie + 1, length, mode >> 12, name,
                )
            )  # fmt: skip
        cookie += 1
    return Packed(b"".join(out), cookie - first)


def _at_once(window: Window, cookie: int, size: int, valid: Valid) -> Packed | None:
    """As `plus`; None when the window has not only entries with stored attributes."""
    if None in window.names or set(map(type, window.attrs)) != {bytes}:
        return None
    names, attrs = cast("Sequence[bytes]", window.names), cast("Sequence[bytes]", window.attrs)
    lengths = list(map(len, names))
    records = planes.records(attrs, window.inos, lengths, cookie, valid)
    if records is None:
        return None
    out: list[bytes] = []
    room = size
    at = 0
    for name, length in zip(names, lengths, strict=True):
        padding = _PADDING[length]
        room -= planes.RECORD + length + len(padding)
        if room < 0:
            break
        end = at + planes.RECORD
        out += (records[at:end], name, padding)
        at = end
    return Packed(b"".join(out), at // planes.RECORD)


class Source(Protocol):
    """What is asked of the handlers."""

    directories: Directories

    def readdir(
        self, caller: Caller, ino: int, fh: int, cookie: int, size: int, plus: bool
    ) -> Coroutine[Any, Any, Window]: ...
    def listed(self, fh: int, cookie: int, size: int, plus: bool) -> Window | None: ...
    def told(self, window: Window, count: int) -> None: ...
    def releasedir(self, caller: Caller, ino: int, fh: int) -> Coroutine[Any, Any, None]: ...


class _Ahead(NamedTuple):
    cookie: int
    size: int
    plus: bool
    version: int
    until: float
    window: Window
    packed: Packed


class Listings:
    """The readdir handler of a host that packs its replies itself: gives bytes, and packs the next reply ahead."""

    def __init__(self, source: Source, valid: Valid, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._valid = valid
        self._clock = clock
        self._ahead: dict[int, _Ahead] = {}

    async def readdir(self, caller: Caller, ino: int, fh: int, cookie: int, size: int, plus: bool) -> bytes:
        """The reply to a request for at most *size* bytes from position *cookie* on; empty at the end."""
        source = self._source
        ahead = self._ahead.pop(fh, None)
        if (
            ahead is not None
            and ahead[:4] == (cookie, size, plus, source.directories.version)
            and self._clock() < ahead.until
        ):
            window, packed = ahead.window, ahead.packed
        else:
            window = await source.readdir(caller, ino, fh, cookie, size, plus)
            packed = self._pack(window, cookie, size, plus)
        if plus:
            source.told(window, packed.taken)
        if packed.taken < len(window):  # there is more, and it is at hand
            asyncio.get_running_loop().call_soon(self._pack_ahead, fh, cookie + packed.taken, size, plus)
        return packed.body

    def _pack(self, window: Window, cookie: int, size: int, with_attributes: bool) -> Packed:
        return plus(window, cookie, size, self._valid) if with_attributes else plain(window, cookie, size)

    def _pack_ahead(self, fh: int, cookie: int, size: int, plus: bool) -> None:
        source = self._source
        window = source.listed(fh, cookie, size, plus)
        if window is not None:
            packed = self._pack(window, cookie, size, plus)
            version = source.directories.version
            self._ahead[fh] = _Ahead(cookie, size, plus, version, self._clock() + FRESH, window, packed)

    def releasedir(self, caller: Caller, ino: int, fh: int) -> Coroutine[Any, Any, None]:
        """Forgets what was packed for the handle; the rest is the handlers'."""
        self._ahead.pop(fh, None)
        return self._source.releasedir(caller, ino, fh)
