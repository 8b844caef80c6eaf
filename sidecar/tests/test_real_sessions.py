"""What a killed client leaves is cleared by the other kind of client: its session, its locks, the file it had open without a name."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import (
    JFS,
    REAL,
    Mounted,
    Volume,
    check_by_real,
    eventually,
    is_mounted,
    mounted,
    really_mounted,
    redis_server,
    run,
)

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

BEAT = ("--heartbeat", "1s")


@pytest.fixture(params=["redis", "sqlite3"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    if request.param == "sqlite3":
        yield Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--trash-days", "0")
        return
    with redis_server(tmp_path) as url:
        yield Volume(f"{url}/1", tmp_path / "bucket").format("--trash-days", "0")


@contextlib.contextmanager
def real_process(volume: Volume, where: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A mount by the real client in a group of its own, to be killed."""
    where.mkdir()
    cache = str(where.with_name("killed-cache"))
    process = subprocess.Popen(
        [REAL, "mount", "--no-usage-report", "--cache-dir", cache, *BEAT, volume.url, str(where)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        eventually(lambda: is_mounted(where), "the real client mounts")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if is_mounted(where):
            run("umount", "-l", str(where))


def use(where: Path) -> list[int]:
    """A file open without a name, and locks; the descriptors."""
    gone = os.open(where / "gone", os.O_RDWR | os.O_CREAT)
    os.write(gone, b"x" * 100_000)
    os.fsync(gone)
    os.unlink(where / "gone")
    locked = os.open(where / "locked", os.O_RDWR | os.O_CREAT)
    fcntl.flock(locked, fcntl.LOCK_EX)
    ranged = os.open(where / "ranged", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(ranged, fcntl.LOCK_EX, 10)
    return [gone, locked, ranged]


def leave(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def is_cleared(volume: Volume, alive: Path) -> bool:
    """Whether only the client at *alive* is known, and all locks are free."""
    sessions = json.loads(run(REAL, "status", volume.url).stdout)["Sessions"]
    if [session["MountPoint"] for session in sessions] != [str(alive)]:
        return False
    for name, lock in (("locked", fcntl.flock), ("ranged", fcntl.lockf)):
        with open(alive / name, "r+b") as file:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def test_ours_clears_a_killed_real_client(volume: Volume, tmp_path: Path) -> None:
    volume.examined = False  # what the killed client had not written is repaired below
    with mounted(volume, tmp_path / "ours", *BEAT) as ours:
        with real_process(volume, tmp_path / "real"):
            descriptors = use(tmp_path / "real")
        leave(descriptors)
        eventually(lambda: is_cleared(volume, ours), "the session is cleared", 60)
        eventually(lambda: not list(volume.bucket.rglob("*_100000")), "the data of the file are removed")
    run(*JFS, "fsck", "--repair", volume.url, check=False)  # the usage that the killed client had not written yet
    check_by_real(volume)


@pytest.mark.parametrize("volume", ["redis"], indirect=True)
def test_the_real_client_clears_ours(volume: Volume, tmp_path: Path) -> None:
    with really_mounted(volume, tmp_path / "real", *BEAT) as real:
        mount = Mounted(volume, tmp_path / "ours", *BEAT)
        try:
            descriptors = use(tmp_path / "ours")
        finally:
            mount.kill()
        leave(descriptors)
        eventually(lambda: is_cleared(volume, real), "the session is cleared", 60)
        eventually(lambda: not list(volume.bucket.rglob("*_100000")), "the data of the file are removed")
    check_by_real(volume)
