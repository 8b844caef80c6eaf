"""Prefetching: what is fetched behind random and strided reads, when, and how often."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from data_fakes import FakeMeta, FaultyStorage
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.local.disk import DiskCache
from jfs.chunk.local.options import CacheOptions
from jfs.chunk.prefetch import NEVER, Prefetcher
from jfs.chunk.readahead import Stride
from jfs.chunk.reader import Reader
from jfs.errors import ObjectUnavailable
from jfs.format.constants import CHUNK
from jfs.format.slices import Slice
from jfs.metrics import Registry
from jfs.object.file import FileStorage

KIB = 1 << 10
BLOCK = 256 * KIB


async def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        await asyncio.sleep(0.005)


class Fetched:
    """Records what is fetched; each fetch waits for `gate`."""

    def __init__(self) -> None:
        self.names: list[tuple[int, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.now = self.most = 0

    async def __call__(self, slice_id: int, size: int, indx: int) -> None:
        self.names.append((slice_id, indx))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.gate.wait()
            if slice_id == 13:
                raise ObjectUnavailable("no")
        finally:
            self.now -= 1


async def test_each_block_is_fetched_once_at_a_time_by_few_workers() -> None:
    fetched = Fetched()
    fetched.gate.clear()
    prefetcher = Prefetcher(fetched, 2)
    for _ in range(3):
        for number in range(1, 6):
            prefetcher.want(number, BLOCK, 0)
    await until(lambda: len(fetched.names) == 2, "two are under way")
    fetched.gate.set()
    await until(lambda: len(fetched.names) == 5, "all are fetched")
    await asyncio.sleep(0.02)
    assert sorted(fetched.names) == [(number, 0) for number in range(1, 6)]
    assert fetched.most == 2
    await prefetcher.close()


async def test_no_workers_fetch_nothing_and_failures_are_nobodys() -> None:
    fetched = Fetched()
    none, one = Prefetcher(fetched, 0), Prefetcher(fetched, 1)
    none.want(1, BLOCK, 0)
    one.want(13, BLOCK, 0)
    one.want(14, BLOCK, 0)
    await until(lambda: len(fetched.names) == 2, "both of the second are tried")
    assert fetched.names == [(13, 0), (14, 0)]
    await none.close()
    await one.close()


async def test_cold_blocks_are_fetched_when_it_is_quiet_and_hot_ones_at_once() -> None:
    fetched = Fetched()
    prefetcher = Prefetcher(fetched, 1, hot=2, quiet=1000.0)
    prefetcher.want(1, BLOCK, 0)
    prefetcher.want(2, BLOCK, 0)
    prefetcher.want(2, BLOCK, 0)
    await until(lambda: fetched.names == [(2, 0)], "the one touched twice is fetched")
    await prefetcher.close()
    lazy = Prefetcher(fetched, 1, hot=NEVER, quiet=0.01)
    lazy.want(3, BLOCK, 0)
    await until(lambda: (3, 0) in fetched.names, "it was quiet")
    await lazy.close()


async def test_closing_stops_what_is_under_way() -> None:
    fetched = Fetched()
    fetched.gate.clear()
    prefetcher = Prefetcher(fetched, 1)
    prefetcher.want(1, BLOCK, 0)
    await until(lambda: fetched.now == 1, "it is under way")
    await prefetcher.close()
    assert fetched.now == 0


def test_steps_are_seen_when_made_three_times() -> None:
    stride = Stride()
    assert [stride.note(offset) for offset in (5, 105, 205, 305, 405)] == [0, 0, 0, 100, 100]
    assert stride.note(9) == 0
    assert [stride.note(offset) for offset in (1000, 900, 800, 700)] == [0, 0, 0, -100]


@asynccontextmanager
async def reading(tmp_path: Path, blocks: int, **options: Any) -> AsyncIterator[tuple[Reader, FaultyStorage, bytes]]:
    storage, meta = FaultyStorage(), FakeMeta()
    cache = DiskCache(
        CacheOptions((str(tmp_path),), free_ratio=0.0, **options), "v", block_size=BLOCK, registry=Registry()
    )
    store = BlockStore(storage, BlockFormat(BLOCK), BlockLimits(io_retries=0), cache=cache)
    data = bytes(range(256)) * (BLOCK // 256)
    for indx in range(blocks):
        await storage.put(f"chunks/0/0/5_{indx}_{BLOCK}", data)
    size = blocks * BLOCK
    for at in range(0, size, CHUNK):
        part = min(CHUNK, size - at)
        await meta.commit_slice(1, at // CHUNK, 0, Slice(0, 5, size, at, part), 0)
    storage.ranges.clear()
    await cache.start()
    reader = Reader(store, meta, Budget(64 << 20), prefetcher=Prefetcher(store.fill, 2))
    try:
        yield reader, storage, data
    finally:
        await reader.close()
        await store.close()


async def test_a_random_read_is_one_range_and_the_block_comes_behind_it(tmp_path: Path) -> None:
    async with reading(tmp_path, 4) as (reader, storage, data):
        handle = reader.open(1)
        got = await handle.read(BLOCK + 1000, 4096, 4 * BLOCK)
        assert bytes(got) == data[1000 : 1000 + 4096]
        key = f"chunks/0/0/5_1_{BLOCK}"
        assert storage.ranges[0] == (key, 1000, 4096)
        await until(lambda: (tmp_path / "v" / "raw" / key).exists(), "the block is cached")
        assert storage.ranges[1:] == [(key, 0, -1)]
        assert bytes(await reader.open(1).read(BLOCK + 9000, 4096, 4 * BLOCK)) == data[9000 : 9000 + 4096]
        assert len(storage.ranges) == 2  # from the cache


async def test_small_steps_through_a_file_prepare_the_next_blocks(tmp_path: Path) -> None:
    async with reading(tmp_path, 64) as (reader, _, _):
        handle = reader.open(1)
        local = reader.blocks.cache
        assert local is not None
        step = 4 * BLOCK
        for number in range(5):
            await handle.read(1000 + number * step, 512, 64 * BLOCK)
        await until(lambda: all(local.has(5, 4 * number) for number in range(9)), "the next blocks are prefetched")
        assert not local.has(5, 36)


async def test_blocks_that_are_not_kept_are_read_by_ranges(tmp_path: Path) -> None:
    async with reading(tmp_path, 2, partial_only=True) as (reader, storage, _):
        await reader.open(1).read(BLOCK + 1000, 4096, 2 * BLOCK)
        await asyncio.sleep(0.02)
        assert storage.ranges == [(f"chunks/0/0/5_1_{BLOCK}", 1000, 4096)]


class Advised(FileStorage):
    """Records what the disk is told of."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.keys: list[str] = []

    def advise(self, key: str) -> None:
        self.keys.append(key)
        super().advise(key)
        super().advise(key + "-that-does-not-exist")


async def test_a_disk_is_told_once_of_what_a_sequential_program_reads_next(tmp_path: Path) -> None:
    storage, meta = Advised(str(tmp_path)), FakeMeta()
    blocks = BlockStore(storage, BlockFormat(BLOCK), BlockLimits(io_retries=0))
    reader = Reader(blocks, meta, Budget(64 << 20))
    size = 12 * BLOCK
    for indx in range(12):
        await storage.put(f"chunks/0/0/5_{indx}_{BLOCK}", bytes(BLOCK))
    await meta.commit_slice(1, 0, 0, Slice(0, 5, size, 0, size), 0)
    await reader.open(1).read(BLOCK + 4096, 4096, size)
    assert storage.keys == []  # random
    handle = reader.open(1)
    for at in range(0, size, 64 * KIB):
        await handle.read(at, 64 * KIB, size)
    assert storage.keys == [f"chunks/0/0/5_{indx}_{BLOCK}" for indx in range(12)]
    await reader.close()
    await blocks.close()


async def test_cached_blocks_that_come_next_are_read_from_the_disk_ahead(tmp_path: Path) -> None:
    async with reading(tmp_path, 8) as (reader, storage, data):
        local = reader.blocks.cache
        assert isinstance(local, DiskCache)
        for indx in range(8):
            await reader.blocks.fill(5, 8 * BLOCK, indx)
        await until(lambda: not local._pending, "all are cached")
        storage.ranges.clear()
        handle = reader.open(1)
        for at in range(0, 8 * BLOCK, 64 * KIB):
            got = await handle.read(at, 64 * KIB, 8 * BLOCK)
            assert bytes(got) == data[at % BLOCK : at % BLOCK + 64 * KIB]
        assert len(local._open) == 8
        await until(lambda: local._open.is_quiet, "the disk was told")
        assert storage.ranges == []
