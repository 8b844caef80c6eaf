"""POSIX behaviour through a real mount, on both hosts: what a program sees of open, write, rename, link, listing, mmap …"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import random
import re
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mount_parts import HOSTS, Volume, assert_sound, mounted

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

AT_FDCWD = -100


@pytest.fixture(scope="module", params=[*HOSTS, *(f"{host},writeback_cache" for host in HOSTS)])
def host(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def top(host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("conformance")
    volume = Volume(f"sqlite3://{directory}/meta.db", directory / "bucket").format("--trash-days", "0")
    name, _, option = host.partition(",")
    options = ["-o", option] if option else []
    with mounted(volume, directory / "mnt", "--fuse-host", name, "--enable-xattr", *options) as where:
        yield where
    assert_sound(volume)


@pytest.fixture
def here(top: Path, request: pytest.FixtureRequest) -> Path:
    path = top / request.node.originalname
    path.mkdir()
    return path


def renameat2(source: Path, target: Path, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, bytes(source), AT_FDCWD, bytes(target), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def raises(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(f"[Errno {number}]")):
        yield


def test_write_and_read_back(here: Path) -> None:
    data = random.Random(1).randbytes(9_000_001)
    (here / "f").write_bytes(data)
    assert (here / "f").stat().st_size == len(data)
    assert (here / "f").read_bytes() == data


def test_overwrite_in_the_middle_and_read_through_the_same_descriptor(here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.write(fd, b"a" * 300_000)
        os.pwrite(fd, b"b" * 1000, 100_000)
        assert os.pread(fd, 5, 99_998) == b"aabbb"
        assert os.fstat(fd).st_size == 300_000
    finally:
        os.close(fd)
    assert (here / "f").read_bytes().count(b"b") == 1000


def test_append(here: Path) -> None:
    for word in (b"one", b"two", b"three"):
        fd = os.open(here / "f", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, word)
        os.close(fd)
    assert (here / "f").read_bytes() == b"onetwothree"


def test_open_with_truncate_empties_the_file(here: Path) -> None:
    (here / "f").write_bytes(b"x" * 100_000)
    fd = os.open(here / "f", os.O_RDWR | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    os.write(fd, b"new")
    os.close(fd)
    assert (here / "f").read_bytes() == b"new"


def test_create_exclusively_fails_on_an_existing_file(here: Path) -> None:
    (here / "f").touch()
    with raises(errno.EEXIST):
        os.open(here / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_holes_read_as_zeros(here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"end", 70_000_000)
    assert os.pread(fd, 10, 5_000_000) == bytes(10)
    assert os.pread(fd, 8, 69_999_995) == bytes(5) + b"end"
    os.close(fd)
    assert (here / "f").stat().st_size == 70_000_003
    assert os.stat(here / "f").st_blocks == (70_000_003 + 511) // 512


def test_truncate_down_and_up_leaves_zeros(here: Path) -> None:
    (here / "f").write_bytes(b"y" * 200_000)
    os.truncate(here / "f", 1000)
    os.truncate(here / "f", 3000)
    assert (here / "f").read_bytes() == b"y" * 1000 + bytes(2000)


def test_truncate_by_descriptor_with_unwritten_data(here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"z" * 500_000)
    os.ftruncate(fd, 10)
    os.pwrite(fd, b"A", 20)
    assert os.pread(fd, 100, 0) == b"z" * 10 + bytes(10) + b"A"
    os.close(fd)
    assert (here / "f").read_bytes() == b"z" * 10 + bytes(10) + b"A"


def test_rename_replaces(here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "b").write_bytes(b"b")
    os.rename(here / "a", here / "b")
    assert (here / "b").read_bytes() == b"a"
    assert os.listdir(here) == ["b"]


def test_rename_noreplace_and_exchange(here: Path) -> None:
    (here / "a").write_bytes(b"a")
    (here / "d").mkdir()
    with raises(errno.EEXIST):
        renameat2(here / "a", here / "d", 1)
    renameat2(here / "a", here / "d", 2)
    assert (here / "a").is_dir()
    assert (here / "d").read_bytes() == b"a"
    with raises(errno.ENOENT):
        renameat2(here / "a", here / "missing", 2)


def test_rename_of_directories(here: Path) -> None:
    (here / "d/sub").mkdir(parents=True)
    (here / "e").mkdir()
    (here / "full/x").mkdir(parents=True)
    os.rename(here / "d", here / "e")
    assert (here / "e/sub").is_dir()
    with raises(errno.ENOTEMPTY):
        os.rename(here / "e", here / "full")
    with raises(errno.EINVAL):
        os.rename(here / "e", here / "e/sub/below")
    (here / "f").touch()
    with raises(errno.EISDIR):
        os.rename(here / "f", here / "e")
    with raises(errno.ENOTDIR):
        os.rename(here / "e", here / "f")


def test_hard_links_share_data_and_count(here: Path) -> None:
    (here / "a").write_bytes(b"1")
    os.link(here / "a", here / "b")
    with open(here / "b", "ab") as file:
        file.write(b"2")
    assert (here / "a").read_bytes() == b"12"
    assert os.stat(here / "a").st_nlink == 2
    assert os.stat(here / "a").st_ino == os.stat(here / "b").st_ino
    os.unlink(here / "a")
    assert os.stat(here / "b").st_nlink == 1
    with raises(errno.EPERM):
        os.link(here, here / "dirlink")


def test_unlinked_open_file_lives_until_closed(here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"before")
    os.unlink(here / "f")
    os.write(fd, b" after")
    os.fsync(fd)
    assert os.pread(fd, 100, 0) == b"before after"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    assert not (here / "f").exists()


def test_symbolic_links(here: Path) -> None:
    os.symlink("target/of/link", here / "s")
    assert os.readlink(here / "s") == "target/of/link"
    assert os.lstat(here / "s").st_size == 14
    with raises(errno.ENOENT):
        os.stat(here / "s")
    with raises(errno.EEXIST):
        os.symlink("other", here / "s")


def test_special_files(here: Path) -> None:
    os.mkfifo(here / "fifo")
    os.mknod(here / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(here / "block", 0o600 | stat.S_IFBLK, os.makedev(259, 70_000))
    with socket.socket(socket.AF_UNIX) as server:
        cwd = os.getcwd()
        os.chdir(here)  # the path of a socket is short
        try:
            server.bind("socket")
        finally:
            os.chdir(cwd)
    assert stat.S_ISFIFO(os.stat(here / "fifo").st_mode)
    assert os.stat(here / "null").st_rdev == os.makedev(1, 3)
    assert os.stat(here / "block").st_rdev == os.makedev(259, 70_000)
    assert stat.S_ISSOCK(os.stat(here / "socket").st_mode)


def test_modes_owners_and_times(here: Path) -> None:
    path = here / "f"
    path.touch()
    os.chmod(path, 0o6751)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o6751
    os.chown(path, 1234, 5678)
    assert (os.stat(path).st_uid, os.stat(path).st_gid) == (1234, 5678)
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_000_000_001))
    st = os.stat(path)
    assert (st.st_atime_ns, st.st_mtime_ns) == (1_234_567_890_123_456_789, 987_654_321_000_000_001)
    os.utime(path, ns=(-5_000_000_001, -1))
    assert os.stat(path).st_mtime_ns == -1
    os.utime(path)
    assert os.stat(path).st_mtime > 1_700_000_000


def test_time_set_on_a_dirty_descriptor_stays(here: Path) -> None:
    fd = os.open(here / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"data" * 1000)
    os.utime(fd, ns=(10**18, 10**18 + 7))
    os.close(fd)
    assert os.stat(here / "f").st_mtime_ns == 10**18 + 7
    assert (here / "f").stat().st_size == 4000


def test_write_moves_mtime(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"1")
    os.utime(path, ns=(10**18, 10**18))
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"2")
    assert os.fstat(fd).st_mtime_ns > 10**18
    os.close(fd)
    assert os.stat(path).st_mtime_ns > 10**18


def test_extended_attributes(here: Path) -> None:
    path = here / "f"
    path.touch()
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.b", b"\0binary" * 100)
    assert os.getxattr(path, "user.b") == b"\0binary" * 100
    assert sorted(os.listxattr(path)) == ["user.a", "user.b"]
    with raises(errno.EEXIST):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    with raises(errno.ENODATA):
        os.setxattr(path, "user.c", b"2", os.XATTR_REPLACE)
    os.removexattr(path, "user.a")
    with raises(errno.ENODATA):
        os.getxattr(path, "user.a")
    with raises(errno.ENODATA):
        os.removexattr(path, "user.a")


def test_listing_of_many_entries_while_some_go_away(here: Path) -> None:
    count = 5000
    for number in range(count):
        os.close(os.open(here / f"{number:05}", os.O_CREAT | os.O_WRONLY))
    assert len(os.listdir(here)) == count
    keep = {f"{number:05}" for number in range(0, count, 2)}
    seen: list[str] = []
    removed = threading.Event()

    def remove() -> None:
        for number in range(1, count, 2):
            os.unlink(here / f"{number:05}")
        removed.set()

    thread = threading.Thread(target=remove)
    with os.scandir(here) as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) == 100:
                thread.start()
    thread.join()
    assert removed.is_set()
    assert len(seen) == len(set(seen))
    assert keep <= set(seen)
    assert set(os.listdir(here)) == keep
    subprocess.run(["rm", "-r", str(here)], check=True)
    assert not here.exists()


def test_listing_has_inodes_and_types(here: Path) -> None:
    (here / "d").mkdir()
    (here / "f").touch()
    os.symlink("f", here / "s")
    with os.scandir(here) as entries:
        found = {
            entry.name: (entry.inode(), entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries
        }
    assert found == {
        "d": (os.stat(here / "d").st_ino, True, False),
        "f": (os.stat(here / "f").st_ino, False, False),
        "s": (os.lstat(here / "s").st_ino, False, True),
    }


def test_a_removed_name_does_not_come_back_by_a_listing_under_way(here: Path) -> None:
    for number in range(2000):
        (here / f"f{number}").touch()
    with os.scandir(here) as entries:
        next(entries)
        names = [f"f{number}" for number in range(2000)]
        for name in names:
            os.unlink(here / name)
        list(entries)
    for name in names:
        assert not os.path.exists(here / name), name


def test_rmdir_and_links_of_directories(here: Path) -> None:
    (here / "d/e").mkdir(parents=True)
    assert os.stat(here / "d").st_nlink == 3
    with raises(errno.ENOTEMPTY):
        os.rmdir(here / "d")
    os.rmdir(here / "d/e")
    assert os.stat(here / "d").st_nlink == 2
    (here / "f").touch()
    with raises(errno.ENOTDIR):
        os.rmdir(here / "f")
    with raises(errno.EISDIR):
        os.unlink(here / "d")


def test_names(here: Path) -> None:
    odd = [b"\xff\xfe not utf-8", "ünïcödé 漢字".encode(), b"a b\tc\nd", b"*", b"x" * 255]
    for name in odd:
        os.close(os.open(bytes(here) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert sorted(os.listdir(bytes(here))) == sorted(odd)
    with raises(errno.ENAMETOOLONG):
        os.open(bytes(here) + b"/" + b"x" * 256, os.O_CREAT | os.O_WRONLY)


def test_mmap_reads_and_writes(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"m" * 10_000)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[9_990:] == b"m" * 10
        mapped[5000:5003] = b"abc"
        mapped.flush()
    assert path.read_bytes()[4999:5004] == b"mabcm"


def test_read_only_descriptor_cannot_write_nor_truncate(here: Path) -> None:
    (here / "f").write_bytes(b"content")
    fd = os.open(here / "f", os.O_RDONLY)
    try:
        with raises(errno.EBADF):
            os.write(fd, b"x")
        with raises(errno.EINVAL):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_statfs(here: Path) -> None:
    st = os.statvfs(here)
    assert st.f_bsize == 4096
    assert st.f_namemax == 255
    assert st.f_blocks * 4096 == 1 << 50
    assert 0 < st.f_bavail <= st.f_blocks
    assert st.f_files > st.f_ffree > 1_000_000


def test_two_descriptors_see_each_other(here: Path) -> None:
    first = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    second = os.open(here / "f", os.O_RDWR)
    os.write(first, b"from the first")
    assert os.pread(second, 100, 0) == b"from the first"
    os.pwrite(second, b"F", 0)
    assert os.pread(first, 4, 0) == b"From"
    os.close(first)
    os.close(second)


def test_many_writers_in_parallel(here: Path) -> None:
    def work(number: int) -> None:
        for turn in range(40):
            path = here / f"{number}-{turn}"
            path.write_bytes(bytes([number]) * (turn * 700))
            os.rename(path, here / f"done-{number}-{turn}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(os.listdir(here)) == 320
    assert (here / "done-7-39").read_bytes() == b"\7" * 27_300


def test_permissions_are_checked_for_users(here: Path) -> None:
    (here / "secret").write_bytes(b"no")
    os.chmod(here / "secret", 0o600)
    (here / "open").mkdir()
    os.chmod(here / "open", 0o777)
    script = "cat secret; echo $?; touch new; echo $?; touch open/mine; echo $?; stat -c %u open/mine"
    ended = subprocess.run(
        ["sh", "-c", script], cwd=here, user=65534, group=65534, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["1", "1", "0", "65534"]


def test_suid_bit_goes_when_another_user_writes(here: Path) -> None:
    path = here / "f"
    path.write_bytes(b"x")
    os.chmod(path, 0o6777)
    subprocess.run(["sh", "-c", "echo more >> f"], cwd=here, user=65534, group=65534, check=True)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o777


def test_sgid_directory_gives_its_group(here: Path) -> None:
    (here / "d").mkdir()
    os.chown(here / "d", 0, 4321)
    os.chmod(here / "d", 0o2777)
    (here / "d/sub").mkdir()
    (here / "d/f").touch()
    assert os.stat(here / "d/f").st_gid == 4321
    assert os.stat(here / "d/sub").st_gid == 4321
    assert os.stat(here / "d/sub").st_mode & stat.S_ISGID


def test_what_only_the_kernel_host_can(here: Path, host: str) -> None:
    """pyfuse3 has no handlers for these: the kernel refuses them, or does without."""
    kernel = host.startswith("kernel")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, b"x" * 4096, 8192)
    failed = libc.fallocate(fd, 3, ctypes.c_int64(8192), ctypes.c_int64(100))
    assert (0 if not failed else ctypes.get_errno()) == (0 if kernel else errno.EOPNOTSUPP)
    assert os.lseek(fd, 0, os.SEEK_DATA) == (8292 if host == "kernel" else 0)
    assert os.copy_file_range(fd, fd, 100, 9000, 0) == 100  # without the handler the kernel moves the data
    fcntl.lockf(fd, fcntl.LOCK_EX)  # without it the lock is the kernel's alone
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)
    with contextlib.nullcontext() if kernel else raises(errno.EOPNOTSUPP):
        os.close(os.open(here, os.O_RDWR | os.O_TMPFILE))
    renameat2(here / "f", here / "g", 4)  # RENAME_WHITEOUT
    assert stat.S_ISCHR((here / "f").stat().st_mode)


def test_direct_io(here: Path) -> None:
    data = random.Random(3).randbytes(5 * 4096)
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    with mmap.mmap(-1, len(data)) as buffer:
        buffer[:] = data
        assert os.pwritev(fd, [buffer], 8192) == len(data)
        buffer[:] = bytes(len(data))
        assert os.preadv(fd, [buffer], 8192) == len(data)
        assert buffer[:] == data
        assert os.preadv(fd, [buffer], 8192 + 4096 * 4) == 4096
    os.close(fd)
    assert (here / "f").read_bytes() == bytes(8192) + data


def test_virtual_files(top: Path) -> None:
    listed = set(os.listdir(top))
    assert {".accesslog", ".stats", ".config"} <= listed
    assert ".control" not in listed
    with raises(errno.ENOENT):  # no listing answers this: the host is asked
        os.stat(top / "missing")
    stats = dict(line.split(" ") for line in (top / ".stats").read_text().splitlines())
    assert int(stats["juicefs_fuse_ops_total_lookup"]) > 0
    assert float(stats["juicefs_uptime"]) >= 0
    assert '"Name": "test-volume"' in (top / ".config").read_text()
    assert os.stat(top / ".accesslog").st_ino == 0x7FFFFFFF00000001
    for name in (".stats", ".control"):
        with raises(errno.EPERM):
            os.unlink(top / name)
        with raises(errno.EEXIST):
            os.mkdir(top / name)


def test_access_log(top: Path) -> None:
    with open(top / ".accesslog", "rb", buffering=0) as log:
        (top / "logged").write_bytes(b"abc")
        text = b""
        while b"release" not in text:
            text += log.read(1 << 16)
    os.unlink(top / "logged")
    lines = [line for line in text.decode().splitlines() if line != "#"]
    create = next(line for line in lines if "] create (1,logged,-rw-r--r--:0100644): (" in line)
    assert f"[uid:0,gid:0,pid:{os.getpid()}]" in create
    assert " - OK <0." in create
    assert any("] write (" in line and line.endswith(">") for line in lines)
