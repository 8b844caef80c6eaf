"""The command channel `.control` (format §8.3): requests written to it are answered by what is read from it.

Commands: InfoV2 (1005), which `jfs info` and the real `juicefs info` use. Every other command ends with the errno byte of
ENOTSUP. A handle takes one request at a time; offsets are ignored. Concurrency: the request runs in the task that wrote
it, so a read finds the whole answer.
"""

import errno
import json
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

from jfs.errors import FsError, JfsError

INFO_V2: Final = 1005
_HEADER = struct.Struct(">II")
_INFO = struct.Struct(">QBBB")
_DATA = 0xFF

# (inode, recursive, raw, strict) -> the members of the answer's JSON.
Information = Callable[[int, bool, bool, bool], Awaitable[dict[str, Any]]]


class Controller:
    """What the commands do."""

    def __init__(self, information: Information) -> None:
        self._information = information

    async def run(self, command: int, body: bytes) -> bytes:
        """The whole reply to a command: data if any, then the errno byte."""
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
