"""The same random operations by the real client and by ours, on two volumes: every result, the trees, contents, extended attributes,
what `juicefs dump` says, directories' usage, quotas and the volume's counters are equal. And both clients on one volume at once.

`JFS_TWIN_OPERATIONS` makes the runs longer, `JFS_TWIN_SEED` chooses others.
"""

import asyncio
import contextlib
import ctypes
import errno
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jfs.meta.connect import connect
from jfs.meta.model.keys import CounterKey, DirStatKey
from jfs.meta.model.quota import DIRECTORY, QuotaKey
from mount_parts import JFS, REAL, Volume, check_by_real, eventually, mounted, really_mounted, redis_server, run, tree

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

OPERATIONS = int(os.environ.get("JFS_TWIN_OPERATIONS", "250"))
SEED = os.environ.get("JFS_TWIN_SEED", "1")
HOST = ("--enable-xattr", "--heartbeat", "1s", "--skip-dir-mtime", "0s", "--attr-cache", "0", "--entry-cache", "0")
LIBC = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def database(engine: str, directory: Path) -> Iterator[str]:
    directory.mkdir()
    if engine == "sqlite3":
        yield f"sqlite3://{directory}/meta.db"
        return
    with redis_server(directory) as url:
        yield f"{url}/1"


class Plan:
    """Random operations on a few names, so that they meet. Each is a function of the mount's top that gives a result to compare."""

    def __init__(self, seed: str, prefix: str = "") -> None:
        self._chance = random.Random(seed)
        self._prefix = prefix

    def _folder(self) -> str:
        return "/".join([self._prefix + "t", *(self._chance.choice("abc") for _ in range(self._chance.randrange(3)))])

    def _path(self) -> str:
        return f"{self._folder()}/{self._chance.choice(['a', 'b', 'c', 'f1', 'f2', 'f3', 'f4', 'ü', 'l'])}"

    def next(self) -> Callable[[Path], Any]:
        chance = self._chance
        one, two = self._path(), self._path()
        offset, size = chance.choice([0, 5, 4096, 70_000, 200_000]), chance.choice([1, 100, 5000, 65_536, 90_000])
        data = chance.randbytes(size)
        mode, owner = chance.choice([0o600, 0o755, 0o4711, 0o2750, 0o1777]), chance.choice([0, 1001, 1002])
        name = f"user.{chance.choice('xy')}"

        def write(top: Path) -> int:
            fd = os.open(top / one, os.O_RDWR | os.O_CREAT | chance_flag, 0o644)
            try:
                return os.pwrite(fd, data, offset)
            finally:
                os.close(fd)

        chance_flag = chance.choice([0, 0, os.O_TRUNC, os.O_EXCL])

        def punch(top: Path) -> int:
            fd = os.open(top / one, os.O_RDWR)
            try:
                done: int = LIBC.fallocate(fd, punched, ctypes.c_long(offset), ctypes.c_long(size))
                return ctypes.get_errno() if done else 0
            finally:
                os.close(fd)

        punched = chance.choice([0, 1, 3, 16, 17])

        def copy(top: Path) -> int:
            source = os.open(top / one, os.O_RDONLY | os.O_NONBLOCK)  # it may be a FIFO
            try:
                target = os.open(top / two, os.O_RDWR)
                try:
                    return os.copy_file_range(source, target, size, offset // 2, offset)
                finally:
                    os.close(target)
            finally:
                os.close(source)

        def read(top: Path) -> bytes:
            fd = os.open(top / one, os.O_RDONLY | os.O_NONBLOCK)
            try:
                return os.pread(fd, 400_000, offset // 3)
            finally:
                os.close(fd)

        def rename(top: Path) -> int:
            done: int = LIBC.renameat2(-100, bytes(top / one), -100, bytes(top / two), flags)
            return ctypes.get_errno() if done else 0

        flags = chance.choice([0, 0, 0, 1, 2])
        chosen: Callable[[Path], Any] = chance.choices(
            [
                write,
                lambda top: os.mkdir(top / one, mode),
                lambda top: os.rmdir(top / one),
                lambda top: os.unlink(top / one),
                rename,
                lambda top: os.link(top / one, top / two),
                lambda top: os.symlink(two, top / one),
                lambda top: os.truncate(top / one, offset + size),
                punch,
                copy,
                lambda top: os.chmod(top / one, mode),
                lambda top: os.lchown(top / one, owner, owner) if not (top / one).is_symlink() else None,
                lambda top: os.setxattr(top / one, name, data[:200]),
                lambda top: os.removexattr(top / one, name),
                lambda top: os.utime(top / one, ns=(10**18 + size, 10**18 + offset)),
                lambda top: os.mkfifo(top / one, mode),
                lambda top: sorted(os.listdir(top / one)),
                read,
            ],
            [30, 12, 4, 8, 14, 6, 4, 6, 5, 6, 4, 4, 4, 2, 3, 2, 3, 6],
        )[0]
        return chosen


def result(operation: Callable[[Path], Any], top: Path) -> Any:
    try:
        return operation(top)
    except OSError as error:
        return errno.errorcode[error.errno or errno.EIO]


def prepare(url: str, folder: Path, trash: str, *, by_real: bool) -> Volume:
    volume = Volume(url, folder / "objects").format("--trash-days", trash, "--block-size", "64K", by_real=by_real)
    mount = really_mounted if by_real else mounted
    with mount(volume, folder / "mnt") as top:
        for name in ("t/a", "t/b", "t/c"):
            (top / name).mkdir(parents=True)
    program = [REAL] if by_real else JFS
    run(*program, "quota", "set", url, "--path", "/t", "--inodes", "100000", "--capacity", "100")
    run(*program, "quota", "set", url, "--path", "/t/a", "--inodes", "100000")
    run(*program, "quota", "set", url, "--uid", "1001", "--capacity", "100")
    return volume


def dumped(volume: Volume, folder: Path) -> dict[str, Any]:
    """The real client's dump without what differs by nature: identities, times of the moment, how contents are cut into slices."""
    target = folder / "dump.json"
    run(REAL, "dump", volume.url, str(target))
    document = json.loads(target.read_text())

    def normal(entry: dict[str, Any]) -> dict[str, Any]:
        attr = {
            key: value
            for key, value in entry["attr"].items()
            if key not in ("inode", "atime", "mtime", "ctime", "atimensec", "mtimensec", "ctimensec")
        }
        kept: dict[str, Any] = {key: entry[key] for key in ("symlink", "xattrs") if key in entry}
        if "xattrs" in kept:
            kept["xattrs"] = sorted(map(str, kept["xattrs"]))
        entries = {name: normal(child) for name, child in entry.get("entries", {}).items()}
        return kept | {"attr": attr, "entries": entries}

    return {
        "tree": normal(document["FSTree"]),
        "usage": [document["Counters"][name] for name in ("usedSpace", "usedInodes")],
    }


def records(volume: Volume) -> dict[str, Any]:
    """Usage as it is stored: of each directory by its path, of quotas, of the volume."""

    async def read() -> dict[str, Any]:
        store = await connect(volume.url)
        try:
            found: dict[str, Any] = {}
            paths = {1: "/"}
            waiting = [1]
            while waiting:
                ino = waiting.pop()
                (found[f"usage of {paths[ino]}"],) = await store.get(DirStatKey(ino))
                async for page in store.list_directory(ino, plus=False):
                    for name, entry in zip(page.names, page.entries, strict=True):
                        if entry.kind == 2:
                            paths[entry.ino] = f"{paths[ino]}{os.fsdecode(name)}/"
                            waiting.append(entry.ino)
            async for key, quota in store.scan(QuotaKey):
                found[f"quota {paths.get(key.id, key.id) if key.what == DIRECTORY else key[:2]}"] = quota
            found["volume"] = await store.get(CounterKey("usedSpace"), CounterKey("totalInodes"))
            return found
        finally:
            await store.close()

    return asyncio.run(read())


def shown(top: Path) -> dict[str, Any]:
    """The tree without inode numbers and times of directories."""
    seen = {}
    for path, (mode, uid, gid, links, _, mtime, content) in tree(top).items():
        seen[path] = (
            mode,
            uid,
            gid,
            links,
            mtime if mtime < 2 * 10**18 and mtime >= 10**18 and mtime < 10**18 + 10**6 else 0,
            content,
        )
    return seen


@pytest.mark.parametrize(("engine", "trash"), [("redis", "1"), ("sqlite3", "0")])
def test_the_same_operations_leave_the_same_volume(engine: str, trash: str, tmp_path: Path) -> None:
    with database(engine, tmp_path / "o") as url, database(engine, tmp_path / "r") as other:
        mine = prepare(url, tmp_path / "o", trash, by_real=False)
        theirs = prepare(other, tmp_path / "r", trash, by_real=True)
        plan = Plan(f"{SEED} {engine} {trash}")
        with (
            mounted(mine, tmp_path / "o/mnt", *HOST) as ours,
            really_mounted(theirs, tmp_path / "r/mnt", *HOST) as real,
        ):
            for number in range(OPERATIONS):
                operation = plan.next()
                results = [result(operation, top) for top in (ours, real)]
                assert results[0] == results[1], (number, operation.__qualname__, results)
            assert shown(ours) == shown(real)
        assert dumped(mine, tmp_path / "o") == dumped(theirs, tmp_path / "r")
        # The real client collects changes of usage, and at times loses or doubles one; and it loses owners of what is no file.
        run(REAL, "fsck", theirs.url, "--path", "/", "-r", "--repair", "--sync-dir-stat")
        run(*JFS, "quota", "check", theirs.url, "--repair", check=False)
        assert records(mine) == records(theirs)
        check_by_real(mine)


@pytest.mark.parametrize("engine", ["redis", "sqlite3"])
def test_both_at_once_never_diverge(engine: str, tmp_path: Path) -> None:
    with database(engine, tmp_path / "o") as url:
        volume = prepare(url, tmp_path / "o", "1", by_real=False)
        volume.examined = False  # the real client loses owners of what is no file, which is repaired below
        with (
            mounted(volume, tmp_path / "o/ours", *HOST) as ours,
            really_mounted(volume, tmp_path / "o/real", *HOST) as real,
        ):
            failures: list[str] = []

            def work(top: Path, tag: str) -> None:
                plan = Plan(f"{SEED} {engine} {tag}")
                for _ in range(OPERATIONS):
                    what = result(plan.next(), top)
                    # What the other one removes meanwhile may be missed in any way, but nothing may fail for good.
                    if what in ("EIO", "ENOTRECOVERABLE", "ESTALE"):
                        failures.append(f"{tag}: {what}")

            workers = [threading.Thread(target=work, args=(top, tag)) for top, tag in ((ours, "o"), (real, "r"))]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert not failures
            eventually(lambda: tree(ours) == tree(real), "both see the same tree")
        # The real client may write the usage of a directory, which it collects, after the directory was removed.
        checked = run(*JFS, "fsck", "--repair", url, check=False)
        damages = [
            line
            for line in checked.stderr.splitlines()
            if "<WARNING>" in line and "can be repaired" not in line and "AOF" not in line
        ]
        assert all("does not exist and has a usage stat" in line for line in damages), checked.stderr
        check_by_real(volume)
        run(*JFS, "quota", "check", url)
