"""A mount whose surroundings fail, and requests that are interrupted; options that change what the kernel may believe."""

import errno
import os
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import pytest
from mount_parts import HOSTS, JFS, REAL, Mounted, Volume, eventually, mounted, really_mounted, redis_server, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(90)]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--trash-days", "0")


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_storage_that_cannot_be_written_is_told_at_close(volume: Volume, tmp_path: Path, host: str) -> None:
    mount = Mounted(volume, tmp_path / "mnt", "--fuse-host", host, "--io-retries", "0")
    try:
        chunks = volume.bucket / volume.name / "chunks"
        shutil.rmtree(chunks, ignore_errors=True)
        chunks.write_text("in the way")
        fd = os.open(mount.where / "f", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"lost" * 1000)
        if not (child := os.fork()):  # it has the descriptor, too, and closes it at its end
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(OSError, match=re.escape(f"[Errno {errno.EIO}]")):
            os.close(fd)
        assert (mount.where / "f").stat().st_size == 0
        chunks.unlink()
        (mount.where / "g").write_bytes(b"kept")
        assert (mount.where / "g").read_bytes() == b"kept"
    finally:
        mount.kill()


def test_missing_object_is_an_error_of_read(volume: Volume, tmp_path: Path, host: str) -> None:
    mount = Mounted(volume, tmp_path / "mnt", "--fuse-host", host, "--io-retries", "0")
    try:
        (mount.where / "f").write_bytes(b"x" * 100_000)
        shutil.rmtree(volume.bucket / volume.name / "chunks")
        with pytest.raises(OSError, match=re.escape(f"[Errno {errno.EIO}]")):
            (mount.where / "f").read_bytes()
        assert (mount.where / "f").stat().st_size == 100_000
    finally:
        mount.kill()


def test_database_that_goes_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "redis").mkdir()
    with redis_server(tmp_path / "redis") as url:
        volume = Volume(f"{url}/1", tmp_path / "bucket").format()
        mount = Mounted(volume, tmp_path / "mnt")
        try:
            (mount.where / "f").write_text("1")
            port = url.rpartition(":")[2]
            run("redis-cli", "-p", port, "config", "set", "requirepass", "secret")
            run("redis-cli", "-p", port, "-a", "secret", "client", "kill", "type", "normal")

            def fails() -> bool:
                try:
                    (mount.where / "new").mkdir()
                except OSError as error:
                    return error.errno == errno.EIO
                (mount.where / "new").rmdir()
                return False

            eventually(fails, "requests fail while the database refuses us")
            run("redis-cli", "-p", port, "-a", "secret", "config", "set", "requirepass", "")

            def works() -> bool:
                try:
                    return (mount.where / "f").read_text() == "1"
                except OSError:
                    return False

            eventually(works, "the mount goes on")
            (mount.where / "g").write_text("2")
            assert "Traceback" not in mount.log.read_text()
        finally:
            mount.kill()


def test_a_reader_of_the_log_can_be_ended(volume: Volume, tmp_path: Path, host: str) -> None:
    with mounted(volume, tmp_path / "mnt", "--fuse-host", host) as where:
        reader = subprocess.Popen(["cat", str(where / ".accesslog")], stdout=subprocess.DEVNULL)
        try:
            stats = where / ".stats"
            eventually(lambda: re.search(r"ops_total_open (\d+)", stats.read_text()), "it is open")
            reader.send_signal(signal.SIGTERM)
            assert reader.wait(timeout=20) == -signal.SIGTERM
        finally:
            reader.kill()
            reader.wait()


def test_missing_names_are_believed_missing_when_asked(volume: Volume, tmp_path: Path, host: str) -> None:
    with (
        mounted(volume, tmp_path / "a", "--fuse-host", host, "--negative-entry-cache", "60") as patient,
        mounted(volume, tmp_path / "b", "--fuse-host", host) as other,
    ):
        assert not (patient / "f").exists()
        (other / "f").touch()
        assert not (patient / "f").exists()
        assert (other / "f").exists()


def test_attributes_are_believed_as_long_as_asked(volume: Volume, tmp_path: Path, host: str) -> None:
    options = ("--attr-cache", "60", "--entry-cache", "60")
    with (
        mounted(volume, tmp_path / "a", "--fuse-host", host, *options) as patient,
        mounted(volume, tmp_path / "b", "--fuse-host", host, "--attr-cache", "0", "--entry-cache", "0") as other,
    ):
        (patient / "f").write_bytes(b"1")
        assert (patient / "f").stat().st_size == 1
        (other / "f").write_bytes(b"22")
        assert (patient / "f").stat().st_size == 1
        assert (patient / "f").read_bytes() == b"22"  # but an open asks again (close-to-open)
        (patient / "f").write_bytes(b"333")
        assert (other / "f").stat().st_size == 3


def test_own_permission_checks(volume: Volume, tmp_path: Path, host: str) -> None:
    with mounted(volume, tmp_path / "mnt", "--fuse-host", host, "--non-default-permission") as where:
        assert "default_permissions" not in Path("/proc/mounts").read_text().split(f" {where} ")[1].splitlines()[0]
        (where / "closed").mkdir(mode=0o700)
        (where / "secret").write_text("no")
        os.chmod(where / "secret", 0o600)
        script = "cat secret; echo $?; ls closed; echo $?; touch closed/x; echo $?; touch mine; echo $?"
        ended = subprocess.run(
            ["sh", "-c", script], cwd=where, user=65534, group=65534, capture_output=True, text=True, check=True
        )
        assert [word != "0" for word in ended.stdout.split()] == [True, True, True, False]
        assert stat.S_IMODE(os.stat(where / "mine").st_mode) == 0o644


def test_listings_cached_by_the_kernel_follow_changes(volume: Volume, tmp_path: Path) -> None:
    with (
        mounted(volume, tmp_path / "a", "--readdir-cache") as cached,
        mounted(volume, tmp_path / "b", "--skip-dir-mtime", "0s") as other,
    ):
        (cached / "d").mkdir()
        (cached / "d/one").touch()
        assert os.listdir(cached / "d") == ["one"]
        assert os.listdir(cached / "d") == ["one"]
        (cached / "d/two").touch()
        assert sorted(os.listdir(cached / "d")) == ["one", "two"]
        (other / "d/three").touch()
        eventually(lambda: sorted(os.listdir(cached / "d")) == ["one", "three", "two"], "the other's file is listed")


def test_virtual_files_hidden_and_renamed(volume: Volume, tmp_path: Path) -> None:
    with mounted(volume, tmp_path / "mnt", "--hide-internal") as where:
        assert os.listdir(where) == []
        assert (where / ".stats").read_text().startswith("juicefs_")
    with mounted(volume, tmp_path / "mnt", "--prefix-internal") as where:
        assert ".jfs.stats" in os.listdir(where)
        (where / ".stats").write_text("an ordinary file")
        assert (where / ".jfs.config").read_text().startswith("{")


def test_info_of_both_clients_on_both_mounts(volume: Volume, tmp_path: Path) -> None:
    def lines(program: list[str], *arguments: str) -> list[str]:
        said = run(*program, "info", *arguments).stdout.splitlines()
        return [line for line in said if "tier:" not in line]  # storage tiers are not part of this version

    with mounted(volume, tmp_path / "mnt") as where:
        (where / "d/e").mkdir(parents=True)
        (where / "d/f").write_bytes(b"f" * 70_000)
        with open(where / "d/f", "r+b") as file:
            file.seek(1000)
            file.write(b"g" * 500)
        os.link(where / "d/f", where / "link")
        for arguments in (["d"], ["-r", "d"], ["d/f"], ["--raw", "d/f"]):
            *options, name = arguments
            ours = lines(JFS, *options, str(where / name))
            assert lines([REAL], *options, str(where / name)) == ours
    with really_mounted(volume, tmp_path / "mnt") as where:
        for name in ("d", "d/f"):
            # The real mount names the paths of a linked file in an order that changes from call to call.
            assert sorted(lines(JFS, str(where / name))) == sorted(lines([REAL], str(where / name)))
        ended = run(*JFS, "info", str(tmp_path), check=False)
        assert ended.returncode == 1
        assert "is not inside a JuiceFS mount" in ended.stderr


def test_many_mounts_of_one_volume_end_cleanly(volume: Volume, tmp_path: Path) -> None:
    mounts = [Mounted(volume, tmp_path / f"mnt{number}") for number in range(3)]
    for number, mount in enumerate(mounts):
        (mount.where / f"f{number}").write_text(str(number))
    for mount in mounts:
        mount.end()
    with mounted(volume, tmp_path / "again") as where:
        assert [(where / f"f{number}").read_text() for number in range(3)] == ["0", "1", "2"]
