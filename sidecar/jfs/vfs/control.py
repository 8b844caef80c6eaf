"""The command channel `.control` (format §8.3): requests written to it are answered by what is read from it.

The commands themselves are in `commands.py`; here are the frames: a request is u32 command, u32 length, body; the answer is any
number of progress marks (0xFE and two u64), then either data (0xFF, u32 length, JSON) or one byte, an errno or 0. A handle takes one
request at a time; offsets are ignored. A read waits for the answer, and each second gives the progress made.
Concurrency: a request runs in a task of its own, which closing the handle cancels: what has been done so far stays done.
"""

import asyncio
import errno
import logging
import struct
from typing import Final, Protocol

from jfs.errors import FsError, JfsError
from jfs.meta.volume import Caller

log = logging.getLogger(__name__)
_HEADER: Final = struct.Struct(">II")
_PROGRESS: Final = struct.Struct(">BQQ")
_MARK, _DATA = 0xFE, 0xFF
_LONGEST: Final = 64 << 20  # bytes of a request; a list of a million paths fits
_PATIENCE: Final = 1.0  # seconds until a waiting read gets the progress made


class Progress:
    """How far a request has come: two numbers whose meaning is the command's."""

    __slots__ = ("first", "known", "second")

    def __init__(self) -> None:
        self.known, self.first, self.second = False, 0, 0

    def __call__(self, first: int, second: int) -> None:
        self.known, self.first, self.second = True, first, second

    def mark(self) -> bytes:
        """The frame, or nothing when nothing was reported."""
        return _PROGRESS.pack(_MARK, self.first, self.second) if self.known else b""


class Answer(Protocol):
    """What answers the requests: the bytes behind the progress, made of `data` or an errno byte. Errors: FsError, JfsError."""

    async def __call__(self, command: int, body: bytes, caller: Caller, progress: Progress) -> bytes: ...


def data(text: bytes) -> bytes:
    """A data frame, which ends an answer."""
    return struct.pack(">BI", _DATA, len(text)) + text


class ControlHandle:
    """One open handle of `.control`."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._request = bytearray()
        self._reply = b""
        self._progress = Progress()
        self._task: asyncio.Task[bytes] | None = None

    async def write(self, data: bytes, caller: Caller) -> int:
        """Take a piece of a request; starts it when complete. FsError(EBUSY) while one is under way, EINVAL when it is too long."""
        if self._task is not None:
            if not self._task.done():
                raise FsError(errno.EBUSY)
            self._collect()
        self._request += data
        if len(self._request) >= _HEADER.size:
            command, size = _HEADER.unpack_from(self._request)
            if size > _LONGEST:
                self._request.clear()
                raise FsError(errno.EINVAL)
            if len(self._request) >= _HEADER.size + size:
                body = bytes(self._request[_HEADER.size : _HEADER.size + size])
                self._request.clear()
                self._progress = Progress()
                self._task = asyncio.create_task(self._run(command, body, caller), name=f"control {command}")
        return len(data)

    async def _run(self, command: int, body: bytes, caller: Caller) -> bytes:
        try:
            # The kernel does not know what is asked for, so it is checked here.
            return await self._answer(command, body, caller._replace(checked=True), self._progress)
        except struct.error:
            return bytes((errno.EINVAL,))
        except FsError as error:
            return bytes((error.errno,))
        except JfsError as error:
            log.warning("control command %d failed: %s", command, error)
            return bytes((errno.EIO,))
        except Exception:
            log.exception("control command %d failed", command)
            return bytes((errno.EIO,))

    def _collect(self) -> None:
        """Take the answer of the request that is done."""
        task, self._task = self._task, None
        if task is not None and not task.cancelled():
            self._reply += self._progress.mark() + task.result()

    async def read(self, offset: int, size: int) -> bytes:
        """The next piece of the reply; empty when there is no request."""
        if not self._reply and self._task is not None:
            done, _ = await asyncio.wait([self._task], timeout=_PATIENCE)
            if done:
                self._collect()
            else:
                self._reply = self._progress.mark()
        out, self._reply = self._reply[:size], self._reply[size:]
        return out

    def close(self) -> None:
        """Nobody waits for the answer any more."""
        if self._task is not None:
            self._task.cancel()
