"""What files hold: the exact records of commits and truncations, references, deletion of data, capacity (format §5.3, §3.12)."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jfs.format.constants import CHUNK
from jfs.format.slices import Slice, unpack
from jfs.meta.model.keys import ChunkKey, NodeKey, SliceRefKey
from jfs.meta.operations.content import zero_records
from jfs.meta.store.base import Tx
from jfs.meta.volume import SUPERUSER, Caller, Meta
from meta_volumes import Volume, audit, errno_of, new_file, settle, volume, write
from store_engines import ALL

K = 1000
Z = (0, 0, 0)  # id, size, off of a zero record


@pytest.fixture(params=ALL)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume(request.param, tmp_path) as made:
        yield made


async def lists(meta: Meta, ino: int) -> dict[int, list[Slice]]:
    return {
        indx: unpack((await meta.store.get(ChunkKey(ino, indx)))[0]) for indx in await meta.store.chunk_indexes(ino)
    }


TRUNCATIONS = [
    # old, new, chunks with a list → appended (chunk, pos, len)
    (0, 10, set(), [(0, 0, 10)]),
    (10, 0, {0}, [(0, 0, 10)]),
    (100, 40, {0}, [(0, 40, 60)]),
    (0, CHUNK, set(), [(0, 0, CHUNK)]),
    (CHUNK, 5, {0}, [(0, 5, CHUNK - 5)]),
    (K, CHUNK + K, {0}, [(0, K, CHUNK - K), (1, 0, K)]),
    (3 * CHUNK + K, K, {0, 1, 3}, [(0, K, CHUNK - K), (1, 0, CHUNK), (3, 0, K)]),
    (3 * CHUNK + K, K, {0, 2}, [(0, K, CHUNK - K), (2, 0, CHUNK), (3, 0, K)]),
    (3 * CHUNK, CHUNK, {2}, [(1, 0, CHUNK), (2, 0, CHUNK)]),
    (2 * CHUNK, CHUNK + 1, set(), [(1, 1, CHUNK - 1)]),
]


@pytest.mark.parametrize(("old", "new", "present", "wanted"), TRUNCATIONS)
@pytest.mark.parametrize("told", [False, True])
def test_zero_records_of_a_truncation(
    old: int, new: int, present: set[int], wanted: list[tuple[int, int, int]], told: bool
) -> None:
    appended = [
        (indx, record.pos, record.len)
        for indx, record, existing_only in zero_records(old, new, sorted(present) if told else None)
        if not existing_only or indx in present
    ]
    assert appended == wanted


async def test_truncation_writes_the_records(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    (first,) = await write(meta, ino, 0, 5 * K)
    (second,) = await write(meta, ino, 2 * CHUNK + 10, 10)
    grown = await meta.truncate(SUPERUSER, ino, 4 * CHUNK + 7, opened=False)
    assert (grown.length, grown.mtime, grown.mtimensec) == (4 * CHUNK + 7, grown.ctime, grown.ctimensec)
    first_record, second_record = Slice(0, *first, 0, first[1]), Slice(10, *second, 0, second[1])
    assert await lists(meta, ino) == {
        0: [first_record],
        2: [second_record, Slice(20, *Z, CHUNK - 20)],
        4: [Slice(0, *Z, 7)],
    }
    await audit(meta.store)
    assert (await meta.truncate(SUPERUSER, ino, 2 * K, opened=False)).length == 2 * K
    assert await lists(meta, ino) == {
        0: [first_record, Slice(2 * K, *Z, CHUNK - 2 * K)],
        2: [second_record, Slice(20, *Z, CHUNK - 20), Slice(0, *Z, CHUNK)],
        4: [Slice(0, *Z, 7), Slice(0, *Z, 7)],
    }
    same = await meta.truncate(SUPERUSER, ino, 2 * K, opened=False)
    assert same == await meta.getattr(ino)
    await audit(meta.store)


async def test_a_very_long_truncation_touches_only_the_chunks_that_are(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    await write(meta, ino, 5 * CHUNK, 10)
    await meta.truncate(SUPERUSER, ino, 1 << 50, opened=False)
    await meta.truncate(SUPERUSER, ino, 0, opened=False)
    assert {indx: len(records) for indx, records in (await lists(meta, ino)).items()} == {0: 1, 5: 3}
    await audit(meta.store)


async def test_commits_extend_never_shrink(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    id = await meta.new_slice_id()
    attr = await meta.commit_slice(ino, 1, 100, Slice(0, id, 50, 0, 50), 42)
    assert (attr.length, attr.mtime, attr.mtimensec) == (CHUNK + 150, 0, 42)
    assert attr.ctime > 0
    assert await meta.read_slices(ino, 1) == [Slice(100, id, 50, 0, 50)]
    assert await meta.read_slices(ino, 0) == []
    id = await meta.new_slice_id()
    assert (await meta.commit_slice(ino, 0, 0, Slice(0, id, 5, 0, 5), 43)).length == CHUNK + 150
    assert await meta.file_chunks(ino) == [(0, [Slice(0, id, 5, 0, 5)]), (1, [Slice(100, id - 1, 50, 0, 50)])]
    await audit(meta.store)


async def test_a_commit_to_what_is_gone_or_no_file(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    await meta.unlink(SUPERUSER, 1, b"f")
    record = Slice(0, await meta.new_slice_id(), 5, 0, 5)
    assert await errno_of(meta.commit_slice(ino, 0, 0, record, 1)) == errno.ENOENT
    assert await errno_of(meta.commit_slice(1, 0, 0, record, 1)) == errno.EPERM


async def test_removal_deletes_lists_references_and_objects(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    slices = await write(meta, ino, 0, 2 * CHUNK + 5)
    slices += await write(meta, ino, 3, 5)
    assert await meta.unlink(SUPERUSER, 1, b"f") == ino
    await settle(meta)
    assert sorted(made.deleted) == sorted(slices)
    assert await lists(meta, ino) == {}
    assert [queued async for queued in meta.store.deleted_files()] == []
    assert [left async for left in meta.store.unreferenced_slices()] == []
    await audit(meta.store)


async def test_lists_beyond_a_shortened_files_end_go_too(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    slices = await write(meta, ino, 0, 3 * CHUNK)
    await meta.truncate(SUPERUSER, ino, 10, opened=False)
    await meta.unlink(SUPERUSER, 1, b"f")
    await settle(meta)
    assert sorted(made.deleted) == sorted(slices)
    assert await lists(meta, ino) == {}
    assert [queued async for queued in meta.store.deleted_files()] == []


async def test_a_slice_with_two_references_keeps_its_objects(made: Volume) -> None:
    meta = await made.client()
    for name in (b"a", b"b"):
        await new_file(meta, name)
    a, b = 2, 3
    ((id, size),) = await write(meta, a, 0, 100)

    async def copy(tx: Tx) -> None:
        tx.append(ChunkKey(b, 0), Slice(0, id, size, 0, size))
        tx.add(SliceRefKey(id, size), 1)

    await meta.store.run(copy)
    assert await meta.store.get(SliceRefKey(id, size)) == (2,)
    await meta._deletion.delete_files([(a, 100)])
    assert made.deleted == []
    assert await meta.store.get(SliceRefKey(id, size)) == (1,)
    await meta._deletion.delete_files([(b, 100)])
    assert made.deleted == [(id, size)]


async def test_objects_that_cannot_be_deleted_wait_for_the_job(made: Volume) -> None:
    from jfs.errors import ObjectUnavailable

    meta = await made.client()
    ino = await new_file(meta, b"f")
    ((id, size),) = await write(meta, ino, 0, 100)

    async def refuse(id: int, size: int) -> None:
        raise ObjectUnavailable("the bucket does not answer")

    meta._deletion._delete_objects = refuse
    await meta.unlink(SUPERUSER, 1, b"f")
    await settle(meta)
    assert [left async for left in meta.store.unreferenced_slices()] == [(id, size)]
    other = await made.client()
    assert await other.jobs().unreferenced_slices()
    assert made.deleted == [(id, size)]
    assert [left async for left in meta.store.unreferenced_slices()] == []


async def test_an_open_file_lives_until_its_last_close(made: Volume) -> None:
    meta = await made.client()
    ino, _, _ = await meta.create(SUPERUSER, 1, b"f", 0o644, os.O_RDWR)
    slices = await write(meta, ino, 0, 100)
    await meta.setxattr(SUPERUSER, ino, b"user.a", b"1")
    await meta.open(SUPERUSER, ino, os.O_RDONLY)
    assert await meta.unlink(SUPERUSER, 1, b"f") == ino
    assert (await meta.getattr(ino)).nlink == 0
    assert [kept async for kept in meta.store.sustained(meta.sid)] == [ino]
    assert await meta.listxattr(ino) == []
    slices += await write(meta, ino, 100, 100)
    assert (await meta.getattr(ino)).length == 200
    assert await errno_of(meta.link(SUPERUSER, ino, 1, b"again")) == errno.ENOENT
    other = await made.client()  # only the session that keeps it may give it a name
    assert await errno_of(other.link(SUPERUSER, ino, 1, b"again", nameless=True)) == errno.ENOENT
    await audit(meta.store)
    await meta.release(ino)
    assert made.deleted == []
    await meta.release(ino)
    await settle(meta)
    assert sorted(made.deleted) == sorted(slices)
    assert [kept async for kept in meta.store.sustained(meta.sid)] == []
    assert await errno_of(meta.getattr(ino)) == errno.ENOENT
    await audit(meta.store)


@pytest.mark.parametrize("engine", ALL)
async def test_capacity_and_inode_limits(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, capacity=20 * 4096, inodes=3) as made:
        meta = await made.client()
        ino = await new_file(meta, b"f")
        assert await meta.statfs() == (20 * 4096, 4096, 1, 2)
        await write(meta, ino, 0, 19 * 4096)
        await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
        record = Slice(0, await meta.new_slice_id(), 4096, 0, 4096)
        assert await errno_of(meta.commit_slice(ino, 0, 19 * 4096, record, 1)) == errno.ENOSPC
        assert await errno_of(meta.truncate(SUPERUSER, ino, 1 << 30, opened=True)) == errno.ENOSPC
        assert await errno_of(meta.mkdir(SUPERUSER, 1, b"e", 0o755)) == errno.ENOSPC
        await meta.truncate(SUPERUSER, ino, 10, opened=True)
        await meta.mkdir(SUPERUSER, 1, b"e", 0o755)
        assert await errno_of(meta.mkdir(SUPERUSER, 1, b"g", 0o755)) == errno.ENOSPC
        await meta.rmdir(SUPERUSER, 1, b"e")
        await meta.mkdir(SUPERUSER, 1, b"g", 0o755)
        assert await meta.statfs() == (20 * 4096, 3 * 4096, 3, 0)
        await audit(meta.store)


async def test_growth_of_a_linked_file_counts_in_each_directory(made: Volume) -> None:
    meta = await made.client()
    d, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
    ino = await new_file(meta, b"f")
    await meta.link(SUPERUSER, ino, d, b"g")
    await meta.link(SUPERUSER, ino, d, b"h")
    await write(meta, ino, 0, 10_000)
    await audit(meta.store)
    await meta.truncate(SUPERUSER, ino, 1, opened=False)
    await audit(meta.store)
    await meta.rename(SUPERUSER, d, b"g", 1, b"g")
    await audit(meta.store)
    await meta.unlink(SUPERUSER, d, b"h")
    await meta.unlink(SUPERUSER, 1, b"f")
    await audit(meta.store)
    assert (await meta.getattr(ino)).parent == 0


@pytest.mark.parametrize("allowed", [True, False])
async def test_an_opening_outlasts_a_removal(made: Volume, monkeypatch: pytest.MonkeyPatch, allowed: bool) -> None:
    """The file has been looked at and has no handle yet when its last name goes."""
    meta = await made.client(check_access=True)
    ino = await new_file(meta, b"f")
    await write(meta, ino, 0, 100)
    seen, go_on, get = asyncio.Event(), asyncio.Event(), meta.store.get

    async def slow(*keys: Any) -> Any:
        found = await get(*keys)
        if NodeKey(ino) in keys:
            seen.set()
            await go_on.wait()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(meta.store, "get", slow)
        caller = SUPERUSER if allowed else Caller(1000, 1000, 1)
        opening = asyncio.create_task(errno_of(meta.open(caller, ino, os.O_RDWR)))
        await seen.wait()
        await meta.unlink(SUPERUSER, 1, b"f")
        go_on.set()
        assert await opening == (0 if allowed else errno.EACCES)
    if allowed:
        assert (await meta.getattr(ino)).nlink == 0
        await meta.release(ino)
    await meta._stop_lingering()
    assert await errno_of(meta.getattr(ino)) == errno.ENOENT
    await audit(meta.store)


async def test_a_file_that_is_opened_while_it_is_removed_is_whole_or_gone(made: Volume) -> None:
    meta = await made.client()
    for number in range(20):
        name = b"f%d" % number
        ino = await new_file(meta, name)
        await write(meta, ino, 0, 100)
        opening = asyncio.ensure_future(errno_of(meta.open(SUPERUSER, ino, os.O_RDONLY)))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        await meta.unlink(SUPERUSER, 1, name)
        if not await opening:
            assert (await meta.getattr(ino)).nlink == 0
            await meta.release(ino)
        assert await errno_of(meta.getattr(ino)) == errno.ENOENT
    await audit(meta.store)
