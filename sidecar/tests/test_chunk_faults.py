"""What a flush has acknowledged is there, and nothing else is left in the storage, though puts and commits fail at times."""

import asyncio
import errno
from typing import Any

from data_fakes import FakeMeta, FaultyStorage
from hypothesis import given, settings
from hypothesis import strategies as st
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.naming import slice_keys
from jfs.chunk.reader import Reader
from jfs.chunk.writer import FileWriter, Writer
from jfs.errors import FsError, ObjectUnavailable
from jfs.format.slices import Slice

KIB = 1 << 10
BLOCK = 64 * KIB
WRITE = st.tuples(st.integers(0, 300_000), st.integers(1, 150_000), st.integers(1, 255), st.booleans())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    writes=st.lists(WRITE, min_size=1, max_size=8),
    puts=st.lists(st.booleans(), max_size=30),
    commits=st.lists(st.booleans(), max_size=8),
)
def test_acknowledged_data_survive_faults(writes: list[Any], puts: list[bool], commits: list[bool]) -> None:
    """*puts* and *commits* tell which of them fail; later ones succeed."""
    asyncio.run(_run(writes, list(puts), list(commits)))


async def _run(writes: list[Any], puts: list[bool], commits: list[bool]) -> None:
    meta, storage = FakeMeta(), FaultyStorage()

    def before(method: str, key: str, count: int) -> None:
        if method == "PUT" and puts and puts.pop():
            raise ObjectUnavailable("a put failed")

    def refuse(slice: Slice) -> Exception | None:
        return FsError(errno.ENOSPC) if commits and commits.pop() else None

    storage.before = before
    meta.refuse = refuse
    blocks = BlockStore(storage, BlockFormat(BLOCK), BlockLimits(io_retries=1, pause=lambda tried: 0))
    budget = Budget(1 << 20)
    writer, reader = Writer(blocks, meta, budget), Reader(blocks, meta, budget)
    handle = writer.open(7)
    model = bytearray()
    for offset, size, fill, flush in writes:
        end = offset + size
        model.extend(bytes(max(end - len(model), 0)))
        model[offset:end] = bytes([fill]) * size
        try:
            await handle.write(offset, bytes([fill]) * size)
            if flush:
                await handle.flush()
        except FsError:
            await _write_again(handle, bytes(model))
            flush = True
        if flush:
            assert meta.lengths[7] == len(model)
            assert bytes(await reader.read(7, 0, len(model))) == model
    try:
        await handle.flush()
    except FsError:
        await _write_again(handle, bytes(model))
    assert bytes(await reader.read(7, 0, len(model))) == model
    await handle.close()
    await writer.close()  # waits for the deletion of what was not committed
    await reader.close()
    await blocks.close()
    assert budget.dirty == 0
    committed = {key for slice in meta.commits for key in slice_keys(slice.id, slice.size, BLOCK, hash_prefix=False)}
    assert set(storage.objects) == committed


async def _write_again(handle: FileWriter, content: bytes) -> None:
    """As a program does that was told of a failure: everything once more, until it is acknowledged."""
    for _ in range(50):
        try:
            await handle.write(0, content)
            await handle.flush()
            return
        except FsError:
            continue
    raise AssertionError("the faults ended, but not the failures")
