"""Several clients change the same few names at once; whatever the order was, every side record must be right afterwards."""

import asyncio
import errno
import os
import random
from pathlib import Path

import pytest
from jfs.errors import FsError
from jfs.meta.volume import EXCHANGE, NOREPLACE, SUPERUSER, Meta
from meta_volumes import audit, volume, write
from store_engines import ALL

# What a race over a few names may rightly answer.
EXPECTED = {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EINVAL,
    errno.EACCES,
}
NAMES = [b"a", b"b", b"c"]


class Worker:
    """Random operations of one task of one client."""

    def __init__(self, meta: Meta, seed: int, directories: list[int]) -> None:
        self.meta = meta
        self.random = random.Random(seed)
        self.directories = directories
        self.done = 0

    async def run(self, count: int) -> None:
        for _ in range(count):
            operation = self.random.choice(
                [self.create, self.create, self.unlink, self.rename, self.rename, self.mkdir, self.rmdir, self.link]
            )
            try:
                await operation(self.random.choice(self.directories), self.random.choice(NAMES))
                self.done += 1
            except FsError as error:
                if error.errno not in EXPECTED:
                    raise AssertionError(f"{operation.__name__}: {error}") from error

    async def create(self, parent: int, name: bytes) -> None:
        ino, _, _ = await self.meta.create(SUPERUSER, parent, name, 0o644, os.O_RDWR)
        try:
            await write(self.meta, ino, self.random.randrange(10_000), self.random.randrange(1, 10_000))
            if self.random.random() < 0.3:
                await self.meta.truncate(SUPERUSER, ino, self.random.randrange(10_000), opened=True)
        finally:
            await self.meta.release(ino)

    async def unlink(self, parent: int, name: bytes) -> None:
        await self.meta.unlink(SUPERUSER, parent, name)

    async def mkdir(self, parent: int, name: bytes) -> None:
        await self.meta.mkdir(SUPERUSER, parent, name, 0o755)

    async def rmdir(self, parent: int, name: bytes) -> None:
        await self.meta.rmdir(SUPERUSER, parent, name)

    async def rename(self, parent: int, name: bytes) -> None:
        target, newname = self.random.choice(self.directories), self.random.choice(NAMES)
        flags = self.random.choice([0, 0, NOREPLACE, EXCHANGE])
        await self.meta.rename(SUPERUSER, parent, name, target, newname, flags)

    async def link(self, parent: int, name: bytes) -> None:
        ino, _ = await self.meta.lookup(SUPERUSER, parent, name)
        await self.meta.link(SUPERUSER, ino, self.random.choice(self.directories), self.random.choice(NAMES))


@pytest.mark.parametrize(("count", "trash_days"), [(2, 0), (2, 1), (8, 1)])
@pytest.mark.parametrize("engine", ALL)
async def test_clients_in_each_others_way(engine: str, trash_days: int, count: int, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, trash_days=trash_days) as made:
        clients = [await made.client(no_bgjob=True) for _ in range(count)]
        made_now = [(await clients[0].mkdir(SUPERUSER, 1, name, 0o755))[0] for name in (b"x", b"y")]
        directories = [1, *made_now]
        workers = [Worker(clients[number % count], number, directories) for number in range(max(6, count))]
        await asyncio.gather(*(worker.run(900 // len(workers)) for worker in workers))
        assert all(worker.done for worker in workers)
        await audit(clients[0].store)
        for meta in clients:
            await meta.close_session(drain=20)
        store = await made.store()
        await audit(store)
        assert [queued async for queued in store.deleted_files()] == []
        assert [left async for left in store.unreferenced_slices()] == []
