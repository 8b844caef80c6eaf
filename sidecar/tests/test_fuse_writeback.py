"""`-o writeback_cache`: the kernel keeps what is written, and what close(2) and fsync(2) acknowledged is stored all the same. What a
program sees otherwise is in the conformance suite and in the machine beside ext4, which run with the option, too."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mount_parts import JFS, Mounted, Volume, mounted, run
from supervised_mount import Supervised

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

OPTION = ("-o", "writeback_cache")


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    (tmp_path / "meta").mkdir()
    return Volume(f"sqlite3://{tmp_path}/meta/meta.db", tmp_path / "bucket").format("--trash-days", "0")


def writes(where: Path) -> int:
    """Requests to write that the client has had."""
    found = re.search(r"^juicefs_fuse_written_size_bytes_total (\d+)", (where / ".stats").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def test_small_writes_reach_the_client_together(volume: Volume, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "mnt", *OPTION) as where:
        with (where / "file").open("wb", buffering=0) as file:
            for number in range(1000):
                file.write(b"%04d" % number)
        assert writes(where) < 10
        assert (where / "file").read_bytes() == b"".join(b"%04d" % number for number in range(1000))


@pytest.mark.parametrize("how", ["fsync", "close"])
def test_what_was_acknowledged_survives_a_kill(volume: Volume, tmp_path: Path, how: str) -> None:
    mount = Mounted(volume, tmp_path / "mnt", *OPTION)
    fd = os.open(mount.where / "file", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(fd, b"kept" * 1000)
        os.utime(fd, ns=(5, 7_000_000_009))
        if how == "fsync":
            os.fsync(fd)
        else:
            os.close(fd)
    finally:
        mount.kill()
    if how == "fsync":
        with pytest.raises(OSError, match="not connected"):
            os.close(fd)
    with mounted(volume, tmp_path / "mnt") as where:
        assert (where / "file").read_bytes() == b"kept" * 1000
        assert (where / "file").stat().st_mtime_ns == 7_000_000_009


def test_another_mount_sees_what_was_closed(volume: Volume, tmp_path: Path) -> None:
    with (
        mounted(volume, tmp_path / "one", *OPTION) as one,
        mounted(volume, tmp_path / "two", "--attr-cache", "0s") as two,
    ):
        for number in range(20):
            (one / "file").write_bytes(b"%d" % number * 5000)
            assert (two / "file").read_bytes() == b"%d" % number * 5000
            if not number:  # what is written again within a tick of the kernel's clock has the same time there
                assert (one / "file").stat().st_mtime_ns == (two / "file").stat().st_mtime_ns


def test_parts_of_pages_are_written_by_who_may_only_write(volume: Volume, tmp_path: Path) -> None:
    """The kernel reads the rest of the page through the same handle; a later mount, so that it has none."""
    content = bytearray(os.urandom(3 * 4096 + 100))
    with mounted(volume, tmp_path / "mnt", *OPTION) as where:
        (where / "file").write_bytes(content)
    with mounted(volume, tmp_path / "mnt", *OPTION) as where:
        fd = os.open(where / "file", os.O_WRONLY)
        os.pwrite(fd, b"abc", 5000)
        os.close(fd)
        content[5000:5003] = b"abc"
        fd = os.open(where / "file", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"end")
        os.close(fd)
        content += b"end"
        assert (where / "file").read_bytes() == content
    with mounted(volume, tmp_path / "mnt") as where:
        assert (where / "file").read_bytes() == content


def test_times_are_the_kernels_whoever_writes(volume: Volume, tmp_path: Path) -> None:
    """A user writes to a file that is not his: the kernel stores the time of it in his name, or in nobody's."""
    script = (
        "import os, sys\n"
        "os.setgid(1000); os.setuid(1000)\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY)\n"
        "os.write(fd, b'other')\n"
        "os.close(fd)\n"
        "os.utime(sys.argv[1])\n"
    )
    path = tmp_path
    while path != path.parent and path.stat().st_mode & 0o055 != 0o055:
        path.chmod(0o755)
        path = path.parent
    with mounted(volume, tmp_path / "mnt", *OPTION) as where:
        (where / "file").touch()
        (where / "file").chmod(0o666)
        os.utime(where / "file", ns=(0, 0))
        subprocess.run([sys.executable, "-c", script, str(where / "file")], check=True)
        assert (where / "file").stat().st_mtime > 1_000_000_000
        assert (where / "file").stat().st_uid == 0


def test_no_room_is_an_error_of_fsync(volume: Volume, tmp_path: Path) -> None:
    run(*JFS, "config", volume.url, "--capacity", "1", "--yes")
    with mounted(volume, tmp_path / "mnt", *OPTION) as where:
        fd = os.open(where / "file", os.O_CREAT | os.O_WRONLY)

        def fill() -> None:
            for _ in range(1 << 8):
                os.write(fd, bytes(8 << 20))
                os.fsync(fd)

        with pytest.raises(OSError, match=re.escape(f"[Errno {errno.ENOSPC}]")):
            fill()
        os.close(fd)


def test_a_client_that_is_killed_leaves_the_pages_to_the_next(volume: Volume, tmp_path: Path) -> None:
    mount = Supervised(volume, tmp_path / "mnt", *OPTION)
    try:
        with (mount.where / "file").open("wb", buffering=0) as file:
            for number in range(300):
                file.write(b"%04d" % number * 100)
                if number % 100 == 50:
                    mount.kill()
        run("umount", str(mount.where))
        mount.ended()
    finally:
        if os.path.exists(f"/proc/{mount.parent}"):
            os.kill(mount.parent, signal.SIGKILL)
    with mounted(volume, tmp_path / "mnt") as where:
        assert (where / "file").read_bytes() == b"".join(b"%04d" % number * 100 for number in range(300))
