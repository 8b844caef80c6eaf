"""What every engine's store does, method by method: the docstrings of `jfs.meta.store.base` as tests."""

import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import store_engines as engines
from jfs.errors import FsError
from jfs.format.slices import Slice
from jfs.meta.model.attr import Entry, entry_columns
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DelayedKey,
    DeletedFileKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    Key,
    NodeKey,
    ParentKey,
    Session,
    SessionKey,
    SettingKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.store.base import Store, Tx

ODD = bytes(range(1, 256)).replace(b"/", b"")


@pytest.fixture(params=engines.ALL)
async def clients(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[engines.OpenClient]:
    async with engines.database(request.param, tmp_path) as opener:
        yield opener


@pytest.fixture
async def store(clients: engines.OpenClient) -> Store:
    return await clients()


async def put(store: Store, records: dict[Any, Any]) -> None:
    """Store records, not too many in a transaction."""
    items = list(records.items())
    for start in range(0, len(items), 100):

        async def operation(tx: Tx, start: int = start) -> None:
            for key, record in items[start : start + 100]:
                tx.put(key, record)

        await store.run(operation)


RECORDS: list[tuple[Key[Any], Any, Any]] = [
    (SettingKey(), b'{"Name": "x", "Odd": "\xc3\xa9"}', b"{}"),
    (NodeKey(7), engines.file(1 << 40), engines.directory()),
    (NodeKey(0x7FFFFFFF10000001), engines.directory()._replace(access_acl=3, default_acl=4, tier=5), engines.file()),
    (EdgeKey(1, b"name"), Entry(1, 7), Entry(2, 0x7FFFFFFF10000001)),
    (EdgeKey(1, ODD), Entry(7, 9), Entry(1, 10)),
    (SymlinkKey(8), b"../target\xff", b"other"),
    (XattrKey(7, b"user.a"), b"value\0\xff", b""),
    (XattrKey(7, b"user.b"), b"", b"x" * 65535),
    (ChunkKey(7, 0), Slice(0, 1, 10, 0, 10).pack(), Slice(0, 2, 10, 0, 10).pack() + Slice(5, 3, 10, 0, 4).pack()),
    (ChunkKey(7, 2_000_000_000), Slice(0, 1 << 60, 10, 0, 10).pack(), Slice(0, 0, 0, 0, 1 << 26).pack()),
    (CounterKey("usedSpace"), 4096, -4096),
    (CounterKey("nextTrash"), 1, 2),
    (CounterKey("lastCleanupFiles"), 1_700_000_000, 0),
    (DirStatKey(1), DirStat(10, 4096, 1), DirStat(-10, -4096, -1)),
    (SessionKey(3), Session(1_700_000_000, b'{"HostName": "h"}'), Session(1_700_000_060, b"{}")),
    (SustainedKey(3, 7), True, True),
    (DeletedFileKey(7, 1 << 30), 1_700_000_000, 1_700_000_001),
    (DelayedKey(5, 1_700_000_000), bytes(24), bytes(12)),
]


# What the columns of database servers do not hold (format §4.2.1), and the errno they say so with.
LARGE: list[tuple[Key[Any], Any, int]] = [
    (NodeKey(7), engines.file()._replace(gid=3_000_000_000), errno.EOVERFLOW),
    (XattrKey(7, b"user.\xff\xfe"), b"x", errno.EINVAL),
    (ChunkKey(7, 4_000_000_000), Slice(0, 1 << 60, 10, 0, 10).pack(), errno.EOVERFLOW),
]


@pytest.mark.parametrize(("key", "record", "refusal"), LARGE, ids=[str(key)[:60] for key, *_ in LARGE])
async def test_what_does_not_fit_is_refused(store: Store, key: Key[Any], record: Any, refusal: int) -> None:
    if store.name in ("postgres", "mysql"):
        with pytest.raises(FsError) as refused:
            await put(store, {key: record, CounterKey("usedSpace"): 4096})
        assert refused.value.errno == refusal
        assert await store.get(CounterKey("usedSpace")) == (None,)
    else:
        await put(store, {key: record})
        assert await store.get(key) == (record,)


@pytest.mark.parametrize(("key", "first", "second"), RECORDS, ids=[str(key)[:60] for key, *_ in RECORDS])
async def test_a_record_is_stored_replaced_and_removed(store: Store, key: Key[Any], first: Any, second: Any) -> None:
    assert await store.get(key) == (None,)
    for record in (first, second, None, first):

        async def operation(tx: Tx, record: Any = record) -> None:
            before = (await tx.get(key))[0]
            if record is None:
                tx.delete(key)
            else:
                tx.put(key, record)
            assert await tx.get(key) == (record,)
            assert before != record or key == SustainedKey(3, 7)

        await store.run(operation)
        assert await store.get(key) == (record,)
        assert await store.run(lambda tx: tx.get(key)) == (record,)


async def test_a_record_is_replaced_and_removed_unread(store: Store) -> None:
    for key, first, second in RECORDS:
        await put(store, {key: first})
        await put(store, {key: second})
        assert await store.get(key) == (second,)

        async def remove(tx: Tx, key: Key[Any] = key) -> None:
            tx.delete(key)

        await store.run(remove)
        await store.run(remove)
        assert await store.get(key) == (None,)


async def test_all_kinds_in_one_batch(store: Store) -> None:
    await put(store, {key: first for key, first, _ in RECORDS})
    keys = [key for key, *_ in RECORDS]
    expected = tuple(first for _, first, _ in RECORDS)
    assert await store.get(*keys) == expected
    assert await store.run(lambda tx: tx.get(*keys)) == expected
    assert await store.run(lambda tx: tx.get(keys[1], keys[1], NodeKey(99))) == (expected[1], expected[1], None)


async def test_an_operation_that_raises_changes_nothing(store: Store) -> None:
    async def operation(tx: Tx) -> None:
        await tx.get(NodeKey(7))
        tx.put(NodeKey(7), engines.file())
        tx.add(CounterKey("usedSpace"), 1)
        raise FsError(errno.EACCES)

    with pytest.raises(FsError, match="EACCES"):
        await store.run(operation, near=(7, 1, 7))
    assert await store.get(NodeKey(7), CounterKey("usedSpace")) == (None, None)


async def test_numbers_are_added_to(store: Store) -> None:
    numbers = [CounterKey("usedSpace"), SliceRefKey(5, 100)]
    base = (await store.get(SliceRefKey(5, 100)))[0]
    assert base == (0 if store.name in engines.SQL else 1)

    async def operation(tx: Tx) -> tuple[Any, ...]:
        for key in numbers:
            tx.add(key, 5)
            tx.add(key, -2)
        return await tx.get(*numbers)

    assert await store.run(operation) == (3, base + 3)
    assert await store.get(*numbers) == (3, base + 3)

    async def folded(tx: Tx) -> None:
        tx.put(numbers[0], 10)
        tx.add(numbers[0], 1)
        tx.delete(numbers[1])
        tx.add(numbers[1], 1)

    await store.run(folded)
    assert await store.get(*numbers) == (11, base + 1)


async def test_a_new_slice_has_one_reference(store: Store) -> None:
    key = SliceRefKey(1 << 60, 4096)

    async def new(tx: Tx) -> None:
        tx.put(key, 1)

    async def release(tx: Tx) -> tuple[int | None]:
        tx.add(key, -1)
        return await tx.get(key)

    await store.run(new)
    assert await store.get(key) == (1,)
    assert [found async for found in store.unreferenced_slices()] == []
    assert await store.run(release) == (0,)
    assert await store.get(key) == (0,)
    assert [found async for found in store.unreferenced_slices()] == [(1 << 60, 4096)]

    async def forget(tx: Tx) -> None:
        tx.delete(key)

    await store.run(forget)
    assert [found async for found in store.unreferenced_slices()] == []


async def test_usage_of_a_directory_is_added_to_only_where_it_is_known(store: Store) -> None:
    async def operation(tx: Tx) -> tuple[Any, ...]:
        tx.add_stat(DirStatKey(1), DirStat(10, 4096, 1))
        tx.add_stat(DirStatKey(1), DirStat(-3, 4096, 1))
        tx.add_stat(DirStatKey(2), DirStat(1, 1, 1))
        return await tx.get(DirStatKey(1), DirStatKey(2))

    await put(store, {DirStatKey(1): DirStat(0, 0, 0)})
    assert await store.run(operation) == (DirStat(7, 8192, 2), None)
    assert await store.get(DirStatKey(1), DirStatKey(2)) == (DirStat(7, 8192, 2), None)

    async def fresh(tx: Tx) -> None:
        tx.put(DirStatKey(2), DirStat(0, 0, 0))
        tx.add_stat(DirStatKey(2), DirStat(1, 2, 3))
        tx.delete(DirStatKey(1))
        tx.add_stat(DirStatKey(1), DirStat(1, 2, 3))

    await store.run(fresh)
    assert await store.get(DirStatKey(1), DirStatKey(2)) == (None, DirStat(1, 2, 3))


async def test_slices_are_appended(store: Store) -> None:
    a, b, c = (Slice(n, n + 1, 100, 0, 100) for n in range(3))

    async def operation(tx: Tx) -> tuple[Any, ...]:
        tx.append(ChunkKey(7, 0), a)
        tx.append(ChunkKey(7, 0), b, existing_only=True)
        tx.append(ChunkKey(7, 1), a, existing_only=True)
        return await tx.get(ChunkKey(7, 0), ChunkKey(7, 1))

    assert await store.run(operation) == (a.pack() + b.pack(), None)
    assert await store.get(ChunkKey(7, 0), ChunkKey(7, 1)) == (a.pack() + b.pack(), None)

    async def more(tx: Tx) -> None:
        tx.append(ChunkKey(7, 0), c)
        tx.put(ChunkKey(7, 1), a.pack())
        tx.append(ChunkKey(7, 1), b)
        tx.delete(ChunkKey(7, 2))
        tx.append(ChunkKey(7, 2), b, existing_only=True)

    await store.run(more)
    expected = (a.pack() + b.pack() + c.pack(), a.pack() + b.pack(), None)
    assert await store.get(ChunkKey(7, 0), ChunkKey(7, 1), ChunkKey(7, 2)) == expected
    assert await store.chunk_indexes(7) == [0, 1]
    assert await store.chunk_indexes(7, length=3 << 26) == [0, 1]
    assert await store.chunk_indexes(77) == []
    assert sorted([chunk async for chunk in store.chunks()]) == [(7, 0, expected[0]), (7, 1, expected[1])]


async def test_emptiness_counts_own_changes(store: Store) -> None:
    await put(store, {EdgeKey(1, b"a"): Entry(1, 7), EdgeKey(1, b"b"): Entry(1, 8), EdgeKey(2, b"c"): Entry(1, 9)})

    async def operation(tx: Tx) -> list[bool]:
        found = [await tx.is_empty(1), await tx.is_empty(3)]
        tx.delete(EdgeKey(1, b"a"))
        tx.delete(EdgeKey(1, b"missing"))
        found.append(await tx.is_empty(1))
        tx.delete(EdgeKey(1, b"b"))
        found.append(await tx.is_empty(1))
        tx.put(EdgeKey(3, b"new"), Entry(1, 9))
        found.append(await tx.is_empty(3))
        return found

    assert await store.run(operation) == [False, True, False, True, False]


async def test_names_of_xattrs(store: Store) -> None:
    await put(store, {XattrKey(7, b"user.a"): b"1", XattrKey(7, b"user.b"): b"2", XattrKey(8, b"user.c"): b"3"})

    async def operation(tx: Tx) -> list[list[bytes]]:
        found = [sorted(await tx.xattr_names(7))]
        tx.delete(XattrKey(7, b"user.a"))
        tx.put(XattrKey(7, b"user.d"), b"4")
        found.append(sorted(await tx.xattr_names(7)))
        tx.clear_xattrs(7)
        found.append(await tx.xattr_names(7))
        assert await tx.get(XattrKey(7, b"user.b")) == (None,)
        tx.put(XattrKey(7, b"user.e"), b"5")
        found.append(await tx.xattr_names(7))
        return found

    a, b, d, e = (b"user." + letter for letter in (b"a", b"b", b"d", b"e"))
    assert await store.run(operation) == [[a, b], [b, d], [], [e]]
    keys = [XattrKey(7, name) for name in (a, b, d, e)]
    assert await store.get(*keys, XattrKey(8, b"user.c")) == (None, None, None, b"5", b"3")
    assert await store.run(lambda tx: tx.xattr_names(99)) == []


async def test_parents_of_a_hard_linked_file(store: Store) -> None:
    """Counts follow the entries, whether the engine keeps them apart or not."""

    async def link(tx: Tx) -> dict[int, int]:
        for parent, name in ((1, b"a"), (2, b"b"), (2, b"c")):
            tx.put(EdgeKey(parent, name), Entry(1, 7))
            tx.add(ParentKey(7, parent), 1)
        return await tx.parents(7)

    async def unlink(tx: Tx) -> dict[int, int]:
        await tx.get(EdgeKey(1, b"a"))
        tx.delete(EdgeKey(1, b"a"))
        tx.add(ParentKey(7, 1), -1)
        return await tx.parents(7)

    async def remove(tx: Tx) -> None:
        for name in (b"b", b"c"):
            tx.delete(EdgeKey(2, name))
        tx.clear_parents(7)

    assert await store.run(link) == {1: 1, 2: 2}
    assert await store.get(ParentKey(7, 2), ParentKey(7, 3)) == (2, None)
    assert await store.run(unlink) == {2: 2}
    assert await store.run(lambda tx: tx.parents(7)) == {2: 2}
    await store.run(remove)
    assert await store.run(lambda tx: tx.parents(7)) == {}
    assert await store.get(ParentKey(7, 2)) == (None,)


async def test_lookup(store: Store) -> None:
    records = {EdgeKey(1, ODD): Entry(1, 7), NodeKey(7): engines.file(5), EdgeKey(1, b"dangling"): Entry(1, 8)}
    big = 0x7FFFFFFF10000001
    await put(store, {**records, EdgeKey(2, b"hour"): Entry(2, big), NodeKey(big): engines.directory()})
    assert await store.lookup(1, ODD) == (Entry(1, 7), engines.file(5))
    assert await store.lookup(1, b"dangling") == (Entry(1, 8), None)
    assert await store.lookup(2, b"hour") == (Entry(2, big), engines.directory())
    assert await store.lookup(1, b"missing") is None
    assert await store.lookup(99, b"missing") is None


@pytest.mark.parametrize("plus", [False, True])
async def test_listing_of_a_large_directory(store: Store, plus: bool) -> None:
    entries = {b"entry-%d" % n: Entry(1, n + 100) for n in range(9000)}
    records: dict[Any, Any] = {EdgeKey(5, name): entry for name, entry in entries.items()}
    records.update({NodeKey(entry.ino): engines.file(entry.ino) for entry in entries.values()})
    await put(store, {**records, EdgeKey(5, b"dangling"): Entry(1, 50)})
    listed: dict[bytes, Entry] = {}
    lengths: dict[bytes, int] = {}
    async for page in store.list_directory(5, plus=plus):
        assert len(page.names) == len(page.entries)
        listed.update(zip(page.names, page.entries, strict=True))
        if page.attrs is None:
            assert not plus
            continue
        for name, attr in zip(page.names, page.attrs, strict=True):
            if attr is None:
                assert name == b"dangling"
            else:
                lengths[name] = attr.length
        if page.raw_entries is not None:
            assert [tuple(column) for column in entry_columns(page.raw_entries)] == list(
                zip(*page.entries, strict=True)
            )
        if page.raw_attrs is not None:
            packed = [None if attr is None else attr.pack() for attr in page.attrs]
            assert list(page.raw_attrs) == packed
    assert listed == entries | {b"dangling": Entry(1, 50)}
    assert lengths == ({name: entry.ino for name, entry in entries.items()} if plus else {})
    assert [page async for page in store.list_directory(6, plus=plus)] == []


async def test_ids_are_allotted_once(clients: engines.OpenClient) -> None:
    one, other = await clients(), await clients()
    await put(one, {CounterKey(name): value for name, value in one.initial_counters.items()})
    for counter in ("nextInode", "nextChunk"):
        taken: list[int] = []
        for store in (one, other, one):
            first = await store.allot(counter, 1000)
            taken += range(first, first + 1000)
        assert len(set(taken)) == 3000
        assert min(taken) in (1, 2)
    for counter in ("nextSession", "nextTrash"):
        assert [await store.next_id(counter) for store in (one, other, one)] == [1, 2, 3]


async def test_sessions(store: Store) -> None:
    await put(
        store,
        {
            SessionKey(3): Session(1_700_000_000, b"{}"),
            SessionKey(4): Session(1_700_000_060, b'{"a": 1}'),
            SustainedKey(3, 7): True,
            SustainedKey(3, 8): True,
            SustainedKey(4, 9): True,
        },
    )
    assert sorted([found async for found in store.sessions()]) == [
        (3, Session(1_700_000_000, b"{}")),
        (4, Session(1_700_000_060, b'{"a": 1}')),
    ]
    assert sorted([ino async for ino in store.sustained(3)]) == [7, 8]
    await store.forget_session(3)
    await store.forget_session(3)
    assert [sid async for sid, _ in store.sessions()] == [4]
    assert [ino async for ino in store.sustained(3)] == []
    assert [ino async for ino in store.sustained(4)] == [9]


async def test_queues(store: Store) -> None:
    await put(
        store,
        {
            DeletedFileKey(8, 10): 300,
            DeletedFileKey(7, 1 << 50): 200,
            DeletedFileKey(9, 0): 100,
            DelayedKey(5, 77): bytes(12),
        },
    )
    assert [found async for found in store.deleted_files()] == [(9, 0, 100), (7, 1 << 50, 200), (8, 10, 300)]
    assert [found async for found in store.delayed_slices()] == [(5, 77, bytes(12))]


async def test_all_nodes(store: Store) -> None:
    nodes = {ino: engines.file(ino) for ino in (*range(1, 5000), 0x7FFFFFFF10000000)}
    await put(store, {NodeKey(ino): attr for ino, attr in nodes.items()})
    await put(store, {SymlinkKey(3): b"x", XattrKey(3, b"user.a"): b"", SettingKey(): b"{}"})
    assert dict([found async for found in store.nodes()]) == nodes


async def test_blank_and_reset(clients: engines.OpenClient) -> None:
    store = await clients()
    for key, first, _ in RECORDS:
        assert await store.is_blank()
        await put(store, {key: first})
        assert not await store.is_blank(), key
        await store.reset()
        assert await store.get(key) == (None,)
    assert await store.is_blank()
    assert await (await clients()).is_blank()


async def test_clients_see_each_other(clients: engines.OpenClient) -> None:
    one, other = await clients(), await clients()
    assert await other.get(NodeKey(7)) == (None,)
    await put(one, {NodeKey(7): engines.file(1)})
    assert await other.get(NodeKey(7)) == (engines.file(1),)
    await put(other, {NodeKey(7): engines.file(2)})
    assert await one.get(NodeKey(7)) == (engines.file(2),)
    assert await one.run(lambda tx: tx.get(NodeKey(7))) == (engines.file(2),)


async def test_closing_twice(clients: engines.OpenClient) -> None:
    store = await clients()
    await store.close()
    await store.close()
