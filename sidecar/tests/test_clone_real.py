"""Clones beside the real client: equal trees, volumes that its fsck and gc find sound, and unfinished clones that both clients clean up."""

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jfs.meta.connect import connect
from jfs.meta.volume import SUPERUSER, Meta, MetaOptions
from mount_parts import JFS, REAL, Volume, check_by_real, mounted, really_mounted, redis_server, run, tree

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]


@pytest.fixture(params=["redis", "sqlite3"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    if request.param == "sqlite3":
        yield Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--trash-days", "0")
        return
    with redis_server(tmp_path) as url:
        yield Volume(f"{url}/1", tmp_path / "bucket").format("--trash-days", "0")


def fill(top: Path) -> None:
    (top / "dir/below").mkdir(parents=True)
    for number in range(12):
        (top / f"dir/f{number}").write_bytes(os.urandom(number * 1000))
    with open(top / "dir/fragments", "wb") as file:
        for offset in (0, 100, 70_000_000, 50):
            file.seek(offset)
            file.write(os.urandom(5000))
            file.flush()
            os.fsync(file.fileno())
    os.link(top / "dir/f3", top / "dir/below/hard")
    os.symlink("../f1", top / "dir/below/link")
    os.mkfifo(top / "dir/below/fifo", 0o640)
    os.setxattr(top / "dir/f1", "user.one", b"1" * 100)
    os.chmod(top / "dir/f2", 0o4750)
    os.chown(top / "dir/f4", 1000, 2000)


def seen(top: Path) -> dict[str, Any]:
    """What clones must have alike: all but inode numbers and times."""
    return {
        name: (mode, uid, gid, nlink, content, os.listxattr(top / name) if stat.S_ISREG(mode) else [])
        for name, (mode, uid, gid, nlink, _, _, content) in tree(top, times=False).items()
    }


async def clone(url: str, parent: str, name: str, new: str, **more: Any) -> int:
    meta = await Meta.load(await connect(url), MetaOptions(no_bgjob=True), delete_objects=_nothing)
    try:
        source, _ = await meta.lookup(SUPERUSER, 1, name.encode())
        return await meta.clone(SUPERUSER, source, 1, new.encode(), **more)
    finally:
        await meta.close()


async def _nothing(slice_id: int, size: int) -> None:
    return


@pytest.mark.parametrize("preserve", [False, True])
def test_our_clone_is_the_real_ones(volume: Volume, preserve: bool, tmp_path: Path) -> None:
    with really_mounted(volume, tmp_path / "real", "--enable-xattr") as where:
        fill(where)
        run(REAL, "clone", *(["--preserve"] if preserve else []), str(where / "dir"), str(where / "theirs"))
        asyncio.run(clone(volume.url, "/", "dir", "ours", preserve=preserve, umask=0o22))
        ours, theirs = seen(where / "ours"), seen(where / "theirs")
        assert stat.S_ISFIFO(ours["below/fifo"][0])
        theirs.setdefault("below/fifo", ours["below/fifo"])  # which the real client leaves out on Redis
        assert ours == theirs
        if preserve:
            for name in ("", "f1", "below", "below/link"):
                copies = [os.lstat(where / top / name).st_mtime_ns for top in ("ours", "theirs")]
                assert copies[0] == copies[1], name
        run("rm", "-r", str(where / "dir"))
        assert seen(where / "ours") == ours
        run("rm", "-r", str(where / "theirs"))
    run(*JFS, "fsck", volume.url, "--path", "/", "--repair", "--sync-dir-stat")  # what the real clone left wrong
    run(*JFS, "fsck", volume.url)
    check_by_real(volume)


def test_an_unfinished_clone_is_cleaned_up_by_either_client(tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--trash-days", "0")
    with mounted(volume, tmp_path / "ours", "--enable-xattr") as where:
        fill(where)

    async def interrupted() -> None:
        reached = asyncio.Event()
        task = asyncio.create_task(
            clone(volume.url, "/", "dir", "copy", progress=lambda done, total: reached.set() if done == 9 else None)
        )
        await reached.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def detached(command: str = "SELECT inode FROM jfs_detached_node") -> list[Any]:
        with sqlite3.connect(tmp_path / "meta.db") as database:
            found = database.execute(command).fetchall()
        database.close()
        return found

    def collect(*command: str) -> Callable[[], Any]:
        return lambda: run(*command, "gc", "--delete", volume.url, check=False)

    before = run(*JFS, "status", volume.url).stdout
    for by in (collect(*JFS), collect(REAL)):
        asyncio.run(interrupted())
        assert len(detached()) == 1
        said = run(*JFS, "fsck", volume.url)
        assert "clone that was not finished" in said.stdout + said.stderr
        by()
        assert len(detached()) == 1  # it may still be under way
        detached("UPDATE jfs_detached_node SET added = added - 90000")
        by()
        assert not detached()
        by()
        run(*JFS, "fsck", volume.url)
        assert run(*JFS, "status", volume.url).stdout == before
    check_by_real(volume)
