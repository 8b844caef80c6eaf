"""The volume's change log: what each committed transaction did, a line for each operation, for programs that follow the volume
(format §3.14).

Place: the operations put entries (`operations.journal`) into their transaction's `journal`; the engine has them turned into lines
here when it commits and writes them in the same commit, so that the log has what happened, once, and nothing else. Volumes without
a log have no `ChangeLog`, and their transactions no journal. One event loop.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jfs.meta.model.keys import ChunkKey

SECOND = 1_000_000_000


class LogEntry(NamedTuple):
    """One operation: its text without the frame of a line, its time (ns; None: that of the commit), and the chunk whose number of
    records is the operation's result where the engine knows it."""

    text: str
    time: int | None = None
    counted: ChunkKey | None = None


class ChangeLog:
    """The lines of one client; *sid* is its session, 0 outside of one."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self.sid = 0
        self._clock = clock
        self._last = 0

    def lines(self, entries: Sequence[LogEntry], count: Callable[[ChunkKey], int] | None = None) -> list[bytes]:
        """*entries* as they are stored, with the numbers of this client's next transactions. *count*: records of a chunk after the
        commit; without it 0 is said, as the real client does on Redis."""
        made = []
        for entry in entries:
            self._last += 1
            seconds, nanoseconds = divmod(self._clock() if entry.time is None else entry.time, SECOND)
            text = entry.text
            if entry.counted is not None:
                text += f":{count(entry.counted) if count is not None else 0}"
            made.append(f"{seconds}.{nanoseconds:09d}|{text}|({self.sid},{self._last})".encode())
        return made

    def line(self, text: str) -> bytes:
        """A single entry of now."""
        return self.lines([LogEntry(text)])[0]


def incremented(counter: str, count: int) -> str:
    """Ids were taken from a counter."""
    return f"INCR_COUNTER({counter},{count})"
