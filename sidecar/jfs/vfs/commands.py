"""What the requests of `.control` do (format §8.3): info, rmr, clone, summary, compact, warmup – for `juicefs` and `jfs` alike.

Rights are the caller's, checked here. What is removed or made behind the kernel's back is told to it by *changed*. What this mount has
written is committed before a clone looks at it. Commands that JuiceFS sends itself only (1000, 1001) and unknown ones end with
EINVAL. What they do with the cache is in `warmup.py`.
Concurrency: any number of requests at once; one event loop.
"""

import errno
import json
import struct
from collections.abc import Awaitable, Callable
from typing import Final

from jfs.chunk.reader import Reader
from jfs.errors import FsError, JfsError
from jfs.format.constants import DIRECTORY, SPECIAL
from jfs.meta.operations.cloning import PRESERVE
from jfs.meta.volume import Caller, Meta
from jfs.vfs.control import Progress, data
from jfs.vfs.information import Informant, legacy_text
from jfs.vfs.summary import Summary
from jfs.vfs.warmup import Warmer

RMR: Final = 1002
LEGACY_INFO: Final = 1003
FILL_CACHE: Final = 1004
INFO_V2: Final = 1005
CLONE: Final = 1006
SUMMARY: Final = 1007
COMPACT_PATH: Final = 1008
_DONE: Final = b"\0"


class Commands:
    """Answers for one mount. *settle* commits what the mount has written; *changed* tells the kernel of a directory's entry."""

    def __init__(
        self,
        meta: Meta,
        reader: Reader,
        informant: Informant,
        *,
        settle: Callable[[], Awaitable[None]],
        changed: Callable[[int, bytes], None],
    ) -> None:
        self._meta = meta
        self._informant = informant
        self._warmer = Warmer(meta, reader)
        self._settle = settle
        self._changed = changed
        self._known: dict[int, Callable[[bytes, Caller, Progress], Awaitable[bytes]]] = {
            RMR: self._rmr,
            LEGACY_INFO: self._legacy_info,
            FILL_CACHE: self._warmer,
            INFO_V2: self._info,
            CLONE: self._clone,
            SUMMARY: self._summary,
            COMPACT_PATH: self._compact,
        }

    async def close(self) -> None:
        """End what goes on in the background."""
        await self._warmer.close()

    async def __call__(self, command: int, body: bytes, caller: Caller, progress: Progress) -> bytes:
        known = self._known.get(command)
        if known is None:
            return bytes((errno.EINVAL,))
        return await known(body, caller, progress)

    async def _info(self, body: bytes, caller: Caller, progress: Progress) -> bytes:
        ino, recursive, raw, strict = struct.unpack_from(">QBBB", body)
        try:
            answer = await self._informant.ask(ino, bool(recursive), bool(raw), bool(strict))
        except JfsError as error:
            answer = {"Ino": ino, "Failed": True, "Reason": str(error)}
        return data(json.dumps(answer).encode())

    async def _legacy_info(self, body: bytes, caller: Caller, progress: Progress) -> bytes:
        ino, recursive = struct.unpack_from(">QB", body)
        raw = len(body) > 9 and bool(body[9])
        try:
            text = legacy_text(await self._informant.ask(ino, bool(recursive), raw, True), raw=raw).encode()
        except FsError as error:
            text = str(error).encode()
        return struct.pack(">I", len(text)) + text

    async def _rmr(self, body: bytes, caller: Caller, progress: Progress) -> bytes:
        parent, length = struct.unpack_from(">QB", body)
        name, rest = _name(body, 9, length)
        skip_trash = bool(rest[0]) if rest else False
        workers = rest[1] if len(rest) > 1 else 0
        if skip_trash and caller.uid:
            raise FsError(errno.EPERM)
        try:
            await self._meta.remove_tree(
                caller,
                parent,
                name,
                skip_trash=skip_trash,
                workers=workers or 50,
                progress=lambda removed: progress(removed, 0),
            )
        finally:
            self._changed(parent, name)
        return _DONE

    async def _clone(self, body: bytes, caller: Caller, progress: Progress) -> bytes:
        source, _, parent, length = struct.unpack_from(">QQQB", body)
        name, rest = _name(body, 25, length)
        umask, mode = struct.unpack_from(">HB", rest)
        workers = rest[3] if len(rest) > 3 else 0
        if source >= SPECIAL:
            raise FsError(errno.EPERM)
        await self._settle()
        await self._meta.clone(
            caller,
            source,
            parent,
            name,
            preserve=bool(mode & PRESERVE),
            umask=umask,
            workers=workers or 4,
            progress=progress,
        )
        self._changed(parent, name)
        return _DONE

    async def _summary(self, body: bytes, caller: Caller, progress: Progress) -> bytes:
        (ino,) = struct.unpack_from(">Q", body)
        depth, entries, strict = (*body[8:11], *(3, 10, 1)[len(body[8:11]) :])
        summary = Summary(self._meta, caller, entries=entries, strict=bool(strict), progress=progress)
        try:
            tree, failed = await summary.tree(ino, depth), 0
        except FsError as error:
            tree, failed = {"Inode": ino, "Path": "", "Type": DIRECTORY, "Size": 0, "Files": 0, "Dirs": 0}, error.errno
        return data(json.dumps({"Errno": failed, "Tree": tree}).encode())

    async def _compact(self, body: bytes, caller: Caller, progress: Progress) -> bytes:
        ino, threads = struct.unpack_from(">QH", body)
        chunks, size = await self._meta.compact(ino, max(threads, 1))
        progress(chunks, size)
        return _DONE


def _name(body: bytes, start: int, length: int) -> tuple[bytes, bytes]:
    """The name of *length* bytes at *start*, and what follows it. FsError(EINVAL) when the body ends within it."""
    name = body[start : start + length]
    if len(name) != length:
        raise FsError(errno.EINVAL)
    return name, body[start + length :]
