"""Runs every row on every contestant in turn, several times, and keeps what each took.

Between rows nothing is carried over but the files that the next rows need; a cold row remounts and drops the kernel's caches.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.bench.clients import Mounted, PlainDisk
from e2e.bench.rows import ROWS, Row

Contestant = Mounted | PlainDisk


@dataclass(slots=True)
class Measured:
    """Seconds of wall time and of the client's CPU, one figure a run."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


Results = dict[tuple[str, str], Measured]  # by row name and contestant name


def drop_caches() -> None:
    """Clean page cache, directory entries and inodes go, so that a cold read is one."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure(
    contestants: Sequence[Contestant], runs: int, say: Callable[[str], None], rows: Sequence[Row] = ROWS
) -> Results:
    """All rows, *runs* times; contestants change their order with each run."""
    results: Results = defaultdict(Measured)
    for run in range(runs):
        for contestant in contestants:
            contestant.mount()
        order = list(contestants) if run % 2 == 0 else list(reversed(contestants))
        for row in rows:
            for contestant in order:
                if row.cold:
                    contestant.unmount()
                    drop_caches()
                    contestant.mount()
                before = contestant.cpu_seconds()
                start = time.perf_counter()
                row.work(contestant.root)
                took = time.perf_counter() - start
                measured = results[row.name, contestant.name]
                measured.wall.append(took)
                measured.cpu.append(contestant.cpu_seconds() - before)
                say(
                    f"run {run + 1}/{runs}  {row.name:32} {contestant.name:14} {took:8.3f} s  CPU {measured.cpu[-1]:7.2f} s"
                )
        for contestant in contestants:
            stream = contestant.root / "stream"
            if stream.exists():
                stream.unlink()
            contestant.unmount()
    return results
