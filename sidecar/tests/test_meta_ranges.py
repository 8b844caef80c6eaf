"""fallocate, copies by reference, data and holes: the exact records, references and errors (format §5.3, appendix A.2)."""

import errno
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from jfs.format.constants import CHUNK, FIFO, MAX_FILE, align4k
from jfs.format.slices import Slice, unpack
from jfs.meta.engines.memory import MemoryStore
from jfs.meta.model.keys import ChunkKey, SliceRefKey
from jfs.meta.model.quota import DIRECTORY, QuotaKey
from jfs.meta.operations import ranges
from jfs.meta.operations.ranges import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    MAX_COPY,
    PUNCH_HOLE,
    ZERO_RANGE,
    moved,
)
from jfs.meta.volume import NOW, SUPERUSER, AttrChange, Meta
from jfs.meta.volume.quotas import Limits, set_quota
from meta_volumes import Volume, audit, errno_of, new_file, volume, write
from store_engines import ALL

PUNCH = PUNCH_HOLE | KEEP_SIZE


@pytest.fixture(params=ALL)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume(request.param, tmp_path) as made:
        yield made


async def lists(meta: Meta, ino: int) -> dict[int, list[Slice]]:
    return {
        indx: unpack((await meta.store.get(ChunkKey(ino, indx)))[0]) for indx in await meta.store.chunk_indexes(ino)
    }


def zero(pos: int, length: int) -> Slice:
    return Slice(pos, 0, 0, 0, length)


async def test_a_hole_is_a_zero_record(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    ((id, size),) = await write(meta, ino, 0, 10_000)
    attr = await meta.fallocate(ino, PUNCH, 1000, 5000)
    assert (await lists(meta, ino))[0] == [Slice(0, id, size, 0, size), zero(1000, 5000)]
    assert (await meta.store.get(ChunkKey(ino, 0)))[0][24:].hex() == "000003e80000000000000000000000000000000000001388"
    assert attr.length == 10_000
    assert (attr.mtime, attr.mtimensec) == (attr.ctime, attr.ctimensec)
    await meta.fallocate(ino, PUNCH, 9000, 5000)  # cut at the end of the file
    assert (await lists(meta, ino))[0][-1] == zero(9000, 1000)
    await meta.fallocate(ino, PUNCH, 20_000, 5000)
    assert len((await lists(meta, ino))[0]) == 3
    await audit(meta.store)


async def test_the_length_grows_unless_it_is_to_be_kept(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    await write(meta, ino, 0, 100)
    assert (await meta.fallocate(ino, KEEP_SIZE, 0, 1 << 40)).length == 100
    assert (await meta.fallocate(ino, 0, 50, 10)).length == 100
    assert (await meta.fallocate(ino, 0, 5000, 5000)).length == 10_000
    assert (await meta.fallocate(ino, ZERO_RANGE, 50, 20_000)).length == 20_050
    assert (await meta.fallocate(ino, ZERO_RANGE | KEEP_SIZE, 0, 1 << 41)).length == 20_050
    assert (await meta.fallocate(ino, 0, 0, 3 * CHUNK + 5)).length == 3 * CHUNK + 5
    assert list(await lists(meta, ino)) == [0]  # where there is nothing nothing is cleared
    await audit(meta.store)


async def test_what_fallocate_refuses(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    wrong = [
        (0, 0, 0, errno.EINVAL),
        (0, -1, 5, errno.EINVAL),
        (COLLAPSE_RANGE, 0, 5, errno.ENOTSUP),
        (INSERT_RANGE, 0, 5, errno.ENOTSUP),
        (INSERT_RANGE | KEEP_SIZE, 0, 5, errno.EINVAL),
        (PUNCH_HOLE, 0, 5, errno.EINVAL),
        (64, 0, 5, errno.ENOTSUP),
        (0, MAX_FILE - 1, 2, errno.EFBIG),
    ]
    for mode, offset, size, number in wrong:
        assert await errno_of(meta.fallocate(ino, mode, offset, size)) == number, (mode, offset, size)
    assert await errno_of(meta.fallocate(99, 0, 0, 1)) == errno.ENOENT
    assert await errno_of(meta.fallocate(1, 0, 0, 1)) == errno.EPERM
    fifo, _ = await meta.mknod(SUPERUSER, 1, b"fifo", FIFO, 0o644)
    assert await errno_of(meta.fallocate(fifo, 0, 0, 1)) == errno.EPIPE
    await meta.setattr(SUPERUSER, ino, AttrChange(flags=2))  # append-only
    assert await errno_of(meta.fallocate(ino, PUNCH, 0, 1)) == errno.EPERM
    await meta.fallocate(ino, KEEP_SIZE, 0, 1)
    await meta.setattr(SUPERUSER, ino, AttrChange(flags=1))  # immutable
    assert await errno_of(meta.fallocate(ino, KEEP_SIZE, 0, 1)) == errno.EPERM


async def test_a_full_volume_refuses_growth(tmp_path: Path) -> None:
    async with volume("memory", tmp_path, capacity=1 << 20) as small:
        meta = await small.client()
        ino = await new_file(meta, b"f")
        assert await errno_of(meta.fallocate(ino, 0, 0, 2 << 20)) == errno.ENOSPC
        await write(meta, ino, 0, 500_000)
        target = await new_file(meta, b"g")
        assert await errno_of(meta.copy_range(ino, 0, target, 0, 500_000)) == 0
        assert await errno_of(meta.copy_range(ino, 0, target, 500_000, 500_000)) == errno.ENOSPC


def test_pieces_are_cut_at_the_borders_of_both_files_chunks() -> None:
    big = Slice(0, 2, CHUNK, 0, CHUNK).pack()
    small = Slice(0, 4, 1000, 0, 1000).pack()
    assert list(moved([(0, big), (1, small)], 0x100000, CHUNK - 0x100000 + 1000, 0)) == [
        (0, Slice(0, 2, CHUNK, 0x100000, CHUNK - 0x100000)),
        (0, Slice(CHUNK - 0x100000, 4, 1000, 0, 1000)),
    ]
    assert list(moved([(0, big)], 0, CHUNK, CHUNK - 10)) == [
        (0, Slice(CHUNK - 10, 2, CHUNK, 0, 10)),
        (1, Slice(0, 2, CHUNK, 10, CHUNK - 10)),
    ]
    holes = Slice(100, 7, 50, 5, 20).pack() + zero(105, 5).pack()
    assert list(moved([(0, holes), (1, b"")], 90, CHUNK, 0)) == [
        (0, zero(0, 10)),
        (0, Slice(10, 7, 50, 5, 5)),
        (0, zero(15, 5)),
        (0, Slice(20, 7, 50, 15, 10)),
        (0, zero(30, CHUNK - 120)),
        (0, zero(CHUNK - 90, 90)),
    ]


async def references(meta: Meta, *slices: tuple[int, int]) -> list[int | None]:
    return list(await meta.store.get(*(SliceRefKey(id, size) for id, size in slices)))


async def test_a_copy_names_the_sources_slices_and_counts_them(made: Volume) -> None:
    meta = await made.client()
    source, target = await new_file(meta, b"s"), await new_file(meta, b"t")
    first, second, third = await write(meta, source, CHUNK - 1000, CHUNK + 2000)
    copied, attr = await meta.copy_range(source, CHUNK - 500, target, 100, 1 << 40)
    assert attr is not None
    assert (copied, attr.length) == (CHUNK + 1500, CHUNK + 1600)
    assert await lists(meta, target) == {
        0: [Slice(100, *first, 500, 500), Slice(600, *second, 0, CHUNK - 600)],
        1: [Slice(0, *second, CHUNK - 600, 600), Slice(600, *third, 0, 1000)],
    }
    assert await references(meta, first, second, third) == [2, 3, 2]
    await meta.copy_range(target, 100, source, 10, 500)
    assert await references(meta, first) == [3]
    await audit(meta.store)
    assert await meta.copy_range(source, 1 << 40, target, 0, 5) == (0, None)
    for name in (b"s", b"t"):
        await meta.unlink(SUPERUSER, 1, name)
    await meta._deletion.drain(10)
    assert set(made.deleted) == {first, second, third}  # each at least once: two removals may see the last reference go
    await audit(meta.store)


async def test_copying_holes_over_data_clears_it(made: Volume) -> None:
    meta = await made.client()
    source, target = await new_file(meta, b"s"), await new_file(meta, b"t")
    await meta.truncate(SUPERUSER, source, 3 * CHUNK, opened=False)
    await write(meta, target, 0, 100)
    copied, _ = await meta.copy_range(source, 0, target, 10, 2 * CHUNK)
    assert copied == 2 * CHUNK
    assert (await lists(meta, target))[0][1:] == [zero(10, CHUNK - 10)]
    assert await meta.seek_hole(target, 0, 2 * CHUNK) == 10
    await audit(meta.store)


async def test_what_a_copy_refuses(made: Volume) -> None:
    meta = await made.client()
    source, target = await new_file(meta, b"s"), await new_file(meta, b"t")
    await write(meta, source, 0, 1000)
    assert await errno_of(meta.copy_range(source, 0, source, 500, 1000)) == errno.EINVAL
    assert await errno_of(meta.copy_range(source, 0, source, 500, 500)) == 0
    assert await errno_of(meta.copy_range(1, 0, target, 0, 5)) == errno.EINVAL
    assert await errno_of(meta.copy_range(source, 0, 99, 0, 5)) == errno.ENOENT
    assert await errno_of(meta.copy_range(source, 0, target, MAX_FILE - 1, 5)) == errno.EFBIG
    for flags in (1, 2):
        await meta.setattr(SUPERUSER, target, AttrChange(flags=flags))
        assert await errno_of(meta.copy_range(source, 0, target, 0, 5)) == errno.EPERM


async def test_one_transaction_copies_a_bounded_range(made: Volume) -> None:
    meta = await made.client()
    source, target = await new_file(meta, b"s"), await new_file(meta, b"t")
    await meta.truncate(SUPERUSER, source, 3 * MAX_COPY, opened=False)
    copied, attr = await meta.copy_range(source, 0, target, 0, 3 * MAX_COPY)
    assert attr is not None
    assert copied == attr.length == MAX_COPY
    await audit(meta.store)


async def test_data_and_holes_are_found(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    await write(meta, ino, 1000, 500)
    await write(meta, ino, 20 * CHUNK - 100, 300)
    length = 30 * CHUNK
    await meta.truncate(SUPERUSER, ino, length, opened=False)
    await meta.fallocate(ino, PUNCH, 1100, 100)
    data = [(0, 1000), (1050, 1050), (1100, 1200), (1500, 20 * CHUNK - 100), (20 * CHUNK + 5, 20 * CHUNK + 5)]
    for offset, wanted in data:
        assert await meta.seek_data(ino, offset, length) == wanted
    holes = [(0, 0), (1000, 1100), (1200, 1500), (20 * CHUNK - 50, 20 * CHUNK + 200), (length - 1, length - 1)]
    for offset, wanted in holes:
        assert await meta.seek_hole(ino, offset, length) == wanted
    for offset in (20 * CHUNK + 200, length, length + 1):
        assert await errno_of(meta.seek_data(ino, offset, length)) == errno.ENXIO
    assert await errno_of(meta.seek_hole(ino, length, length)) == errno.ENXIO
    full = await new_file(meta, b"full")
    await write(meta, full, 0, 2 * CHUNK)
    assert await meta.seek_hole(full, 5, 2 * CHUNK) == 2 * CHUNK


async def test_flagged_inodes_keep_their_attributes(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    for flags in (2, 1):
        await meta.setattr(SUPERUSER, ino, AttrChange(flags=flags))
        for change in (AttrChange(mode=0o600), AttrChange(uid=5), AttrChange(gid=5), AttrChange(mtime=5)):
            assert await errno_of(meta.setattr(SUPERUSER, ino, change)) == errno.EPERM
        assert await errno_of(meta.setattr(SUPERUSER, ino, AttrChange(mtime=NOW))) == (errno.EPERM if flags == 1 else 0)
        assert await errno_of(meta.setxattr(SUPERUSER, ino, b"user.a", b"1")) == errno.EPERM
        assert await errno_of(meta.removexattr(SUPERUSER, ino, b"user.a")) == errno.EPERM
    await meta.setattr(SUPERUSER, ino, AttrChange(flags=0))
    await meta.setattr(SUPERUSER, ino, AttrChange(mode=0o600))


async def test_a_copy_never_names_what_a_compaction_has_just_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client()
        source, target = await new_file(meta, b"s"), await new_file(meta, b"t")
        old = await write(meta, source, 0, 1000) + await write(meta, source, 1000, 1000)
        database = cast("MemoryStore", await made.store())._database
        turns: list[int] = []

        def compacting(*arguments: Any) -> Iterator[tuple[int, Slice]]:
            if not turns:  # between the reads of the first attempt and its commit
                database.write(ChunkKey(source, 0), Slice(0, 500, 2000, 0, 2000).pack())
                for id, size in old:
                    database.write(SliceRefKey(id, size), None)
            turns.append(1)
            return moved(*arguments)

        monkeypatch.setattr(ranges, "moved", compacting)
        assert (await meta.copy_range(source, 100, target, 0, 1500))[0] == 1500
        assert len(turns) == 2
        assert await lists(meta, target) == {0: [Slice(0, 500, 2000, 100, 1500)]}
        assert await references(meta, (500, 2000), *old) == [2, 1, 1]
        await audit(meta.store)


@pytest.mark.parametrize("engine", ["memory", "sqlite3"])
async def test_growth_counts_for_quotas(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        source = await new_file(meta, b"s")
        await write(meta, source, 0, 100_000)
        directory, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
        target = await new_file(meta, b"t", parent=directory)
        limits = Limits(128 << 10, None)
        await set_quota(await made.store(), meta.setting, QuotaKey(DIRECTORY, directory), limits, strict=False)
        await meta.heartbeat()
        assert await errno_of(meta.copy_range(source, 0, target, 0, 90_000)) == 0
        assert await errno_of(meta.copy_range(source, 0, target, 90_000, 90_000)) == errno.EDQUOT
        assert await errno_of(meta.fallocate(target, 0, 0, 1 << 20)) == errno.EDQUOT
        assert await errno_of(meta.fallocate(target, KEEP_SIZE, 0, 1 << 20)) == 0
        await meta.fallocate(target, 0, 0, 100_000)
        (kept,) = await meta.store.get(QuotaKey(DIRECTORY, directory))
        assert kept.used_space == align4k(100_000)
        await audit(meta.store)
