"""What no table of calls shows: signals during calls, appending processes, direct I/O, running programs, deep paths, sizes of extended
attributes, far ends of files, other names of a file, directories that are gone."""

import asyncio
import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ext4_place import open_directory
from jfs.meta.connect import connect
from mount_parts import Volume, check_by_real, eventually, mounted, redis_server
from posix_world import Actor, acting, fallocate

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

_libc = ctypes.CDLL(None, use_errno=True)
FAR = 1 << 57


@pytest.fixture(scope="module")
def volume() -> Iterator[Volume]:
    with open_directory() as path, redis_server(path) as url:
        made = Volume(f"{url}/1", path / "bucket").format("--trash-days", "0")
        yield made
        check_by_real(made)


@pytest.fixture(scope="module")
def top(volume: Volume) -> Iterator[Path]:
    """A mount on which the kernel believes everything for long: what this mount changes must still be seen."""
    caches = ("--attr-cache", "1000", "--entry-cache", "1000", "--dir-entry-cache", "1000")
    with mounted(volume, volume.bucket.with_name("mnt"), "--enable-xattr", *caches) as where:
        yield where


@pytest.fixture
def here(top: Path, request: pytest.FixtureRequest) -> Path:
    path: Path = top / request.node.originalname
    path.mkdir()
    return path


@contextlib.contextmanager
def raises(number: int) -> Iterator[None]:
    with pytest.raises(OSError, match=re.escape(f"[Errno {number}]")):
        yield


def test_handled_signals_interrupt_no_call(volume: Volume) -> None:
    """Names are looked up without caches, so that calls wait for Redis while the timer fires; Python itself repeats interrupted calls."""
    caches = ("--attr-cache", "0", "--entry-cache", "0", "--dir-entry-cache", "0")
    with mounted(volume, volume.bucket.with_name("uncached"), *caches) as where:
        path = bytes(where / "interrupted")
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            for number in range(300):
                name = path + b"-%d" % (number % 7)
                for call, *arguments in ((_libc.mkdir, name, 0o755), (_libc.access, name, 4), (_libc.rmdir, name)):
                    assert call(*arguments) == 0, os.strerror(ctypes.get_errno())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


def test_processes_append_whole_lines(here: Path) -> None:
    program = (
        "import os,sys\nfd=os.open(sys.argv[1],os.O_WRONLY|os.O_APPEND|os.O_CREAT)\n"
        "for n in range(200): os.write(fd,(f'{sys.argv[2]} {n:3} '+'x'*100+'\\n').encode())"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, here / "log", str(number)]) for number in range(4)]
    for writer in writers:
        assert writer.wait(timeout=60) == 0
    lines = (here / "log").read_text().splitlines()
    assert sorted(lines) == sorted(f"{number} {n:3} " + "x" * 100 for number in range(4) for n in range(200))


def test_direct_and_cached_descriptors_see_each_other(here: Path) -> None:
    direct = os.open(here / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    cached = os.open(here / "f", os.O_RDWR)
    with mmap.mmap(-1, 8192) as buffer:
        for number in range(1, 20):
            buffer[:] = bytes([number]) * 8192
            assert os.pwrite(direct, buffer, 4096 * number) == 8192
            assert os.pread(cached, 8192, 4096 * number) == bytes([number]) * 8192
            os.pwrite(cached, b"cached", 4096 * number)
            assert os.preadv(direct, [buffer], 4096 * number) == 8192
            assert buffer[:7] == b"cached" + bytes([number])
    os.close(direct)
    os.close(cached)


def test_programs_run_and_are_busy(here: Path) -> None:
    program = here / "sleep"
    shutil.copy2("/bin/sleep", program)
    writer = os.open(program, os.O_WRONLY)
    with raises(errno.ETXTBSY):
        subprocess.run([program, "0"], check=True)
    os.close(writer)
    with subprocess.Popen([program, "60"]) as running:
        with raises(errno.ETXTBSY):
            os.open(program, os.O_WRONLY)
        os.rename(program, here / "moved")
        os.unlink(here / "moved")
        running.kill()


def test_deep_directories(here: Path) -> None:
    home = os.open(".", os.O_RDONLY)
    try:
        os.chdir(here)
        for _ in range(300):  # beyond PATH_MAX
            os.mkdir("d" * 50)
            os.chdir("d" * 50)
        Path("file").write_bytes(b"deep")
        assert os.stat("../" * 300).st_ino == here.stat().st_ino
        assert Path("file").read_bytes() == b"deep"
    finally:
        os.fchdir(home)
        os.close(home)
    shutil.rmtree(here)


def test_sizes_of_extended_attributes(here: Path) -> None:
    path = here / "f"
    path.touch()
    for name, value in (("user." + "n" * 250, b""), ("user.large", bytes(range(256)) * 256), ("trusted.t", b"1")):
        os.setxattr(path, name, value)
        assert os.getxattr(path, name) == value
    with raises(errno.E2BIG):
        os.setxattr(path, "user.larger", bytes(65537))
    with raises(errno.ERANGE):
        os.setxattr(path, "user." + "n" * 251, b"")
    with raises(errno.EEXIST):
        os.setxattr(path, "user.large", b"", os.XATTR_CREATE)
    with raises(errno.ENODATA):
        os.setxattr(path, "user.none", b"", os.XATTR_REPLACE)
    for number in range(100):
        os.setxattr(path, f"user.{number}", b"x")
    assert len(os.listxattr(path)) == 103
    small = ctypes.create_string_buffer(10)
    assert _libc.listxattr(bytes(path), small, 10) == -1
    assert ctypes.get_errno() == errno.ERANGE
    with acting(Actor(1001, 2001, (2001,))):  # which sees no trusted ones
        assert "trusted.t" not in os.listxattr(path)
        with raises(errno.ENODATA):
            os.getxattr(path, "trusted.t")


def test_the_far_end_of_a_file(here: Path) -> None:
    fd = os.open(here / "f", os.O_RDWR | os.O_CREAT)
    fallocate(fd, 0, FAR - 10, 10)
    assert os.fstat(fd).st_size == FAR
    assert os.pread(fd, 100, FAR - 10) == bytes(10)
    with raises(errno.EFBIG):
        os.pwrite(fd, b"x", FAR)
    os.pwrite(fd, b"end", FAR - 3)
    os.fsync(fd)
    assert os.pread(fd, 100, FAR - 5) == b"\0\0end"
    assert os.lseek(fd, 0, os.SEEK_DATA) >= FAR - (64 << 20)
    os.ftruncate(fd, 10)
    os.ftruncate(fd, FAR - 1)
    with raises(errno.EFBIG):
        os.ftruncate(fd, FAR + 1)
    assert os.pread(fd, 100, FAR - 5) == bytes(4)
    os.close(fd)
    os.unlink(here / "f")  # the real client's fsck looks at each of its chunks


def test_other_names_of_a_file_show_what_happens_to_it(here: Path) -> None:
    names = [here / "a", here / "b", here / "sub" / "c"]
    (here / "sub").mkdir()
    names[0].write_bytes(b"1")
    for name in names[1:]:
        os.link(names[0], name)
    changes: list[Callable[[], object]] = [
        lambda: names[0].write_bytes(b"12345"),
        lambda: names[1].chmod(0o600),
        lambda: os.chown(names[2], 5, 6),
        lambda: os.truncate(names[0], 2),
        lambda: os.utime(names[1], ns=(7, 8)),
        lambda: os.setxattr(names[2], "user.a", b"b"),
        lambda: os.link(names[0], here / "d"),
        lambda: os.rename(here / "d", here / "e"),
        lambda: os.unlink(here / "e"),
    ]
    seen: list[os.stat_result] = []
    for change in changes:
        change()
        seen = [os.stat(name) for name in names]
        assert all(
            (s.st_ino, s.st_nlink, s.st_mode, s.st_uid, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            == (f.st_ino, f.st_nlink, f.st_mode, f.st_uid, f.st_size, f.st_mtime_ns, f.st_ctime_ns)
            for s, f in itertools.pairwise(seen)
        )
    assert seen[0].st_nlink == 3
    (here / "new").write_bytes(b"new")
    os.rename(here / "new", names[0])
    assert [os.stat(name).st_nlink for name in names] == [1, 2, 2]
    assert names[0].read_bytes() == b"new"


class _FileHandle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128))


def test_file_handles_outlive_the_kernels_inodes(here: Path) -> None:
    """open_by_handle_at(2), by which NFS servers export a file system."""
    (here / "d").mkdir()
    (here / "d" / "f").write_bytes(b"content")
    handles = {}
    for name in ("d", "d/f"):
        handles[name] = handle = _FileHandle(128)
        mount_id = ctypes.c_int()
        path = os.fsencode(here / name)
        assert not _libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount_id), 0)
    top = os.open(here, os.O_RDONLY)

    def reopened(name: str, flags: int) -> int:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        fd: int = _libc.open_by_handle_at(top, ctypes.byref(handles[name]), flags)
        if fd < 0:
            raise OSError(ctypes.get_errno(), name)
        return fd

    fd = reopened("d/f", os.O_RDWR)
    assert os.read(fd, 10) == b"content"
    os.close(fd)
    (here / "d" / "f").rename(here / "d" / "g")
    (here / "d").rename(here / "e")
    fd = reopened("d", os.O_RDONLY)
    assert os.listdir(fd) == ["g"]
    assert Path(os.readlink(f"/proc/self/fd/{fd}")) == here / "e"
    os.close(fd)
    (here / "e" / "g").unlink()
    with raises(errno.ESTALE):
        reopened("d/f", os.O_RDONLY)
    os.close(top)


def test_a_removed_directory_is_empty_and_takes_nothing(here: Path) -> None:
    (here / "gone").mkdir()
    fd = os.open(here / "gone", os.O_RDONLY)
    os.rmdir(here / "gone")
    assert os.fstat(fd).st_nlink == 0
    for call in (
        lambda: os.mkdir("x", dir_fd=fd),
        lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd),
        lambda: os.symlink("y", "x", dir_fd=fd),
        lambda: os.rename(here, "x", dst_dir_fd=fd),
    ):
        with raises(errno.ENOENT):
            call()
    assert os.listdir(fd) == []
    os.close(fd)


def test_a_replaced_directory_is_still_there_for_who_has_it_open(here: Path) -> None:
    (here / "old").mkdir()
    (here / "new").mkdir()
    fd = os.open(here / "old", os.O_RDONLY)
    os.rename(here / "new", here / "old")
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


_REPLACER = """
import os, sys
kind, name = sys.argv[1:]
for number in range(600):
    if kind == "file":
        open(name + ".new", "w").close()
    else:
        os.symlink("target", name + ".new")
    os.rename(name + ".new", name)
"""


def test_a_name_that_is_replaced_again_and_again_is_never_missing(volume: Volume, here: Path) -> None:
    (here / "target").touch()
    (here / "file").touch()
    (here / "link").symlink_to("target")
    for kind in ("file", "link"):
        use_while_replaced(here / kind, kind)
    eventually(lambda: not asyncio.run(sustained(volume)), "what was replaced is removed")


def use_while_replaced(name: Path, kind: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _REPLACER, kind, name]) as replacer:
        while replacer.poll() is None:
            name.lstat()
            name.stat()
            name.read_bytes()
            if kind == "link":
                assert os.readlink(name) == "target"
            else:
                name.chmod(0o644)
    assert replacer.returncode == 0


async def sustained(volume: Volume) -> list[int]:
    store = await connect(volume.url)
    try:
        return [ino async for sid, _ in store.sessions() async for ino in store.sustained(sid)]
    finally:
        await store.close()


def test_pipes_sockets_and_locks_of_other_kinds(here: Path) -> None:
    os.mkfifo(here / "pipe")
    reader = os.open(here / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with open(here / "pipe", "wb") as writer:
        writer.write(b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    with open(here / "f", "wb") as one, open(here / "f", "wb") as other:
        fcntl.lockf(one, fcntl.LOCK_EX)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # flock and fcntl locks do not know each other
    assert stat.S_ISFIFO((here / "pipe").stat().st_mode)
