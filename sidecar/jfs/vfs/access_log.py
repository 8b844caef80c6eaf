"""The access log: one line per operation for whoever reads `.accesslog`, in the form of format §8.2.

Lines are made only while a reader exists; `AccessLog.active` is the hosts' one test per request. Each open handle has its
own queue of 10 240 lines, what overflows is dropped. Concurrency: all in the event loop; a reader waits on an event that
each new line sets.
"""

import asyncio
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from jfs.meta.model.attr import Attr

QUEUE_LINES: Final = 10_240
QUIET_SECONDS: Final = 1.0
QUIET_LINE: Final = b"#\n"

_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    '"': '\\"',
    "\\": "\\\\",
}


def quoted(raw: bytes) -> str:
    """A name as it is when plain and printable, else quoted as Go's `%q` does."""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable() and '"' not in text:
        return text
    out = []
    for character in raw.decode("utf-8", "surrogateescape"):
        code = ord(character)
        if character in _ESCAPES:
            out.append(_ESCAPES[character])
        elif 0xDC80 <= code <= 0xDCFF:
            out.append(f"\\x{code - 0xDC00:02x}")
        elif character.isprintable():
            out.append(character)
        elif code < 0x80:
            out.append(f"\\x{code:02x}")
        else:
            out.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return '"' + "".join(out) + '"'


def mode_text(st_mode: int) -> str:
    """`drwxr-xr-x:0040755`."""
    return f"{stat.filemode(st_mode)}:0{st_mode:06o}"


def attr_text(attr: Attr) -> str:
    """`[mode,nlink,uid,gid,atime,mtime,ctime,length]`."""
    a = attr
    return f"[{mode_text(a.st_mode)},{a.nlink},{a.uid},{a.gid},{a.atime},{a.mtime},{a.ctime},{a.length}]"


def entry_text(ino: int, attr: Attr) -> str:
    """`(inode,[attr])`."""
    return f"({ino},{attr_text(attr)})"


class LogReader:
    """One open handle of `.accesslog`."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._news = asyncio.Event()

    def push(self, line: bytes) -> None:
        """Queue *line*; dropped when the reader is 10 240 lines behind."""
        if len(self._lines) < QUEUE_LINES:
            self._lines.append(line)
            self._news.set()

    async def read(self, size: int) -> bytes:
        """Up to *size* bytes of the log; `#` when nothing happened for a second, so that the reader notices its end."""
        if not self._rest and not self._lines:
            self._news.clear()
            try:
                async with asyncio.timeout(QUIET_SECONDS):
                    await self._news.wait()
            except TimeoutError:
                return QUIET_LINE[:size]
        out = bytearray(self._rest)
        while self._lines and len(out) < size:
            out += self._lines.popleft()
        self._rest = bytes(out[size:])
        return bytes(out[:size])


class AccessLog:
    """All readers of `.accesslog` of a mount."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.active = False
        self._readers: list[LogReader] = []
        self._clock = clock

    def subscribe(self) -> LogReader:
        """A new reader that sees the lines from now on."""
        reader = LogReader()
        self._readers.append(reader)
        self.active = True
        return reader

    def unsubscribe(self, reader: LogReader) -> None:
        """End of a reader."""
        self._readers.remove(reader)
        self.active = bool(self._readers)

    def record(
        self,
        operation: str,
        caller: tuple[int, int, int],
        args: Sequence[Any],
        result: Any,
        error: int,
        seconds: float,
    ) -> None:
        """Format and hand out the line of an operation that ended; *caller* is (uid, gid, pid), *error* an errno or 0.

        *args* and *result* are those of the handler of that name (`fuse.handlers`)."""
        now = self._clock()
        stamp = time.strftime("%Y.%m.%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
        shape = _SHAPES.get(operation)
        text, shown = shape(args, None if error else result) if shape else (",".join(map(str, args)), "")
        if shown:
            shown = shown if shown.startswith(" [") else ": " + shown
        elif operation in _WITH_ENTRY:
            shown = ":"
        outcome = os.strerror(error).lower() if error else "OK"
        uid, gid, pid = caller[:3]
        line = f"{stamp} [uid:{uid},gid:{gid},pid:{pid}] {operation} ({text}){shown} - {outcome} <{seconds:.6f}>\n"
        raw = line.encode("utf-8", "surrogateescape")
        for reader in self._readers:
            reader.push(raw)


# Per operation: (args, result or None) -> (text between the parentheses, text of the result).
_Shape = Callable[[Sequence[Any], Any], tuple[str, str]]


def _entry(result: Any) -> str:
    return entry_text(result[0], result[1]) if result is not None else ""


def _name(args: Sequence[Any], result: Any) -> tuple[str, str]:
    return f"{args[0]},{quoted(args[1])}", _entry(result)


def _plain(args: Sequence[Any], result: Any) -> tuple[str, str]:
    return f"{args[0]},{quoted(args[1])}", ""


def _getattr(args: Sequence[Any], result: Any) -> tuple[str, str]:
    return f"{args[0]}", entry_text(args[0], result) if result is not None else ""


def _setattr(args: Sequence[Any], result: Any) -> tuple[str, str]:
    ino, change, fh = args
    handle = f"[{fh}]" if fh is not None else ""
    return (
        f"{ino}{handle},0x{change.valid:X},[{change.describe()}]",
        entry_text(ino, result) if result is not None else "",
    )


def _mknod(args: Sequence[Any], result: Any) -> tuple[str, str]:
    return f"{args[0]},{quoted(args[1])},{mode_text(args[2])},0x{args[3]:08X}", _entry(result)


def _mkdir(args: Sequence[Any], result: Any) -> tuple[str, str]:
    return f"{args[0]},{quoted(args[1])},{mode_text(args[2] | stat.S_IFDIR)}", _entry(result)


def _create(args: Sequence[Any], result: Any) -> tuple[str, str]:
    shown = f"{_entry(result)} [fh:{result[2].fh}]" if result is not None else ""
    return f"{args[0]},{quoted(args[1])},{mode_text(args[2] & 0o7777 | stat.S_IFREG)}", shown


def _open(args: Sequence[Any], result: Any) -> tuple[str, str]:
    return f"{args[0]},0x{args[1]:X}", f" [fh:{result.fh}]" if result is not None else ""


def _opendir(args: Sequence[Any], result: Any) -> tuple[str, str]:
    return f"{args[0]}", f" [fh:{result.fh}]" if result is not None else ""


def _read(args: Sequence[Any], result: Any) -> tuple[str, str]:
    ino, fh, offset, size = args
    return f"{ino},{size},{offset},{fh}", f"({len(result)})" if result is not None else ""


def _write(args: Sequence[Any], result: Any) -> tuple[str, str]:
    ino, fh, offset, data, *_ = args
    return f"{ino},{len(data)},{offset},{fh}", ""


def _readdir(args: Sequence[Any], result: Any) -> tuple[str, str]:
    ino, _fh, offset, size, plus = args
    return f"{ino},{size},{offset},{str(plus).lower()}", f"({len(result)})" if result is not None else ""


def _lock(args: Sequence[Any], result: Any) -> tuple[str, str]:
    ino, fh, owner, wanted, *_ = args
    return f"{ino},{fh},{owner:016X},{wanted.kind},{wanted.start},{wanted.end}", ""


_SHAPES: Final[dict[str, _Shape]] = {
    "lookup": _name,
    "getattr": _getattr,
    "setattr": _setattr,
    "mknod": _mknod,
    "mkdir": _mkdir,
    "create": _create,
    "symlink": lambda a, r: (f"{a[0]},{quoted(a[1])},{quoted(a[2])}", _entry(r)),
    "readlink": lambda a, r: (f"{a[0]}", f"({quoted(r)})" if r is not None else ""),
    "link": lambda a, r: (f"{a[0]},{a[1]},{quoted(a[2])}", _entry(r)),
    "unlink": _plain,
    "rmdir": _plain,
    "rename": lambda a, r: (f"{a[0]},{quoted(a[1])},{a[2]},{quoted(a[3])},{a[4]}", ""),
    "open": _open,
    "opendir": _opendir,
    "read": _read,
    "write": _write,
    "flush": lambda a, r: (f"{a[0]},{a[1]},{a[2]:016X}", ""),
    "release": lambda a, r: (f"{a[0]},{a[1]}", ""),
    "releasedir": lambda a, r: (f"{a[0]},{a[1]}", ""),
    "fsync": lambda a, r: (f"{a[0]},{int(a[2])},{a[1]}", ""),
    "readdir": _readdir,
    "statfs": lambda a, r: (f"{a[0]}", f"({r.total},{r.total - r.used},{r.inodes},{r.free_inodes})" if r else ""),
    "setxattr": lambda a, r: (f"{a[0]},{quoted(a[1])},{len(a[2])},{a[3]}", ""),
    "getxattr": lambda a, r: (f"{a[0]},{quoted(a[1])},{a[2]}", f"({len(r)})" if r is not None else ""),
    "listxattr": lambda a, r: (f"{a[0]},{a[1]}", f"({len(r)})" if r is not None else ""),
    "removexattr": _plain,
    "getlk": _lock,
    "setlk": _lock,
    "setlkw": _lock,
    "access": lambda a, r: (f"{a[0]},{a[1]}", ""),
}
# Operations after whose arguments the real client always puts a colon, also when an error leaves nothing to show.
_WITH_ENTRY: Final = frozenset(("lookup", "getattr", "setattr", "mknod", "mkdir", "create", "symlink", "link"))
