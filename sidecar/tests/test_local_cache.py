"""The disk cache: layout, checksums, limits, scans, damage, several directories and processes, and what happens when the disk fails."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from jfs.chunk.local import checksum, disk, pending
from jfs.chunk.local.directory import CacheDirectory
from jfs.chunk.local.disk import DiskCache
from jfs.chunk.local.index import OVERHEAD, Index
from jfs.chunk.local.layout import block_of, directory_mode, ident, parse
from jfs.chunk.local.memory import MemoryCache
from jfs.chunk.local.options import CacheOptions, directories
from jfs.chunk.local.ring import Ring, murmur3
from jfs.metrics import Registry
from jfs.object.base import Data

VOLUME = "b3a1cd7e-70c4-4b1a-8a3c-5f0f3a9f8a11"
BLOCK = 128 << 10


def pattern(size: int, seed: int = 0) -> bytes:
    return b"".join((at + seed).to_bytes(4, "big") for at in range(0, size, 4))[:size]


async def until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def opened(*paths: Path, **options: Any) -> AsyncIterator[DiskCache]:
    settings: dict[str, Any] = {"free_ratio": 0.0} | options
    cache = DiskCache(CacheOptions(tuple(map(str, paths)), **settings), VOLUME, block_size=BLOCK, registry=Registry())
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close()


async def store(cache: DiskCache, slice_id: int, data: Data, indx: int = 0) -> None:
    assert cache.put(slice_id, indx, data)
    await until(lambda: not cache._pending, "the block is written")


def raw(path: Path, key: str = "") -> Path:
    return path / VOLUME / "raw" / key


def files(path: Path) -> list[str]:
    return sorted(each.name for each in raw(path).rglob("*") if each.is_file())


async def whole(cache: DiskCache, slice_id: int, length: int, indx: int = 0) -> bytes | None:
    data = await cache.read(slice_id, indx, length, 0, length)
    return None if data is None else bytes(data)


def test_trailer_of_the_format_documents_example() -> None:
    assert checksum.trailer(b"hello").hex() == "9a71bb4c"
    assert checksum.trailer_length(1) == 4
    assert checksum.trailer_length(32 << 10) == 4
    assert checksum.trailer_length((32 << 10) + 1) == 8


@pytest.mark.parametrize(
    ("level", "begin", "count", "seen"),
    [
        ("none", 0, 100_000, False),
        ("full", 0, 100_000, True),
        ("full", 0, 99_999, False),
        ("shrink", 32 << 10, 32 << 10, True),  # exactly the damaged piece
        ("shrink", (32 << 10) + 1, 32 << 10, False),
        ("extend", (32 << 10) + 1, 10, True),
        ("extend", 0, 10, False),
        ("extend", 70_000, 30_000, False),
    ],
)
def test_levels_of_checking(level: Any, begin: int, count: int, seen: bool) -> None:
    data = bytearray(pattern(100_000))
    sums = checksum.trailer(data)
    data[40_000] ^= 1
    start, end = checksum.read_range(level, len(data), begin, count)
    assert start <= begin
    assert end >= begin + count
    assert checksum.is_intact(level, sums, len(data), start, data[start:end]) is not seen


def test_names_are_parsed_and_numbered() -> None:
    assert parse("12345678_1_805696") == (12345678, 1, 805696)
    for name in ("1_2", "1_2_3.tmp", "x_1_2", ".lock", "1_2_3_4"):
        assert parse(name) is None
    assert block_of(ident(12345678, 1023)) == (12345678, 1023)
    assert directory_mode(0o600) == 0o700
    assert directory_mode(0o644) == 0o777


def test_murmur3_and_the_real_clients_choice_of_directories() -> None:
    assert murmur3(b"") == 0
    assert murmur3(b"hello") == 0x248BFA47
    assert murmur3(b"hello, world") == 0x149BBB7F
    # Locks and files of a cache that the real client 1.4.2 wrote.
    first, second = "f5607cb5-8375-4f28-b2c7-10cf3179afcb", "8e1104af-3519-4468-994d-d52de2700c43"
    ring = Ring((first, second))
    for name in ("10_0_2", "14_0_3", "1_2_4194304", "1_3_4194304", "1_9_2251264", "23_0_3", "8_0_2"):
        assert ring.owner(f"chunks/0/0/{name}") == first
    for name in ("11_0_3", "12_0_3", "1_0_4194304", "1_8_4194304", "40_0_3", "9_0_2"):
        assert ring.owner(f"chunks/0/0/{name}") == second


def test_directories_are_listed_with_wildcards(tmp_path: Path) -> None:
    for name in ("ssd2", "ssd1", "hdd"):
        (tmp_path / name).mkdir()
    assert directories(f"{tmp_path}/ssd*:{tmp_path}/new") == (f"{tmp_path}/ssd1", f"{tmp_path}/ssd2", f"{tmp_path}/new")
    assert directories(f"{tmp_path}/none*") == ()
    assert directories("memory") == ("memory",)


def test_lru_evicts_what_was_not_used_for_longest() -> None:
    index = Index(10 * (1000 + OVERHEAD), 0, "lru")
    for number in range(10):
        index.add(number, 1000, number)
    assert index.excess() == []
    index.touch(0, 50)
    index.add(10, 1000, 60)
    assert [number for number, _ in index.excess()] == [1, 2]
    assert 0 in index


def test_two_random_evicts_the_older_of_two() -> None:
    choices = iter([3, 7, 5, 5])
    index = Index(1 << 40, 10, "2-random", choose=lambda count: next(choices))
    for number in range(11):
        index.add(number, 1000, 100 - number)
    assert index.excess() == [(7, 1000), (5, 1000)]  # 7 is older than 3; at least one twentieth goes
    assert len(index) == 9


def test_policy_none_takes_no_more_when_full() -> None:
    index = Index(3 * (1000 + OVERHEAD), 0, "none")
    for number in range(3):
        assert index.takes(1000)
        index.add(number, 1000, 0)
    assert not index.takes(1000)
    assert index.excess(5000) == []


def test_blocks_not_used_expire() -> None:
    index = Index(1 << 30, 0, "lru")
    index.add(1, 10, 100)
    index.add(2, 10, 200)
    assert index.expired(150) == [(1, 10)]
    assert list(index) == [2]


@pytest.mark.parametrize("level", ["none", "full", "shrink", "extend"])
async def test_a_block_is_kept_in_the_real_clients_form(tmp_path: Path, level: Any) -> None:
    data = pattern(100_000)
    async with opened(tmp_path, checksum=level) as cache:
        await store(cache, 12345678, data, 1)
        path = raw(tmp_path, "chunks/12/12345/12345678_1_100000")
        assert path.read_bytes() == data + (b"" if level == "none" else checksum.trailer(data))
        assert path.stat().st_mode & 0o7777 == 0o600
        assert raw(tmp_path).stat().st_mode & 0o7777 == 0o700
        for begin, count in ((0, 100_000), (5, 1), (32_768, 32_768), (99_999, 1), (40_000, 50_000)):
            assert bytes(await cache.read(12345678, 1, 100_000, begin, count) or b"") == data[begin : begin + count]
    assert len((tmp_path / VOLUME / ".lock").read_text()) == 36


async def test_a_queued_block_is_read_from_memory_and_a_deleted_one_does_not_appear(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        data = pattern(1000)
        cache.put(1, 0, data)
        assert await whole(cache, 1, 1000) == data
        cache.remove(1, 0, 1000)
        assert not cache.has(1, 0)
        await until(lambda: cache._writer is None, "the writer has ended")
        assert files(tmp_path) == []
        await store(cache, 2, data)
        cache.remove(2, 0, 1000)
        await until(lambda: files(tmp_path) == [], "the file is removed")
        assert await whole(cache, 2, 1000) is None


async def test_a_cache_survives_a_restart_and_files_of_others_are_found(tmp_path: Path) -> None:
    data = pattern(BLOCK)
    async with opened(tmp_path) as cache:
        await store(cache, 1, data)
    async with opened(tmp_path) as cache, opened(tmp_path) as other:
        await until(lambda: cache.has(1, 0), "the scan has found the block")
        assert await whole(cache, 1, BLOCK) == data
        await store(other, 2, data)
        assert not cache.has(2, 0)
        assert await cache.read(2, 0, BLOCK, 0, 10, known=True) is None
        assert await whole(cache, 2, BLOCK) == data  # looked for on the disk
        assert cache.has(2, 0)
        other.remove(2, 0, BLOCK)
        await until(lambda: files(tmp_path) == [f"1_0_{BLOCK}"], "the other one has removed it")
        assert await whole(cache, 2, BLOCK) == data  # still open: it has not changed
        cache._open.close(ident(2, 0))
        assert await whole(cache, 2, BLOCK) is None
        assert not cache.has(2, 0)


@pytest.mark.parametrize("damage", ["flip", "short", "empty", "trailer"])
async def test_damaged_blocks_are_removed(tmp_path: Path, damage: str) -> None:
    data = pattern(100_000)
    async with opened(tmp_path) as cache:
        await store(cache, 7, data)
    path = raw(tmp_path, "chunks/0/0/7_0_100000")
    content = bytearray(path.read_bytes())
    match damage:
        case "flip":
            content[50_000] ^= 1
        case "short":
            del content[-1:]
        case "empty":
            content.clear()
        case _:
            content[-1] ^= 1
    path.write_bytes(content)
    async with opened(tmp_path) as cache:
        assert await whole(cache, 7, 100_000) is None
        assert not path.exists()
        await store(cache, 7, data)
        assert await whole(cache, 7, 100_000) == data


async def test_a_block_without_trailer_is_accepted(tmp_path: Path) -> None:
    path = raw(tmp_path, "chunks/0/0/7_0_5")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"hello")
    async with opened(tmp_path) as cache:
        assert await whole(cache, 7, 5) == b"hello"


async def test_size_is_kept_within_the_limit(tmp_path: Path) -> None:
    async with opened(tmp_path, size=10 * (BLOCK + OVERHEAD), eviction="lru") as cache:
        for number in range(1, 31):
            await store(cache, number, pattern(BLOCK, number))
        await until(lambda: not any(each.index.is_over for each in cache.directories), "what is too much is evicted")
        await until(lambda: cache._writer is None, "the writer has ended")
        left = files(tmp_path)
        assert 8 <= len(left) <= 10
        assert f"30_0_{BLOCK}" in left
        assert await whole(cache, 30, BLOCK) == pattern(BLOCK, 30)
        assert await whole(cache, 1, BLOCK) is None


async def test_items_are_kept_within_the_limit_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        for number in range(1, 21):
            await store(cache, number, b"x")
    async with opened(tmp_path, items=5):
        await until(lambda: len(files(tmp_path)) <= 5, "what the scan found too many is evicted")


async def test_what_is_never_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, partial_only=True) as cache:
        assert not cache.put(1, 0, pattern(BLOCK))
        await store(cache, 2, pattern(BLOCK - 1))
        assert cache.keeps_written(BLOCK - 1)
    async with opened(tmp_path, large_write=True) as cache:
        assert cache.keeps_written(BLOCK)
    async with opened(tmp_path) as cache:
        assert not cache.keeps_written(BLOCK)


async def test_too_many_at_once_are_dropped_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "QUEUE", 2 * BLOCK)
    async with opened(tmp_path) as cache:
        kept = [cache.put(number, 0, pattern(BLOCK, number)) for number in range(1, 6)]
        assert kept == [True, True, False, False, False]
        assert cache.put(9, 0, pattern(BLOCK, 9), force=True)
        await cache.room()
        await until(lambda: not cache._pending, "all are written")
        assert files(tmp_path) == [f"{number}_0_{BLOCK}" for number in (1, 2, 9)]


async def test_a_full_disk_costs_nothing_but_the_cache(tmp_path: Path) -> None:
    async with opened(tmp_path, free_ratio=0.0) as cache:
        await store(cache, 1, pattern(BLOCK))
    async with opened(tmp_path, free_ratio=0.999999) as cache:  # no disk is that empty
        await until(lambda: cache.directories[0].lacking, "the lack of room is noticed")
        assert not cache.put(2, 0, pattern(BLOCK))
        assert cache.directories[0].staging_lacks
        cache._wake()
        await until(lambda: files(tmp_path) == [], "the cache gives its room back")


async def test_a_failing_directory_is_taken_out_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "TICK", 0.02)
    broken = True
    write, prepare = CacheDirectory.write, CacheDirectory.prepare

    def failing_write(self: CacheDirectory, key: str, data: Data) -> None:
        if broken:
            raise OSError(5, "Input/output error")
        write(self, key, data)

    def failing_prepare(self: CacheDirectory) -> None:
        if broken and self.path in begun:
            raise OSError(5, "Input/output error")
        begun.add(self.path)
        prepare(self)

    begun: set[str] = set()
    monkeypatch.setattr(CacheDirectory, "write", failing_write)
    monkeypatch.setattr(CacheDirectory, "prepare", failing_prepare)
    async with opened(tmp_path) as cache:
        for number in range(1, 5):
            cache.put(number, 0, b"data")
            await until(lambda: not cache._pending, "the block was tried")
        assert not cache.directories[0].usable
        assert not cache.put(9, 0, b"data")
        assert await whole(cache, 9, 4) is None
        broken = False
        await until(lambda: cache.directories[0].usable, "the directory is used again")
        await store(cache, 9, b"data")
        assert await whole(cache, 9, 4) == b"data"


async def test_a_directory_that_cannot_be_made_leaves_a_cache_that_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    async with opened(tmp_path / "file") as cache:
        assert not cache.put(1, 0, b"data")
        assert await whole(cache, 1, 4) is None
        assert cache.where(1, 0, 4) is None


async def test_a_cache_that_is_emptied_while_it_is_used_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "TICK", 0.02)
    async with opened(tmp_path) as cache:
        await store(cache, 1, b"data")
        (tmp_path / VOLUME).rename(tmp_path / "gone")
        await until(lambda: not cache.has(1, 0), "the loss is noticed")
        await until((tmp_path / VOLUME / ".lock").exists, "the directory is made anew")
        await store(cache, 1, b"data")
        assert await whole(cache, 1, 4) == b"data"


async def test_several_directories_share_the_blocks_and_find_what_moved(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    async with opened(a, b) as cache:
        for number in range(1, 41):
            cache.put(number, 0, pattern(500, number))
        await until(lambda: not cache._pending, "all are written")
        assert len(files(a)) + len(files(b)) == 40
        assert min(len(files(a)), len(files(b))) > 5
        places = {cache.where(number, 0, 500) for number in range(1, 41)}
        assert places == {f"{a}/{VOLUME}/", f"{b}/{VOLUME}/"}
    (a / VOLUME / ".lock").write_text("another-name")  # now other blocks belong there
    async with opened(a, b) as cache:
        for number in range(1, 41):
            assert await whole(cache, number, 500) == pattern(500, number)


async def test_expired_blocks_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "TICK", 0.02)
    now = 1000.0
    options = CacheOptions((str(tmp_path),), free_ratio=0.0, expire=100.0)
    cache = DiskCache(options, VOLUME, block_size=BLOCK, registry=Registry(), now=lambda: now)
    await cache.start()
    await store(cache, 1, b"old")
    await store(cache, 2, b"read")
    now = 1090.0
    assert await whole(cache, 2, 4) == b"read"
    now = 1110.0
    await until(lambda: files(tmp_path) == ["2_0_4"], "what was not read for so long is removed")
    await cache.close()


async def test_unfinished_files_are_cleaned_up_by_the_scan(tmp_path: Path) -> None:
    folder = raw(tmp_path, "chunks/0/0")
    folder.mkdir(parents=True)
    (folder / "1_0_5.77.1.tmp").write_bytes(b"he")
    (folder / "2_0_5.77.1.tmp").write_bytes(b"he")
    os.utime(folder / "1_0_5.77.1.tmp", (1, 1))
    async with opened(tmp_path):
        await until(lambda: files(tmp_path) == ["2_0_5.77.1.tmp"], "the old one is removed")


async def test_a_default_directory_is_made_with_its_first_block(tmp_path: Path) -> None:
    async with opened(tmp_path / "later", eager=False) as cache:
        assert await whole(cache, 1, 4) is None
        assert not (tmp_path / "later").exists()
        await store(cache, 1, b"data")
        assert (tmp_path / "later" / VOLUME / ".lock").exists()
        assert await whole(cache, 1, 4) == b"data"


async def test_memory_cache_keeps_the_last_used(tmp_path: Path) -> None:
    cache = MemoryCache(3000, block_size=BLOCK, registry=Registry())
    for number in range(1, 4):
        assert cache.put(number, 0, pattern(1000, number))
    assert bytes(await cache.read(1, 0, 1000, 10, 20) or b"") == pattern(1000, 1)[10:30]
    cache.put(4, 0, pattern(1000, 4))
    assert [cache.has(number, 0) for number in range(1, 5)] == [True, False, True, True]
    assert not cache.put(5, 0, pattern(3001))
    assert cache.where(1, 0, 1000) == "memory"
    cache.remove(1, 0, 1000)
    assert await cache.read(1, 0, 1000, 0, 1) is None
    assert cache.used == 2000
