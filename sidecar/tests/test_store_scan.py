"""Scans of whole kinds of records on every engine, damaged ones included, and SQLite's names of the wrong type."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from jfs.errors import CorruptRecord
from jfs.format.slices import Slice
from jfs.meta.model.attr import Entry
from jfs.meta.model.keys import (
    ChunkKey,
    DetachedKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    Key,
    NodeKey,
    ParentKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.store.base import Tx
from store_engines import ALL, database, directory, file

RECORDS: dict[Key[Any], Any] = {
    NodeKey(1): directory(),
    NodeKey(2): file(7, 2, 0),
    EdgeKey(1, b"a"): Entry(1, 2),
    EdgeKey(1, b"\xff b"): Entry(1, 2),
    SymlinkKey(3): b"target",
    XattrKey(2, b"user.x"): b"value",
    ChunkKey(2, 0): Slice(0, 5, 7, 0, 7).pack() * 3,
    ChunkKey(2, 12): Slice(0, 6, 7, 0, 7).pack(),
    ParentKey(2, 1): 2,
    SliceRefKey(5, 7): 3,
    SliceRefKey(9, 7): 0,
    DirStatKey(1): DirStat(14, 8192, 2),
    SustainedKey(4, 2): True,
    DetachedKey(8): 1_700_000_000,
}


@pytest.mark.parametrize("engine", ALL)
async def test_every_record_of_a_kind_is_found(engine: str, tmp_path: Path) -> None:
    async with database(engine, tmp_path) as open_client:
        store = await open_client()

        async def fill(tx: Tx) -> None:
            for key, record in RECORDS.items():
                tx.put(key, record)

        await store.run(fill)
        for kind in {type(key) for key in RECORDS}:
            found = {key: record async for key, record in store.scan(kind)}
            wanted = {key: record for key, record in RECORDS.items() if type(key) is kind}
            if kind is XattrKey:
                wanted = dict.fromkeys(wanted, b"")
            assert found == wanted, kind
        assert await store.get(DetachedKey(8), DetachedKey(9)) == (1_700_000_000, None)
        assert await store.flaws(repair=False) == []


async def test_many_rows_take_several_pages(tmp_path: Path) -> None:
    async with database("sqlite3", tmp_path) as open_client:
        store = await open_client()

        async def fill(tx: Tx) -> None:
            for number in range(9000):
                tx.put(NodeKey(number + 2), file(1, 2, 0))
                tx.put(EdgeKey(1, b"%d" % number), Entry(1, number + 2))

        await store.run(fill)
        for kind in (NodeKey, EdgeKey, ParentKey):
            assert len({key async for key, _ in store.scan(kind)}) == 9000


@pytest.mark.parametrize("engine", [pytest.param("redis", marks=pytest.mark.real)])
async def test_damaged_records_come_as_such_on_redis(engine: str, tmp_path: Path) -> None:
    async with database(engine, tmp_path) as open_client:
        store: Any = await open_client()
        await store._link.change(
            [
                (b"SET", b"i2", b"short"),
                (b"HSET", b"d1", b"name", b"bad"),
                (b"RPUSH", b"c2_0", b"x" * 24, b"torn"),
                (b"HSET", b"sliceRef", b"nonsense", b"1"),
                (b"HSET", b"dirUsedSpace", b"1", b"4096"),
                (b"HSET", b"p2", b"1", b"many"),
            ]
        )
        for kind in (NodeKey, EdgeKey, ChunkKey, SliceRefKey, DirStatKey, ParentKey):
            ((_, record),) = [found async for found in store.scan(kind)]
            assert isinstance(record, CorruptRecord), kind


async def test_a_torn_list_comes_as_such_on_sqlite(tmp_path: Path) -> None:
    async with database("sqlite3", tmp_path) as open_client:
        store = await open_client()

        async def fill(tx: Tx) -> None:
            tx.put(ChunkKey(2, 3), b"12345")

        await store.run(fill)
        ((key, record),) = [found async for found in store.scan(ChunkKey)]
        assert key == ChunkKey(2, 3)
        assert isinstance(record, CorruptRecord)


async def test_names_of_the_wrong_type_are_counted_and_converted(tmp_path: Path) -> None:
    async with database("sqlite3", tmp_path) as open_client:
        store = await open_client()

        async def fill(tx: Tx) -> None:
            tx.put(NodeKey(1), directory())
            tx.put(EdgeKey(1, b"both"), Entry(1, 2))

        await store.run(fill)
        with sqlite3.connect(tmp_path / "meta.db") as other:
            other.execute("INSERT INTO jfs_edge(parent,name,inode,type) VALUES(1,'text',3,1),(1,'both',4,1)")
            other.execute("INSERT INTO jfs_xattr(inode,name,value) VALUES(1,x'6162',x'01')")
        other.close()
        assert await store.get(EdgeKey(1, b"text"), XattrKey(1, b"ab")) == (None, None)
        names, xattrs = await store.flaws(repair=False)
        assert names.startswith("2 names of entries")
        assert xattrs.startswith("1 names of extended")
        (left,) = await store.flaws(repair=True)
        assert left.startswith("1 names of entries")
        assert await store.get(EdgeKey(1, b"text"), XattrKey(1, b"ab")) == (Entry(1, 3), b"\1")
        assert await store.get(EdgeKey(1, b"both")) == (Entry(1, 2),)
