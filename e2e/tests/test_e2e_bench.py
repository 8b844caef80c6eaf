"""The benchmark's rows on a plain directory, its choice of rows, and its tables."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.bench import metadata, programs, streams, table
from e2e.bench.clients import Mounted
from e2e.bench.rows import ROWS, Row, chosen
from e2e.bench.run import Measured

SMALL = {
    metadata: {"FILES": 5, "MANY": 16, "HUGE": 5, "APPENDS": 2, "TRUNCATES": 3, "LOCKS": 4, "XATTRS": 10},
    programs: {"FILES": 100, "SOURCES": 20, "COMMITS": 2, "CHANGED": 5, "TRANSACTIONS": 3},
    streams: {"STREAM": 1 << 20, "PIECE": 1 << 16, "RANDOM_READS": 5, "OVERWRITES": 3},
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with what the programs' rows unpack and clone beside it; everything small."""
    for module, numbers in SMALL.items():
        for name, number in numbers.items():
            monkeypatch.setattr(module, name, number)
    programs.archive(tmp_path / "small.tar")
    programs.repository(tmp_path / "repository.git")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def test_every_row_runs_alone_and_again_after_the_others(root: Path) -> None:
    rows = [row for row in ROWS if not row.options]  # extended attributes of users are not on every disk
    for row in (*rows, *reversed(rows)):
        row.prepare(root)
        row.work(root)


def test_rows_notice_what_is_missing(root: Path) -> None:
    metadata.have_small(root)
    (root / "small" / "f00001").unlink()
    with pytest.raises(RuntimeError, match="has 4 entries instead of 5"):
        metadata.listing(root)
    programs.have_clone(root)
    (root / "clone" / "src" / "m00" / "file0000.txt").unlink()
    with pytest.raises(RuntimeError, match="git sees changes"):
        programs.status(root)
    streams.have_stream(root)
    os.truncate(root / "stream", 5)
    with pytest.raises(RuntimeError, match="has 5 bytes"):
        streams.read(root)


def test_names_are_unique_and_choose() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(not row.large for row in chosen(""))
    assert [row.name for row in chosen("list 100,000;rm -rf")] == ["list 100,000, cold", "rm -rf of it"]
    assert chosen("no such row") == ()


def test_tables_have_medians_ratios_and_bars() -> None:
    row = Row("a row", lambda root: None, lambda root: None, bars={"redis": 1.5, "sqlite3": 3.0})
    results = {
        ("a row", table.OURS): Measured([1.0, 3.0, 2.0], [0.5, 0.5, 0.5], [30 << 20] * 3),
        ("a row", table.PEER): Measured([4.0, 5.0, 9.0], [1.0, 1.0, 1.0], [90 << 20] * 3),
        ("a row", table.DISK): Measured([0.1, 0.1, 0.1], [0.0] * 3, [0] * 3),
    }
    text = table.markdown(results, "title", ["a note"], [row], "redis")
    assert "| a row | 2.00 (1.00–3.00) | 0.50 | 30 | 5.00 (4.00–9.00) | 1.00 | 90 | 0.100 (0.100–0.100) |" in text
    assert "| **2.50** | 1.5 | 2.00 |" in text
    assert "- a note" in text
    assert "**2.50** ✗ | 3.0" in table.markdown(results, "title", [], [row], "sqlite3")
    (found,) = json.loads(json.dumps(table.document(results, [], [row], "redis")))["rows"]
    assert found["ratio"] == 2.5
    assert found["cpu_ratio"] == 2.0
    assert found["peak_rss_bytes"]["ours"] == [30 << 20] * 3


class Here(Mounted):
    """Counts this process instead of a client."""

    def __init__(self) -> None:
        """Nothing is formatted."""

    def _tree(self) -> Iterator[int]:
        yield os.getpid()


def test_cpu_and_memory_are_those_of_the_process() -> None:
    here = Here()
    before = here.cpu_seconds()
    kept = bytearray(os.urandom(1 << 20) * 20)
    while here.cpu_seconds() - before < 0.01:
        pass
    assert here.rss() > 20 << 20
    assert here.peak_rss() >= here.rss() - (1 << 20)
    del kept
