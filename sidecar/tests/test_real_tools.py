"""The real `juicefs` tools while our mount runs: stats, profile, status, config, quota, restore, gc and dump do on it what they do on
a mount of their own."""

import datetime
import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import REAL, Volume, check_by_real, eventually, mounted, redis_server, run, tree

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture(params=["redis", "sqlite3"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    bucket = tmp_path / "bucket"
    if request.param == "sqlite3":
        yield Volume(f"sqlite3://{tmp_path}/meta.db", bucket).format("--block-size", "64K")
        return
    with redis_server(tmp_path) as url:
        yield Volume(f"{url}/1", bucket).format("--block-size", "64K")


@pytest.fixture
def ours(volume: Volume, tmp_path: Path) -> Iterator[Path]:
    with mounted(volume, tmp_path / "ours", "--heartbeat", "1s") as where:
        (where / "d").mkdir()
        (where / "d/f").write_bytes(b"x" * 5000)
        yield where
    check_by_real(volume)


def test_administration_beside_a_mount(volume: Volume, ours: Path, tmp_path: Path) -> None:
    status = json.loads(run(REAL, "status", volume.url).stdout)
    (session,) = status["Sessions"]
    assert session["MountPoint"] == str(ours)
    assert status["Stat"]["UsedInodes"] == 2

    run(REAL, "config", volume.url, "--capacity", "2", "--inodes", "100", "--yes")
    eventually(
        lambda: os.statvfs(ours).f_blocks == (2 << 30) // os.statvfs(ours).f_frsize, "the capacity is taken over"
    )
    assert os.statvfs(ours).f_files == 100
    run(REAL, "config", volume.url, "--capacity", "0", "--inodes", "0", "--yes")

    run(REAL, "quota", "set", volume.url, "--path", "/d", "--inodes", "4")
    made = 0

    def is_full() -> bool:
        nonlocal made
        try:
            (ours / "d" / f"q{made}").mkdir()
        except OSError as error:
            if error.errno == errno.EDQUOT:
                return True
            raise
        made += 1
        return False

    eventually(is_full, "the quota is enforced")
    said = run(REAL, "quota", "get", volume.url, "--path", "/d").stdout
    assert re.search(r"/d\b.*\b4\b", said), said
    run(REAL, "quota", "check", volume.url, "--path", "/d", "--repair")
    run(REAL, "quota", "delete", volume.url, "--path", "/d")
    eventually(lambda: not is_full(), "the quota is gone")

    (ours / "d/f").unlink()
    hour = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H}"
    run(REAL, "restore", "--put-back", volume.url, hour)
    eventually((ours / "d/f").exists, "what was restored is seen")
    assert (ours / "d/f").read_bytes() == b"x" * 5000

    with open(ours / "d/pieces", "wb") as file:
        for number in range(30):
            file.write(b"%d" % number * 40)
            file.flush()
            os.fsync(file.fileno())
    before = tree(ours)
    run(REAL, "gc", volume.url, "--compact", "--delete", env={**os.environ, "JFS_GC_SKIPPEDTIME": "0"})
    assert tree(ours) == before
    run(REAL, "dump", volume.url, str(tmp_path / "dump"))
    dumped = json.loads((tmp_path / "dump").read_text())
    assert dumped["FSTree"]["entries"]["d"]["entries"]["f"]["attr"]["length"] == 5000
    assert len(dumped["FSTree"]["entries"]["d"]["entries"]["pieces"]["chunks"][0]["slices"]) == 1


def test_a_mount_follows_the_volume_to_another_bucket(volume: Volume, ours: Path, tmp_path: Path) -> None:
    shutil.copytree(volume.bucket, tmp_path / "other")
    run(REAL, "config", volume.url, "--bucket", f"{tmp_path}/other/", "--yes")
    names = iter(range(10_000))

    def moved() -> bool:
        before = len(list((tmp_path / "other").rglob("*_*_*")))
        (ours / f"n{next(names)}").write_bytes(b"new")
        return len(list((tmp_path / "other").rglob("*_*_*"))) > before

    eventually(moved, "what is written goes to the new bucket")
    for block in volume.bucket.rglob("*_*_*"):  # what was written before the mount knew
        target = tmp_path / "other" / block.relative_to(volume.bucket)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(block, target)
    shutil.rmtree(volume.bucket)
    assert (ours / "d/f").read_bytes() == b"x" * 5000


def test_stats_and_profile(ours: Path, tmp_path: Path) -> None:
    said = run(REAL, "stats", str(ours), "--count", "2", "--interval", "1", "-l", "1").stdout
    headings, units, *rows = said.splitlines()
    assert [word.strip("- ") for word in headings.split()] == ["usage", "fuse", "meta", "blockcache", "object"]
    assert {"cpu", "mem", "ops", "txn", "put_c"} <= set(re.split(r"[ |]+", units))
    assert any("M" in row for row in rows), said
    shown = tmp_path / "profile"
    with shown.open("wb") as file:
        profiler = subprocess.Popen([REAL, "profile", str(ours), "--interval", "1"], stdout=file, stderr=file)
    try:
        numbers = iter(range(10_000))

        def counted() -> bool:
            (ours / f"p{next(numbers)}").write_bytes(b"1")
            return bool(re.search(rb"create +\d+ +\d+ +\d+ ", shown.read_bytes()))

        eventually(counted, "operations are counted")
    finally:
        profiler.terminate()
        profiler.wait()
