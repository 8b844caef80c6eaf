"""Work on many small files and on the attributes of one; each function is a row's preparation or its timed part."""

import fcntl
import os
import shutil
from pathlib import Path

FILES = 5000
SMALL = 4096
MANY = 2000
PROCESSES = 8
HUGE = 100_000
APPENDS = 500
TRUNCATES = 1000
LOCKS = 2000
XATTRS = 1000

_CONTENT = bytes(range(256)) * (SMALL // 256)


def _write(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(_CONTENT)


def no_small(root: Path) -> None:
    shutil.rmtree(root / "small", ignore_errors=True)


def have_small(root: Path) -> None:
    if not (root / "small").exists():
        create(root)


def create(root: Path) -> None:
    folder = root / "small"
    folder.mkdir()
    for number in range(FILES):
        _write(folder / f"f{number:05}")


def stat(root: Path) -> None:
    for number in range(FILES):
        os.stat(root / "small" / f"f{number:05}")


def listing(root: Path) -> None:
    _list(root / "small", FILES)


def _list(folder: Path, wanted: int) -> None:
    seen = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            entry.stat(follow_symlinks=False)
            seen += 1
    if seen != wanted:
        raise RuntimeError(f"the listing of {folder} has {seen} entries instead of {wanted}")


def remove(root: Path) -> None:
    for number in range(FILES):
        os.unlink(root / "small" / f"f{number:05}")
    (root / "small").rmdir()


def no_many(root: Path) -> None:
    shutil.rmtree(root / "many", ignore_errors=True)


def create_many(root: Path) -> None:
    """All processes make their files in one directory."""
    folder = root / "many"
    folder.mkdir()
    children = []
    for process in range(PROCESSES):
        pid = os.fork()
        if not pid:
            failed = 1
            try:
                for number in range(MANY // PROCESSES):
                    _write(folder / f"p{process}-{number:04}")
                failed = 0
            finally:
                os._exit(failed)
        children.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in children):
        raise RuntimeError(f"a process could not make its files in {folder}")


def have_huge(root: Path) -> None:
    folder = root / "huge"
    if folder.exists() and sum(1 for _ in os.scandir(folder)) == HUGE:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for number in range(HUGE):
        os.mknod(folder / f"file-{number:06}", 0o100644)


def list_huge(root: Path) -> None:
    _list(root / "huge", HUGE)


def no_log(root: Path) -> None:
    (root / "log").unlink(missing_ok=True)


def append(root: Path) -> None:
    for _ in range(APPENDS):
        with open(root / "log", "ab", buffering=0) as file:
            file.write(_CONTENT)


def have_file(root: Path) -> None:
    _write(root / "file")


def truncate(root: Path) -> None:
    """Each second time to a greater length."""
    for number in range(TRUNCATES):
        os.truncate(root / "file", number if number % 2 else 3 * SMALL)


def lock(root: Path) -> None:
    with open(root / "file", "r+b", buffering=0) as file:
        for _ in range(LOCKS // 2):
            fcntl.flock(file, fcntl.LOCK_EX)
            fcntl.flock(file, fcntl.LOCK_UN)
        for number in range(LOCKS // 2):
            fcntl.lockf(file, fcntl.LOCK_EX, 10, number)
            fcntl.lockf(file, fcntl.LOCK_UN, 10, number)


def xattrs(root: Path) -> None:
    path = root / "file"
    for number in range(XATTRS // 10):
        names = [f"user.bench{number}.{each}" for each in range(10)]
        for name in names:
            os.setxattr(path, name, b"value" * 4)
        for name in names:
            if len(os.getxattr(path, name)) != 20:
                raise RuntimeError(f"the attribute {name} of {path} is wrong")
        if not set(names) <= set(os.listxattr(path)):
            raise RuntimeError(f"the attributes of {path} are not all listed")
        for name in names:
            os.removexattr(path, name)
