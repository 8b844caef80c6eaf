"""What a writer is told when database or storage fail: errors that do not pass are told soon, a database that is away is waited for,
each handle is told of each failure once, and nothing is acknowledged that was not stored."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from data_fakes import FakeMeta, FaultyStorage
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.budget import Budget
from jfs.chunk.writer import Writer
from jfs.errors import (
    FsError,
    ObjectForbidden,
    ObjectUnavailable,
    StorageFull,
    StorageMissing,
    StorageReadOnly,
    StoreAway,
    StoreUnavailable,
)
from jfs.object.file import FileStorage

BLOCK = 64 << 10


class Rig:
    def __init__(self) -> None:
        self.meta, self.storage = FakeMeta(), FaultyStorage()
        self.blocks = BlockStore(self.storage, BlockFormat(BLOCK), BlockLimits(pause=lambda tried: 0))
        self.writer = Writer(self.blocks, self.meta, Budget(1 << 20))

    def fail_puts(self, error: Callable[[], Exception] | None) -> None:
        def before(method: str, key: str, count: int) -> None:
            if method == "PUT" and error is not None:
                raise error()

        self.storage.before = before


@asynccontextmanager
async def rigged() -> AsyncIterator[Rig]:
    rig = Rig()
    try:
        yield rig
    finally:
        rig.fail_puts(None)
        await rig.writer.close()
        await rig.blocks.close()


async def told(awaitable: Any) -> int:
    try:
        await awaitable
    except FsError as error:
        return error.errno
    return 0


@pytest.mark.parametrize(
    ("error", "number", "tries"),
    [
        (StorageFull, errno.ENOSPC, 3),
        (ObjectForbidden, errno.EIO, 3),
        (StorageReadOnly, errno.EROFS, 3),
        (StorageMissing, errno.EIO, 3),
        (ObjectUnavailable, errno.EIO, 11),
    ],
)
async def test_errors_that_do_not_pass_are_told_soon(error: type[Exception], number: int, tries: int) -> None:
    async with rigged() as rig:
        rig.fail_puts(lambda: error("no"))
        handle = rig.writer.open(7)
        await handle.write(0, b"x" * 1000)
        assert await told(handle.sync()) == number
        assert len([request for request in rig.storage.requests if request[0] == "PUT"]) == tries
        rig.fail_puts(None)
        await handle.write(0, b"y" * 1000)
        await handle.close()
        assert rig.meta.lengths == {7: 1000}


async def test_each_handle_is_told_of_each_failure() -> None:
    """By each flush until a sync or a write was told."""
    async with rigged() as rig:
        first, second = rig.writer.open(7), rig.writer.open(7)
        rig.fail_puts(lambda: StorageFull("no"))
        await first.write(0, b"x")
        assert await told(first.flush()) == errno.ENOSPC
        assert await told(first.flush()) == errno.ENOSPC
        assert await told(first.sync()) == errno.ENOSPC
        assert await told(first.flush()) == 0
        assert await told(second.sync()) == errno.ENOSPC
        await first.write(0, b"x")
        assert await told(first.close()) == errno.ENOSPC
        third = rig.writer.open(7)
        assert await told(third.flush()) == 0  # it was not open when that was written
        assert await told(second.write(0, b"y")) == errno.ENOSPC  # the second failure, before the data are taken
        assert not rig.writer.is_dirty(7)
        rig.fail_puts(None)
        assert await told(second.write(0, b"y")) == 0
        assert await told(second.close()) == 0
        assert await told(third.close()) == 0
        assert rig.meta.lengths == {7: 1}


@pytest.mark.parametrize("reason", [StoreAway("no answer"), FsError(errno.EAGAIN)])
async def test_a_database_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch, reason: Exception) -> None:
    monkeypatch.setattr("jfs.chunk.file_writer.PAUSE", 0.0)
    async with rigged() as rig:
        away = [reason] * 3
        rig.meta.refuse = lambda slice: away.pop() if away else None
        handle = rig.writer.open(7)
        await handle.write(0, b"x" * 1000)
        await handle.flush()
        assert not away
        assert [slice.len for slice in rig.meta.commits] == [1000]
        await handle.close()


@pytest.mark.parametrize("reason", [StoreAway("no answer"), FsError(errno.EAGAIN)])
async def test_a_database_that_stays_away_is_told_and_nothing_is_left(reason: Exception) -> None:
    async with rigged() as rig:
        rig.writer.patience = -1.0
        rig.meta.refuse = lambda slice: reason
        handle = rig.writer.open(7)
        await handle.write(0, b"x" * 1000)
        assert await told(handle.flush()) == errno.EIO
        rig.meta.refuse = lambda slice: None
        await handle.close()
        await rig.writer.close()
        assert not rig.storage.objects
        assert not rig.meta.commits


async def test_a_commit_of_unknown_outcome_is_not_repeated_and_keeps_its_objects() -> None:
    async with rigged() as rig:
        asked = []

        def refuse(slice: Any) -> Exception:
            asked.append(slice.id)
            return StoreUnavailable("whether it was made is unknown")

        rig.meta.refuse = refuse
        handle = rig.writer.open(7)
        await handle.write(0, b"x" * 1000)
        assert await told(handle.flush()) == errno.EIO
        assert len(asked) == 1
        await handle.close()
        await rig.writer.close()
        assert len(rig.storage.objects) == 1


async def test_a_flush_that_is_given_up_leaves_the_data_on_their_way() -> None:
    async with rigged() as rig:
        gate = asyncio.Event()
        rig.storage.before = lambda method, key, count: gate.wait() if method == "PUT" else None
        handle = rig.writer.open(7)
        await handle.write(0, b"x" * 1000)
        flushing = asyncio.ensure_future(handle.flush())
        await asyncio.sleep(0)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        gate.set()
        await handle.flush()
        assert rig.meta.lengths == {7: 1000}
        await handle.close()


async def test_a_directory_that_vanished_is_not_made_again(tmp_path: Path) -> None:
    root = tmp_path / "bucket"
    root.mkdir()
    storage = FileStorage(str(root))
    await storage.put("vol/chunks/0/0/1_0_1", b"x")
    shutil.rmtree(root)
    for _ in range(2):
        with pytest.raises(StorageMissing, match="does not exist"):
            await storage.put("vol/chunks/0/0/2_0_1", b"x")
    assert not root.exists()
    root.mkdir()  # it is there again
    await storage.put("vol/chunks/0/0/2_0_1", b"x")
    assert bytes(await storage.get("vol/chunks/0/0/2_0_1")) == b"x"


async def test_another_file_system_in_place_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the directory was on is not mounted any more: the mountpoint is there, and must not be written to."""
    storage = FileStorage(str(tmp_path))
    await storage.put("vol/chunks/0/0/1_0_1", b"x")
    real = os.stat

    def elsewhere(path: Any, *more: Any, **options: Any) -> Any:
        found = real(path, *more, **options)
        if str(path).rstrip("/") != str(tmp_path):
            return found
        return os.stat_result((*found[:2], found.st_dev + 1, *found[3:10]))

    monkeypatch.setattr(os, "stat", elsewhere)
    with pytest.raises(StorageMissing, match="is not the one it was"):
        await storage.put("vol/chunks/0/1/1_0_1", b"x")
    monkeypatch.undo()
    await storage.put("vol/chunks/0/1/1_0_1", b"x")
