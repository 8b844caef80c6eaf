"""Runs every row on every contestant in turn, several times, and keeps what each took.

Between rows nothing is carried over but the files that the next rows need. A cold row gets a fresh mount and empty kernel
caches, a cached one only the latter.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.bench.clients import Mounted, PlainDisk
from e2e.bench.rows import Row

Contestant = Mounted | PlainDisk
SETTLE = 1.0  # seconds after a mount: the row is measured, not what a client does when it starts


@dataclass(slots=True)
class Measured:
    """Seconds of wall time and of the client's CPU, and bytes of its largest resident size, one figure a run."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)


Results = dict[tuple[str, str], Measured]  # by row name and contestant name


def drop_caches() -> None:
    """Clean page cache, directory entries and inodes go, so that a cold read is one."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure(contestants: Sequence[Contestant], runs: int, say: Callable[[str], None], rows: Sequence[Row]) -> Results:
    """All rows, *runs* times; contestants change their order with each run."""
    results: Results = defaultdict(Measured)
    for run in range(runs):
        order = list(contestants) if run % 2 == 0 else list(reversed(contestants))
        for row in rows:
            for contestant in order:
                measured = results[row.name, contestant.name]
                _one(contestant, row, measured)
                say(
                    f"run {run + 1}/{runs}  {row.name:44} {contestant.name:14} {measured.wall[-1]:8.3f} s"
                    f"  CPU {measured.cpu[-1]:7.3f} s  {measured.rss[-1] >> 20:4} MiB"
                )
        for contestant in contestants:
            contestant.unmount()
    return results


def _one(contestant: Contestant, row: Row, measured: Measured) -> None:
    contestant.mount(row.options)
    row.prepare(contestant.root)
    if row.caches == "cold":
        contestant.unmount()
    if row.caches != "warm":
        drop_caches()
    contestant.mount(row.options)
    if row.caches == "cold":
        time.sleep(SETTLE)
    contestant.forget_peak()
    before = contestant.cpu_seconds()
    start = time.perf_counter()
    row.work(contestant.root)
    measured.wall.append(time.perf_counter() - start)
    measured.cpu.append(contestant.cpu_seconds() - before)
    measured.rss.append(contestant.peak_rss())
