"""The command channel `.control` (format §8.3): requests written to it are answered by what is read from it.

Commands: InfoV2 (1005), which `jfs info` and the real `juicefs info` use, and CompactPath (1008) for `compact`. Every other
command ends with the errno byte of ENOTSUP. A handle takes one request at a time; offsets are ignored. Concurrency: the
request runs in the task that wrote it, so a read finds the whole answer.
"""

import errno
import json
import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

from jfs.errors import FsError, JfsError

log = logging.getLogger(__name__)
INFO_V2: Final = 1005
COMPACT_PATH: Final = 1008
_HEADER = struct.Struct(">II")
_INFO = struct.Struct(">QBBB")
_COMPACT = struct.Struct(">QH")
_PROGRESS = 0xFE
_DATA = 0xFF

# (inode, recursive, raw, strict) -> the members of the answer's JSON.
Information = Callable[[int, bool, bool, bool], Awaitable[dict[str, Any]]]
# (inode, files at once) -> chunks looked at and bytes rewritten. FsError, other JfsErrors.
Compact = Callable[[int, int], Awaitable[tuple[int, int]]]


class Controller:
    """What the commands do."""

    def __init__(self, information: Information, compact: Compact | None = None) -> None:
        self._information = information
        self._compact = compact

    async def run(self, command: int, body: bytes) -> bytes:
        """The whole reply to a command: data if any, then the errno byte."""
        if command == COMPACT_PATH and self._compact is not None:
            return await self._run_compact(self._compact, body)
        if command != INFO_V2:
            return bytes((errno.ENOTSUP,))
        if len(body) < _INFO.size:
            return bytes((errno.EINVAL,))
        ino, recursive, raw, strict = _INFO.unpack_from(body)
        try:
            answer = await self._information(ino, bool(recursive), bool(raw), bool(strict))
        except FsError as error:
            answer = {"Ino": ino, "Failed": True, "Reason": str(error)}
        except JfsError as error:
            answer = {"Ino": ino, "Failed": True, "Reason": str(error)}
        text = json.dumps(answer).encode()
        return struct.pack(">BI", _DATA, len(text)) + text + b"\0"

    async def _run_compact(self, compact: Compact, body: bytes) -> bytes:
        if len(body) < _COMPACT.size:
            return bytes((errno.EINVAL,))
        ino, threads = _COMPACT.unpack_from(body)
        try:
            chunks, size = await compact(ino, max(threads, 1))
        except FsError as error:
            return bytes((error.errno,))
        except JfsError as error:
            log.warning("compaction of inode %d failed: %s", ino, error)
            return bytes((errno.EIO,))
        return struct.pack(">BQQ", _PROGRESS, chunks, size) + b"\0"


class ControlHandle:
    """One open handle of `.control`."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._request = bytearray()
        self._reply = b""

    async def write(self, data: bytes) -> int:
        """Take a piece of a request; runs it when complete."""
        self._request += data
        if len(self._request) >= _HEADER.size:
            command, size = _HEADER.unpack_from(self._request)
            if len(self._request) >= _HEADER.size + size:
                body = bytes(self._request[_HEADER.size : _HEADER.size + size])
                self._request.clear()
                self._reply += await self._controller.run(command, body)
        return len(data)

    async def read(self, offset: int, size: int) -> bytes:
        """The next piece of the reply; empty when there is none."""
        out, self._reply = self._reply[:size], self._reply[size:]
        return out

    def close(self) -> None:
        """Nothing to give up."""
