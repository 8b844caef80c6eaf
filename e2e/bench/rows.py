"""What is measured: each row is prepared untimed, then timed. Pure file-system work, no client known here.

A row prepares what it needs itself, so that any one of them can be run alone. Bars are the least ratios (the real client's seconds
over ours) that are asked for, by engine.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from e2e.bench import metadata, programs, streams

Work = Callable[[Path], None]
# warm: as the preparation leaves it; cold: on a fresh mount without any cache; cached: only the kernel's caches are dropped,
# those of the client stay.
Caches = Literal["warm", "cold", "cached"]


def _bars(redis: float, sqlite3: float) -> Mapping[str, float]:
    return {"redis": redis, "sqlite3": sqlite3}


# Of every row whose bars do not name the engine.
_SERVERS = {"postgres": 1.5, "mysql": 1.5, "etcd": 1.2, "tikv": 1.2}


def nothing(root: Path) -> None:
    """No preparation."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. *large* ones take minutes and run only when they are named; *options* are what both clients must be
    mounted with."""

    name: str
    prepare: Work
    work: Work
    caches: Caches = "warm"
    bars: Mapping[str, float] = field(default_factory=lambda: _bars(1.5, 1.5))
    options: tuple[str, ...] = ()
    large: bool = False

    def bar(self, engine: str) -> float:
        """The least ratio that is asked for on *engine*."""
        return self.bars.get(engine, _SERVERS.get(engine, 1.0))


# In this order: what a row leaves, the next ones need not make again.
ROWS = (
    Row("create 5,000 × 4 KiB", metadata.no_small, metadata.create, bars=_bars(3.0, 3.0)),
    Row("stat 5,000, cold", metadata.have_small, metadata.stat, "cold"),
    Row("list 5,000, cold", metadata.have_small, metadata.listing, "cold", _bars(1.0, 1.0)),
    Row("remove 5,000", metadata.have_small, metadata.remove),
    Row("create 2,000 × 4 KiB by 8 processes", metadata.no_many, metadata.create_many, bars=_bars(1.5, 3.0)),
    Row("append 500 × 4 KiB, opened each time", metadata.no_log, metadata.append),
    Row("truncate 1,000 times", metadata.have_file, metadata.truncate),
    Row("lock and unlock 2,000 times, flock and fcntl", metadata.have_file, metadata.lock),
    Row("1,000 xattrs set, got, listed, removed", metadata.have_file, metadata.xattrs, options=("--enable-xattr",)),
    Row("list 100,000, cold", metadata.have_huge, metadata.list_huge, "cold", large=True),
    Row("tar x, 5,000 small files", programs.no_tree, programs.untar, bars=_bars(3.0, 4.0)),
    Row("ls -lR of it, cold", programs.have_tree, programs.list_tree, "cold", _bars(1.2, 1.2)),
    Row("find in it, cold", programs.have_tree, programs.find, "cold", _bars(1.2, 1.2)),
    Row("read all of it, cold", programs.have_tree, programs.read_tree, "cold"),
    Row("rm -rf of it", programs.have_tree, programs.remove_tree, bars=_bars(2.5, 4.0)),
    Row("git clone", programs.no_clone, programs.clone),
    Row("git status, cold", programs.have_clone, programs.status, "cold"),
    Row("sqlite3, 300 transactions and a scan", programs.no_database, programs.database),
    Row("write 1 GiB", streams.no_stream, streams.write, bars=_bars(1.0, 1.0)),
    Row("read 1 GiB, cold", streams.have_stream, streams.read, "cold", _bars(1.0, 1.0)),
    Row("read 1 GiB, from the client's cache", streams.read_once, streams.read, "cached", _bars(1.0, 1.0)),
    Row("4,000 random 4 KiB reads, cold", streams.have_stream, streams.read_random, "cold", _bars(1.5, 1.5)),
    Row(
        "4,000 random 4 KiB reads, from the client's cache",
        streams.read_once,
        streams.read_random,
        "cached",
        _bars(2, 2),
    ),
    Row("400 random 4 KiB overwrites with fsync", streams.have_stream, streams.overwrite),
    Row("copy_file_range 1 GiB", streams.no_copy, streams.copy),
)


def chosen(pattern: str) -> tuple[Row, ...]:
    """The rows whose name holds one of the pieces of *pattern* that semicolons separate, large ones only when asked for so."""
    pieces = [piece for piece in pattern.split(";") if piece]
    if not pieces:
        return tuple(row for row in ROWS if not row.large)
    return tuple(row for row in ROWS if any(piece in row.name for piece in pieces))
