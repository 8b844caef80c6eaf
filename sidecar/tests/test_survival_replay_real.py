"""Every request that must not be done twice, with the worker killed between every two steps of it: it is done once, and answered
as if nothing had happened."""

import ctypes
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mount_parts import Volume, check_by_real, redis_server
from survival_parts import Sidecar, sidecar

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

STEPS = ("begun", "intended", "committed", "replied")
PROGRAM = (str(Path(__file__).with_name("survival_faults.py")), "sidecar")
_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sidecar, Path, Path, Volume]]:
    """One mount for all: (sidecar, mountpoint, directory of the traps, volume)."""
    directory = tmp_path_factory.mktemp("replay")
    (directory / "redis").mkdir()
    (directory / "faults").mkdir()
    with redis_server(directory / "redis") as url:
        volume = Volume(f"{url}/1", directory / "bucket").format("--trash-days", "0")
        options = ("enable-xattr", "attr-cache=0", "entry-cache=0", "dir-entry-cache=0")
        traps = directory / "faults"
        with sidecar(directory, volume.url, *options, program=PROGRAM, JFS_FAULTS=str(traps)) as (_, pod, where):
            yield pod, where, traps, volume
        check_by_real(volume)


def rename2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def exclusive(path: Path) -> None:
    """O_EXCL without the right to open what was made, so that opening an existing one would not do."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0)
    os.write(fd, b"content")
    os.close(fd)


def nameless(where: Path) -> None:
    fd = os.open(where, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"content")
    assert os.pread(fd, 10, 0) == b"content"
    os.close(fd)


def appended(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b" and more")
    os.close(fd)


def truncated(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def _file(path: Path, content: bytes = b"content") -> Path:
    path.write_bytes(content)
    return path


Prepare = Callable[[Path], object]
Do = Callable[[Path], object]
Holds = Callable[[Path], bool]

# operation → (what is there before, the request, what must be so afterwards); the path is a fresh directory's
CASES: dict[str, tuple[str, Prepare, Do, Holds]] = {
    "create": (
        "create",
        lambda d: None,
        lambda d: exclusive(d / "f"),
        lambda d: (d / "f").read_bytes() == b"content" and os.listdir(d) == ["f"],
    ),
    "mkdir": (
        "mkdir",
        lambda d: None,
        lambda d: (d / "s").mkdir(),
        lambda d: (d / "s").is_dir() and d.stat().st_nlink == 3,
    ),
    "mknod": (
        "mknod",
        lambda d: None,
        lambda d: os.mkfifo(d / "f"),
        lambda d: stat.S_ISFIFO((d / "f").stat().st_mode),
    ),
    "symlink": ("symlink", lambda d: None, lambda d: (d / "l").symlink_to("x"), lambda d: os.readlink(d / "l") == "x"),
    "link": (
        "link",
        lambda d: _file(d / "f"),
        lambda d: os.link(d / "f", d / "g"),
        lambda d: (d / "g").stat().st_nlink == 2,
    ),
    "unlink": ("unlink", lambda d: _file(d / "f"), lambda d: (d / "f").unlink(), lambda d: os.listdir(d) == []),
    "unlink one of two": (
        "unlink",
        lambda d: os.link(_file(d / "f"), d / "g"),
        lambda d: (d / "f").unlink(),
        lambda d: (d / "g").stat().st_nlink == 1,
    ),
    "rmdir": (
        "rmdir",
        lambda d: (d / "s").mkdir(),
        lambda d: (d / "s").rmdir(),
        lambda d: os.listdir(d) == [] and d.stat().st_nlink == 2,
    ),
    "rename": (
        "rename",
        lambda d: _file(d / "f"),
        lambda d: os.rename(d / "f", d / "g"),
        lambda d: os.listdir(d) == ["g"],
    ),
    "rename over another": (
        "rename",
        lambda d: (_file(d / "f"), _file(d / "g", b"other")),
        lambda d: os.rename(d / "f", d / "g"),
        lambda d: os.listdir(d) == ["g"] and (d / "g").read_bytes() == b"content",
    ),
    "rename without replacing": (
        "rename",
        lambda d: _file(d / "f"),
        lambda d: rename2(d / "f", d / "g", 1),
        lambda d: os.listdir(d) == ["g"],
    ),
    "exchange": (
        "rename",
        lambda d: (_file(d / "f"), _file(d / "g", b"other")),
        lambda d: rename2(d / "f", d / "g", 2),
        lambda d: (d / "f").read_bytes() == b"other" and (d / "g").read_bytes() == b"content",
    ),
    "setxattr": (
        "setxattr",
        lambda d: _file(d / "f"),
        lambda d: os.setxattr(d / "f", "user.a", b"1", os.XATTR_CREATE),
        lambda d: os.getxattr(d / "f", "user.a") == b"1",
    ),
    "removexattr": (
        "removexattr",
        lambda d: os.setxattr(_file(d / "f"), "user.a", b"1"),
        lambda d: os.removexattr(d / "f", "user.a"),
        lambda d: os.listxattr(d / "f") == [],
    ),
    "nameless": ("tmpfile", lambda d: None, nameless, lambda d: os.listdir(d) == []),
    "append": (
        "write",
        lambda d: _file(d / "f"),
        lambda d: appended(d / "f"),
        lambda d: (d / "f").read_bytes() == b"content and more",
    ),
    "open and empty": (
        "open",
        lambda d: _file(d / "f"),
        lambda d: truncated(d / "f"),
        lambda d: (d / "f").stat().st_size == 0,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_request_is_done_once_wherever_its_worker_dies(
    mounted: tuple[Sidecar, Path, Path, Volume], case: str
) -> None:
    pod, where, traps, _ = mounted
    operation, prepare, do, holds = CASES[case]
    for step in STEPS:
        directory = where / f"{case}-{step}"
        directory.mkdir()
        prepare(directory)
        trap = traps / f"{operation}@{step}"
        trap.touch()
        do(directory)
        assert holds(directory), (case, step, os.listdir(directory))
        if trap.exists():  # the operation has no such step
            assert (operation, step) in {("write", "intended"), ("open", "intended")}, (case, step, pod.log.read_text())
            trap.unlink()
        for path in sorted(directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        directory.rmdir()
