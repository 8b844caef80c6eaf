"""fallocate, SEEK_DATA/SEEK_HOLE, copy_file_range, chattr, O_DIRECT, O_TMPFILE, atime through mounts of the kernel host; the results
compared with those of a file system of this machine where it can do the same, and read back by the real client."""

import ctypes
import errno
import fcntl
import os
import random
import re
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import Volume, assert_sound, check_by_real, mounted, really_mounted, redis_server, run, tree

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

KEEP, PUNCH, COLLAPSE, ZERO, INSERT = 1, 2, 8, 16, 32
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture(params=["redis", "sqlite3"])
def volume(request: pytest.FixtureRequest, redis: str, tmp_path: Path) -> Volume:
    address = f"sqlite3://{tmp_path}/meta.db"
    if request.param == "redis":
        run("redis-cli", "-p", redis.rpartition(":")[2], "flushall")
        address = f"{redis}/1"
    return Volume(address, tmp_path / "bucket").format("--trash-days", "0")


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("ranges")
    volume = Volume(f"sqlite3://{directory}/meta.db", directory / "bucket").format("--trash-days", "0")
    with mounted(volume, directory / "mnt", "--enable-xattr", "--enable-ioctl") as where:
        yield where
    assert_sound(volume)
    check_by_real(volume)


@pytest.fixture
def here(top: Path, request: pytest.FixtureRequest) -> Path:
    path = top / re.sub(r"\W", "_", request.node.name)
    path.mkdir()
    return path


def fallocate(fd: int, mode: int, offset: int, size: int) -> int:
    """0 or the errno."""
    if LIBC.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)):
        return ctypes.get_errno()
    return 0


def outcome(call: object, *arguments: object) -> object:
    """What a call gives, or the name of its errno."""
    try:
        return call(*arguments)  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_of_ranges_match_a_model(here: Path, seed: int) -> None:
    chance = random.Random(seed)
    span = 300_000
    names = [here / "a", here / "b"]
    fds = [os.open(name, os.O_RDWR | os.O_CREAT) for name in names]
    models = [bytearray(), bytearray()]

    def put(at: int, offset: int, data: bytes | bytearray) -> None:
        model = models[at]
        model.extend(bytes(max(offset - len(model), 0)))
        model[offset : offset + len(data)] = data

    for _ in range(150):
        at = chance.randrange(2)
        offset, size = chance.randrange(span), chance.randrange(1, 60_000)
        model, fd = models[at], fds[at]
        match chance.randrange(7):
            case 0 | 1:
                data = chance.randbytes(size)
                os.pwrite(fd, data, offset)
                put(at, offset, data)
            case 2:
                assert fallocate(fd, KEEP | PUNCH, offset, size) == 0
                model[offset : offset + size] = bytes(len(model[offset : offset + size]))
            case 3:
                keep = chance.randrange(2)
                assert fallocate(fd, ZERO | keep, offset, size) == 0
                size = min(size, max(len(model) - offset, 0)) if keep else size
                if size:
                    put(at, offset, bytes(size))
            case 4:
                assert fallocate(fd, 0, offset, size) == 0
                model.extend(bytes(max(offset + size - len(model), 0)))
            case 5:
                os.ftruncate(fd, offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            case 6:
                source = models[1 - at]
                done = os.copy_file_range(fds[1 - at], fd, size, offset, start := chance.randrange(span))
                assert done == max(min(size, len(source) - offset), 0)
                if done:
                    put(at, start, source[offset : offset + done])
        if not chance.randrange(4):
            assert os.pread(fd, span, offset) == bytes(model[offset : offset + span])
        assert os.fstat(fd).st_size == len(model)
    for fd in fds:
        os.close(fd)
    for name, model in zip(names, models, strict=True):
        assert name.read_bytes() == bytes(model)


def test_errors_of_fallocate_are_those_of_a_local_file_system(here: Path, tmp_path: Path) -> None:
    answers = []
    for directory in (here, tmp_path):
        fd = os.open(directory / "f", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"x" * 100_000)
        read_only = os.open(directory / "f", os.O_RDONLY)
        found = [
            fallocate(fd, PUNCH, 0, 4096),
            fallocate(fd, 0, 0, 0),
            fallocate(fd, 0, -1, 10),
            fallocate(fd, PUNCH | ZERO | KEEP, 0, 10),
            fallocate(fd, KEEP, 200_000, 10),
            fallocate(fd, 0, 1 << 62, 1 << 62),
            fallocate(read_only, 0, 0, 10),
            os.fstat(fd).st_size,
        ]
        answers.append(found)
        os.close(fd)
        os.close(read_only)
    assert answers[0] == answers[1]
    fd = os.open(here / "f", os.O_RDWR)
    assert fallocate(fd, COLLAPSE, 0, 4096) == errno.EOPNOTSUPP
    assert fallocate(fd, INSERT, 0, 4096) == errno.EOPNOTSUPP
    os.close(fd)


def test_fallocate_clears_set_user_id(here: Path) -> None:
    (here / "f").write_bytes(b"x" * 10_000)
    os.chmod(here / "f", 0o4777)
    script = "import os; os.posix_fallocate(os.open('f', os.O_RDWR), 0, 20_000)"
    subprocess.run(["python3", "-c", script], cwd=here, user=65534, group=65534, check=True)
    assert stat.S_IMODE(os.stat(here / "f").st_mode) == 0o777
    assert os.stat(here / "f").st_size == 20_000


def test_data_and_holes_are_found(here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"d" * 10_000, 100_000)  # not flushed
    os.ftruncate(fd, 500_000)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 100_000
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    assert os.lseek(fd, 105_000, os.SEEK_HOLE) == 110_000
    assert outcome(os.lseek, fd, 110_000, os.SEEK_DATA) == "ENXIO"
    assert outcome(os.lseek, fd, 500_000, os.SEEK_HOLE) == "ENXIO"
    os.pwrite(fd, b"e", 499_999)
    assert os.lseek(fd, 200_000, os.SEEK_DATA) == 499_999
    assert os.lseek(fd, 499_999, os.SEEK_HOLE) == 500_000
    os.close(fd)
    run("cp", "--sparse=always", str(here / "f"), str(here / "g"))
    assert (here / "g").read_bytes() == (here / "f").read_bytes()


def test_a_copy_moves_no_data(here: Path, top: Path) -> None:
    data = random.Random(9).randbytes(9_000_000)
    (here / "f").write_bytes(data)
    before = sum(len(files) for _, _, files in os.walk(top.parent / "bucket"))
    source, target = os.open(here / "f", os.O_RDONLY), os.open(here / "g", os.O_RDWR | os.O_CREAT)
    assert os.copy_file_range(source, target, len(data) - 7, 7, 3) == len(data) - 7
    assert os.fstat(target).st_size == len(data) - 4
    assert os.pread(target, len(data), 0) == bytes(3) + data[7:]
    os.close(source)
    os.close(target)
    run("cp", str(here / "f"), str(here / "h"))
    assert (here / "h").read_bytes() == data
    assert sum(len(files) for _, _, files in os.walk(top.parent / "bucket")) == before
    os.unlink(here / "f")
    assert (here / "h").read_bytes() == data
    fd = os.open(here / "h", os.O_RDWR)
    assert outcome(os.copy_file_range, fd, fd, 1000, 0, 500) == "EINVAL"
    assert outcome(os.copy_file_range, fd, fd, 1000, 0, 1000) == 1000
    assert os.pread(fd, 2000, 0) == data[:1000] * 2
    os.close(fd)


def test_flags_of_inodes(here: Path) -> None:
    def flags(path: Path) -> str:
        return run("lsattr", "-d", str(path)).stdout.split()[0].replace("-", "")

    path, directory = here / "f", here / "d"
    path.write_bytes(b"content")
    directory.mkdir()
    assert flags(path) == flags(directory) == ""
    run("chattr", "+a", str(path))
    assert flags(path) == "a"
    assert outcome(os.open, path, os.O_WRONLY) == "EPERM"
    assert outcome(os.truncate, path, 3) == "EPERM"
    assert outcome(os.unlink, path) == "EPERM"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b" and more")
    os.close(fd)
    run("chattr", "-a", "+i", str(path))
    assert flags(path) == "i"
    for call in (
        lambda: os.open(path, os.O_WRONLY | os.O_APPEND),
        lambda: os.chmod(path, 0o600),
        lambda: os.utime(path),
        lambda: os.rename(path, here / "other"),
        lambda: os.link(path, here / "other"),
        lambda: os.setxattr(path, "user.a", b"1"),
        lambda: os.unlink(path),
    ):
        assert outcome(call) == "EPERM"
    run("chattr", "+i", str(directory))
    assert outcome((directory / "x").touch) == "EPERM"
    run("chattr", "-i", "+s", str(directory))
    (directory / "x").touch()
    assert flags(directory / "x") == "s"  # inherited
    assert run("chattr", "+c", str(path), check=False).returncode != 0
    with open(path, "rb") as file:
        raw = fcntl.ioctl(file, 0x801C581F, bytes(28))  # FS_IOC_FSGETXATTR
        assert struct.unpack_from("<I", raw)[0] == 8
        assert outcome(fcntl.ioctl, file, 0x5401, bytes(64)) == "ENOTTY"
    assert run("chattr", "-i", str(path), check=False, user=65534).returncode != 0
    run("chattr", "-i", str(path))
    assert path.read_bytes() == b"content and more"
    os.unlink(path)


def test_nameless_files(here: Path) -> None:
    fd = os.open(here, os.O_RDWR | os.O_TMPFILE, 0o640)
    os.write(fd, b"nowhere")
    assert os.pread(fd, 100, 0) == b"nowhere"
    assert os.fstat(fd).st_nlink == 0
    assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
    assert os.listdir(here) == []
    os.close(fd)
    assert os.listdir(here) == []


def test_statx_tells_what_stat_tells(here: Path) -> None:
    (here / "f").write_bytes(b"x" * 5000)
    shown = run("stat", "-c", "%s %i %h %a", str(here / "f")).stdout.split()  # coreutils' stat calls statx
    st = os.stat(here / "f")
    assert shown == [str(5000), str(st.st_ino), "1", oct(stat.S_IMODE(st.st_mode))[2:]]
    run("sync", "-f", str(here / "f"))


@pytest.mark.parametrize("mode", ["noatime", "relatime", "strictatime"])
def test_access_times(volume: Volume, tmp_path: Path, mode: str) -> None:
    with mounted(volume, tmp_path / "mnt", "--atime-mode", mode, "--attr-cache", "0") as top:
        path = top / "f"
        path.write_bytes(b"x")
        (top / "d").mkdir()
        for thing in (path, top / "d"):
            old, now = 1_500_000_000, os.stat(thing).st_ctime
            # Younger than a day and not older than mtime and ctime: only strictatime moves it.
            os.utime(thing, (now + 100, old))
            read(thing)
            assert os.stat(thing).st_atime == pytest.approx(now + 100, abs=0.001)
            os.utime(thing, (old, old))  # older than ctime
            read(thing)
            moved = os.stat(thing).st_atime > old
            assert moved == (mode != "noatime")
            assert os.stat(thing).st_mtime == old


def read(path: Path) -> None:
    if path.is_dir():
        os.listdir(path)
    else:
        path.read_bytes()


def test_the_real_client_reads_what_was_made_and_counts_alike(volume: Volume, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(70_000_000)  # more than a chunk
    with mounted(volume, tmp_path / "ours") as ours:
        (ours / "f").write_bytes(data)
        source, target = os.open(ours / "f", os.O_RDWR), os.open(ours / "g", os.O_RDWR | os.O_CREAT)
        assert fallocate(source, KEEP | PUNCH, 1000, 5000) == 0
        assert fallocate(source, ZERO, 69_999_000, 3000) == 0
        assert fallocate(source, 0, 0, 71_000_000) == 0
        assert os.copy_file_range(source, target, 71_000_000, 0, 12_345) == 71_000_000
        assert os.copy_file_range(target, source, 500_000, 30_000_000, 60_000_000) == 500_000
        assert fallocate(target, KEEP | PUNCH, 66_000_000, 2_000_000) == 0
        os.close(source)
        os.close(target)
        seen = tree(ours)
    check_by_real(volume)
    with really_mounted(volume, tmp_path / "theirs") as theirs:
        assert tree(theirs) == seen
        os.unlink(theirs / "f")
        source, target = os.open(theirs / "g", os.O_RDWR), os.open(theirs / "h", os.O_RDWR | os.O_CREAT)
        os.copy_file_range(source, target, 1_000_000, 5, 7)
        assert fallocate(source, KEEP | PUNCH, 5_000_000, 2_000_000) == 0
        os.close(source)
        os.close(target)
        seen = tree(theirs)
    with mounted(volume, tmp_path / "ours") as ours:
        assert tree(ours) == seen
        os.unlink(ours / "g")
        assert (ours / "h").stat().st_size > 0
        assert len((ours / "h").read_bytes()) == (ours / "h").stat().st_size
    check_by_real(volume)
