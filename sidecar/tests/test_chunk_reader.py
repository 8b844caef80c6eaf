"""The reader: how many requests a pattern of reads costs, read-ahead, holes, compacted chunks, and failures."""

import asyncio
import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from data_fakes import FakeMeta, FaultyStorage
from jfs.chunk.block_cache import BlockCache
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.readahead import Streams
from jfs.chunk.reader import Reader, ReadLimits
from jfs.errors import FsError, ObjectUnavailable
from jfs.format.constants import CHUNK
from jfs.format.slices import Slice
from jfs.object.base import ObjectStorage
from jfs.object.file import FileStorage

KIB = 1 << 10
BLOCK = 64 * KIB


def pattern(size: int) -> bytes:
    return b"".join(at.to_bytes(4, "big") for at in range(0, size, 4))[:size]


class Rig:
    """A reader over fakes."""

    def __init__(self, storage: ObjectStorage, limit: int, compression: str) -> None:
        self.meta = FakeMeta()
        self.budget = Budget(limit)
        limits = BlockLimits(io_retries=2, pause=lambda tried: 0)
        self.blocks = BlockStore(storage, BlockFormat(BLOCK, compression), limits)
        self.reader = Reader(self.blocks, self.meta, self.budget, ReadLimits(io_retries=2, pause=lambda tried: 0))

    async def add(self, data: bytes, pos: int = 0, ino: int = 1, indx: int = 0) -> int:
        """Store a slice and its record; its id."""
        slice_id = await self.meta.new_slice_id()
        for at in range(0, len(data), BLOCK):
            await self.blocks.put_block(slice_id, at // BLOCK, data[at : at + BLOCK])
        await self.meta.commit_slice(ino, indx, pos, Slice(pos, slice_id, len(data), 0, len(data)), 0)
        return slice_id


@asynccontextmanager
async def rigged(
    storage: ObjectStorage | None = None, limit: int = 64 << 20, compression: str = "none"
) -> AsyncIterator[tuple[Rig, Any]]:
    used = storage or FaultyStorage()
    rig = Rig(used, limit, compression)
    yield rig, used
    await rig.reader.close()
    await rig.blocks.close()
    assert rig.budget.cached == 0


def gets(storage: FaultyStorage) -> list[str]:
    return [key for method, key in storage.requests if method == "GET"]


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_small_reads_of_a_block_cost_one_request(compression: str) -> None:
    async with rigged(compression=compression) as (rig, storage):
        data = pattern(BLOCK)
        await rig.add(data)
        r = rig.reader.open(1)
        for at in range(0, BLOCK, 4096):
            assert bytes(await r.read(at, 4096, BLOCK)) == data[at : at + 4096]
        assert len(gets(storage)) == 1


async def test_sequential_read_fetches_each_block_once_and_ahead() -> None:
    async with rigged() as (rig, storage):
        data = pattern(12 * BLOCK)
        await rig.add(data)
        r = rig.reader.open(1)
        got = b""
        for at in range(0, len(data), 16 * KIB):
            got += bytes(await r.read(at, 16 * KIB, len(data)))
            if at == 2 * BLOCK:
                await asyncio.sleep(0.01)
                assert len(gets(storage)) > 4  # blocks 0 to 2 were asked for, the others read ahead
        assert got == data
        assert len(gets(storage)) == len(set(gets(storage))) == 12


async def test_random_reads_are_ranged_requests_of_what_is_wanted() -> None:
    async with rigged() as (rig, storage):
        data = pattern(12 * BLOCK)
        slice_id = await rig.add(data)
        r = rig.reader.open(1)
        storage.ranges.clear()
        for at in (9 * BLOCK + 4096, BLOCK + 8192, 6 * BLOCK + 20480):
            assert bytes(await r.read(at, 512, len(data))) == data[at : at + 512]
        assert storage.ranges == [
            (f"chunks/0/0/{slice_id}_9_{BLOCK}", 4096, 512),
            (f"chunks/0/0/{slice_id}_1_{BLOCK}", 8192, 512),
            (f"chunks/0/0/{slice_id}_6_{BLOCK}", 20480, 512),
        ]
        assert len(rig.reader.cache) == 0


async def test_concurrent_reads_of_a_block_share_its_request() -> None:
    async with rigged() as (rig, storage):
        data = pattern(BLOCK)
        await rig.add(data)
        r = rig.reader.open(1)
        pieces = await asyncio.gather(*(r.read(at, 8192, BLOCK) for at in range(0, BLOCK, 8192)))
        assert b"".join(map(bytes, pieces)) == data
        assert len(gets(storage)) == 1


async def test_holes_and_the_end_of_the_file() -> None:
    async with rigged() as (rig, _):
        await rig.add(b"abc", pos=10)
        await rig.add(b"xyz", pos=2, indx=1)
        r = rig.reader.open(1)
        assert bytes(await r.read(0, 100, 20)) == bytes(10) + b"abc" + bytes(7)
        assert bytes(await r.read(0, 100, 12)) == bytes(10) + b"ab"
        assert bytes(await r.read(20, 100, 20)) == b""
        assert bytes(await r.read(CHUNK - 5, 20, CHUNK + 8)) == bytes(5) + b"\0\0xyz" + bytes(3)
        assert bytes(await r.read(5 * CHUNK, 3 << 20, 6 * CHUNK)) == bytes(3 << 20)


async def test_newer_slices_hide_older_ones() -> None:
    async with rigged() as (rig, _):
        data = bytearray(pattern(3 * BLOCK))
        await rig.add(bytes(data))
        r = rig.reader.open(1)
        await r.read(0, len(data), len(data))
        for pos, size in ((BLOCK - 100, 200), (5, 1), (2 * BLOCK, BLOCK)):
            fresh = bytes([size & 0xFF]) * size
            await rig.add(fresh, pos=pos)
            data[pos : pos + size] = fresh
            assert bytes(await r.read(0, len(data), len(data))) == data


async def test_list_that_grows_in_place_is_seen() -> None:
    """The owner of the records may append to the list that it returned before."""
    async with rigged() as (rig, _):
        await rig.add(b"old!")
        shared = rig.meta.chunks[1, 0]
        r = rig.reader.open(1)
        assert bytes(await r.read(0, 4, 4)) == b"old!"
        new = await rig.add(b"new!")
        shared.append(Slice(0, new, 4, 0, 4))
        rig.meta.chunks[1, 0] = shared
        assert bytes(await r.read(0, 4, 4)) == b"new!"


async def test_compacted_chunk_is_read_by_its_new_records() -> None:
    """The cached records name objects that a compaction has deleted."""
    async with rigged() as (rig, _):
        old = await rig.add(b"content")
        stale = rig.meta.chunks[1, 0]
        del rig.meta.chunks[1, 0]
        await rig.add(b"content")
        current = rig.meta.chunks[1, 0]
        await rig.blocks.delete_slice(old, 7)
        asked: list[bool] = []

        async def read_slices(ino: int, indx: int, *, fresh: bool = False) -> list[Slice]:
            asked.append(fresh)
            return current if fresh else stale

        rig.meta.read_slices = read_slices  # type: ignore[method-assign]
        assert bytes(await rig.reader.open(1).read(0, 7, 7)) == b"content"
        assert asked == [False, True]


async def test_object_that_stays_missing_is_an_error() -> None:
    async with rigged() as (rig, storage):
        await rig.add(b"content")
        storage.objects.clear()
        with pytest.raises(FsError) as caught:
            await rig.reader.open(1).read(0, 7, 7)
        assert caught.value.errno == errno.EIO
        assert len(gets(storage)) == 3


async def test_object_that_comes_late_is_waited_for() -> None:
    async with rigged() as (rig, storage):
        await rig.add(b"content")
        key, kept = storage.objects.popitem()

        def before(method: str, asked: str, count: int) -> None:
            if count == 3:
                storage.objects[key] = kept

        storage.before = before
        assert bytes(await rig.reader.open(1).read(0, 7, 7)) == b"content"


async def test_failing_reads_are_tried_again_and_end_in_an_error() -> None:
    async with rigged() as (rig, storage):
        await rig.add(b"content")

        def before(method: str, key: str, count: int) -> None:
            if count < 3:
                raise ObjectUnavailable("Not now.")

        storage.before = before
        assert bytes(await rig.reader.open(1).read(0, 7, 7)) == b"content"

        def never(method: str, key: str, count: int) -> None:
            raise ObjectUnavailable("Never.")

        storage.before = never
        rig.reader.cache.clear()
        with pytest.raises(FsError):
            await rig.reader.open(1).read(0, 7, 7)


@pytest.mark.parametrize("damage", [b"conten", b"content!"])
async def test_object_of_a_wrong_length_is_an_error(damage: bytes) -> None:
    async with rigged() as (rig, storage):
        await rig.add(b"content")
        (key,) = storage.objects
        storage.objects[key] = (damage, 0.0)
        with pytest.raises(FsError):
            await rig.reader.open(1).read(0, 7, 7)


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
async def test_object_that_does_not_decompress_is_an_error(compression: str) -> None:
    async with rigged(compression=compression) as (rig, storage):
        await rig.add(pattern(1000))
        (key,) = storage.objects
        storage.objects[key] = (b"\xff" * 30, 0.0)
        with pytest.raises(FsError):
            await rig.reader.open(1).read(0, 1000, 1000)


async def test_cached_blocks_stay_within_the_budget() -> None:
    limit = 5 * BLOCK
    async with rigged(limit=limit) as (rig, _):
        data = pattern(20 * BLOCK)
        await rig.add(data)
        r = rig.reader.open(1)
        for at in range(0, len(data), BLOCK):
            assert bytes(await r.read(at, BLOCK, len(data))) == data[at : at + BLOCK]
            assert rig.budget.cached <= limit * 4 // 5


async def test_a_directory_is_read_in_ranges_without_a_cache(tmp_path: Path) -> None:
    async with rigged(FileStorage(str(tmp_path))) as (rig, _):
        data = pattern(3 * BLOCK)
        await rig.add(data)
        r = rig.reader.open(1)
        for at in range(0, len(data), 10_000):
            assert bytes(await r.read(at, 10_000, len(data))) == data[at : at + 10_000]
        assert len(rig.reader.cache) == 0


def test_old_blocks_expire() -> None:
    budget = Budget(1 << 20)
    time = 0.0
    cache = BlockCache(budget, now=lambda: time)
    cache.put((1, 0), b"x" * 10)
    time = 20.0
    cache.put((1, 1), b"y" * 10)
    time = 31.0
    cache.expire()
    assert ((1, 0) in cache, (1, 1) in cache, budget.cached) == (False, True, 10)


def test_blocks_read_to_their_end_make_room() -> None:
    budget = Budget(1 << 20)
    cache = BlockCache(budget)
    for indx in range(10):
        cache.put((1, indx), b"x" * 10)
    for indx in range(8):
        cache.spend((1, indx))
    assert [indx for indx in range(10) if (1, indx) in cache] == [4, 5, 6, 7, 8, 9]
    assert budget.cached == 60


def test_windows_grow_with_sequential_reads_only() -> None:
    streams = Streams(BLOCK, 8 * BLOCK)
    assert streams.note(10 * BLOCK, 4096, 1 << 30).window == 0
    assert streams.note(99 * BLOCK, 4096, 1 << 30).window == 0
    windows = [streams.note(at, BLOCK, 1 << 30).window for at in range(0, 12 * BLOCK, BLOCK)]
    assert windows[0] == BLOCK
    assert windows == sorted(windows)
    assert windows[-1] == 8 * BLOCK


def test_two_streams_keep_their_windows() -> None:
    streams = Streams(BLOCK, 8 * BLOCK)
    windows = []
    for step in range(4):
        streams.note(step * BLOCK, BLOCK, 1 << 30)
        windows.append(streams.note((1000 + step) * BLOCK, BLOCK, 1 << 30).window)
    assert windows[-1] >= BLOCK
    assert streams.note(4 * BLOCK, BLOCK, 1 << 30).window >= 2 * BLOCK


def test_window_shrinks_when_memory_is_short() -> None:
    streams = Streams(BLOCK, 8 * BLOCK)
    for step in range(8):
        streams.note(step * BLOCK, BLOCK, 1 << 30)
    assert streams.note(8 * BLOCK, BLOCK, BLOCK).window == 4 * BLOCK
