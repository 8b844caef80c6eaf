"""Compaction through real mounts: a chunk fragmented by random overwrites reads equal through both clients, and the real fsck and gc
accept what is left."""

import asyncio
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from jfs.format.slices import unpack
from jfs.meta.connect import connect
from jfs.meta.store.base import Store
from meta_volumes import audit
from mount_parts import REAL, Volume, mounted, really_mounted, redis_server, run

T = TypeVar("T")

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture(params=["sqlite3", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite3":
        yield f"sqlite3://{tmp_path}/meta.db"
    else:
        with redis_server(tmp_path) as server:
            yield f"{server}/1"


def overwrite(path: Path, content: bytearray, times: int, randomness: random.Random) -> None:
    """Random writes, each a slice of its own; *content* follows."""
    with path.open("r+b", buffering=0) as file:
        for _ in range(times):
            offset = randomness.randrange(len(content))
            data = randomness.randbytes(min(randomness.choice((1, 700, 4096, 70_000)), len(content) - offset))
            os.pwrite(file.fileno(), data, offset)
            os.fsync(file.fileno())
            content[offset : offset + len(data)] = data


def with_store(url: str, look: Callable[[Store], Awaitable[T]]) -> T:
    async def run() -> T:
        store = await connect(url)
        try:
            return await look(store)
        finally:
            await store.close()

    return asyncio.run(run())


async def longest_list(store: Store) -> int:
    return max([len(unpack(raw)) async for _, _, raw in store.chunks()], default=0)


def is_compacted(url: str, deadline: float = 30.0) -> None:
    end = time.monotonic() + deadline
    while (length := with_store(url, longest_list)) > 4:
        assert time.monotonic() < end, f"a list still has {length} records"
        time.sleep(0.1)


def check_exactly(volume: Volume, *, trash: bool) -> None:
    """The real client finds nothing, and every reference is counted right."""
    deep = run(REAL, "fsck", volume.url, "--path", "/", "-r", "--sync-dir-stat")
    assert "<ERROR>" not in deep.stdout + deep.stderr, deep.stderr
    collected = run(REAL, "gc", volume.url, env={**os.environ, "JFS_GC_SKIPPEDTIME": "0"})
    said = collected.stdout + collected.stderr
    numbers = re.search(r"scanned (\d+) objects, (\d+) valid, (.*)", said)
    assert numbers is not None, said
    counted = {what: int(number) for number, what in re.findall(r"(\d+) ([a-z ]+) \(", numbers[3])}
    kept = counted.pop("compacted")
    assert bool(kept) == trash, said
    assert int(numbers[1]) == int(numbers[2]) + kept, said
    assert not any(counted[what] for what in ("pending delete", "leaked", "skipped", "delfiles")), said
    with_store(volume.url, audit)


@pytest.mark.parametrize("trash_days", ["0", "1"])
def test_fragmented_chunks_are_compacted_and_read_equal(url: str, tmp_path: Path, trash_days: str) -> None:
    randomness = random.Random(trash_days)
    volume = Volume(url, tmp_path / "objects").format("--block-size", "64K", "--trash-days", trash_days)
    content = bytearray(randomness.randbytes(600_000))
    with mounted(volume, tmp_path / "mnt") as point:
        path = point / "file"
        path.write_bytes(content)
        overwrite(path, content, 130, randomness)
        os.truncate(path, 500_000)
        os.truncate(path, 550_000)
        content[500_000:550_000] = bytes(50_000)
        del content[550_000:]
        assert path.read_bytes() == content
        is_compacted(url)
        assert path.read_bytes() == content
    check_exactly(volume, trash=trash_days != "0")
    with really_mounted(volume, tmp_path / "real") as point:
        assert (point / "file").read_bytes() == content


def test_both_clients_write_and_compact_one_chunk(url: str, tmp_path: Path) -> None:
    randomness = random.Random(7)
    volume = Volume(url, tmp_path / "objects").format("--block-size", "64K", "--trash-days", "0")
    content = bytearray(randomness.randbytes(400_000))
    with mounted(volume, tmp_path / "mnt") as ours, really_mounted(volume, tmp_path / "real") as theirs:
        (ours / "file").write_bytes(content)
        for _ in range(6):
            for point in (ours, theirs):
                overwrite(point / "file", content, 12, randomness)
            for point in (ours, theirs):
                assert (point / "file").read_bytes() == content
        is_compacted(url)
        for point in (ours, theirs):
            assert (point / "file").read_bytes() == content
    check_exactly(volume, trash=False)
