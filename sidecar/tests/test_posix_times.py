"""Which calls move mtime and ctime, of what they change and of its directory: as on ext4."""

import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ext4_place import ext4, open_directory
from mount_parts import Volume, assert_sound, eventually, mounted
from posix_world import EXCHANGE, KEEP_SIZE, NOW, PUNCH_HOLE, WHITEOUT, fallocate, link_descriptor, renameat2, utimensat

CLOCK_REALTIME_COARSE = 5  # what file systems take times from

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[Path, Path]]:
    with open_directory() as path, ext4(path) as reference:
        volume = Volume(f"sqlite3://{path}/meta.db", path / "bucket").format("--trash-days", "0")
        with mounted(volume, path / "mnt", "--enable-xattr", "--skip-dir-mtime", "0s") as where:
            yield reference, where
        assert_sound(volume)


def descriptor(flags: int, act: Callable[[int], object]) -> Callable[[Path], object]:
    """What *act* does to a descriptor of the file."""

    def call(top: Path) -> None:
        fd = os.open(top / "d/f", flags)
        try:
            act(fd)
        finally:
            os.close(fd)

    return call


def nameless(top: Path) -> None:
    fd = os.open(top / "d", os.O_RDWR | os.O_TMPFILE)
    link_descriptor(fd, bytes(top / "d/named"))
    os.close(fd)


def mapped(fd: int) -> None:
    with mmap.mmap(fd, 10) as shown:
        shown[0:1] = b"y"
        shown.flush()


CALLS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda top: os.stat(top / "d/f"),
    "read": lambda top: (top / "d/f").read_bytes(),
    "write": descriptor(os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "write of nothing": descriptor(os.O_WRONLY, lambda fd: os.write(fd, b"")),
    "append": descriptor(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "mapping": descriptor(os.O_RDWR, mapped),
    "truncate": lambda top: os.truncate(top / "d/f", 5),
    "truncate to the same": lambda top: os.truncate(top / "d/f", 10),
    "ftruncate to the same": descriptor(os.O_WRONLY, lambda fd: os.ftruncate(fd, 10)),
    "open with O_TRUNC": descriptor(os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    "open with O_TRUNC of an empty file": lambda top: os.close(os.open(top / "d/empty", os.O_WRONLY | os.O_TRUNC)),
    "open with O_CREAT of what is there": lambda top: os.close(os.open(top / "d/f", os.O_WRONLY | os.O_CREAT)),
    "fallocate": descriptor(os.O_WRONLY, lambda fd: fallocate(fd, 0, 0, 100)),
    "fallocate, size kept": descriptor(os.O_WRONLY, lambda fd: fallocate(fd, KEEP_SIZE, 0, 100)),
    "punch hole": descriptor(os.O_WRONLY, lambda fd: fallocate(fd, KEEP_SIZE | PUNCH_HOLE, 0, 5)),
    "chmod": lambda top: os.chmod(top / "d/f", 0o600),
    "chmod to the same": lambda top: os.chmod(top / "d/f", 0o644),
    "chown": lambda top: os.chown(top / "d/f", 1, 1),
    "chown to the same": lambda top: os.chown(top / "d/f", 0, 0),
    "utimes": lambda top: os.utime(top / "d/f"),
    "utimes to a time": lambda top: os.utime(top / "d/f", ns=(5, 5)),
    "utimes of atime": lambda top: utimensat(bytes(top / "d/f"), (NOW, "omit"), True),
    "setxattr": lambda top: os.setxattr(top / "d/f", "user.a", b"x"),
    "removexattr": lambda top: os.removexattr(top / "d/f", "user.there"),
    "link": lambda top: os.link(top / "d/f", top / "d/g"),
    "link elsewhere": lambda top: os.link(top / "d/f", top / "e/g"),
    "unlink": lambda top: os.unlink(top / "d/f"),
    "unlink of one of two": lambda top: os.unlink(top / "d/two"),
    "rename": lambda top: os.rename(top / "d/f", top / "d/g"),
    "rename elsewhere": lambda top: os.rename(top / "d/f", top / "e/g"),
    "rename over": lambda top: os.rename(top / "d/f", top / "e/over"),
    "rename over one of two": lambda top: os.rename(top / "d/f", top / "d/two"),
    "rename of a directory": lambda top: os.rename(top / "d/sub", top / "e/sub"),
    "exchange": lambda top: renameat2(bytes(top / "d/f"), bytes(top / "e/over"), EXCHANGE),
    "whiteout": lambda top: renameat2(bytes(top / "d/f"), bytes(top / "e/g"), WHITEOUT),
    "mkdir": lambda top: os.mkdir(top / "d/new"),
    "rmdir": lambda top: os.rmdir(top / "d/sub"),
    "mknod": lambda top: os.mknod(top / "d/new", stat.S_IFIFO | 0o644),
    "symlink": lambda top: os.symlink("x", top / "d/new"),
    "create": lambda top: (top / "d/new").touch(),
    "nameless file": nameless,
    "failing mkdir": lambda top: outcome(lambda: os.mkdir(top / "d/sub")),
    "failing unlink": lambda top: outcome(lambda: os.unlink(top / "d/none")),
    "failing rmdir": lambda top: outcome(lambda: os.rmdir(top / "d")),
    "failing rename": lambda top: outcome(lambda: os.rename(top / "d", top / "d/sub/x")),
    "failing truncate": lambda top: outcome(lambda: os.truncate(top / "d", 0)),
    "failing open": lambda top: outcome(lambda: os.open(top / "d/f", os.O_CREAT | os.O_EXCL)),
}


def outcome(call: Callable[[], object]) -> None:
    try:
        call()
    except OSError:
        return
    raise AssertionError("this should fail")


@pytest.mark.parametrize("name", CALLS)
def test_times_move_as_on_ext4(places: tuple[Path, Path], name: str) -> None:
    reference, ours = (moved(place / name.replace(" ", "-"), CALLS[name]) for place in places)
    assert ours == reference


def moved(top: Path, call: Callable[[Path], object]) -> dict[str, list[str]]:
    """For what is there before and after a call, by its first path: which times are others."""
    for directory in ("", "d", "d/sub", "e"):
        (top / directory).mkdir()
    for file in ("d/f", "d/one", "e/over"):
        (top / file).write_bytes(b"0123456789")
    (top / "d/empty").touch()
    os.link(top / "d/one", top / "d/two")
    os.setxattr(top / "d/f", "user.there", b"x")
    before = times(top)
    latest = max(max(pair[1:]) for pair in before.values())
    eventually(lambda: time.clock_gettime_ns(CLOCK_REALTIME_COARSE) > latest, "the clock of file systems goes on")
    call(top)
    after = {ino: seen for seen in times(top).values() for ino in (seen[0],)}
    shown = {}
    for path, (ino, *old) in before.items():
        if ino in after:
            new = after[ino][1:]
            shown[path] = [what for what, one, other in zip(("mtime", "ctime"), old, new, strict=True) if one != other]
    return shown


def times(top: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, mtime and ctime by path."""
    found: dict[str, tuple[int, int, int]] = {}
    for directory, names, files in os.walk(top):
        for path in (directory, *(os.path.join(directory, name) for name in (*names, *files))):
            st = os.lstat(path)
            found[os.path.relpath(path, top)] = st.st_ino, st.st_mtime_ns, st.st_ctime_ns
    return found
