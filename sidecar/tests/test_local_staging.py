"""Writeback: what is staged, what is uploaded when, what a kill leaves, and what happens when a disk or the storage fails."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from data_fakes import FaultyStorage
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.local import checksum, staging
from jfs.chunk.local.directory import CacheDirectory, Claim
from jfs.chunk.local.disk import DiskCache
from jfs.chunk.local.options import CacheOptions
from jfs.chunk.local.staging import Staging, StagingOptions, may_upload
from jfs.errors import ObjectUnavailable
from jfs.metrics import Registry
from jfs.object.memory import MemoryStorage

VOLUME = "b3a1cd7e-70c4-4b1a-8a3c-5f0f3a9f8a11"
BLOCK = 256 << 10
DELAYED = StagingOptions(delay=3600.0)


async def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def opened(
    path: Path,
    storage: MemoryStorage,
    options: StagingOptions | None = None,
    *,
    accepting: bool = True,
    compression: str = "none",
    free_ratio: float = 0.0,
) -> AsyncIterator[BlockStore]:
    cache = DiskCache(CacheOptions((str(path),), free_ratio=free_ratio), VOLUME, block_size=BLOCK, registry=Registry())
    limits = BlockLimits(io_retries=1, pause=lambda tried: 0)
    blocks = BlockStore(storage, BlockFormat(BLOCK, compression), limits, cache=cache)
    await cache.start()
    blocks.staging = Staging(cache, blocks.upload, options, accepting=accepting, registry=Registry())
    blocks.staging.start()
    try:
        yield blocks
    finally:
        await blocks.close()


def staged(path: Path) -> list[str]:
    return sorted(each.name for each in (path / VOLUME / "rawstaging").rglob("*") if each.is_file())


def keys(storage: MemoryStorage) -> list[str]:
    return sorted(key.rpartition("/")[2] for key in storage.objects)


async def test_a_block_is_staged_in_the_real_clients_form_and_read_from_there(tmp_path: Path) -> None:
    storage = MemoryStorage("m")
    async with opened(tmp_path, storage, DELAYED, compression="lz4") as blocks:
        data = bytes(range(256)) * 300
        await blocks.put_block(5, 0, data)
        assert keys(storage) == []
        key = f"chunks/0/0/5_0_{len(data)}"
        path = tmp_path / VOLUME / "rawstaging" / key
        assert path.read_bytes() == data + checksum.trailer(data)  # plain, though the volume compresses
        assert (tmp_path / VOLUME / "raw" / key).samefile(path)
        assert bytes(await blocks.get_block(5, len(data), 0)) == data
        (tmp_path / VOLUME / "raw" / key).unlink()  # evicted
        blocks.cache.remove(5, 0, len(data))  # type: ignore[union-attr]
        assert bytes(await blocks.get_block(5, len(data), 0)) == data


async def test_what_is_staged_is_uploaded_and_stays_cached(tmp_path: Path) -> None:
    storage = MemoryStorage("m")
    async with opened(tmp_path, storage) as blocks:
        for indx in range(5):
            await blocks.put_block(9, indx, bytes([indx]) * BLOCK)
        await blocks.put_block(9, 5, b"small")
        await until(lambda: len(storage.objects) == 6, "all are uploaded")
        await until(lambda: staged(tmp_path) == [], "nothing is staged any more")
        assert blocks.staging is not None
        await until(lambda: not len(blocks.staging or ()), "nothing waits")
        storage.objects.clear()
        assert bytes(await blocks.get_block(9, 5 * BLOCK + 5, 3)) == bytes([3]) * BLOCK


async def test_a_successor_uploads_what_a_killed_mount_staged(tmp_path: Path) -> None:
    storage = MemoryStorage("m")
    async with opened(tmp_path, storage, DELAYED) as blocks:
        await blocks.put_block(1, 0, b"first")
        await blocks.put_block(1000123, 3, b"second" * 1000)
    assert keys(storage) == []
    assert len(staged(tmp_path)) == 2
    async with opened(tmp_path, storage, accepting=False) as blocks:
        await until(lambda: len(storage.objects) == 2, "both are uploaded")
        await until(lambda: staged(tmp_path) == [], "nothing is staged any more")
        await blocks.put_block(2, 0, b"third")
        assert keys(storage) == ["1000123_3_6000", "1_0_5", "2_0_5"]
    assert bytes(await storage.get("chunks/1/1000/1000123_3_6000")) == b"second" * 1000


async def test_drain_uploads_at_once_whatever_the_delay(tmp_path: Path) -> None:
    storage = MemoryStorage("m")
    async with opened(tmp_path, storage, DELAYED) as blocks:
        assert blocks.staging is not None
        await blocks.staging.drain()
        for indx in range(30):
            await blocks.put_block(1, indx, b"data")
        await blocks.staging.drain()
        assert len(storage.objects) == 30
        await blocks.put_block(2, 0, b"data")
        assert len(storage.objects) == 30  # the delay counts again


async def test_deleted_slices_are_not_uploaded(tmp_path: Path) -> None:
    storage = MemoryStorage("m")
    async with opened(tmp_path, storage, DELAYED) as blocks:
        await blocks.put_block(1, 0, b"a" * BLOCK)
        await blocks.put_block(1, 1, b"b")
        await blocks.put_block(2, 0, b"c")
        await blocks.delete_slice(1, BLOCK + 1)
        assert staged(tmp_path) == ["2_0_1"]
        assert blocks.staging is not None
        await blocks.staging.drain()
        assert keys(storage) == ["2_0_1"]


async def test_a_slice_deleted_during_its_upload_leaves_no_object(tmp_path: Path) -> None:
    storage = FaultyStorage()
    going, gate = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        going.set()
        await gate.wait()

    storage.before = lambda method, key, count: wait() if method == "PUT" else None
    async with opened(tmp_path, storage) as blocks:
        await blocks.put_block(1, 0, b"data")
        await going.wait()
        deleting = asyncio.create_task(blocks.delete_slice(1, 4))
        await asyncio.sleep(0)
        gate.set()
        await deleting
        assert keys(storage) == []
        assert staged(tmp_path) == []


async def test_failed_uploads_are_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "_AGAIN", 0.05)
    storage = FaultyStorage()

    def fail(method: str, key: str, count: int) -> None:
        if method == "PUT" and count < 8:
            raise ObjectUnavailable("no")

    storage.before = fail
    async with opened(tmp_path, storage) as blocks:
        await blocks.put_block(1, 0, b"data")
        assert staged(tmp_path) == ["1_0_4"]
        await until(lambda: keys(storage) == ["1_0_4"], "it is uploaded in the end")
        await until(lambda: staged(tmp_path) == [], "and not staged any more")


@pytest.mark.parametrize("size", [1000, 100_000])
async def test_a_full_or_failing_disk_means_a_direct_upload(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemoryStorage("m")
    async with opened(tmp_path, storage, DELAYED, free_ratio=0.999999) as blocks:
        await blocks.put_block(1, 0, b"x" * size)
        assert keys(storage) == [f"1_0_{size}"]

    def fail(self: CacheDirectory, key: str, data: Any, claim: Claim) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CacheDirectory, "stage", fail)
    async with opened(tmp_path, storage, DELAYED) as blocks:
        await blocks.put_block(2, 0, b"x" * size)
        assert keys(storage) == [f"1_0_{size}", f"2_0_{size}"]
        assert staged(tmp_path) == []


async def test_a_disk_that_hangs_means_a_direct_upload_and_no_late_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = MemoryStorage("m")
    gate, ended = threading.Event(), threading.Event()
    stage = CacheDirectory.stage

    def hang(self: CacheDirectory, key: str, data: Any, claim: Claim) -> None:
        gate.wait(20)
        try:
            stage(self, key, data, claim)
        finally:
            ended.set()

    monkeypatch.setattr(CacheDirectory, "stage", hang)
    async with opened(tmp_path, storage, StagingOptions(delay=3600.0, patience=0.05)) as blocks:
        block = bytearray(b"x" * 100_000)
        await blocks.put_block(1, 0, block)
        assert keys(storage) == ["1_0_100000"]
        block[:] = b"y" * 100_000  # the buffer is used for something else
        gate.set()
        await until(ended.is_set, "the thread is through")
        assert staged(tmp_path) == []


async def test_large_blocks_and_too_many_at_once_go_directly(tmp_path: Path) -> None:
    storage = MemoryStorage("m")
    async with opened(tmp_path, storage, StagingOptions(delay=3600.0, threshold=1000)) as blocks:
        await blocks.put_block(1, 0, b"x" * 1000)
        await blocks.put_block(2, 0, b"x" * 999)
        assert keys(storage) == ["1_0_1000"]
    async with opened(tmp_path / "other", storage, StagingOptions(delay=3600.0, most=1)) as blocks:
        await asyncio.gather(*(blocks.put_block(number, 0, b"x" * 100_000) for number in (3, 4, 5)))
        assert keys(storage) == ["1_0_1000", "4_0_100000", "5_0_100000"]


async def test_a_damaged_staged_block_is_not_uploaded(tmp_path: Path) -> None:
    storage = MemoryStorage("m")
    async with opened(tmp_path, storage, DELAYED) as blocks:
        await blocks.put_block(1, 0, b"data")
    path = tmp_path / VOLUME / "rawstaging/chunks/0/0/1_0_4"
    path.write_bytes(b"DATA" + path.read_bytes()[4:])
    async with opened(tmp_path, storage) as blocks:
        assert blocks.staging is not None
        await until(lambda: blocks.staging is not None and blocks.staging._task is not None, "it runs")
        await blocks.put_block(2, 0, b"more")
        await until(lambda: staged(tmp_path) == ["1_0_4"], "the other one is uploaded")
        assert keys(storage) == ["2_0_4"]


def test_hours_of_the_day() -> None:
    assert may_upload(None, 5)
    assert [may_upload((1, 6), hour) for hour in (0, 1, 5, 6)] == [False, True, True, False]
    assert [may_upload((22, 6), hour) for hour in (21, 22, 23, 0, 5, 6)] == [False, True, True, True, True, False]
    assert may_upload((3, 3), 12)


async def test_outside_the_hours_nothing_is_uploaded(tmp_path: Path) -> None:
    storage = MemoryStorage("m")
    hour = time.localtime().tm_hour
    async with opened(tmp_path, storage, StagingOptions(hours=((hour + 5) % 24, (hour + 6) % 24))) as blocks:
        await blocks.put_block(1, 0, b"data")
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert keys(storage) == []
        assert blocks.staging is not None
        await blocks.staging.drain()
        assert keys(storage) == ["1_0_4"]
