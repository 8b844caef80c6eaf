"""Group commit on SQLite: operations that share a COMMIT have their own results and errors, and nobody hears of anything before it."""

import asyncio
import errno
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import store_engines as engines
from hypothesis import given, settings
from hypothesis import strategies as st
from jfs.errors import FsError
from jfs.meta.connect import connect
from jfs.meta.engines.sqlite import group
from jfs.meta.engines.sqlite.store import SqliteStore
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import CounterKey, EdgeKey, NodeKey, SettingKey, SymlinkKey
from jfs.meta.store.base import Tx
from meta_volumes import SUPERUSER, volume

FOLDER = 5
USED = CounterKey("usedSpace")


async def put_setting(tx: Tx) -> None:
    tx.put(SettingKey(), b"{}")


@asynccontextmanager
async def opened(path: Path, options: str = "") -> AsyncIterator[SqliteStore]:
    """A store whose every attempt waits for others, with the texts of its COMMITs counted in `commits`."""
    store = await connect(f"sqlite3://{path}{options}")
    assert isinstance(store, SqliteStore)
    await store.run(put_setting)
    store._database._until_probe = 1
    yield store
    await store.close()


@pytest.fixture(autouse=True)
def always_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "PROBE", 1)


def foreign(path: Path) -> "closing[sqlite3.Connection]":
    """Another program's connection."""
    return closing(sqlite3.connect(path, isolation_level=None, timeout=0))


async def make(store: SqliteStore, name: bytes, ino: int) -> None:
    """An entry with its inode; EEXIST."""

    async def operation(tx: Tx) -> None:
        (entry,) = await tx.get(EdgeKey(FOLDER, name))
        if entry is not None:
            raise FsError(errno.EEXIST)
        tx.put(NodeKey(ino), engines.file(ino))
        tx.put(EdgeKey(FOLDER, name), Entry(1, ino))
        tx.add(USED, 1)

    await store.run(operation)


async def remove(store: SqliteStore, name: bytes, ino: int) -> None:
    """The entry goes; ENOENT."""

    async def operation(tx: Tx) -> None:
        (entry,) = await tx.get(EdgeKey(FOLDER, name))
        if entry is None:
            raise FsError(errno.ENOENT)
        tx.delete(NodeKey(entry.ino))
        tx.delete(EdgeKey(FOLDER, name))
        tx.add(USED, -1)

    await store.run(operation)


async def tear(store: SqliteStore, name: bytes, ino: int) -> None:
    """Fails between its writes: no such number fits into a row."""

    async def operation(tx: Tx) -> None:
        tx.put(EdgeKey(FOLDER, name), Entry(1, ino))
        tx.put(NodeKey(ino), engines.file(1 << 70))

    await store.run(operation)


async def look(store: SqliteStore, name: bytes, ino: int) -> None:
    """ENOENT when there is no entry."""
    if await store.lookup(FOLDER, name) is None:
        raise FsError(errno.ENOENT)


async def write_elsewhere(store: SqliteStore, name: bytes, ino: int) -> None:
    """Another program makes the entry, or finds that it has to come later."""
    with foreign(Path(store._database._address.path)) as other:
        try:
            other.execute("INSERT OR IGNORE INTO jfs_edge(parent,name,inode,type) VALUES(?,?,?,1)", (FOLDER, name, ino))
        except sqlite3.OperationalError as error:
            raise FsError(errno.EBUSY) from error


OPERATIONS = {call.__name__: call for call in (make, remove, tear, look, write_elsewhere)}
NAMES = (b"a", b"b", b"c")
WAVES = st.lists(
    st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.sampled_from(NAMES)), max_size=8), max_size=6
)


def expected(entries: dict[bytes, int], what: str, name: bytes, ino: int) -> str:
    """What an operation does when it is alone, and its result."""
    if what == "tear":
        return "OverflowError"
    if what == "make":
        if name in entries:
            return "EEXIST"
        entries[name] = ino
    elif name not in entries and what != "write_elsewhere":
        return "ENOENT"
    elif what == "remove":
        del entries[name]
    elif what == "write_elsewhere":
        entries.setdefault(name, ino)
    return ""


@settings(max_examples=60, deadline=None)
@given(WAVES)
def test_results_are_those_of_one_after_the_other(waves: list[list[tuple[str, bytes]]]) -> None:
    """In the order in which operations ended, each had the result that it has alone; the file holds what the last left, and nothing
    of those that failed."""

    async def play(folder: str) -> None:
        path = Path(folder) / "meta.db"
        entries: dict[bytes, int] = {}
        numbers = iter(range(100, 1000))
        async with opened(path) as store:

            async def one(what: str, name: bytes, ino: int) -> None:
                found = ""
                try:
                    await OPERATIONS[what](store, name, ino)
                except FsError as error:
                    found = errno.errorcode[error.errno]
                except OverflowError:
                    found = "OverflowError"
                if found != "EBUSY":
                    assert found == expected(entries, what, name, ino), (what, name)

            for wave in waves:
                await asyncio.gather(*(one(what, name, next(numbers)) for what, name in wave))
        with foreign(path) as other:
            assert dict(other.execute("SELECT name,inode FROM jfs_edge")) == entries
            made = other.execute("SELECT count(*) FROM jfs_node").fetchone()[0]
            (used,) = other.execute("SELECT ifnull(sum(value),0) FROM jfs_counter WHERE name='usedSpace'").fetchone()
            assert made >= used
            assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    with TemporaryDirectory() as folder:
        asyncio.run(play(folder))


async def test_many_operations_share_one_commit(tmp_path: Path) -> None:
    commits: list[str] = []
    async with opened(tmp_path / "meta.db") as store:
        store._database.connection.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        await asyncio.gather(*(make(store, b"%d" % number, number) for number in range(10, 40)))
        assert len(commits) == 1
        assert await store.get(USED) == (30,)


async def test_nothing_is_told_before_the_commit(tmp_path: Path) -> None:
    """Whoever hears of an operation, its caller or a reader, finds it in the file."""
    path = tmp_path / "meta.db"
    async with opened(path) as store:
        with foreign(path) as other:

            def stored(name: bytes) -> bool:
                return bool(other.execute("SELECT 1 FROM jfs_edge WHERE name=?", (name,)).fetchall())

            async def write(name: bytes, ino: int) -> None:
                await make(store, name, ino)
                assert stored(name)

            async def read(name: bytes) -> bool:
                found = await store.lookup(FOLDER, name) is not None
                assert found == stored(name)
                return found

            async def fail(name: bytes) -> None:
                with pytest.raises(FsError):
                    await make(store, name, 9)
                assert stored(name)

            _, early, _, late, _ = await asyncio.gather(
                write(b"a", 10), read(b"a"), write(b"b", 11), read(b"b"), fail(b"b")
            )
            assert (early, late) == (True, True)


async def test_a_full_disk_hits_who_needs_the_room(tmp_path: Path) -> None:
    """SQLite undoes the whole transaction; the others do not notice."""
    async with opened(tmp_path / "meta.db") as store:
        await make(store, b"first", 10)
        connection = store._database.connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + 20}").fetchall()

        async def large(tx: Tx) -> None:
            tx.put(SymlinkKey(30), b"x" * (1 << 20))

        results = await asyncio.gather(
            make(store, b"a", 11),
            store.run(large),
            make(store, b"first", 12),
            make(store, b"b", 13),
            return_exceptions=True,
        )
        assert [getattr(result, "errno", result) for result in results] == [None, errno.ENOSPC, errno.EEXIST, None]
        assert await store.get(EdgeKey(FOLDER, b"a"), EdgeKey(FOLDER, b"b"), SymlinkKey(30)) == (
            Entry(1, 11),
            Entry(1, 13),
            None,
        )
        assert store.restarts == 2  # the one before it, and itself


async def test_those_who_wait_for_another_program_go_on_together(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    commits: list[str] = []
    async with opened(path) as store:
        store._database.connection.set_trace_callback(lambda text: commits.append(text) if text == "COMMIT" else None)
        with foreign(path) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("INSERT INTO jfs_edge(parent,name,inode,type) VALUES(?,?,7,1)", (FOLDER, b"3"))
            writing = [asyncio.create_task(make(store, b"%d" % number, 10 + number)) for number in range(8)]
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not any(task.done() for task in writing)
            other.execute("COMMIT")
            results = await asyncio.gather(*writing, return_exceptions=True)
        assert [number for number, result in enumerate(results) if isinstance(result, FsError)] == [3]
        assert len(commits) == 1


async def test_two_mounts_lose_no_update(tmp_path: Path) -> None:
    async with opened(tmp_path / "meta.db") as one, opened(tmp_path / "meta.db") as two:

        async def increment(tx: Tx) -> None:
            (attr,) = await tx.get(NodeKey(7))
            tx.put(NodeKey(7), engines.file(attr.length + 1 if attr is not None else 1))

        async def work(store: SqliteStore) -> None:
            for _ in range(10):
                await store.run(increment)

        await asyncio.gather(*(work(store) for store in (one, two) for _ in range(8)))
        assert await one.get(NodeKey(7)) == (engines.file(160),)


async def test_without_wal_a_commit_that_waits_shows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    async with opened(path, "?_journal=delete") as store:
        with foreign(path) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM jfs_edge").fetchall()
            writing = [asyncio.create_task(make(store, b"%d" % number, 10 + number)) for number in range(4)]
            for _ in range(20):
                await asyncio.sleep(0.001)
            reading = asyncio.create_task(store.lookup(FOLDER, b"0"))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not any(task.done() for task in (*writing, reading))
            other.execute("COMMIT")
            await asyncio.gather(*writing)
            assert await reading is not None


async def test_a_cancelled_member_leaves_the_others_alone(tmp_path: Path) -> None:
    async with opened(tmp_path / "meta.db") as store:
        tasks = [asyncio.create_task(make(store, b"%d" % number, 10 + number)) for number in range(3)]
        asyncio.get_running_loop().call_soon(tasks[1].cancel)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [type(None), asyncio.CancelledError, type(None)]
        await make(store, b"later", 20)
        assert await store.get(EdgeKey(FOLDER, b"0"), EdgeKey(FOLDER, b"2")) == (Entry(1, 10), Entry(1, 12))


async def test_a_file_closed_while_it_loses_its_name_is_gone(tmp_path: Path) -> None:
    """The last close comes between the unlink's attempt and its end."""
    async with volume("sqlite3", tmp_path) as made:
        meta = await made.client()
        ino, _, _ = await meta.create(SUPERUSER, 1, b"file", 0o644, os.O_RDWR)
        await asyncio.gather(meta.unlink(SUPERUSER, 1, b"file"), meta.release(ino))
        assert [kept async for kept in meta.store.sustained(meta.sid)] == []
        assert await meta.store.get(NodeKey(ino)) == (None,)


WRITER = """
import asyncio, os, sys
from jfs.meta.engines.sqlite import group
group.PROBE = 1
import test_engine_sqlite_group as tests
async def main():
    async with tests.opened(tests.Path(sys.argv[1])) as store:
        async def work(name):
            number = 0
            while True:
                number += 1
                await tests.make(store, b"%d-%d" % (name, number), name * 1000000 + number)
                os.write(1, b"%d-%d\\n" % (name, number))
        await asyncio.gather(*(work(name) for name in range(1, 9)))
asyncio.run(main())
"""


@pytest.mark.parametrize("lines", [1, 40, 333])
def test_what_was_told_survives_a_kill_in_the_middle_of_a_group(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "meta.db"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline().strip() for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
        told += writer.stdout.read().split()
    with foreign(path) as other:
        assert other.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        entries = dict(other.execute("SELECT name,inode FROM jfs_edge").fetchall())
        assert entries.keys() >= set(told)
        assert {ino for (ino,) in other.execute("SELECT inode FROM jfs_node")} == set(entries.values())
        assert other.execute("SELECT value FROM jfs_counter WHERE name='usedSpace'").fetchone() == (len(entries),)
