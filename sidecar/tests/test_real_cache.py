"""The disk cache and the staging area on kernel mounts, shared with the real client in both directions (format §6.7, §6.8)."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import JFS, REAL, Mounted, Volume, check_by_real, eventually, mounted, really_mounted, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]
SIZE = 9_000_000  # two full blocks and a part


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    made = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket")
    return made.format("--compress", "lz4", "--trash-days", "0")  # compressed, so that reads go by whole blocks


def stats(point: Path) -> dict[str, float]:
    pairs = (line.rsplit(" ", 1) for line in (point / ".stats").read_text().splitlines())
    return {name.removeprefix("juicefs_"): float(value) for name, value in pairs}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cached(cache: Path) -> list[str]:
    return sorted(each.name for each in cache.rglob("raw/**/*") if each.is_file() and not each.name.endswith(".tmp"))


def staged(cache: Path) -> list[str]:
    return sorted(each.name for each in cache.rglob("rawstaging/**/*") if each.is_file())


def objects(volume: Volume) -> int:
    return sum(1 for each in volume.bucket.rglob("chunks/**/*") if each.is_file())


@contextlib.contextmanager
def without_objects(volume: Volume) -> Iterator[None]:
    """Nothing can be had from the storage meanwhile."""
    hidden = volume.bucket / volume.name / "hidden"
    (volume.bucket / volume.name / "chunks").rename(hidden)
    try:
        yield
    finally:
        shutil.rmtree(volume.bucket / volume.name / "chunks", ignore_errors=True)
        hidden.rename(volume.bucket / volume.name / "chunks")


def test_a_cache_is_shared_with_the_real_client_in_both_directions(volume: Volume, tmp_path: Path) -> None:
    """Ours finds wherever it lies what the real client spread over two directories; that finds ours in one (see `ring.py`)."""
    directory, directories = f"{tmp_path}/a", f"{tmp_path}/a:{tmp_path}/b"
    with mounted(volume, tmp_path / "mnt", "--cache-size", "0") as where:
        (where / "big").write_bytes(os.urandom(SIZE))
        (where / "small").write_bytes(b"hello")
        before = digest(where / "big")
    with mounted(volume, tmp_path / "mnt", "--cache-dir", directory) as where:
        assert digest(where / "big") == before
        assert (where / "small").read_bytes() == b"hello"
        eventually(lambda: len(cached(tmp_path / "a")) == 4, "all blocks are cached")
    with without_objects(volume), really_mounted(volume, tmp_path / "real", "--cache-dir", directory) as where:
        # Reads that come before its scan may miss what is there.
        eventually(lambda: stats(where)["blockcache_blocks"] == 4, "the real client has scanned the cache")
        assert digest(where / "big") == before
        assert (where / "small").read_bytes() == b"hello"
        assert stats(where)["blockcache_miss"] == 0
    shutil.rmtree(tmp_path / "a")
    with really_mounted(volume, tmp_path / "real", "--cache-dir", directories) as where:
        assert digest(where / "big") == before
        eventually(lambda: len(cached(tmp_path / "a") + cached(tmp_path / "b")) == 3, "all blocks are cached")
    with without_objects(volume), mounted(volume, tmp_path / "mnt", "--cache-dir", directories) as where:
        assert digest(where / "big") == before
        assert stats(where)["blockcache_miss"] == 0
        assert stats(where)["blockcache_hits"] > 0


def test_damaged_blocks_are_fetched_again(volume: Volume, tmp_path: Path) -> None:
    cache = tmp_path / "kept"
    with mounted(volume, tmp_path / "mnt", "--cache-dir", str(cache)) as where:
        (where / "big").write_bytes(os.urandom(SIZE))
        before = digest(where / "big")
        run(*JFS, "warmup", str(where))
        eventually(lambda: len(cached(cache)) == 3, "all blocks are cached")
    for each in cache.rglob("raw/**/*_0_*"):
        with each.open("r+b") as file:
            file.seek(100_000)
            file.write(b"damaged")
    for each in cache.rglob("raw/**/*_1_*"):
        os.truncate(each, 1000)
    with mounted(volume, tmp_path / "mnt", "--cache-dir", str(cache)) as where:
        assert digest(where / "big") == before
        eventually(lambda: len(cached(cache)) == 3, "they are cached anew")
    with without_objects(volume), mounted(volume, tmp_path / "mnt", "--cache-dir", str(cache)) as where:
        assert digest(where / "big") == before


def test_staged_blocks_survive_a_kill_and_are_uploaded_by_the_next_mount(volume: Volume, tmp_path: Path) -> None:
    cache = tmp_path / "kept"
    options = ("--cache-dir", str(cache), "--writeback", "--upload-delay", "1h")
    mount = Mounted(volume, tmp_path / "mnt", *options)
    (mount.where / "big").write_bytes(os.urandom(SIZE))
    (mount.where / "small").write_bytes(b"hello")
    before = digest(mount.where / "big")
    assert len(staged(cache)) == 4
    assert objects(volume) == 0
    assert stats(mount.where)["staging_blocks"] == 4
    mount.kill()
    with mounted(volume, tmp_path / "mnt", *options) as where:
        assert digest(where / "big") == before
        assert objects(volume) == 0
    with mounted(volume, tmp_path / "mnt", "--cache-dir", str(cache)) as where:
        eventually(lambda: objects(volume) == 4 and not staged(cache), "all is uploaded")
        assert digest(where / "big") == before
        assert (where / "small").read_bytes() == b"hello"
    check_by_real(volume)


def test_what_one_client_staged_the_other_uploads(volume: Volume, tmp_path: Path) -> None:
    cache = tmp_path / "kept"
    options = ("--cache-dir", str(cache), "--writeback", "--upload-delay", "1h")
    with really_mounted(volume, tmp_path / "real", *options) as where:
        (where / "theirs").write_bytes(b"theirs" * 1_000_000)
    assert len(staged(cache)) == 2
    with mounted(volume, tmp_path / "mnt", *options[:3], "--upload-delay", "0") as where:
        eventually(lambda: objects(volume) == 2 and not staged(cache), "ours has uploaded it")
    with mounted(volume, tmp_path / "mnt", *options) as where:
        (where / "ours").write_bytes(b"ours" * 1_500_000)
    assert len(staged(cache)) == 2
    with really_mounted(volume, tmp_path / "real", *options[:3]) as where:
        eventually(lambda: objects(volume) == 4 and not staged(cache), "theirs has uploaded it")
    shutil.rmtree(cache)
    with mounted(volume, tmp_path / "mnt", "--cache-size", "0") as where:
        assert (where / "theirs").read_bytes() == b"theirs" * 1_000_000
        assert (where / "ours").read_bytes() == b"ours" * 1_500_000
    check_by_real(volume)


@pytest.mark.parametrize("program", [[*JFS], [REAL]], ids=["ours", "real"])
def test_unmounting_with_flush_waits_for_the_uploads(volume: Volume, tmp_path: Path, program: list[str]) -> None:
    cache = tmp_path / "kept"
    mount = Mounted(volume, tmp_path / "mnt", "--cache-dir", str(cache), "--writeback", "--upload-limit", "80")
    try:
        (mount.where / "big").write_bytes(os.urandom(SIZE))
        (mount.where / "small").write_bytes(b"hello")
        run(*program, "umount", "--flush", str(mount.where))
        assert staged(cache) == []
        assert objects(volume) == 4
        mount.process.wait(timeout=30)
        mount.end()
    except BaseException:
        mount.kill()
        raise


def test_a_cache_of_a_directory_is_filled_in_quiet_moments(tmp_path: Path) -> None:
    """Uncompressed `file` storage: reads are had from the objects, and copied when nobody reads."""
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format()
    cache = tmp_path / "kept"
    with mounted(volume, tmp_path / "mnt", "--cache-dir", str(cache)) as where:
        (where / "big").write_bytes(os.urandom(SIZE))
        before = digest(where / "big")
        eventually(lambda: len(cached(cache)) == 3, "all blocks are cached")
    with without_objects(volume), mounted(volume, tmp_path / "mnt", "--cache-dir", str(cache)) as where:
        eventually(lambda: stats(where)["blockcache_blocks"] == 3, "the scan is through")
        assert digest(where / "big") == before
