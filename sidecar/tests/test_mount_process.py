"""A mount as a process: background and foreground, what stops it from starting, ending, dying, the worker's conversation."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mount_parts import JFS, Mounted, Volume, eventually, free_port, is_mounted, mounted, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(90)]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format()


def refused(*arguments: str, env: dict[str, str] | None = None) -> str:
    """What `jfs` says when it exits with status 1: one line, no traceback."""
    ended = run(*JFS, *arguments, check=False, env={**os.environ, **(env or {})})
    assert ended.returncode == 1, ended
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("jfs: ")
    return ended.stderr.strip()


def sessions(volume: Volume) -> int:
    answer = run(*JFS, "status", volume.url)
    return len(json.loads(answer.stdout)["Sessions"])


def test_background_mount_is_ready_when_the_command_returns(volume: Volume, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    log = tmp_path / "log"
    try:
        run(*JFS, "mount", "-d", "--metrics", "", "--log", str(log), volume.url, str(where))
        assert os.stat(where).st_ino == 1
        (where / "f").write_bytes(b"x")
        line = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {where} " in line)
        assert line.startswith(f"JuiceFS:test-volume {where} fuse.juicefs rw,nosuid,nodev")
        assert sessions(volume) == 1
    finally:
        run(*JFS, "umount", str(where))
    eventually(lambda: "unmounted" in log.read_text(), "the process ends")
    assert not is_mounted(where)
    eventually(lambda: sessions(volume) == 0, "the session is closed")


def test_mount_helper_for_fstab(volume: Volume, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    helper = str(Path(sys.executable).with_name("mount.juicefs"))
    options = f"rw,_netdev,attr-cache=3,metrics=,log={tmp_path}/log"
    try:
        run(helper, volume.url, str(where), "-o", options)
        assert os.stat(where).st_ino == 1
    finally:
        run(*JFS, "umount", str(where))


def test_what_stops_a_mount(volume: Volume, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    assert "mountpoint" in refused("mount", volume.url, str(where))
    assert "does not exist" in refused("mount", volume.url, str(where))
    where.write_text("a file")
    assert "is not a directory" in refused("mount", volume.url, str(where))
    where.unlink()
    where.mkdir()
    assert "unknown mount option" in refused("mount", "--no-such", volume.url, str(where))
    assert "needs two arguments" in refused("mount", volume.url)
    assert "unknown metadata engine" in refused("mount", "oracle://x", str(where))
    assert "not formatted" in refused("mount", f"sqlite3://{tmp_path}/other.db", str(where), "--metrics", "")
    url = f"redis://:secret-word@127.0.0.1:{free_port()}/1"
    said = refused("mount", url, str(where))
    assert "127.0.0.1" in said
    assert "secret-word" not in said
    (tmp_path / "text.db").write_text("this is no database" * 100)
    refused("mount", f"sqlite3://{tmp_path}/text.db", str(where))
    assert not is_mounted(where)


def test_background_errors_reach_the_command(tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    where.mkdir()
    said = refused("mount", "-d", "--log", str(tmp_path / "log"), f"sqlite3://{tmp_path}/none.db", str(where))
    assert "not formatted" in said


def test_bucket_of_another_volume_is_refused(volume: Volume, tmp_path: Path) -> None:
    (volume.bucket / volume.name / "juicefs_uuid").write_text("11111111-2222-3333-4444-555555555555")
    where = tmp_path / "mnt"
    where.mkdir()
    assert "belongs to volume 11111111" in refused("mount", volume.url, str(where), "--metrics", "")


def test_busy_mountpoint_is_refused(volume: Volume, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "mnt") as where:
        said = refused("mount", volume.url, str(where))
        assert "is in use by JuiceFS:test-volume" in said
        with open(where / "open", "w"):
            assert "is busy" in refused("umount", str(where))
    assert "no JuiceFS is mounted" in refused("umount", str(where))


def test_sigterm_stores_what_was_written(volume: Volume, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    mount = Mounted(volume, where)
    fd = os.open(where / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"not closed yet" * 1000)
    mount.end()
    with contextlib.suppress(OSError):  # the connection has gone
        os.close(fd)
    with mounted(volume, where) as again:
        assert (again / "f").read_bytes() == b"not closed yet" * 1000


def test_end_with_lost_writes_is_no_success(volume: Volume, tmp_path: Path) -> None:
    mount = Mounted(volume, tmp_path / "mnt", "--io-retries", "0")
    chunks = volume.bucket / volume.name / "chunks"
    shutil.rmtree(chunks, ignore_errors=True)
    chunks.write_text("in the way")
    fd = os.open(mount.where / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"lost" * 1000)
    mount.process.send_signal(signal.SIGTERM)
    try:
        assert mount.process.wait(timeout=30) == 1
        assert "not everything that was written to" in mount.log.read_text()
        assert not is_mounted(mount.where)
    finally:
        mount.kill()
        with contextlib.suppress(OSError):
            os.close(fd)


def test_killed_mount_loses_nothing_that_was_acknowledged(volume: Volume, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    mount = Mounted(volume, where, "--heartbeat", "1")
    (where / "closed").write_bytes(b"c" * 3_000_000)
    fd = os.open(where / "synced", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"s" * 70_000)
    os.fsync(fd)
    os.write(fd, b"perhaps")
    gone = os.open(where / "gone", os.O_WRONLY | os.O_CREAT)
    os.write(gone, b"g" * 100_000)
    os.fsync(gone)
    os.unlink(where / "gone")
    mount.kill()
    for number in (fd, gone):
        with pytest.raises(OSError, match="not connected"):
            os.fsync(number)
        with contextlib.suppress(OSError):
            os.close(number)
    with mounted(volume, where, "--heartbeat", "1") as again:
        assert (again / "closed").read_bytes() == b"c" * 3_000_000
        assert (again / "synced").read_bytes()[:70_000] == b"s" * 70_000
        assert not (again / "gone").exists()
        eventually(lambda: sessions(volume) == 1, "the dead session is cleared")


def test_dead_mount_is_taken_away_by_force(volume: Volume, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    mount = Mounted(volume, where)
    mount.process.kill()
    mount.process.wait()
    try:
        with pytest.raises(OSError, match="not connected"):
            os.listdir(where)
        assert "in use" in refused("mount", volume.url, str(where))
        run(*JFS, "umount", "-f", str(where))
        assert not is_mounted(where)
    finally:
        mount.kill()


def test_hung_mount_is_taken_away_by_force(volume: Volume, tmp_path: Path) -> None:
    where = tmp_path / "mnt"
    mount = Mounted(volume, where)
    mount.process.send_signal(signal.SIGSTOP)
    hanging = subprocess.Popen(["ls", str(where)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        run(*JFS, "umount", "-f", str(where))
        assert not is_mounted(where)
        assert hanging.wait(timeout=30) != 0
    finally:
        hanging.kill()
        hanging.wait()
        mount.process.send_signal(signal.SIGCONT)
        mount.kill()


def test_read_only_mount_refuses_changes_and_has_no_session(volume: Volume, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "mnt") as where:
        (where / "f").write_text("content")
    with mounted(volume, tmp_path / "mnt", "--read-only") as where:
        assert (where / "f").read_text() == "content"
        with pytest.raises(OSError, match="Read-only"):
            (where / "g").touch()
        assert sessions(volume) == 0


def test_subdirectory_is_made_and_shown_as_the_root(volume: Volume, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "mnt", "-o", "subdir=a/b") as where:
        (where / "f").write_text("below")
        assert os.stat(where).st_ino == 1
        assert ".trash" not in os.listdir(where)
    with mounted(volume, tmp_path / "mnt") as where:
        assert (where / "a/b/f").read_text() == "below"


def test_metrics_are_served(volume: Volume, tmp_path: Path) -> None:
    mount = Mounted(volume, tmp_path / "mnt", "--metrics", "127.0.0.1:0", "--custom-labels", "team:a")
    try:
        (mount.where / "f").write_bytes(b"x" * 5000)
        found = re.search(r"metrics at (http://\S+)", mount.log.read_text())
        assert found
        with urllib.request.urlopen(found[1], timeout=10) as answer:
            text = answer.read().decode()
    finally:
        mount.end()
    create = next(line for line in text.splitlines() if line.startswith('juicefs_fuse_ops_total{method="create"'))
    assert 'vol_name="test-volume"' in create
    assert 'team="a"' in create
    assert create.endswith(" 1")
    assert "juicefs_fuse_written_size_bytes_sum" in text
    assert 'juicefs_object_request_data_bytes{method="PUT"' in text


def test_buffer_that_is_too_small_is_raised(volume: Volume, tmp_path: Path) -> None:
    mount = Mounted(volume, tmp_path / "mnt", "--buffer-size", "0")
    try:
        (mount.where / "f").write_bytes(b"x" * 5_000_000)
        assert (mount.where / "f").stat().st_size == 5_000_000
        config = json.loads((mount.where / ".config").read_text())
        assert config["Chunk"]["BufferSize"] == 32 << 20
    except BaseException:
        mount.kill()
        raise
    mount.end()
    assert "buffer-size is too small: 32 MiB are used" in mount.log.read_text()


def test_options_without_effect_are_logged_once(volume: Volume, tmp_path: Path) -> None:
    mount = Mounted(volume, tmp_path / "mnt", "-o", "skip-dir-nlink=3", "--fast-statfs")
    mount.end()
    said = [line for line in mount.log.read_text().splitlines() if "has no effect yet" in line]
    assert len(said) == 1
    assert said[0].endswith("has no effect yet: skip-dir-nlink, fast-statfs")


def test_mount_by_a_user_through_fusermount(volume: Volume, tmp_path: Path) -> None:
    """The way of a process without root, which cannot call mount(2) itself."""
    as_user = "import os, sys; os.geteuid = lambda: 1000; from jfs.cli.main import main; sys.exit(main(sys.argv[1:]))"
    where = tmp_path / "mnt"
    where.mkdir()
    try:
        log = str(tmp_path / "log")
        run(sys.executable, "-c", as_user, "mount", "-d", "--metrics", "", "--log", log, volume.url, str(where))
        line = next(line for line in Path("/proc/mounts").read_text().splitlines() if f" {where} " in line)
        assert line.startswith(f"JuiceFS:test-volume {where} fuse.juicefs rw,nosuid,nodev")
        assert "allow_other" not in line
        (where / "f").write_text("mine")
        run(sys.executable, "-c", as_user, "umount", str(where))
        assert not is_mounted(where)
    finally:
        if is_mounted(where):
            run("umount", "-l", str(where))


class Worker:
    """`jfs worker` and its two streams."""

    def __init__(self, document: dict[str, Any] | str, errors: Path) -> None:
        self._errors = errors.open("wb")
        self.process = subprocess.Popen(
            [*JFS, "worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self.say(document)

    def say(self, document: dict[str, Any] | str) -> None:
        assert self.process.stdin
        self.process.stdin.write((document if isinstance(document, str) else json.dumps(document)) + "\n")
        self.process.stdin.flush()

    def hear(self, *kinds: str) -> dict[str, Any]:
        """The next event of one of *kinds*."""
        assert self.process.stdout
        while True:
            line = self.process.stdout.readline()
            assert line, "the worker ended"
            event: dict[str, Any] = json.loads(line)
            if event["event"] in kinds:
                return event

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        assert self.process.stdin
        assert self.process.stdout
        status = self.process.wait(timeout=30)
        self.process.stdin.close()
        self.process.stdout.close()
        self._errors.close()
        return status


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    where = tmp_path / "mnt"
    where.mkdir()
    yield where
    if is_mounted(where):
        run("umount", "-l", str(where))


def test_worker_mounts_beats_flushes_and_ends(volume: Volume, directory: Path, tmp_path: Path) -> None:
    worker = Worker(
        {
            "meta_url": volume.url,
            "mountpoint": str(directory),
            "read_only": False,
            "options": ["cache-size=1", "subdir=pod", "enable-xattr"],
            "name": volume.name,
            "envs": {"SOME_NAME": "value"},
            "metrics": None,
        },
        tmp_path / "worker.log",
    )
    ready = worker.hear("ready", "error")
    assert ready["event"] == "ready", ready
    assert ready["sid"] > 0
    assert ready["pid"] == worker.process.pid
    beat = worker.hear("beat")
    assert (beat["inflight"], beat["dirty_bytes"], beat["oldest_ms"], beat["repeated"]) == (0, 0, 0, 0)
    with open(directory / "f", "wb", buffering=0) as file:
        file.write(b"d" * 10_000)
        worker.say({"command": "quiesce", "deadline_ms": 20_000})
        assert worker.hear("flushed") == {"event": "flushed", "dirty_bytes": 0}
    worker.say("rubbish")
    worker.say({"command": "from the future"})
    assert worker.end() == 0
    assert not is_mounted(directory)
    with mounted(volume, directory) as where:
        assert (where / "pod/f").read_bytes() == b"d" * 10_000


def test_worker_uploads_what_is_staged_before_it_ends(volume: Volume, directory: Path, tmp_path: Path) -> None:
    """Its cache directory may be the pod's own."""
    options = [f"cache-dir={tmp_path}/cache", "writeback", "upload-delay=1h"]
    document = {"meta_url": volume.url, "mountpoint": str(directory), "options": options, "name": volume.name}
    worker = Worker(document, tmp_path / "worker.log")
    assert worker.hear("ready", "error")["event"] == "ready"
    (directory / "f").write_bytes(b"d" * 10_000)
    assert len([each for each in (tmp_path / "cache").rglob("rawstaging/**/*") if each.is_file()]) == 1
    assert worker.end() == 0
    assert not [each for each in (tmp_path / "cache").rglob("rawstaging/**/*") if each.is_file()]
    with mounted(volume, directory, "--cache-size", "0") as where:
        assert (where / "f").read_bytes() == b"d" * 10_000


@pytest.mark.parametrize(
    ("change", "code", "retryable", "said"),
    [
        ({"meta_url": "sqlite3://{tmp}/none.db"}, "NotFormatted", False, "not formatted"),
        ({"meta_url": "redis://127.0.0.1:{port}/1"}, "MetadataUnreachable", True, "127.0.0.1"),
        ({"options": ["no-such-option"]}, "BadOption", False, "no-such-option"),
        ({"mountpoint": "{tmp}/missing"}, "BadOption", False, "does not exist"),
        ({"name": "other-volume"}, "NotFormatted", False, "not other-volume"),
        ({"storage": {"storage": "file", "bucket": "/proc/1/nowhere/"}}, "", None, ""),
    ],
)
def test_worker_tells_what_is_wrong(
    volume: Volume,
    directory: Path,
    tmp_path: Path,
    change: dict[str, Any],
    code: str,
    retryable: bool | None,
    said: str,
) -> None:
    document: dict[str, Any] = {"meta_url": volume.url, "mountpoint": str(directory), "options": []}
    places = {"{tmp}": str(tmp_path), "{port}": str(free_port())}
    for name, value in change.items():
        if isinstance(value, str):
            for place, real in places.items():
                value = value.replace(place, real)
        document[name] = value
    worker = Worker(document, tmp_path / "worker.log")
    event = worker.hear("error", "ready")
    if code:
        assert (event["event"], event["code"], event["retryable"]) == ("error", code, retryable)
        assert said in event["message"]
        assert worker.wait() == 1
        assert not is_mounted(directory)
    else:
        worker.end()


def test_worker_refuses_what_is_no_document(tmp_path: Path) -> None:
    worker = Worker("not json", tmp_path / "worker.log")
    assert worker.hear("error")["code"] == "BadOption"
    assert worker.wait() == 1


def test_start_is_quick_enough_to_be_ended_at_once(volume: Volume, directory: Path, tmp_path: Path) -> None:
    """SIGTERM at any moment of the start leaves no mount behind."""
    for delay in (0.05, 0.2, 0.4):
        worker = Worker({"meta_url": volume.url, "mountpoint": str(directory), "options": []}, tmp_path / "worker.log")
        time.sleep(delay)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait()
        assert not is_mounted(directory)
