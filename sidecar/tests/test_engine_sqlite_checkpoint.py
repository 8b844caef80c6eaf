"""Checkpoints of SQLite's log beside the commits."""

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import store_engines as engines
from jfs.meta.connect import connect
from jfs.meta.engines.sqlite import checkpoint
from jfs.meta.engines.sqlite.store import SqliteStore
from jfs.meta.model.keys import NodeKey
from jfs.meta.store.base import Tx


async def fill(store: SqliteStore, count: int) -> None:
    for ino in range(1, count + 1):

        async def write(tx: Tx, ino: int = ino) -> None:
            tx.put(NodeKey(ino), engines.file())

        await store.run(write)


def in_the_file(path: Path, folder: Path) -> int:
    """Inodes that the database file has without its log."""
    copy = folder / "alone.db"
    copy.write_bytes(path.read_bytes())
    with closing(sqlite3.connect(f"file:{copy}?immutable=1", uri=True)) as other:
        return int(other.execute("SELECT count(*) FROM jfs_node").fetchone()[0])


async def opened(path: Path) -> SqliteStore:
    store = await connect(f"sqlite3://{path}")
    assert isinstance(store, SqliteStore)
    return store


async def ended(store: SqliteStore) -> None:
    checkpoints = store._database._checkpoints
    assert checkpoints is not None
    await checkpoints.finish()


async def test_pages_leave_the_log_while_others_write(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    store = await opened(path)
    await fill(store, checkpoint.COMMITS - 1)
    await ended(store)
    assert path.stat().st_size == 4096  # the first page: the tables themselves are in the log
    await fill(store, 2)
    await ended(store)
    assert in_the_file(path, tmp_path) >= checkpoint.COMMITS - 1
    await fill(store, checkpoint.COMMITS)  # the next one comes, and writing goes on meanwhile
    await ended(store)
    await store.close()
    assert not (tmp_path / "meta.db-wal").exists()
    assert in_the_file(path, tmp_path) == checkpoint.COMMITS


async def test_one_that_fails_is_told_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "COMMITS", 3)
    store = await opened(tmp_path / "meta.db")
    await fill(store, 1)
    checkpoints = store._database._checkpoints
    assert checkpoints is not None
    checkpoints._path = str(tmp_path / "missing" / "meta.db")
    checkpoints._until = 1
    with caplog.at_level(logging.WARNING):
        await fill(store, 1)
        await ended(store)
        await asyncio.sleep(0)
    assert "stays long" in caplog.text
    await fill(store, 5)
    await store.close()


async def test_without_a_log_there_is_none(tmp_path: Path) -> None:
    store = await connect(f"sqlite3://{tmp_path}/meta.db?_journal=delete")
    assert isinstance(store, SqliteStore)
    await fill(store, 1)
    assert store._database._checkpoints is None
    await store.close()
