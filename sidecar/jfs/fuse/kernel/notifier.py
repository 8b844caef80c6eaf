"""Notes of our own host to the kernel: what it caches is not so any more.

A note may block on locks that a request under way holds, so notes are written by a thread of their own, which starts with the
first one; but for those about attributes only, which the kernel takes without waiting for anything.
"""

import asyncio
import errno
import logging
import os
import queue
import threading
from collections.abc import Callable
from typing import Final

from jfs.fuse.kernel import protocol

log = logging.getLogger("jfs.fuse")

GONE: Final = (errno.ENODEV, errno.ENOTCONN, errno.EBADF)
DROPPED: Final = (errno.ENOENT, errno.EINTR, errno.EAGAIN)


class Notifier:
    """Notes to the kernel, written by a thread that starts with the first one."""

    def __init__(self) -> None:
        self._notes: queue.SimpleQueue[bytes | Callable[[], object] | None] = queue.SimpleQueue()
        self._noted = 0
        self._done = 0  # of those, changed by the thread only
        self._thread: threading.Thread | None = None
        self._fd = -1

    def open(self, fd: int) -> None:
        self._fd = fd

    def entry(self, parent: int, name: bytes) -> None:
        """The name is not what it was."""
        self._note(protocol.invalidate_entry(parent, name))

    def inode(self, ino: int) -> None:
        """Attributes and pages of the inode are not what they were. The kernel drops the pages itself when it sees another time or
        length (AUTO_INVAL_DATA). Told to drop them, it would wait for pages that a reader has locked: a thread that waits so keeps
        the descriptor open when this process is killed, and the mount would hang with its readers for ever."""
        self.attributes(ino)

    def attributes(self, ino: int) -> None:
        """The attributes are not what they were: the kernel takes this note without waiting for anything."""
        if self._fd >= 0:
            self._write(protocol.invalidate_inode(ino))

    def _note(self, note: bytes) -> None:
        if self._fd < 0:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="fuse-notify", daemon=True)
            self._thread.start()
        self._noted += 1
        self._notes.put(note)

    async def written(self) -> None:
        """Returns when all notes so far are with the kernel."""
        if self._done == self._noted:
            return
        loop = asyncio.get_running_loop()
        turn = asyncio.Event()
        self._notes.put(lambda: loop.call_soon_threadsafe(turn.set))
        await turn.wait()

    def _run(self) -> None:
        while (note := self._notes.get()) is not None:
            if isinstance(note, bytes):
                self._write(note)
                self._done += 1
            else:
                note()

    def _write(self, note: bytes) -> None:
        try:
            os.write(self._fd, note)
        except OSError as error:
            if error.errno not in (*GONE, *DROPPED):  # ENOENT: the kernel had nothing cached
                log.warning("a note to the kernel was refused: %s", error)

    def close(self) -> None:
        self._fd = -1
        if self._thread is not None:
            self._notes.put(None)
            self._thread.join(timeout=1.0)
