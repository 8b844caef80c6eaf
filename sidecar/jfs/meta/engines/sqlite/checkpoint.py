"""Checkpoints beside the commits: pages go from the write-ahead log into the database file in a thread, so that no operation waits for it.

Place: told of each commit by `SqliteDatabase`, in WAL mode only. A checkpoint costs two fsyncs and the writing of every changed page. It
runs on a connection of its own and takes what was committed before it began; the log starts anew when one has taken everything, which
under steady writing is left to SQLite's own checkpoint of the writing connection: it finds little left to do. One event loop; one
checkpoint at a time.
"""

import asyncio
import logging
import sqlite3
from typing import Final

log = logging.getLogger(__name__)

COMMITS: Final = 400  # between two checkpoints: some 3,000 pages
LONGEST: Final = 8000  # pages of the log from which a commit does it itself


class Checkpoints:
    """Those of one database file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._until = COMMITS
        self._running: asyncio.Future[None] | None = None

    def committed(self) -> None:
        """A transaction was committed."""
        self._until -= 1
        if self._until <= 0 and self._running is None:
            self._until = COMMITS
            self._running = asyncio.get_running_loop().run_in_executor(None, self._run)
            self._running.add_done_callback(self._ended)

    def _run(self) -> None:
        connection = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                "PRAGMA wal_checkpoint(PASSIVE)"
            ).fetchone()  # one that is under way elsewhere is as good
        finally:
            connection.close()

    def _ended(self, running: asyncio.Future[None]) -> None:
        self._running = None
        if not running.cancelled() and (error := running.exception()) is not None:
            log.warning("the log of the SQLite database %s stays long: %s", self._path, error)

    async def finish(self) -> None:
        """Wait for the one under way."""
        if self._running is not None:
            await asyncio.wait([self._running])
