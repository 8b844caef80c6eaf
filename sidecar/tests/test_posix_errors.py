"""Every call on every kind of path, by root and by a user with a supplementary group: the same errno, and the same tree afterwards, as on
ext4. What pjdfstest asks one by one, as one table of calls and one of paths."""

import ctypes
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ext4_place import ext4, open_directory
from mount_parts import Volume, check_by_real, mounted
from posix_world import EXCHANGE, NOREPLACE, ROOT, WHITEOUT, Actor, World, acting, check, renameat2, utimensat

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]

USER = Actor(1001, 2001, (2001, 2002))
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture(scope="module")
def places() -> Iterator[tuple[Path, Path]]:
    with open_directory() as path, ext4(path) as reference:
        volume = Volume(f"sqlite3://{path}/meta.db", path / "bucket").format("--trash-days", "0")
        with mounted(volume, path / "mnt", "--enable-xattr", "--skip-dir-mtime", "0s") as where:
            yield reference, where
        check_by_real(volume)


def build(top: Path) -> None:
    """One of each kind, where there is none; `theirs` belongs to the user, `group` to one of the user's groups."""
    for name, mode, uid, gid in (
        ("dir", 0o755, 0, 0),
        ("dir/full", 0o755, 0, 0),
        ("theirs", 0o755, 1001, 2001),
        ("theirs/closed", 0o000, 1001, 2001),
        ("group", 0o770, 0, 2002),
        ("sgid", 0o2777, 0, 2002),
        ("closed", 0o700, 0, 0),
        ("nosearch", 0o766, 0, 0),
        ("sticky", 0o1777, 0, 0),
        ("sticky/dir", 0o777, 0, 0),
        ("empty", 0o777, 1001, 2001),
    ):
        if os.path.lexists(top / name) or not (top / name).parent.is_dir():
            continue
        (top / name).mkdir()
        os.chown(top / name, uid, gid)
        (top / name).chmod(mode)
    for name, mode, uid in (
        ("file", 0o644, 0),
        ("dir/full/file", 0o644, 0),
        ("theirs/file", 0o644, 1001),
        ("theirs/suid", 0o6755, 1001),
        ("theirs/others", 0o644, 1002),
        ("group/file", 0o640, 0),
        ("closed/file", 0o644, 0),
        ("nosearch/file", 0o644, 0),
        ("sticky/file", 0o666, 0),
        ("sticky/mine", 0o666, 1001),
        ("secret", 0o600, 0),
    ):
        if os.path.lexists(top / name) or not (top / name).parent.is_dir():
            continue
        (top / name).write_bytes(b"content")
        os.chown(top / name, uid, 2002)
        (top / name).chmod(mode)
    for name, kind in (("fifo", stat.S_IFIFO), ("socket", stat.S_IFSOCK), ("device", stat.S_IFCHR)):
        if not os.path.lexists(top / name):
            os.mknod(top / name, kind | 0o666, os.makedev(1, 3) if kind == stat.S_IFCHR else 0)
    for name, target in (
        ("to-file", "file"),
        ("to-dir", "theirs"),
        ("dangling", "nowhere"),
        ("loop", "loop"),
        ("theirs/link", "file"),
    ):
        if not os.path.lexists(top / name) and (top / name).parent.is_dir():
            (top / name).symlink_to(target)


PATHS = [
    *("missing", "missing/x", "dir/missing/x", "file", "file/", "file/x", "file/.", "fifo", "fifo/x", "socket", "socket/x"),
    *("device", "device/x", "dir", "dir/", "dir/.", "dir/..", "dir/full", "dir/full/file", "empty", "empty/", "empty/.", "empty/.."),
    *("theirs", "theirs/file", "theirs/suid", "theirs/others", "theirs/new", "theirs/closed/x", "theirs/link", "theirs/missing/"),
    *("group/file", "group/new", "sgid/new", "closed", "closed/file", "closed/x", "nosearch/file", "nosearch/x"),
    *("sticky/file", "sticky/mine", "sticky/dir", "sticky/new", "secret", "to-file", "to-file/", "to-dir", "to-dir/", "to-dir/new"),
    *("dangling", "dangling/", "dangling/x", "loop", "loop/x", "", "x" * 255, "x" * 256, "x" * 256 + "/y", "theirs/" + "y" * 255),
    *("dir/../" * 500 + "file", "dir/../" * 600 + "file", "/".join(["x" * 200] * 21)),
]  # fmt: skip


def _open(flags: int) -> Callable[[bytes, World], Any]:
    def call(path: bytes, world: World) -> None:
        os.close(os.open(path, flags | os.O_NONBLOCK, 0o666))

    return call


CALLS: dict[str, Callable[[bytes, World], Any]] = {
    "open r": _open(os.O_RDONLY),
    "open w": _open(os.O_WRONLY),
    "open rw": _open(os.O_RDWR),
    "open trunc": _open(os.O_RDONLY | os.O_TRUNC),
    "open creat": _open(os.O_RDWR | os.O_CREAT),
    "open creat excl": _open(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open creat trunc": _open(os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    "open nofollow": _open(os.O_RDONLY | os.O_NOFOLLOW),
    "open directory": _open(os.O_RDONLY | os.O_DIRECTORY),
    "open noatime": _open(os.O_RDONLY | os.O_NOATIME),
    "open tmpfile": _open(os.O_RDWR | os.O_TMPFILE),
    "mkdir": lambda path, world: os.mkdir(path, 0o7777),
    "mkfifo": lambda path, world: os.mkfifo(path, 0o666),
    "mknod file": lambda path, world: os.mknod(path, stat.S_IFREG | 0o6755),
    "mknod device": lambda path, world: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    "mknod directory": lambda path, world: os.mknod(path, stat.S_IFDIR | 0o666),
    "symlink": lambda path, world: os.symlink(b"somewhere", path),
    "symlink long": lambda path, world: os.symlink(b"z" * 4095, path),
    "symlink too long": lambda path, world: os.symlink(b"z" * 4096, path),
    "symlink empty": lambda path, world: os.symlink(b"", path),
    "link from": lambda path, world: os.link(path, world.path([b"sgid", b"linked"]), follow_symlinks=False),
    "link from, follow": lambda path, world: world.link([path[len(world.top) + 1 :]], [b"sgid", b"linked"], True),
    "link to": lambda path, world: os.link(world.path([b"theirs", b"file"]), path),
    "link of a directory to": lambda path, world: os.link(world.path([b"theirs"]), path),
    "unlink": lambda path, world: os.unlink(path),
    "rmdir": lambda path, world: os.rmdir(path),
    "rename from": lambda path, world: os.rename(path, world.path([b"sgid", b"moved"])),
    "rename from, over a file": lambda path, world: os.rename(path, world.path([b"sticky", b"mine"])),
    "rename from, over a directory": lambda path, world: os.rename(path, world.path([b"empty"])),
    "rename file to": lambda path, world: os.rename(world.path([b"theirs", b"file"]), path),
    "rename directory to": lambda path, world: os.rename(world.path([b"empty"]), path),
    "rename others' to": lambda path, world: os.rename(world.path([b"sticky", b"file"]), path),
    "rename parent to": lambda path, world: os.rename(world.path([b"dir"]), path),
    "rename noreplace": lambda path, world: renameat2(world.path([b"theirs", b"file"]), path, NOREPLACE),
    "rename exchange": lambda path, world: renameat2(world.path([b"theirs", b"file"]), path, EXCHANGE),
    "rename exchange directory": lambda path, world: renameat2(world.path([b"dir"]), path, EXCHANGE),
    "rename whiteout": lambda path, world: renameat2(world.path([b"theirs", b"file"]), path, WHITEOUT),
    "chmod": lambda path, world: os.chmod(path, 0o7711),
    "chown": lambda path, world: os.chown(path, 1002, 2002),
    "chgrp": lambda path, world: os.chown(path, -1, 2002),
    "chown of nothing": lambda path, world: os.chown(path, -1, -1),
    "lchown": lambda path, world: os.lchown(path, -1, 2002),
    "truncate": lambda path, world: os.truncate(path, 3),
    "truncate negative": lambda path, world: os.truncate(path, -1),
    "truncate huge": lambda path, world: check(_libc.truncate(path, ctypes.c_int64(1 << 62))),
    "utimes now": lambda path, world: os.utime(path),
    "utimes": lambda path, world: os.utime(path, ns=(1, 2)),
    "utimes of mtime": lambda path, world: utimensat(path, ("omit", 3), False),
    "stat": lambda path, world: os.stat(path).st_mode,
    "lstat": lambda path, world: os.lstat(path).st_mode,
    "readlink": lambda path, world: os.readlink(path),
    "access r": lambda path, world: os.access(path, os.R_OK, effective_ids=True),
    "access w": lambda path, world: os.access(path, os.W_OK, effective_ids=True),
    "access x": lambda path, world: os.access(path, os.X_OK, effective_ids=True),
    "listdir": lambda path, world: sorted(os.listdir(path)),
    "setxattr": lambda path, world: os.setxattr(path, b"user.x", b"y", follow_symlinks=False),
    "setxattr trusted": lambda path, world: os.setxattr(path, b"trusted.x", b"y", follow_symlinks=False),
    "getxattr": lambda path, world: os.getxattr(path, b"user.none", follow_symlinks=False),
    "listxattr": lambda path, world: os.listxattr(path, follow_symlinks=False),
    "removexattr": lambda path, world: os.removexattr(path, b"user.none", follow_symlinks=False),
    "statvfs": lambda path, world: os.statvfs(path).f_namemax,
    "exec": lambda path, world: check(_libc.faccessat(-100, path, os.X_OK, 0x200)),
}


@pytest.mark.parametrize("name", CALLS)
def test_errors_as_on_ext4(places: tuple[Path, Path], name: str) -> None:
    differences: list[tuple[Any, ...]] = []
    for actor in (ROOT, USER):
        worlds = [fresh(place) for place in places]
        for path in PATHS:
            answers = [answer(world, actor, CALLS[name], path) for world in worlds]
            if answers[0] != answers[1]:
                differences.append((actor.uid, path[:60], *answers))
            elif name.startswith(("rename", "link", "unlink", "rmdir")) and not answers[0][0]:
                for world in worlds:
                    build(Path(os.fsdecode(world.top)))
        trees = [world.tree(content=True) for world in worlds]
        paths = trees[0].keys() | trees[1].keys()
        differences += [(at, *(tree.get(at) for tree in trees)) for at in paths if trees[0].get(at) != trees[1].get(at)]
    assert not differences


def fresh(place: Path) -> World:
    top = place / "tree"
    if top.exists():
        shutil.rmtree(top)
    top.mkdir()
    top.chmod(0o777)
    build(top)
    return World(top)


def answer(world: World, actor: Actor, call: Callable[[bytes, World], Any], path: str) -> tuple[int, Any]:
    try:
        with acting(actor):
            return 0, call(world.path([path.encode()]) if path else b"", world)
    except OSError as error:
        return error.errno or -1, None
