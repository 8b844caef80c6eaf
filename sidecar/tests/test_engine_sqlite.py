"""What only the SQLite engine has: the file, its tables, other processes' locks, volumes of old clients (format §4.2)."""

import asyncio
import shutil
import sqlite3
from pathlib import Path

import pytest
import store_engines as engines
from jfs.errors import ConfigError, JfsError, StoreUnavailable, VolumeError
from jfs.format.slices import Slice
from jfs.meta.connect import connect
from jfs.meta.engines import rows
from jfs.meta.engines.sqlite import schema
from jfs.meta.engines.sqlite.url import SqliteAddress, parse_address
from jfs.meta.model.attr import Attr, Entry
from jfs.meta.model.keys import ChunkKey, CounterKey, EdgeKey, NodeKey, SettingKey, SliceRefKey, SymlinkKey, XattrKey
from jfs.meta.store.base import Tx


async def put_setting(tx: Tx) -> None:
    tx.put(SettingKey(), b"{}")


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    """What is in the file, by another connection."""
    connection = sqlite3.connect(path)
    connection.text_factory = bytes
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


class TestAddress:
    """The URL."""

    def test_path_and_options(self) -> None:
        assert parse_address("meta.db") == SqliteAddress("meta.db")
        assert parse_address("/a%20b/meta.db") == SqliteAddress("/a%20b/meta.db")
        assert parse_address("m.db?table_prefix=two&_timeout=2000&_journal=delete&cache=shared&max_open_conns=3") == (
            SqliteAddress("m.db", "jfs_two_", "DELETE", 2.0)
        )

    @pytest.mark.parametrize(
        "rest",
        ["", "?a=b", ":memory:", "m.db?table_prefix=a;b", "m.db?_journal=fast", "m.db?_timeout=5s", "m.db?unknown=1"],
    )
    def test_nonsense_is_refused(self, rest: str) -> None:
        with pytest.raises(ConfigError):
            parse_address(rest)

    @pytest.mark.parametrize("url", ["mongodb://host/1", "meta.db", ""])
    async def test_unknown_schemes_are_refused(self, url: str) -> None:
        with pytest.raises(ConfigError):
            await connect(url)


class TestFile:
    """Opening."""

    async def test_reading_makes_no_file(self, tmp_path: Path) -> None:
        store = await connect(f"sqlite3://{tmp_path}/meta.db")
        assert await store.get(SettingKey(), NodeKey(1)) == (None, None)
        assert await store.is_blank()
        assert [session async for session in store.sessions()] == []
        assert list(tmp_path.iterdir()) == []
        await store.run(put_setting)
        assert (tmp_path / "meta.db").exists()
        await store.close()

    async def test_a_file_made_meanwhile_is_seen(self, tmp_path: Path) -> None:
        one, other = await connect(f"sqlite3://{tmp_path}/meta.db"), await connect(f"sqlite3://{tmp_path}/meta.db")
        assert await one.get(SettingKey()) == (None,)
        await other.run(put_setting)
        assert await one.get(SettingKey()) == (b"{}",)
        await one.close()
        await other.close()

    async def test_other_tables_are_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "other.db"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE mine (a)")
        connection.execute("INSERT INTO mine VALUES (1)")
        connection.commit()
        connection.close()
        store = await connect(f"sqlite3://{path}")
        assert await store.is_blank()
        assert query(path, "SELECT name FROM sqlite_master") == [(b"mine",)]
        await store.run(put_setting)
        await store.reset()
        await store.close()
        assert query(path, "SELECT a FROM mine") == [(1,)]

    async def test_two_volumes_in_one_file(self, tmp_path: Path) -> None:
        one = await connect(f"sqlite3://{tmp_path}/meta.db")
        other = await connect(f"sqlite3://{tmp_path}/meta.db?table_prefix=two")
        await one.run(put_setting)
        assert await other.is_blank()
        await other.run(put_setting)
        await one.reset()
        assert await other.get(SettingKey()) == (b"{}",)
        await one.close()
        await other.close()
        names = {name for (name,) in query(tmp_path / "meta.db", "SELECT name FROM sqlite_master")}
        assert {b"jfs_two_edge", b"UQE_jfs_two_edge_edge", b"IDX_jfs_two_edge_inode", b"jfs_edge"} <= names

    async def test_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(StoreUnavailable, match="does not exist"):
            await connect(f"sqlite3://{tmp_path}/missing/meta.db")

    async def test_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "meta.db").write_bytes(b"something else entirely, but long enough to be looked at" * 100)
        with pytest.raises(VolumeError, match="not an SQLite database"):
            await connect(f"sqlite3://{tmp_path}/meta.db")
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            await connect(f"sqlite3://{tmp_path}")

    async def test_a_damaged_database(self, tmp_path: Path) -> None:
        path = tmp_path / "meta.db"
        store = await connect(f"sqlite3://{path}?_journal=delete")

        async def fill(tx: Tx) -> None:
            for ino in range(2, 2000):
                tx.put(NodeKey(ino), engines.file())

        await store.run(fill)
        await store.run(put_setting)
        await store.close()
        data = bytearray(path.read_bytes())
        data[-10 * 4096 :] = b"\xff" * (10 * 4096)  # the inodes are what came last
        path.write_bytes(data)
        store = await connect(f"sqlite3://{path}?_journal=delete")
        with pytest.raises(JfsError, match="damaged"):
            assert [node async for node in store.nodes()]
        await store.close()


class TestLocks:
    """Other processes."""

    async def test_a_lock_is_waited_for(self, tmp_path: Path) -> None:
        store = await connect(f"sqlite3://{tmp_path}/meta.db")
        await store.run(put_setting)
        other = sqlite3.connect(tmp_path / "meta.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        writing = asyncio.create_task(store.next_id("nextSession"))
        assert await store.get(SettingKey()) == (b"{}",)  # readers do not wait
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not writing.done()
        other.execute("COMMIT")
        assert await writing == 1
        other.close()
        await store.close()

    async def test_patience_ends_with_a_sentence(self, tmp_path: Path) -> None:
        store = await connect(f"sqlite3://{tmp_path}/meta.db?_timeout=50")
        await store.run(put_setting)
        other = sqlite3.connect(tmp_path / "meta.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked by another process"):
            await store.run(put_setting)
        other.execute("ROLLBACK")
        other.close()
        await store.run(put_setting)
        await store.close()

    async def test_without_wal_readers_are_waited_for(self, tmp_path: Path) -> None:
        store = await connect(f"sqlite3://{tmp_path}/meta.db?_journal=delete")
        await store.run(put_setting)
        other = sqlite3.connect(tmp_path / "meta.db", isolation_level=None)
        other.execute("BEGIN")
        other.execute("SELECT * FROM jfs_setting").fetchall()
        writing = asyncio.create_task(store.next_id("nextSession"))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not writing.done()
        other.execute("COMMIT")
        assert await writing == 1
        other.close()
        await store.close()

    async def test_a_cancelled_transaction_leaves_no_lock(self, tmp_path: Path) -> None:
        store = await connect(f"sqlite3://{tmp_path}/meta.db")
        started = asyncio.Event()

        async def hang(tx: Tx) -> None:
            tx.put(NodeKey(1), engines.directory())
            started.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(store.run(hang))
        await started.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.run(put_setting)
        assert await store.get(NodeKey(1)) == (None,)
        await store.close()

    async def test_a_transaction_inside_a_transaction_is_found_out(self, tmp_path: Path) -> None:
        store = await connect(f"sqlite3://{tmp_path}/meta.db")

        async def nested(tx: Tx) -> None:
            await store.allot("nextInode", 1)

        with pytest.raises(RuntimeError, match="inside a transaction"):
            await store.run(nested)
        await store.close()


class TestMoves:
    """Entries that go elsewhere keep their row."""

    async def test_the_row_stays(self, tmp_path: Path) -> None:
        store = await connect(f"sqlite3://{tmp_path}/meta.db")

        async def prepare(tx: Tx) -> None:
            tx.put(SettingKey(), b"{}")
            for name, ino in ((b"a", 7), (b"b", 8), (b"c", 9), (b"there", 10)):
                tx.put(EdgeKey(1, name), Entry(1, ino))

        async def move(tx: Tx) -> None:
            """Two go to other places, one of which is not known to be taken; one only changes its name in the directory."""
            await tx.get(*(EdgeKey(1, name) for name in (b"a", b"b", b"c")))
            for name, parent, newname, ino in ((b"a", 2, b"new", 7), (b"b", 1, b"there", 8), (b"c", 1, b"d", 9)):
                tx.delete(EdgeKey(1, name))
                tx.put(EdgeKey(parent, newname), Entry(1, ino))

        await store.run(prepare)
        rows = query(tmp_path / "meta.db", "SELECT inode,id FROM jfs_edge WHERE inode<10 ORDER BY inode")
        await store.run(move)
        assert query(tmp_path / "meta.db", "SELECT parent,name,inode,type FROM jfs_edge ORDER BY inode") == [
            (2, b"new", 7, 1),
            (1, b"there", 8, 1),
            (1, b"d", 9, 1),
        ]
        assert query(tmp_path / "meta.db", "SELECT inode,id FROM jfs_edge ORDER BY inode") == rows
        await store.close()

    async def test_what_takes_the_old_place_is_another(self, tmp_path: Path) -> None:
        """`a` goes to `b` and something new to `a`; two names of one inode go at once."""
        store = await connect(f"sqlite3://{tmp_path}/meta.db")

        async def prepare(tx: Tx) -> None:
            tx.put(SettingKey(), b"{}")
            for name, ino in ((b"a", 7), (b"x", 8), (b"y", 8)):
                tx.put(EdgeKey(1, name), Entry(1, ino))

        async def change(tx: Tx) -> None:
            await tx.get(*(EdgeKey(1, name) for name in (b"a", b"b", b"x", b"y")))
            tx.put(EdgeKey(1, b"b"), Entry(1, 7))
            tx.put(EdgeKey(1, b"a"), Entry(1, 9))
            tx.delete(EdgeKey(1, b"x"))
            tx.delete(EdgeKey(1, b"y"))
            tx.put(EdgeKey(1, b"z"), Entry(1, 8))

        await store.run(prepare)
        await store.run(change)
        assert query(tmp_path / "meta.db", "SELECT name,inode FROM jfs_edge ORDER BY name") == [
            (b"a", 9),
            (b"b", 7),
            (b"z", 8),
        ]
        await store.close()


class TestRows:
    """Times in the node table."""

    @pytest.mark.parametrize(
        ("seconds", "nanoseconds", "micro", "nano"),
        [
            (1_700_000_000, 123_456_789, 1_700_000_000_123_456, 789),
            (0, 999, 0, 999),
            (-1, 999_998_500, -1, -500),
            (-1, 0, -1_000_000, 0),
            (-86_401, 876_543_211, -86_400_123_456, -789),
        ],
    )
    def test_both_ways(self, seconds: int, nanoseconds: int, micro: int, nano: int) -> None:
        attr = engines.file()._replace(mtime=seconds, mtimensec=nanoseconds)
        row = dict(zip(rows.COLUMNS, rows.to_row(attr), strict=True))
        assert (row["mtime"], row["mtimensec"]) == (micro, nano)
        assert rows.from_row(rows.to_row(attr)) == attr


class TestTables:
    """The layout."""

    async def test_types_in_the_file(self, tmp_path: Path) -> None:
        store = await connect(f"sqlite3://{tmp_path}/meta.db")

        async def write(tx: Tx) -> None:
            tx.put(SettingKey(), b"{}")
            tx.put(EdgeKey(1, b"\xff"), Entry(1, 7))
            tx.put(SymlinkKey(8), b"\xfe")
            tx.put(XattrKey(7, b"user.\xfd"), b"\xfc")
            tx.put(CounterKey("nextTrash"), 1)
            tx.put(SliceRefKey(1, 10), 1)
            for number in range(3):
                tx.append(ChunkKey(7, 0), Slice(0, number + 1, 10, 0, 10))

        await store.run(write)
        await store.close()
        path = tmp_path / "meta.db"
        assert query(path, "SELECT name, typeof(name), value, typeof(value) FROM jfs_setting") == [
            (b"format", b"text", b"{}", b"text")
        ]
        assert query(path, "SELECT parent, name, typeof(name), inode, type FROM jfs_edge") == [
            (1, b"\xff", b"blob", 7, 1)
        ]
        assert query(path, "SELECT target, typeof(target) FROM jfs_symlink") == [(b"\xfe", b"blob")]
        assert query(path, "SELECT name, typeof(name), value, typeof(value) FROM jfs_xattr") == [
            (b"user.\xfd", b"text", b"\xfc", b"blob")
        ]
        assert query(path, "SELECT typeof(slices), length(slices) FROM jfs_chunk") == [(b"blob", 72)]
        assert query(path, "SELECT * FROM jfs_chunk_ref") == [(1, 10, 1)]
        assert query(path, "PRAGMA journal_mode") == [(b"wal",)]

    async def test_slices_appended_by_the_real_client_are_text(self, tmp_path: Path) -> None:
        """`||` makes TEXT of two BLOBs; the real client leaves it so (format §4.2.3)."""
        store = await connect(f"sqlite3://{tmp_path}/meta.db")
        records = [Slice(0, number, 0x00C3FF00, 0, 0x80).pack() for number in (1, 2, 3)]

        async def write(tx: Tx) -> None:
            tx.put(ChunkKey(7, 0), records[0])

        await store.run(write)
        other = sqlite3.connect(tmp_path / "meta.db", isolation_level=None)
        other.execute("UPDATE jfs_chunk SET slices = slices || ?", (records[1],))
        assert other.execute("SELECT typeof(slices) FROM jfs_chunk").fetchone() == ("text",)
        other.close()
        assert await store.get(ChunkKey(7, 0)) == (records[0] + records[1],)

        async def append(tx: Tx) -> None:
            tx.append(ChunkKey(7, 0), Slice(0, 3, 0x00C3FF00, 0, 0x80))

        await store.run(append)
        assert await store.get(ChunkKey(7, 0)) == (b"".join(records),)
        await store.close()

    async def test_a_new_database_has_the_real_clients_tables(self, tmp_path: Path) -> None:
        store = await connect(f"sqlite3://{tmp_path}/meta.db")
        await store.run(put_setting)
        await store.close()

        def described(path: Path) -> dict[object, object]:
            rows = query(path, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
            return dict(rows)  # type: ignore[arg-type]

        assert described(tmp_path / "meta.db") == described(engines.golden() / "sqlite-plain" / "meta.db")

    async def test_what_is_missing_is_added(self, tmp_path: Path) -> None:
        """Tables, columns and indexes that an older client did not make; columns of a newer one stay."""
        path = tmp_path / "meta.db"
        store = await connect(f"sqlite3://{path}")

        async def write(tx: Tx) -> None:
            tx.put(SettingKey(), b"{}")
            tx.put(NodeKey(7), engines.file())

        await store.run(write)
        await store.close()
        other = sqlite3.connect(path, isolation_level=None)
        for column in ("tier_id", "mtimensec"):
            other.execute(f"ALTER TABLE jfs_node DROP COLUMN {column}")
        other.execute("ALTER TABLE jfs_node ADD COLUMN from_the_future INTEGER DEFAULT 5")
        other.execute("DROP TABLE jfs_change_log")
        other.execute("DROP INDEX IDX_jfs_edge_inode")
        other.close()
        store = await connect(f"sqlite3://{path}")
        assert await store.get(NodeKey(7)) == (engines.file()._replace(mtimensec=0),)

        async def change(tx: Tx) -> None:
            (attr,) = await tx.get(NodeKey(7))
            assert attr is not None
            tx.put(NodeKey(7), attr._replace(mtimensec=77, tier=3))

        await store.run(change)
        assert await store.get(NodeKey(7)) == (engines.file()._replace(mtimensec=77, tier=3),)
        await store.close()
        connection = sqlite3.connect(path)
        connection.text_factory = bytes
        assert schema.missing_statements(schema.inspect(connection, "jfs_"), "jfs_") == []
        connection.close()
        assert query(path, "SELECT from_the_future FROM jfs_node") == [(5,)]

    async def test_a_volume_of_an_old_client(self, tmp_path: Path) -> None:
        """0.14.2 kept names as TEXT, without ids, nanoseconds, ACLs and tiers (format §4.2.3, name binding rule)."""
        path = tmp_path / "meta.db"
        shutil.copyfile(engines.golden() / "sqlite-old" / "meta.db", path)
        store = await connect(f"sqlite3://{path}")
        names = [name async for page in store.list_directory(1, plus=True) for name in page.names]
        assert names
        for name in names:
            assert await store.lookup(1, name) is not None, name

        async def replace(tx: Tx) -> None:
            (entry,) = await tx.get(EdgeKey(1, names[0]))
            assert entry is not None
            tx.put(EdgeKey(1, names[0]), entry._replace(ino=entry.ino + 1000))
            tx.put(EdgeKey(1, b"new"), entry)
            tx.delete(EdgeKey(1, names[1]))

        await store.run(replace)
        listed = [name async for page in store.list_directory(1, plus=False) for name in page.names]
        assert sorted(listed) == sorted([*(set(names) - {names[1]}), b"new"])
        assert await store.lookup(1, names[1]) is None
        await store.close()

    async def test_null_reads_as_zero(self, tmp_path: Path) -> None:
        path = tmp_path / "meta.db"
        store = await connect(f"sqlite3://{path}")

        async def write(tx: Tx) -> None:
            tx.put(NodeKey(7), engines.file())

        await store.run(write)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("UPDATE jfs_node SET rdev=NULL, parent=NULL, access_acl_id=NULL, tier_id=NULL")
        other.close()
        expected: Attr = engines.file()._replace(parent=0)
        assert await store.get(NodeKey(7)) == (expected,)
        await store.close()
