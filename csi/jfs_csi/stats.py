"""Usage of a mounted volume by statvfs(2), in threads and with a deadline: a hung mount must not hang the kubelet.

At most one thread is inside a volume's statvfs; while it hangs, callers get the last known figures at once. Daemon
threads, so that one stuck in the kernel does not keep the process from ending.
"""

import asyncio
import errno
import os
import threading
from dataclasses import dataclass

SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes and inodes as statvfs gives them."""

    total_bytes: int
    available_bytes: int
    used_bytes: int
    total_inodes: int
    available_inodes: int
    used_inodes: int


class UsageProbe:
    """Used from the event loop only."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._running: dict[str, asyncio.Future[Usage]] = {}
        self._last: dict[str, Usage] = {}

    async def usage(self, path: str) -> Usage | None:
        """Fresh figures if the mount answers in time, else the last known ones, else None."""
        future = self._running.get(path)
        if future is None:
            future = self._start(path)
            try:
                self._last[path] = await asyncio.wait_for(asyncio.shield(future), self._seconds)
            except (TimeoutError, OSError):
                return self._last.get(path)
        return self._last.get(path)

    async def is_dead(self, path: str) -> bool:
        """Whether the mount's connection has ended. One that answers, or hangs, has not."""
        future = self._running.get(path)
        if future is not None:
            return False
        try:
            await asyncio.wait_for(asyncio.shield(self._start(path)), self._seconds)
        except TimeoutError:
            return False
        except OSError as error:
            return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
        return False

    def forget(self, path: str) -> None:
        self._last.pop(path, None)

    def _start(self, path: str) -> asyncio.Future[Usage]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Usage] = loop.create_future()
        self._running[path] = future

        def finish(usage: Usage | None, error: OSError | None) -> None:
            self._running.pop(path, None)
            if future.cancelled():
                return
            if usage is not None:
                future.set_result(usage)
            else:
                future.set_exception(error or OSError("statvfs gave nothing"))
                future.exception()  # seen: the caller may have gone at its deadline

        def work() -> None:
            usage, failure = None, None
            try:
                usage = read_usage(path)
            except OSError as error:
                failure = error
            if not loop.is_closed():
                loop.call_soon_threadsafe(finish, usage, failure)

        threading.Thread(target=work, name=f"statvfs {path}", daemon=True).start()
        return future


def has_ended(path: str, seconds: float = SECONDS) -> bool:
    """Whether the mount's connection has ended, asked by a thread that is left alone if the mount hangs. Blocks for at most
    so many seconds, and only if somebody holds the connection and does not answer."""
    answer: list[bool] = []

    def ask() -> None:
        try:
            os.statvfs(path)
            answer.append(False)
        except OSError as error:
            answer.append(error.errno in (errno.ENOTCONN, errno.ECONNABORTED))

    thread = threading.Thread(target=ask, name=f"statvfs {path}", daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answer and answer[0])


def read_usage(path: str) -> Usage:
    """statvfs(2) of the path, in bytes and inodes. Raises OSError; may block for as long as the mount is hung."""
    figures = os.statvfs(path)
    return Usage(
        total_bytes=figures.f_blocks * figures.f_frsize,
        available_bytes=figures.f_bavail * figures.f_frsize,
        used_bytes=(figures.f_blocks - figures.f_bfree) * figures.f_frsize,
        total_inodes=figures.f_files,
        available_inodes=figures.f_favail,
        used_inodes=figures.f_files - figures.f_ffree,
    )
