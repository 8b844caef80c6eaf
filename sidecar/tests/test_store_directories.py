"""A large directory on every engine, listed while two clients make, rename and remove entries: every entry that is there all the time
comes exactly once, no name comes twice, and what was removed before does not come."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import store_engines as engines
from jfs.format.constants import ROOT
from jfs.meta.volume import SUPERUSER, Meta
from large_directory import populate
from meta_volumes import volume

# Entries, and how many of them are put in one transaction: etcd takes 128 operations, and the slower servers' runs stay short.
SMALL, LARGE = 6_000, 200_000
ENTRIES = {"redis": LARGE, "redis-watch": 50_000, "postgres": 20_000, "mysql": 20_000, "etcd": 5_000, "tikv": 5_000}
TOGETHER = {"etcd": 50, "tikv": 1000}
CHANGES = 3  # names changed after each page, by each client


class Changer:
    """Works through every twentieth name from *start*: removes it, makes another one, renames that and mostly removes it again."""

    def __init__(self, meta: Meta, directory: int, start: int, count: int) -> None:
        self._meta = meta
        self._directory = directory
        self._numbers = iter(range(start, count, 20))
        self.removed: set[bytes] = set()

    async def go_on(self) -> None:
        meta, directory = self._meta, self._directory
        for number in (next(self._numbers, None) for _ in range(CHANGES)):
            if number is None:
                return
            await meta.unlink(SUPERUSER, directory, b"old-%d" % number)
            self.removed.add(b"old-%d" % number)
            ino, _, _ = await meta.create(SUPERUSER, directory, b"new-%d" % number, 0o644, 0)
            await meta.release(ino)
            await meta.rename(SUPERUSER, directory, b"new-%d" % number, directory, b"newer-%d" % number, 0)
            if number % 40:
                await meta.unlink(SUPERUSER, directory, b"newer-%d" % number)


async def listed(meta: Meta, directory: int, *, plus: bool, between: Callable[[], object]) -> AsyncIterator[bytes]:
    async for page in meta.list_directory(SUPERUSER, directory, plus=plus):
        for name in page.names:
            yield name
        await asyncio.gather(*between())  # type: ignore[misc]


async def examine(engine: str, count: int, folder: Path) -> None:
    async with volume(engine, folder, trash_days=0) as made:
        clients = [await made.client() for _ in range(2)]
        directory, _ = await clients[0].mkdir(SUPERUSER, ROOT, b"d", 0o755)
        await populate(clients[0].store, directory, count, together=TOGETHER.get(engine, 5000))
        stays = {b"old-%d" % number for number in range(count) if number % 10}
        changers = [Changer(meta, directory, start, count) for meta, start in zip(clients, (0, 10), strict=True)]
        for plus in (False, True):
            before = set().union(*(changer.removed for changer in changers))
            names = [
                name
                async for name in listed(
                    clients[plus], directory, plus=plus, between=lambda: [changer.go_on() for changer in changers]
                )
            ]
            assert len(names) == len(set(names)), "a name was listed twice"
            assert stays <= set(names), "names that were there all the time are missing"
            assert not before & set(names), "names that had been removed were listed"
        assert all(changer.removed for changer in changers)


@pytest.mark.parametrize("engine", engines.FAST)
async def test_a_large_directory_among_changes(engine: str, tmp_path: Path) -> None:
    await examine(engine, SMALL, tmp_path)


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["memory", "sqlite3", *ENTRIES])
async def test_a_very_large_directory_among_changes(engine: str, tmp_path: Path) -> None:
    await examine(engine, ENTRIES.get(engine, LARGE), tmp_path)
