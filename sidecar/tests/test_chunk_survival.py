"""Pending data that outlive their writer: at any moment the files of the arena, the database and the storage are copied – which is
what a kill leaves – and a successor goes on with the copies."""

import asyncio
import errno
import os
import random
import shutil
from pathlib import Path

import pytest
from data_fakes import FakeMeta, SlowStorage
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.reader import Reader, ReadLimits
from jfs.chunk.writer import Writer
from jfs.errors import FsError
from jfs.format.constants import CHUNK
from jfs.survival.arena import Arena

BLOCK = 64 << 10
FILES = (1, 2, 3)


class Process:
    """A writer with what it lives on."""

    def __init__(self, directory: Path, seed: int, former: "Process | None" = None) -> None:
        self.directory = directory
        self.meta = FakeMeta()
        self.storage = SlowStorage([random.Random(seed).randrange(6) for _ in range(17)])
        if former is not None:
            shutil.copytree(former.directory, directory)
            self.meta.chunks = {key: list(slices) for key, slices in former.meta.chunks.items()}
            self.meta.lengths = dict(former.meta.lengths)
            self.meta.next_id = former.meta.next_id + 1000
            self.storage.objects.update(former.storage.objects)
        self.arena = Arena(str(directory), BLOCK)
        self.blocks = BlockStore(self.storage, BlockFormat(BLOCK), BlockLimits(io_retries=0, pause=lambda _: 0))
        self.writer = Writer(self.blocks, self.meta, Budget(8 << 20), arena=self.arena)

    async def close(self) -> None:
        await self.writer.close()
        await self.blocks.close()
        self.arena.close(keep=True)

    async def content(self, ino: int) -> bytes:
        reader = Reader(self.blocks, self.meta, Budget(8 << 20), ReadLimits(io_retries=0))
        length = self.meta.lengths.get(ino, 0)
        handle = reader.open(ino)
        found = bytes(await handle.read(0, length, length))
        handle.close()
        await reader.close()
        return found


@pytest.mark.parametrize("seed", range(10))
async def test_what_was_acknowledged_is_committed_by_the_successor(tmp_path: Path, seed: int) -> None:
    rnd = random.Random(seed)
    expected = {ino: bytearray() for ino in FILES}
    process = Process(tmp_path / "0", seed)
    former: list[Process] = []

    async def write_some(count: int) -> None:
        handles = {ino: process.writer.open(ino) for ino in FILES}
        for _ in range(count):
            ino, offset = rnd.choice(FILES), rnd.randrange(300 << 10)
            data = rnd.randbytes(rnd.choice((10, 5000, 70_000, 200_000)))
            await handles[ino].write(offset, data)
            content = expected[ino]
            content.extend(bytes(max(offset - len(content), 0)))
            content[offset : offset + len(data)] = data
            for _ in range(rnd.randrange(8)):
                await asyncio.sleep(0)
            if rnd.random() < 0.1:
                await handles[ino].flush()

    for number in (1, 2):
        await write_some(rnd.randrange(1, 12))
        if rnd.random() < 0.5:
            process.writer.relieve()
            for _ in range(rnd.randrange(40)):
                await asyncio.sleep(0)
        former.append(process)
        process = Process(tmp_path / str(number), seed + number, process)
        process.writer.take_over()
        for ino in FILES:
            assert max(process.writer.length(ino), process.meta.lengths.get(ino, 0)) == len(expected[ino])
    await write_some(3)
    await process.writer.flush_all()
    for ino in FILES:
        assert await process.content(ino) == bytes(expected[ino])
    for slices in process.meta.chunks.values():
        ids = [one.id for one in slices]
        assert len(ids) == len(set(ids)), "a slice was committed twice"
    await process.close()
    assert Arena(str(process.directory), BLOCK).left() == []
    for one in former:
        await one.close()


async def test_a_slice_whose_commit_had_been_made_is_not_committed_again(tmp_path: Path) -> None:
    process = Process(tmp_path / "0", 0)
    handle = process.writer.open(1)
    await handle.write(0, b"content")
    made = asyncio.Event()
    commit = process.meta.commit_slice

    async def commit_and_hang(*args: object) -> None:
        await commit(*args)  # type: ignore[arg-type]
        made.set()
        await asyncio.sleep(3600)

    process.meta.commit_slice = commit_and_hang  # type: ignore[assignment,method-assign]
    flushing = asyncio.create_task(handle.flush())
    await made.wait()
    successor = Process(tmp_path / "1", 1, process)
    successor.writer.take_over()
    await successor.writer.flush_all()
    assert [len(slices) for slices in successor.meta.chunks.values()] == [1]
    assert await successor.content(1) == b"content"
    await successor.close()
    flushing.cancel()
    for task in list(process.writer._tasks):
        task.cancel()
    await asyncio.gather(flushing, *process.writer._tasks, return_exceptions=True)
    await process.blocks.close()


async def test_where_an_append_was_put_is_known(tmp_path: Path) -> None:
    process = Process(tmp_path / "0", 0)
    handle = process.writer.open(1)
    await handle.write(0, b"first", request=10)
    await handle.write(5, b"second", request=12)
    await handle.write(CHUNK - 3, b"across", request=14)
    successor = Process(tmp_path / "1", 1, process)
    successor.writer.take_over()
    assert [successor.writer.placed(number) for number in (12, 14, 99)] == [5, CHUNK - 3, None]
    await successor.close()
    await process.close()


async def test_a_full_arena_stores_before_it_acknowledges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    process = Process(tmp_path / "0", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    handle = process.writer.open(1)
    await handle.write(0, b"x" * 100_000)
    assert not process.writer.is_dirty(1)
    assert await process.content(1) == b"x" * 100_000
    process.meta.refuse = lambda _: FsError(errno.ENOSPC)
    await handle.write(0, b"y")
    with pytest.raises(FsError):
        await handle.flush()
    await process.close()
