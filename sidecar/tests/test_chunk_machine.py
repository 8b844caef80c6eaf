"""Random writes, truncates, flushes and reads through Writer and Reader against a bytearray, with a fake of the metadata."""

import asyncio
from typing import Any

import pytest
from data_fakes import FakeMeta, SlowStorage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.reader import Reader, ReadLimits
from jfs.chunk.writer import Writer
from jfs.format.constants import CHUNK
from jfs.format.slices import Slice

KIB = 1 << 10


# Positions close to borders of blocks and of the first chunk, sizes from bytes to a few blocks.
BASES = st.sampled_from([0, 0, 64 * KIB, 128 * KIB, 1024 * KIB, CHUNK - 128 * KIB, CHUNK])
DELTAS = st.one_of(st.integers(-1, 8).map(lambda step: step * 16 * KIB), st.integers(-3000, 100_000))
STEP = st.one_of(
    st.tuples(st.just("write"), BASES, DELTAS, st.integers(1, 200_000), st.integers(1, 255)),
    st.tuples(st.just("append"), st.integers(1, 150_000), st.integers(1, 255)),
    st.tuples(st.just("flush")),
    st.tuples(st.just("truncate"), BASES, DELTAS),
    st.tuples(st.just("read"), BASES, DELTAS, st.integers(1, 300_000)),
    st.tuples(st.just("yield"), st.integers(1, 20)),
)


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
    ],
)
@given(
    steps=st.lists(STEP, max_size=25), delays=st.lists(st.integers(0, 6), min_size=1, max_size=5), small=st.booleans()
)
def test_files_read_back_as_written(compression: str, steps: list[Any], delays: list[int], small: bool) -> None:
    asyncio.run(_run(compression, steps, delays, 256 * KIB if small else 64 << 20))


def test_newer_data_stay_above_older_open_slices() -> None:
    """The third write fits the oldest slice, but the second lies above that one there."""
    steps = [("write", 0, 0, 100 * KIB, 1), ("write", 0, 10 * KIB, 100 * KIB, 2), ("write", 0, 66 * KIB, 4 * KIB, 3)]
    asyncio.run(_run("none", steps, [3], 64 << 20))


async def _run(compression: str, steps: list[Any], delays: list[int], limit: int) -> None:
    meta = FakeMeta()
    blocks = BlockStore(SlowStorage(delays), BlockFormat(64 * KIB, compression), BlockLimits(io_retries=0))
    budget = Budget(limit)
    writer, reader = Writer(blocks, meta, budget), Reader(blocks, meta, budget, ReadLimits(io_retries=0))
    w, r = writer.open(7), reader.open(7)
    # The model keeps the two regions that the positions lie in: a chunk is 64 MiB, and comparing those takes too long.
    model: dict[int, bytearray] = {}
    length = 0

    def model_bytes(offset: int, size: int) -> bytearray:
        result = bytearray(size)
        for page, content in model.items():
            begin, end = max(offset, page), min(offset + size, page + len(content))
            if begin < end:
                result[begin - offset : end - offset] = content[begin - page : end - page]
        return result

    def model_write(offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            page, begin = (offset + at) & ~0xFFFF, (offset + at) & 0xFFFF
            count = min(0x10000 - begin, len(data) - at)
            model.setdefault(page, bytearray(0x10000))[begin : begin + count] = data[at : at + count]
            at += count

    def model_truncate(new: int) -> None:
        for page in list(model):
            if page >= new:
                del model[page]
            elif page + 0x10000 > new:
                model[page][new - page :] = bytes(page + 0x10000 - new)

    async def check(offset: int, size: int) -> None:
        await writer.settle(7)
        assert not writer.is_dirty(7)
        assert meta.lengths.get(7, 0) == length
        got = bytes(await r.read(offset, size, length))
        assert got == model_bytes(offset, max(min(size, length - offset), 0))

    for step in steps:
        match step:
            case ("write", base, delta, size, fill):
                offset = max(base + delta, 0)
                data = bytes((fill + i // 997) & 0xFF for i in range(size))
                await w.write(offset, data)
                model_write(offset, data)
                length = max(length, offset + size)
            case ("append", size, fill):
                await w.write(length, memoryview(bytes([fill]) * size))
                model_write(length, bytes([fill]) * size)
                length += size
            case ("flush",):
                await w.flush()
                assert meta.lengths.get(7, 0) == length
            case ("truncate", base, delta):
                new = max(base + delta, 0)
                async with writer.paused(7):
                    meta.truncate(7, new)
                reader.invalidate(7)
                model_truncate(new)
                length = new
            case ("read", base, delta, size):
                await check(max(base + delta, 0), size)
            case ("yield", turns):
                for _ in range(turns):
                    await asyncio.sleep(0)
        assert max(writer.length(7), meta.lengths.get(7, 0)) == length
        assert budget.dirty <= limit + 512 * KIB
    for base in (0, 1024 * KIB, CHUNK - 256 * KIB):
        await check(base, 600_000)
    await w.close()
    r.close()
    await writer.close()
    await reader.close()
    await blocks.close()
    assert budget.dirty == 0
    assert budget.cached == 0
    named = {name for slice in meta.commits for name in _names(slice)}
    assert named == set(blocks.storage.objects)  # type: ignore[attr-defined]


def _names(slice: Slice) -> set[str]:
    """Object names by the rule of the format, written down again independently."""
    names = set()
    for block in range((slice.size + 65535) // 65536):
        size = min(65536, slice.size - block * 65536)
        names.add(f"chunks/{slice.id // 10**6}/{slice.id // 10**3}/{slice.id}_{block}_{size}")
    return names
