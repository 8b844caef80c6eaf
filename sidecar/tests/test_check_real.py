"""fsck, gc and compact beside the real client's, on volumes that either made and that were damaged: ours names at least what the real
one does, its repairs satisfy the real one, and golden volumes have the oddities that are known of them and no other."""

import asyncio
import os
import random
import re
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from jfs.check import Damage, examine
from jfs.check.objects import Expectation, compare
from jfs.meta.connect import connect
from jfs.meta.model.keys import DirStat, DirStatKey, NodeKey
from jfs.meta.store.base import Store, Tx
from jfs.object.connect import open_volume
from mount_parts import JFS, REAL, Volume, mounted, really_mounted, redis_server, run
from store_engines import golden
from store_engines import redis_server as redis_with

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
GC = {**os.environ, "JFS_GC_SKIPPEDTIME": "0"}


@pytest.fixture(params=["sqlite3", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite3":
        yield f"sqlite3://{tmp_path}/meta.db"
    else:
        with redis_server(tmp_path) as server:
            yield f"{server}/1"


def jfs(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run(*JFS, *words, check=check, env=GC)


def said(ended: subprocess.CompletedProcess[str]) -> str:
    """Output without the warnings about the server (format §13)."""
    lines = (ended.stdout + ended.stderr).splitlines()
    return "\n".join(line for line in lines if "AOF" not in line)


def fill(point: Path) -> None:
    randomness = random.Random(1)
    (point / "dir" / "sub").mkdir(parents=True)
    for number in range(8):
        (point / "dir" / f"f{number}").write_bytes(randomness.randbytes(number * 30_000))
    os.link(point / "dir" / "f3", point / "dir" / "sub" / "linked")
    os.symlink("f3", point / "dir" / "symlink")
    (point / "dir" / "f7").unlink()
    os.truncate(point / "dir" / "f6", 100_000)
    with (point / "dir" / "f5").open("r+b", buffering=0) as file:
        for _ in range(40):
            os.pwrite(file.fileno(), randomness.randbytes(3000), randomness.randrange(100_000))
            os.fsync(file.fileno())


@pytest.mark.parametrize("by_real", [False, True])
def test_volumes_of_both_clients_are_sound_until_damaged(url: str, tmp_path: Path, by_real: bool) -> None:
    volume = Volume(url, tmp_path / "objects").format("--block-size", "64K", "--trash-days", "1", by_real=by_real)
    with (really_mounted if by_real else mounted)(volume, tmp_path / "mnt") as point:
        fill(point)
    checked = jfs("fsck", url)
    assert "<WARNING>" not in said(checked), said(checked)
    assert jfs("gc", url).returncode == 0

    async def damage(store: Store) -> None:
        async def operation(tx: Tx) -> None:
            entry = await store.lookup(1, b"dir")
            assert entry is not None
            ino = entry[0].ino
            (node,) = await tx.get(NodeKey(ino))
            assert node is not None
            tx.put(NodeKey(ino), node._replace(nlink=9))
            tx.put(DirStatKey(ino), DirStat(1, 2, 3))

        await store.run(operation)

    with_store(url, damage)
    real = run(REAL, "fsck", url, "--path", "/", "-r", "--sync-dir-stat", check=False)
    ours = jfs("fsck", url, check=False)
    assert (real.returncode, ours.returncode) == (1, 1)
    for sentence in re.findall(r"<WARNING>: ((?:nlink|usage stat) of .*?) \[", said(real)):
        assert sentence in said(ours), said(ours)
    assert jfs("fsck", url, "--path", "/dir", "--repair", "--sync-dir-stat").returncode == 0
    run(REAL, "fsck", url, "--path", "/", "-r", "--sync-dir-stat")

    blocks = sorted(path for path in volume.bucket.rglob("*_65536"))
    blocks[0].unlink()
    blocks[1].write_bytes(b"cut")
    (blocks[0].parent / "999999_0_7").write_bytes(b"leaked!")
    real, ours = run(REAL, "fsck", url, check=False), jfs("fsck", url, check=False)
    assert (real.returncode, ours.returncode) == (1, 1)
    for sentence in re.findall(r"can't find block \S+ for file", said(real)):  # of a link, any path
        assert sentence in said(ours), said(ours)
    assert "has 3 bytes where 65536 are expected" in said(ours)
    assert "1 leaked (7 bytes)" in said(jfs("gc", url, check=False))
    assert "0 leaked" in said(jfs("gc", url, "--delete")) or jfs("gc", url).returncode == 0
    assert "0 leaked" in said(run(REAL, "gc", url, env=GC))


def with_store(url: str, work: Callable[[Store], Awaitable[None]]) -> None:
    async def go() -> None:
        store = await connect(url)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(go())


def test_names_stored_as_text_are_found_and_converted(tmp_path: Path) -> None:
    url = f"sqlite3://{tmp_path}/meta.db"
    volume = Volume(url, tmp_path / "objects").format("--block-size", "64K", by_real=True)
    with mounted(volume, tmp_path / "mnt") as point:
        fill(point)
    with sqlite3.connect(tmp_path / "meta.db") as database:
        database.execute("UPDATE jfs_edge SET name=CAST(name AS TEXT) WHERE name=CAST('f4' AS BLOB)")
    database.close()
    assert "<ERROR>" not in said(run(REAL, "fsck", url))
    found = jfs("fsck", url, check=False)
    assert found.returncode == 1
    assert "1 names of entries are stored as TEXT" in said(found)
    assert jfs("fsck", url, "--repair").returncode == 0
    with really_mounted(volume, tmp_path / "real") as point:
        assert (point / "dir" / "f4").stat().st_size == 120_000


@pytest.mark.parametrize("trash_days", ["0", "1"])
def test_gc_compacts_like_the_real_one(url: str, tmp_path: Path, trash_days: str) -> None:
    volume = Volume(url, tmp_path / "objects").format("--block-size", "64K", "--trash-days", trash_days)
    with mounted(volume, tmp_path / "mnt", "--no-bgjob") as point:
        fill(point)
        content = {path: path.read_bytes() for path in (point / "dir").iterdir() if path.is_file()}
    compacted = jfs("gc", url, "--compact")
    assert re.search(r"Compacted 2 chunks \(43 slices, \d+ bytes\)", said(compacted)), said(compacted)
    again = jfs("gc", url, "--compact")
    assert "Compacted 0 chunks" in said(again), said(again)
    for command in (("fsck", url), ("gc", url)):
        assert jfs(*command).returncode == 0
    ours = re.search(r"scanned .*", said(jfs("gc", url)))
    real = re.search(r"scanned .*?skipped \(\d+ bytes\)", said(run(REAL, "gc", url, env=GC)))
    assert ours is not None
    assert real is not None
    assert ours[0] == real[0]
    run(REAL, "fsck", url, "--path", "/", "-r", "--sync-dir-stat")
    with really_mounted(volume, tmp_path / "mnt") as point:
        assert {path: path.read_bytes() for path in (point / "dir").iterdir() if path.is_file()} == content


@pytest.mark.parametrize("mount_by_real", [False, True])
@pytest.mark.parametrize("ask_by_real", [False, True])
def test_compact_through_the_control_file(tmp_path: Path, mount_by_real: bool, ask_by_real: bool) -> None:
    url = f"sqlite3://{tmp_path}/meta.db"
    volume = Volume(url, tmp_path / "objects").format("--block-size", "64K", "--trash-days", "0")
    mount = really_mounted if mount_by_real else mounted
    with mount(volume, tmp_path / "mnt", "--no-bgjob") as point:
        fill(point)
        before = (point / "dir" / "f5").read_bytes()
        run(*([REAL] if ask_by_real else JFS), "compact", str(point / "dir"))
        assert (point / "dir" / "f5").read_bytes() == before

    async def lists(store: Store) -> None:
        assert max([len(raw) async for _, _, raw in store.chunks()]) <= 2 * 24

    with_store(url, lists)
    assert jfs("fsck", url).returncode == 0


# -- golden volumes ---------------------------------------------------------------------------------------------------

# Known oddities of volumes that only the real client used, and of those that an old one did (README of the golden volumes).
ODD = {
    "redis-clone": {"usage"},
    "redis-changelog": {"usage"},
    "redis-upgraded": {"parent", "parents"},
    "sqlite-old": {"parent", "form", "counter"},
}
VOLUMES = [
    *("redis-acl", "redis-chacha-lz4", "redis-changelog", "redis-clone", "redis-hash", "redis-live", "redis-plain"),
    *("redis-quota", "redis-tier", "redis-trash-lz4", "redis-upgraded"),
    *("sqlite-acl-quota", "sqlite-aes", "sqlite-live", "sqlite-old", "sqlite-plain", "sqlite-zstd"),
]


@asynccontextmanager
async def restored(name: str, folder: Path) -> AsyncIterator[Store]:
    async with AsyncExitStack() as stack:
        if name.startswith("sqlite"):
            shutil.copyfile(golden() / name / "meta.db", folder / "meta.db")
            store = await connect(f"sqlite3://{folder}/meta.db")
        else:
            shutil.copyfile(golden() / name / "dump.rdb", folder / "dump.rdb")
            options = ("--dir", str(folder), "--dbfilename", "dump.rdb")
            store = await connect(f"unix://{await stack.enter_async_context(redis_with(*options))}")
        stack.push_async_callback(store.close)
        yield store


@pytest.mark.parametrize("name", VOLUMES)
async def test_golden_volumes_have_no_damage_but_what_is_known(name: str, tmp_path: Path) -> None:
    async with restored(name, tmp_path) as store:
        facts, found = await examine(store)
        damages: list[Damage] = [damage for damage in found if not damage.note]
        assert {damage.kind for damage in damages} == ODD.get(name, set()), damages
        setting = facts.setting
        bucket = f"{golden() / name}/objects{'-%d' if setting.shards else ''}/"
        storage = open_volume(setting, storage="file", bucket=bucket, passphrase="golden-pass")
        listing = await compare(storage, Expectation(facts), young_from=2.0**40)
        assert not listing.wrong_sizes
        assert not listing.leaked.number
        if name != "sqlite-old":  # misses objects for the real client too
            assert not listing.absent


def test_a_volume_in_use_has_no_damage(url: str, tmp_path: Path) -> None:
    """Both clients work on one volume while it is examined: what moves is no damage."""
    volume = Volume(url, tmp_path / "objects").format("--block-size", "64K", "--trash-days", "0")
    ended = threading.Event()

    def work(top: Path, seed: int) -> None:
        randomness = random.Random(seed)
        top.mkdir()
        round = 0
        while not ended.is_set():
            round += 1
            folder = top / f"d{round}"
            folder.mkdir()
            for number in range(5):
                (folder / f"f{number}").write_bytes(randomness.randbytes(20_000))
            os.link(folder / "f0", top / f"link{round}")
            os.rename(folder / "f1", top / f"moved{round}")
            with (folder / "f2").open("r+b", buffering=0) as file:
                for _ in range(6):
                    os.pwrite(file.fileno(), b"x" * 100, randomness.randrange(20_000))
                    os.fsync(file.fileno())
            (folder / "f2").read_bytes()
            if round > 3:
                shutil.rmtree(top / f"d{round - 3}")

    with mounted(volume, tmp_path / "mnt") as ours, really_mounted(volume, tmp_path / "real") as theirs:
        workers = [
            threading.Thread(target=work, args=(ours / "ours", 1)),
            threading.Thread(target=work, args=(theirs / "theirs", 2)),
        ]
        for worker in workers:
            worker.start()
        try:
            checked = jfs("fsck", url, check=False)
            assert checked.returncode == 0, said(checked)
            collected = run(*JFS, "gc", url, check=False)
            assert collected.returncode == 0, said(collected)
        finally:
            ended.set()
            for worker in workers:
                worker.join()
    assert jfs("fsck", url).returncode == 0
    assert jfs("gc", url).returncode == 0
