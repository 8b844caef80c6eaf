"""`jfs mount -d --supervised`: a client that is killed is followed by another one on the same connection."""

import contextlib
import fcntl
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import JFS, Volume, assert_sound, eventually, is_mounted, run
from supervised_mount import Supervised, state

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    (tmp_path / "meta").mkdir()
    return Volume(f"sqlite3://{tmp_path}/meta/meta.db", tmp_path / "objects").format()


@pytest.fixture
def mount(volume: Volume, tmp_path: Path) -> Iterator[Supervised]:
    mount = Supervised(volume, tmp_path / "mnt")
    yield mount
    if is_mounted(mount.where):
        run("umount", "-l", str(mount.where))
    with contextlib.suppress(ProcessLookupError):
        os.kill(mount.parent, signal.SIGKILL)


def test_a_killed_client_is_followed_and_nothing_is_lost(mount: Supervised, volume: Volume) -> None:
    """Files that are open, locks, what was written and not stored, a file without a name: three times, then a clean end."""
    with (mount.where / "file").open("wb+", buffering=0) as file, (mount.where / "gone").open("w+") as gone:
        fcntl.flock(file, fcntl.LOCK_EX)
        gone.write("without a name")
        gone.flush()
        os.unlink(mount.where / "gone")
        for number in range(3):
            file.write(b"%d" % number * 100_000)
            mount.kill()
            assert os.pread(file.fileno(), 1, number * 100_000) == b"%d" % number
            gone.seek(0)
            assert gone.read() == "without a name"
        other = (mount.where / "file").open("rb")
        with other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (mount.where / "file").read_bytes() == b"".join(b"%d" % number * 100_000 for number in range(3))
    run("umount", str(mount.where))
    mount.ended()
    assert_sound(volume)


def test_a_signal_to_the_parent_ends_the_mount(mount: Supervised, volume: Volume) -> None:
    (mount.where / "file").write_bytes(b"kept")
    mount.kill()
    os.kill(mount.parent, signal.SIGTERM)
    mount.ended()
    assert_sound(volume)


def test_a_client_whose_parent_is_killed_goes_on(mount: Supervised, volume: Volume) -> None:
    os.kill(mount.parent, signal.SIGKILL)
    (mount.where / "file").write_bytes(b"kept")
    assert (mount.where / "file").read_bytes() == b"kept"
    run("umount", str(mount.where))
    eventually(lambda: not mount.folder.exists(), "the client has ended")
    assert_sound(volume)


def test_a_database_that_is_away_is_waited_for(mount: Supervised, tmp_path: Path) -> None:
    """The next client cannot start; what is asked waits until one can."""
    (mount.where / "file").write_bytes(b"kept")
    (tmp_path / "meta").rename(tmp_path / "away")
    os.kill(mount.client, signal.SIGKILL)
    eventually(lambda: mount.log.read_text().count("the next one serves") >= 2, "a client could not start")
    reading = subprocess.Popen(["cat", str(mount.where / "file")], stdout=subprocess.PIPE)
    (tmp_path / "away").rename(tmp_path / "meta")
    assert reading.communicate(timeout=60)[0] == b"kept"
    run("umount", str(mount.where))
    mount.ended()


def test_a_parent_that_fails_takes_its_client_along(volume: Volume, tmp_path: Path) -> None:
    """Who started it is gone before it can be told that it is mounted."""
    where, before = tmp_path / "mnt", state()
    where.mkdir()
    command = [*JFS, "mount", "-d", "--supervised", "--metrics", "", "--log", f"{tmp_path}/log", volume.url, str(where)]
    with subprocess.Popen(command) as started:
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
        parent = int(eventually(children.read_text, "the background process"))
        started.kill()
    eventually(lambda: not os.path.exists(f"/proc/{parent}"), "the parent has ended")
    assert "BrokenPipe" in (tmp_path / "log").read_text()
    assert not is_mounted(where)
    assert state() == before
    connection = sqlite3.connect(volume.url.removeprefix("sqlite3://"))
    with contextlib.closing(connection):
        assert connection.execute("SELECT count(*) FROM jfs_session2").fetchone() == (0,)


def test_what_cannot_be_mounted_is_told(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    before = state()
    command = [*JFS, "mount", "-d", "--supervised", "--log", f"{tmp_path}/log"]
    done = subprocess.run(
        [*command, f"sqlite3://{tmp_path}/none.db", f"{tmp_path}/mnt"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("jfs: ")
    assert "not formatted" in done.stderr
    assert state() == before
    done = subprocess.run([*JFS, "mount", "--supervised", "x", "y"], capture_output=True, text=True, check=False)
    assert "--supervised needs --background" in done.stderr
