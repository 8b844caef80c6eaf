"""Compaction through `Meta`: triggers, references, the delayed list, wasted and unknown outcomes, on every engine."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from jfs.errors import ObjectUnavailable, StoreUnavailable
from jfs.format.slices import Segment, Slice, unpack
from jfs.meta.model.keys import ChunkKey, SliceRefKey
from jfs.meta.store.base import Store
from jfs.meta.volume import SUPERUSER, Meta
from jfs.meta.volume import compaction as module
from jfs.meta.volume.compaction import Compaction
from meta_volumes import Volume, audit, new_file, volume, write
from store_engines import ALL

DAY = 86400


class Copies:
    """Stands for the data path: what was copied and deleted, and what goes wrong."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []
        self.during: Callable[[], Awaitable[Any]] | None = None
        self.error: Exception | None = None

    async def __call__(self, slice_id: int, size: int, segments: Sequence[Segment], tier: int) -> None:
        assert sum(segment.len for segment in segments) == size
        if self.error is not None:
            raise self.error
        if self.during is not None:
            await self.during()
        self.made.append((slice_id, size))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET", 0.0)


@asynccontextmanager
async def compacting(
    engine: str, folder: Path, *, background: bool = True, **setting: Any
) -> AsyncIterator[tuple[Volume, Meta, Copies]]:
    async with volume(engine, folder, **setting) as made:
        copies = Copies()
        meta = await made.client(session=False, no_bgjob=not background)
        meta._copy_slice = copies
        await meta.start_session()
        yield made, meta, copies


async def records(store: Store, ino: int, indx: int = 0) -> list[Slice]:
    (raw,) = await store.get(ChunkKey(ino, indx))
    return unpack(raw or b"")


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - the database has no events
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("engine", ALL)
async def test_slices_lose_their_references_and_objects(engine: str, tmp_path: Path) -> None:
    async with compacting(engine, tmp_path, background=False) as (made, meta, copies):
        ino = await new_file(meta, b"f")
        old = []
        for at in range(6):
            old += await write(meta, ino, at * 10, 15)
        before = await meta.getattr(ino)
        assert await meta.compaction().compact(ino, 0)
        (new,) = copies.made
        assert await records(meta.store, ino) == [Slice(0, new[0], 65, 0, 65)]
        assert sorted(made.deleted) == sorted(old)
        assert await meta.getattr(ino) == before
        assert not await meta.compaction().compact(ino, 0)
        await audit(meta.store)


@pytest.mark.parametrize("engine", ALL)
async def test_with_trash_the_replaced_slices_are_kept_for_its_days(engine: str, tmp_path: Path) -> None:
    async with compacting(engine, tmp_path, background=False, trash_days=2) as (made, meta, copies):
        ino = await new_file(meta, b"f")
        old = []
        for at in range(5):
            old += await write(meta, ino, at * 10, 10)
        await meta.truncate(SUPERUSER, ino, 45, opened=False)
        assert await meta.compaction().compact(ino, 0)
        ((new_id, size),) = copies.made
        assert size == 45
        ((id, since, raw),) = [entry async for entry in meta.store.delayed_slices()]
        assert (id, len(raw)) == (new_id, 12 * len(old))
        assert abs(since - made.clock.now // 10**9) <= 1
        assert await meta.store.get(*(SliceRefKey(*slice) for slice in old)) == (1,) * 5
        assert not made.deleted
        await audit(meta.store)
        await meta.jobs().expire_delayed()
        assert not made.deleted
        made.clock.advance(2 * DAY + 5)
        await meta.jobs().expire_delayed()
        assert sorted(made.deleted) == sorted(old)
        assert not [entry async for entry in meta.store.delayed_slices()]
        await audit(meta.store)


@pytest.mark.parametrize("engine", ALL)
async def test_a_slice_used_twice_keeps_its_objects(engine: str, tmp_path: Path) -> None:
    async with compacting(engine, tmp_path, background=False) as (made, meta, _):
        ino, other = await new_file(meta, b"f"), await new_file(meta, b"g")
        shared = (await write(meta, ino, 0, 10))[0]
        await write(meta, ino, 5, 10)

        async def copy(tx: Any) -> None:
            tx.append(ChunkKey(other, 0), Slice(0, *shared, 0, 10))
            tx.add(SliceRefKey(*shared), 1)

        await meta.store.run(copy)
        assert await meta.compaction().compact(ino, 0)
        assert shared not in made.deleted
        assert await meta.store.get(SliceRefKey(*shared)) == (1,)
        await audit(meta.store)


@pytest.mark.parametrize("engine", ALL)
async def test_writes_meanwhile_stay_behind_it(engine: str, tmp_path: Path) -> None:
    async with compacting(engine, tmp_path, background=False) as (_, meta, copies):
        ino = await new_file(meta, b"f")
        for at in range(3):
            await write(meta, ino, at * 10, 10)
        copies.during = lambda: write(meta, ino, 5, 3)
        assert await meta.compaction().compact(ino, 0)
        first, second = await records(meta.store, ino)
        assert (first.id, second.pos, second.len) == (copies.made[0][0], 5, 3)
        await audit(meta.store)


@pytest.mark.parametrize("engine", ALL)
async def test_a_compaction_of_a_changed_list_is_wasted(engine: str, tmp_path: Path) -> None:
    async with compacting(engine, tmp_path, background=False) as (made, meta, copies):
        ino = await new_file(meta, b"f")
        for at in range(3):
            await write(meta, ino, at * 10, 10)
        other = await made.client(session=False, no_bgjob=True)
        others = Copies()
        other._copy_slice = others
        copies.during = lambda: other.compaction().compact(ino, 0)
        assert not await meta.compaction().compact(ino, 0)
        assert [record.id for record in await records(meta.store, ino)] == [others.made[0][0]]
        assert copies.made[0] in made.deleted
        assert others.made[0] not in made.deleted
        await audit(meta.store)


async def test_a_read_meanwhile_is_not_forgotten(tmp_path: Path) -> None:
    """What is written while a chunk is compacted, and read before that ends, is compacted afterwards."""
    async with compacting("memory", tmp_path) as (_, meta, copies):
        ino = await new_file(meta, b"f")

        async def overwrite_and_read() -> None:
            copies.during = None
            for at in range(20):
                await write(meta, ino, at, 1)
            await meta.read_slices(ino, 0)

        copies.during = overwrite_and_read
        for at in range(module.EVERY - 1):
            await write(meta, ino, at, 1)

        async def is_one() -> bool:
            return len(await records(meta.store, ino)) == 1

        await until(is_one)


async def test_of_a_file_removed_meanwhile_nothing_stays(tmp_path: Path) -> None:
    async with compacting("memory", tmp_path, background=False) as (made, meta, copies):
        ino = await new_file(meta, b"f")
        old = [(await write(meta, ino, at * 10, 10))[0] for at in range(3)]

        async def remove() -> None:
            await meta.unlink(SUPERUSER, 1, b"f")
            await meta._deletion.drain(10)

        copies.during = remove
        assert not await meta.compaction().compact(ino, 0)
        assert not await records(meta.store, ino)
        assert set(made.deleted) == {*old, copies.made[0]}


async def test_objects_that_cannot_be_deleted_are_left_to_the_job(tmp_path: Path) -> None:
    async with compacting("memory", tmp_path, background=False) as (made, meta, copies):
        made.sound = False
        ino = await new_file(meta, b"f")
        for at in range(3):
            await write(meta, ino, at * 10, 10)

        async def refuse(id: int, size: int) -> None:
            raise ObjectUnavailable("no")

        meta._delete_objects = refuse
        copies.during = lambda: meta.store.run(lambda tx: _drop(tx, ino))
        assert not await meta.compaction().compact(ino, 0)
        assert [slice async for slice in meta.store.unreferenced_slices()] == copies.made


async def _drop(tx: Any, ino: int) -> None:
    tx.delete(ChunkKey(ino, 0))


# -- unknown outcome --------------------------------------------------------------------------------------------------


async def cut(
    meta: Meta, monkeypatch: pytest.MonkeyPatch, *, after: bool, then: Callable[[], Any] | None = None
) -> None:
    """The connection breaks during the next transaction: before or after it was made."""
    run, broken = meta.store.run, itertools.count()

    async def breaking(operation: Any, *, near: Sequence[int] = ()) -> Any:
        if next(broken):
            return await run(operation, near=near)
        if after:
            await run(operation, near=near)
        if then is not None:
            await then()
        raise StoreUnavailable("cut")

    monkeypatch.setattr(meta.store, "run", breaking)


@pytest.mark.parametrize("engine", ["memory", "sqlite3"])
async def test_a_commit_that_was_made_though_the_connection_broke(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with compacting(engine, tmp_path, background=False) as (made, meta, copies):
        ino = await new_file(meta, b"f")
        old = [(await write(meta, ino, at * 10, 10))[0] for at in range(3)]
        await cut(meta, monkeypatch, after=True)
        assert await meta.compaction().compact(ino, 0)
        assert [record.id for record in await records(meta.store, ino)] == [copies.made[0][0]]
        assert sorted(made.deleted) == sorted(old)
        await audit(meta.store)


@pytest.mark.parametrize("engine", ["memory", "sqlite3"])
async def test_a_commit_that_was_not_made(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with compacting(engine, tmp_path, background=False) as (made, meta, copies):
        ino = await new_file(meta, b"f")
        for at in range(3):
            await write(meta, ino, at * 10, 10)
        await cut(meta, monkeypatch, after=False)
        assert not await meta.compaction().compact(ino, 0)
        assert len(await records(meta.store, ino)) == 3
        assert not made.deleted  # it may still come
        assert [slice async for slice in meta.store.unreferenced_slices()] == copies.made
        await meta.jobs().unreferenced_slices()
        assert made.deleted == copies.made
        await audit(meta.store)


async def test_a_commit_nobody_can_tell_of_leaves_the_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with compacting("memory", tmp_path, background=False) as (made, meta, copies):
        made.sound = False
        ino = await new_file(meta, b"f")
        for at in range(3):
            await write(meta, ino, at * 10, 10)
        run = meta.store.run
        await cut(meta, monkeypatch, after=False, then=lambda: run(lambda tx: _drop(tx, ino)))
        assert not await meta.compaction().compact(ino, 0)
        assert copies.made[0] not in made.deleted
        assert copies.made[0] not in [slice async for slice in meta.store.unreferenced_slices()]


# -- triggers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["memory", "sqlite3"])
async def test_reading_a_chunk_in_pieces_compacts_it(engine: str, tmp_path: Path) -> None:
    async with compacting(engine, tmp_path) as (_, meta, copies):
        ino = await new_file(meta, b"f")
        for at in range(4):
            await write(meta, ino, at * 10, 10)
        await meta.read_slices(ino, 0)
        await asyncio.sleep(0.05)
        assert not copies.made
        await write(meta, ino, 40, 10)
        await meta.read_slices(ino, 0)

        async def done() -> bool:
            return len(await records(meta.store, ino)) == 1

        await until(done)
        assert copies.made == [(copies.made[0][0], 50)]
        await audit(meta.store)


async def test_few_records_in_many_pieces_count_too(tmp_path: Path) -> None:
    async with compacting("memory", tmp_path) as (_, meta, copies):
        ino = await new_file(meta, b"f")
        await write(meta, ino, 0, 100)
        await write(meta, ino, 10, 5)
        await write(meta, ino, 50, 5)
        await meta.read_slices(ino, 0)

        async def done() -> bool:
            return bool(copies.made)

        await until(done)


async def test_the_hundredth_write_compacts(tmp_path: Path) -> None:
    async with compacting("memory", tmp_path) as (_, meta, copies):
        ino = await new_file(meta, b"f")
        for at in range(98):
            await write(meta, ino, at, 1)
        await asyncio.sleep(0.02)
        assert not copies.made
        await write(meta, ino, 98, 1)

        async def done() -> bool:
            return len(await records(meta.store, ino)) == 1

        await until(done)
        assert copies.made == [(copies.made[0][0], 99)]


async def test_lists_that_others_made_long_are_found_by_writing(tmp_path: Path) -> None:
    async with compacting("memory", tmp_path) as (made, meta, copies):
        other = await made.client(no_bgjob=True)
        ino = await new_file(other, b"f")
        for at in range(120):
            await write(other, ino, at, 1)
        for at in range(12):
            await write(meta, ino, at, 1)

        async def done() -> bool:
            return bool(copies.made)

        await until(done)


async def test_a_writer_of_a_full_list_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FULL", 60)
    monkeypatch.setattr(module, "LONG", 50)
    monkeypatch.setattr(module, "EVERY", 1000)
    async with compacting("memory", tmp_path) as (_, meta, copies):
        background = meta._compaction
        assert background is not None
        monkeypatch.setattr(background, "_start", lambda key, quiet: None)  # what is started does not come round
        ino = await new_file(meta, b"f")
        for at in range(59):
            await write(meta, ino, at, 1)
        assert not copies.made
        await write(meta, ino, 59, 1)
        assert copies.made == [(copies.made[0][0], 60)]
        assert len(await records(meta.store, ino)) == 1


async def test_no_background_no_compaction(tmp_path: Path) -> None:
    async with compacting("memory", tmp_path, background=False) as (_, meta, copies):
        ino = await new_file(meta, b"f")
        for at in range(120):
            await write(meta, ino, at, 1)
        await meta.read_slices(ino, 0)
        await asyncio.sleep(0.02)
        assert not copies.made


async def test_few_run_at_once_and_closing_ends_them(tmp_path: Path) -> None:
    async with compacting("memory", tmp_path) as (made, meta, copies):
        running, most = 0, 0
        forever = asyncio.Event()

        async def block() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                await forever.wait()
            finally:
                running -= 1

        copies.during = block
        for number in range(20):
            ino = await new_file(meta, b"f%d" % number)
            for at in range(6):
                await write(meta, ino, at, 1)
            await meta.read_slices(ino, 0)

        async def begun() -> bool:
            return running == module.RUNNING

        await until(begun)
        background = meta._compaction
        assert isinstance(background, Compaction)
        assert len(background._tasks) == module.WAITING
        await meta.close_session()
        assert (running, most) == (0, module.RUNNING)
        assert not copies.made
        assert not made.deleted
        await audit(meta.store)


async def test_a_failing_copy_changes_nothing(tmp_path: Path) -> None:
    async with compacting("memory", tmp_path) as (_, meta, copies):
        copies.error = ObjectUnavailable("no storage")
        ino = await new_file(meta, b"f")
        for at in range(6):
            await write(meta, ino, at, 1)
        await meta.read_slices(ino, 0)
        background = meta._compaction
        assert background is not None
        while background._tasks:
            await asyncio.wait(list(background._tasks.values()))
        assert len(await records(meta.store, ino)) == 6
        await audit(meta.store)
