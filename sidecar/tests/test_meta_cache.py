"""What is answered without asking the database, and when it no longer may be (format §5.5)."""

import asyncio
import errno
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jfs.format.constants import FILE, ROOT
from jfs.format.slices import Slice
from jfs.meta.volume import SUPERUSER, AttrChange, Meta
from jfs.meta.volume.cache import NodeCache
from jfs.meta.volume.ids import IdBatch
from jfs.meta.volume.opened import OpenTable
from meta_volumes import Volume, errno_of, new_file, volume, write
from store_engines import file

# Long enough that nothing expires during a test, however slow the machine.
CACHED: dict[str, Any] = {"attr_timeout": 1000.0, "entry_timeout": 1000.0, "dir_entry_timeout": 1000.0}


class Counting:
    """Counts the calls of a store that are round trips."""

    def __init__(self, meta: Meta) -> None:
        self.calls: Counter[str] = Counter()
        for name in ("get", "lookup", "run"):
            setattr(meta.store, name, self._counted(name, getattr(meta.store, name)))
        listing = meta.store.list_directory

        def list_directory(*args: Any, **named: Any) -> Any:
            self.calls["list"] += 1
            return listing(*args, **named)

        meta.store.list_directory = list_directory  # type: ignore[method-assign]

    def _counted(self, name: str, call: Any) -> Any:
        async def counted(*args: Any, **named: Any) -> Any:
            self.calls[name] += 1
            return await call(*args, **named)

        return counted

    def take(self) -> dict[str, int]:
        """Calls since the last look."""
        calls = dict(self.calls)
        self.calls.clear()
        return calls


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume("memory", tmp_path) as made:
        yield made


def completes_at_once(coroutine: Any) -> Any:
    """The result of a coroutine that must not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("suspended")


async def test_own_changes_answer_at_once(made: Volume) -> None:
    meta = await made.client(**CACHED)
    d, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
    ino, _, _ = await meta.create(SUPERUSER, d, b"f", 0o644, os.O_RDWR)
    counting = Counting(meta)
    assert completes_at_once(meta.lookup(SUPERUSER, d, b"f"))[0] == ino
    await write(meta, ino, 0, 100)
    assert completes_at_once(meta.getattr(ino)).length == 100
    await meta.truncate(SUPERUSER, ino, 7, opened=True)
    assert completes_at_once(meta.getattr(ino)).length == 7
    await meta.setattr(SUPERUSER, ino, AttrChange(mode=0o600))
    assert completes_at_once(meta.lookup(SUPERUSER, d, b"f"))[1].mode == 0o600
    await meta.rename(SUPERUSER, d, b"f", 1, b"g")
    assert completes_at_once(meta.lookup(SUPERUSER, 1, b"g"))[0] == ino
    await meta.link(SUPERUSER, ino, d, b"h")
    assert completes_at_once(meta.lookup(SUPERUSER, d, b"h"))[1].nlink == 2
    await meta.unlink(SUPERUSER, 1, b"g")
    assert completes_at_once(meta.getattr(ino)).nlink == 1
    assert completes_at_once(meta.getattr(d)).mtime
    assert counting.take() == {"run": 6}
    assert await errno_of(meta.lookup(SUPERUSER, 1, b"g")) == errno.ENOENT
    assert counting.take() == {"lookup": 1}, "no negative entries unless asked for"


async def test_removals_need_one_batch_when_the_inode_is_known(made: Volume) -> None:
    meta = await made.client()
    await new_file(meta, b"f")
    batches = 0
    fetch = type(await _transaction(meta))._fetch

    async def counted(self: Any, keys: Any) -> Any:
        nonlocal batches
        batches += 1
        return await fetch(self, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(await _transaction(meta)), "_fetch", counted)
        await meta.unlink(SUPERUSER, 1, b"f")
        assert batches == 1
        await new_file(meta, b"a")
        await new_file(meta, b"b")
        batches = 0
        await meta.rename(SUPERUSER, 1, b"a", 1, b"b")
        assert batches == 1


async def _transaction(meta: Meta) -> Any:
    async def itself(tx: Any) -> Any:
        return tx

    return await meta.store.run(itself)


async def test_entries_expire_and_zero_means_never_cached(made: Volume) -> None:
    meta, other = await made.client(), await made.client()
    ino = await new_file(meta, b"f")
    await other.unlink(SUPERUSER, 1, b"f")
    assert await errno_of(meta.lookup(SUPERUSER, 1, b"f")) == errno.ENOENT
    assert await errno_of(meta.getattr(ino)) == errno.ENOENT


async def test_negative_entries_only_when_asked_for(made: Volume) -> None:
    meta = await made.client(negative_timeout=1000.0, **CACHED)
    counting = Counting(meta)
    for _ in range(3):
        assert await errno_of(meta.lookup(SUPERUSER, 1, b"f")) == errno.ENOENT
    assert counting.take() == {"lookup": 1}
    ino = await new_file(meta, b"f")
    assert (await meta.lookup(SUPERUSER, 1, b"f"))[0] == ino


def test_a_read_that_began_before_an_own_change_is_not_kept() -> None:
    cache = NodeCache(attr=1000, entry=1000, dir_entry=1000, negative=1000)
    started = cache.tick()
    cache.set_attr(5, file(length=10))
    cache.set_entry(1, b"f", 5, 1)
    cache.learn_attr(5, file(length=9), started)
    cache.learn_entry(1, b"f", 0, 0, started)
    assert cache.attr(5) == file(length=10)
    assert cache.entry(1, b"f") == 5
    started = cache.tick()
    cache.drop_entry(1, b"f")
    cache.drop_attr(5)
    cache.learn_entry(1, b"f", 5, 1, started)
    cache.learn_attr(5, file(length=10), started)
    assert cache.attr(5) is None
    assert cache.entry(1, b"f") in (None, 0)
    cache.learn_attr(5, file(length=11), cache.tick())
    assert cache.attr(5) == file(length=11)


def test_the_cache_is_bounded() -> None:
    cache = NodeCache(attr=1000, entry=1000, dir_entry=1000, negative=0, limit=100)
    for ino in range(1000):
        cache.set_attr(ino, file())
        cache.set_entry(1, b"%d" % ino, ino, 1)
    assert len(cache._nodes) <= 100
    assert len(cache._names) <= 100
    assert cache.attr(999) == file()


async def test_slices_of_an_open_file_are_asked_for_once(made: Volume) -> None:
    meta, other = await made.client(), await made.client()
    ino = await new_file(meta, b"f")
    await write(meta, ino, 0, 100)
    changed: list[int] = []
    meta.on_inode_changed = changed.append
    await meta.open(SUPERUSER, ino, os.O_RDONLY)
    counting = Counting(meta)
    assert len(completes_at_once(meta.read_slices(ino, 0))) == 1, "came with the open"
    assert await meta.read_slices(ino, 1) == []
    assert completes_at_once(meta.read_slices(ino, 1)) == []
    counting.take()
    await write(other, ino, 100, 100)
    assert len(await meta.read_slices(ino, 0)) == 1, "until the next open or getattr"
    await meta.getattr(ino)
    assert changed == [ino]
    assert len(await meta.read_slices(ino, 0)) == 2
    await write(meta, ino, 200, 100)
    assert len(await meta.read_slices(ino, 0)) == 3
    assert changed == [ino], "own commits are no news"
    await write(other, ino, 300, 100)
    await write(meta, ino, 400, 100)
    assert changed == [ino, ino], "a commit that finds a foreign change tells it"
    assert len(await meta.read_slices(ino, 0)) == 5
    await write(other, ino, 500, 100)
    assert len(await meta.read_slices(ino, 0)) == 5
    assert len(await meta.read_slices(ino, 0, fresh=True)) == 6
    await meta.release(ino)
    assert ino not in meta._opened


def test_a_list_read_before_an_own_change_is_not_kept() -> None:
    table = OpenTable()
    table.open(5, file())
    version = table.version(5)
    table.changed(5, file(), file(length=3), 0)
    table.keep(5, 0, [Slice(0, 1, 1, 0, 1)], version)
    assert table.slices(5, 0) is None
    table.keep(5, 0, [], table.version(5))
    assert table.slices(5, 0) == []
    assert not table.release(6)
    assert table.release(5)
    table.keep(5, 0, [], version)
    assert table.slices(5, 0) is None


async def test_open_cache_opens_without_asking_until_the_file_changes_here(made: Volume) -> None:
    meta, other = await made.client(open_cache=1000.0), await made.client()
    ino = await new_file(meta, b"f")
    await write(meta, ino, 0, 100)
    await meta.open(SUPERUSER, ino, os.O_RDONLY)
    await meta.read_slices(ino, 0)
    await meta.release(ino)
    await write(other, ino, 0, 300)  # not seen: that is what was asked for
    counting = Counting(meta)
    assert (await meta.open(SUPERUSER, ino, os.O_RDONLY)).length == 100
    assert len(await meta.read_slices(ino, 0)) == 1
    await meta.release(ino)
    assert counting.take() == {}
    await write(meta, ino, 300, 100)
    counting.take()
    assert (await meta.open(SUPERUSER, ino, os.O_RDONLY)).length == 400
    assert len(await meta.read_slices(ino, 0)) == 3
    await meta.release(ino)
    assert counting.take() == {"get": 1}


def test_closed_files_are_remembered_up_to_the_limit() -> None:
    table = OpenTable(trust=1000.0, limit=2)
    attr = file(2)
    for ino in (1, 2, 3):
        table.open(ino, attr)
        assert table.release(ino)
        assert not table.is_open(ino)
    assert [table.trusted(ino) is attr for ino in (1, 2, 3)] == [False, True, True]
    table.observe(2, attr)  # a look at a closed file may show anything
    assert table.trusted(2) is None
    untrusting = OpenTable()
    untrusting.open(1, attr)
    assert untrusting.trusted(1) is None


async def test_lookups_in_a_row_read_the_directory_at_once(made: Volume) -> None:
    writer = await made.client()
    d, _ = await writer.mkdir(SUPERUSER, 1, b"d", 0o755)
    names = [b"f%d" % number for number in range(100)]
    for name in names:
        await new_file(writer, name, parent=d)
    meta = await made.client(**CACHED)
    counting = Counting(meta)
    for name in names:
        await meta.lookup(SUPERUSER, d, name)
    assert counting.take() == {"lookup": 2, "list": 1}
    assert completes_at_once(meta.lookup(SUPERUSER, d, names[50]))[1].length == 0


async def test_lookups_side_by_side_share_the_listing(made: Volume) -> None:
    writer = await made.client()
    names = [b"f%d" % number for number in range(50)]
    for name in names:
        await new_file(writer, name)
    meta = await made.client(**CACHED)
    counting = Counting(meta)
    await meta.lookup(SUPERUSER, 1, names[0])
    await meta.lookup(SUPERUSER, 1, names[1])
    await asyncio.gather(*(meta.lookup(SUPERUSER, 1, name) for name in names[2:]))
    assert counting.take() == {"lookup": 2, "list": 1}


async def test_lookups_in_several_directories_do_not_come_between_each_other(made: Volume) -> None:
    writer = await made.client()
    folders = [(await writer.mkdir(SUPERUSER, 1, b"d%d" % number, 0o755))[0] for number in range(3)]
    for folder in folders:
        for number in range(20):
            await writer.mknod(SUPERUSER, folder, b"f%d" % number, FILE, 0o644)
    meta = await made.client(**CACHED)
    counting = Counting(meta)
    for number in range(20):
        for folder in folders:
            await meta.lookup(SUPERUSER, folder, b"f%d" % number)
    assert counting.take() == {"lookup": 6, "list": 3}


async def test_names_that_are_not_there_list_nothing(made: Volume) -> None:
    meta = await made.client(**CACHED)
    counting = Counting(meta)
    for number in range(20):
        await errno_of(meta.lookup(SUPERUSER, 1, b"f%d" % number))
    assert counting.take() == {"lookup": 20}


async def test_large_or_hardly_used_listings_are_not_repeated(made: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = await made.client()
    for number in range(40):
        await new_file(writer, b"f%d" % number)
    monkeypatch.setattr("jfs.meta.volume.prefetch.SMALL", 10)
    monkeypatch.setattr("jfs.meta.volume.prefetch._MANY_MISSES", 5)
    for limit, calls in ((20, {"lookup": 40, "list": 1}), (100, {"lookup": 7, "list": 2})):
        monkeypatch.setattr("jfs.meta.volume.prefetch.LIMIT", limit)
        meta = await made.client(**CACHED)
        counting = Counting(meta)
        for number in range(40):
            await meta.lookup(SUPERUSER, 1, b"f%d" % number)
        assert counting.take() == calls
    monkeypatch.undo()
    meta = await made.client()  # nothing is kept, so no listing is ever of use
    counting = Counting(meta)
    for _ in range(3):
        for number in range(40):
            await meta.lookup(SUPERUSER, 1, b"f%d" % number)
    assert counting.take() == {"lookup": 120, "list": 2}


class Allotting:
    """A store that gives out ids and can be made to fail."""

    def __init__(self, first: int) -> None:
        self.next = first
        self.calls = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def allot(self, counter: str, count: int) -> int:
        self.calls += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.next += count
        return self.next - count


async def test_ids_come_from_batches_fetched_ahead() -> None:
    store = Allotting(1)
    ids = IdBatch(store, "nextInode", 20, first=2)  # type: ignore[arg-type]
    taken = [await ids.take() for _ in range(17)]
    assert taken == list(range(2, 19))
    assert store.calls == 2 or ids._fetching is not None
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [completes_at_once(ids.take()) for _ in range(10)] == list(range(19, 29))
    assert store.calls == 2
    await ids.close()


async def test_ids_waiters_get_different_ids_and_failures_are_tried_again() -> None:
    store = Allotting(1)
    ids = IdBatch(store, "nextChunk", 10)  # type: ignore[arg-type]
    store.failure = RuntimeError("down")
    results = await asyncio.gather(*(ids.take() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, RuntimeError) for result in results)
    store.failure = None
    store.gate.clear()
    waiting = [asyncio.ensure_future(ids.take()) for _ in range(25)]
    await asyncio.sleep(0)
    store.gate.set()
    assert sorted(await asyncio.gather(*waiting)) == list(range(1, 26))
    await ids.close()


async def test_a_root_that_is_not_answered_is_as_last_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rights too, by which others are judged; without having been seen it has those of any root."""
    async with volume("memory", tmp_path) as made:
        meta = await made.client(attr_timeout=0)
        fresh = await made.client(attr_timeout=0)
        await meta.setattr(SUPERUSER, ROOT, AttrChange(mode=0o700))
        assert (await meta.getattr(ROOT)).mode == 0o700

        async def never(*keys: object) -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            for one in (meta, fresh):
                patch.setattr(one.store, "get", never)
            assert (await meta.getattr(ROOT)).mode == 0o700
            assert (await fresh.getattr(ROOT)).mode == 0o777
