"""The writer: which slices arise, in what order they are committed, what failures do, and how much memory is held."""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from data_fakes import FakeMeta, FaultyStorage
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.writer import Writer
from jfs.errors import FsError, ObjectUnavailable, StorageFull, StoreUnavailable
from jfs.format.constants import CHUNK
from jfs.format.slices import Slice

KIB = 1 << 10
MIB = 1 << 20


class Rig:
    """A writer over fakes; time stands still unless a test moves it."""

    def __init__(self, limit: int, block_size: int, retries: int) -> None:
        self.meta = FakeMeta()
        self.storage = FaultyStorage()
        limits = BlockLimits(io_retries=retries, pause=lambda tried: 0)
        self.blocks = BlockStore(self.storage, BlockFormat(block_size), limits)
        self.budget = Budget(limit)
        self.time = 1000.0
        self.writer = Writer(self.blocks, self.meta, self.budget, clock=lambda: 5, now=lambda: self.time)


@asynccontextmanager
async def rigged(limit: int = 64 * MIB, block_size: int = 64 * KIB, retries: int = 0) -> AsyncIterator[Rig]:
    rig = Rig(limit, block_size, retries)
    yield rig
    await rig.writer.close()
    await rig.blocks.close()
    assert rig.budget.dirty == 0


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until *condition* holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - conditions of several kinds, none of them has an event
            await asyncio.sleep(0.001)


async def test_small_file_is_one_put_and_one_commit() -> None:
    async with rigged() as rig:
        w = rig.writer.open(3)
        await w.write(0, b"hello")
        assert (w.length, rig.writer.length(3), rig.writer.is_dirty(3)) == (5, 5, True)
        await w.close()
        assert rig.storage.requests == [("PUT", "chunks/0/0/2_0_5")]
        assert rig.meta.commits == [Slice(0, 2, 5, 0, 5)]
        assert rig.storage.objects["chunks/0/0/2_0_5"][0] == b"hello"
        assert (rig.writer.length(3), rig.writer.is_dirty(3)) == (0, False)


async def test_a_slice_that_ends_with_its_chunk_leaves_no_length_behind() -> None:
    """It may be stored and committed within the write, which then must not say that it is still to come."""
    async with rigged() as rig:
        w = rig.writer.open(3)
        await w.write(CHUNK - 5, b"hello")
        await w.flush()
        assert (rig.writer.length(3), rig.writer.is_dirty(3)) == (0, False)
        await w.close()


async def test_full_blocks_are_uploaded_before_the_flush() -> None:
    async with rigged() as rig:
        w = rig.writer.open(3)
        await w.write(0, bytes(100 * KIB))
        await until(lambda: len(rig.storage.objects) == 1)
        assert list(rig.storage.objects) == ["chunks/0/0/2_0_65536"]
        assert rig.meta.commits == []
        await w.write(100 * KIB, bytes(60 * KIB))
        await w.close()
        assert rig.meta.commits == [Slice(0, 2, 160 * KIB, 0, 160 * KIB)]
        assert sorted(rig.storage.objects) == ["chunks/0/0/2_0_65536", "chunks/0/0/2_1_65536", "chunks/0/0/2_2_32768"]


async def test_write_over_a_chunk_border_makes_a_slice_in_each() -> None:
    async with rigged() as rig:
        w = rig.writer.open(3)
        await w.write(CHUNK - 10, bytes(30))
        await w.close()
        assert [(slice.pos, slice.len) for slice in rig.meta.commits] == [(CHUNK - 10, 10), (0, 20)]
        assert set(rig.meta.chunks) == {(3, 0), (3, 1)}


async def test_commits_keep_creation_order_when_uploads_do_not() -> None:
    """The first slice's upload ends last; nothing is committed before it."""
    async with rigged() as rig:
        gate = asyncio.Event()

        def before(method: str, key: str, count: int) -> Any:
            return gate.wait() if key.endswith("_0_11") else None

        rig.storage.before = before
        w = rig.writer.open(3)
        await w.write(1000, bytes(11))
        await w.write(500, bytes(12))
        await w.write(CHUNK + 5, bytes(13))
        flush = asyncio.create_task(w.flush())
        await until(lambda: len(rig.storage.objects) == 2)
        assert rig.meta.commits == []
        gate.set()
        await flush
        assert [slice.len for slice in rig.meta.commits] == [11, 12, 13]
        await w.close()


async def test_upload_failure_is_reported_to_each_handle_and_nothing_is_left() -> None:
    """To every flush, of which one may be a forked process' that closes what it never used; to a sync or write once."""
    async with rigged(retries=1) as rig:

        def before(method: str, key: str, count: int) -> Any:
            if method == "PUT" and "_1_" in key:
                raise ObjectUnavailable("The storage is down.")

        rig.storage.before = before
        first, second = rig.writer.open(3), rig.writer.open(3)
        await first.write(0, bytes(100 * KIB))
        for _ in range(2):
            with pytest.raises(FsError) as caught:
                await first.flush()
            assert caught.value.errno == errno.EIO
        with pytest.raises(FsError):
            await first.sync()
        await first.sync()
        await first.flush()
        with pytest.raises(FsError):
            await second.write(0, b"x")
        late = rig.writer.open(3)
        await late.write(0, b"after")
        await late.close()
        await second.close()
        await first.close()
        assert [slice.len for slice in rig.meta.commits] == [5]
        await until(lambda: len(rig.storage.objects) == 1)
        assert [key for method, key in rig.storage.requests if method == "PUT" and "_1_" in key] == [
            "chunks/0/0/2_1_36864"
        ] * 2


async def test_put_that_fails_twice_succeeds_the_third_time() -> None:
    async with rigged(retries=2) as rig:

        def before(method: str, key: str, count: int) -> Any:
            if count < 3:
                raise ObjectUnavailable("Not now.")

        rig.storage.before = before
        w = rig.writer.open(3)
        await w.write(0, b"patience")
        await w.close()
        assert len(rig.storage.requests) == 3
        assert rig.meta.commits == [Slice(0, 2, 8, 0, 8)]


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOSPC, errno.EDQUOT])
async def test_refused_commit_deletes_the_objects_and_gives_its_errno(number: int) -> None:
    async with rigged() as rig:
        rig.meta.refuse = lambda slice: FsError(number)
        w = rig.writer.open(3)
        await w.write(0, bytes(100 * KIB))
        with pytest.raises(FsError) as caught:
            await w.close()
        assert caught.value.errno == number
        await until(lambda: not rig.storage.objects)


async def test_commit_of_unknown_outcome_keeps_the_objects() -> None:
    async with rigged() as rig:
        rig.meta.refuse = lambda slice: StoreUnavailable("The database did not answer.")
        w = rig.writer.open(3)
        await w.write(0, b"perhaps")
        with pytest.raises(FsError) as caught:
            await w.close()
        assert caught.value.errno == errno.EIO
        assert list(rig.storage.objects) == ["chunks/0/0/2_0_7"]


async def test_fault_in_a_commit_does_not_stop_later_slices() -> None:
    async with rigged() as rig:
        rig.meta.refuse = lambda slice: RuntimeError("a bug") if slice.len == 1 else None
        w = rig.writer.open(3)
        await w.write(100, b"1")
        await w.write(0, b"22")
        with pytest.raises(FsError):
            await w.flush()
        assert [slice.len for slice in rig.meta.commits] == [2]
        await w.close()


async def test_memory_stays_within_the_budget_while_the_storage_is_slow() -> None:
    limit = 1 * MIB
    async with rigged(limit=limit) as rig:
        gate = asyncio.Semaphore(0)
        rig.storage.before = lambda method, key, count: gate.acquire()
        w = rig.writer.open(3)
        peak = 0

        async def stream() -> None:
            nonlocal peak
            for at in range(0, 8 * MIB, 32 * KIB):
                await w.write(at, bytes(32 * KIB))
                peak = max(peak, rig.budget.dirty)

        task = asyncio.create_task(stream())
        await until(lambda: rig.budget.is_waited_for)
        assert not task.done()
        while not task.done():
            gate.release()
            await asyncio.sleep(0)
        await task
        for _ in range(1000):
            gate.release()
        await w.close()
        assert limit <= peak <= limit + 64 * KIB
        # Waiting did not cut the stream into small slices.
        assert [slice.len for slice in rig.meta.commits] == [8 * MIB]


async def test_budget_held_by_open_slices_is_freed_by_ending_them() -> None:
    async with rigged(limit=1 * MIB) as rig:
        writers = [rig.writer.open(ino) for ino in range(2, 42)]
        for w in writers:
            await w.write(0, bytes(1000))
        for w in writers:
            await w.close()
        assert len(rig.meta.commits) == 40


async def test_slices_end_by_age_and_idleness() -> None:
    async with rigged() as rig:
        w = rig.writer.open(3)
        await w.write(0, b"idle")
        rig.time += 1.5
        await until(lambda: len(rig.meta.commits) == 1)
        await w.write(4, b"busy")
        for at in range(8, 14):
            rig.time += 0.9
            await w.write(at, b"x")
        await until(lambda: len(rig.meta.commits) == 2)
        assert rig.meta.commits[1].len == 10
        await w.close()


async def test_pause_holds_writes_back() -> None:
    async with rigged() as rig:
        w = rig.writer.open(3)
        await w.write(0, b"before")
        async with rig.writer.paused(3):
            assert [slice.len for slice in rig.meta.commits] == [6]
            write = asyncio.create_task(w.write(0, b"x"))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not write.done()
            assert not rig.writer.is_dirty(3)
        await write
        await w.close()
        assert len(rig.meta.commits) == 2


async def test_thousand_pending_slices_make_a_write_wait() -> None:
    async with rigged(limit=1 << 30) as rig:
        gate = asyncio.Event()
        rig.storage.before = lambda method, key, count: gate.wait()
        w = rig.writer.open(3)
        for at in range(1000):
            await w.write(at * 100, b"x")
        write = asyncio.create_task(w.write(100 * 1000, b"x"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not write.done()
        gate.set()
        await write
        await w.close()
        assert [slice.pos for slice in rig.meta.commits] == [at * 100 for at in range(1001)]


async def test_flush_all_and_close_write_everything() -> None:
    async with rigged() as rig:
        for ino in (3, 4):
            await rig.writer.open(ino).write(0, b"data")
        assert rig.writer.dirty_bytes > 0
        await rig.writer.flush_all()
        assert len(rig.meta.commits) == 2
        assert rig.writer.dirty_bytes == 0


async def test_flush_all_raises_what_a_file_lost() -> None:
    async with rigged() as rig:
        rig.meta.refuse = lambda slice: FsError(errno.ENOSPC)
        await rig.writer.open(3).write(0, b"data")
        with pytest.raises(FsError) as caught:
            await rig.writer.flush_all()
        assert caught.value.errno == errno.ENOSPC


async def test_full_storage_is_enospc_after_a_few_tries() -> None:
    async with rigged(retries=10) as rig:

        def full(method: str, key: str, count: int) -> None:
            if method == "PUT":
                raise StorageFull("no space")

        rig.storage.before = full
        w = rig.writer.open(3)
        await w.write(0, b"hello")
        with pytest.raises(FsError) as caught:
            await w.close()
        assert caught.value.errno == errno.ENOSPC
        assert [method for method, _ in rig.storage.requests].count("PUT") == 3
        assert rig.meta.commits == []
