"""Clones by slice references: what they consist of, what they are charged for, and what an unfinished one leaves. `volume` examines the
metadata at the end of each test: references, link counts, usage and counters must be exact."""

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
from jfs.errors import FsError
from jfs.format.constants import DIRECTORY, FILE, ROOT, SYMLINK
from jfs.meta.model.keys import DetachedKey, DirStat, DirStatKey, SliceRefKey
from jfs.meta.model.quota import DIRECTORY as OF_DIRECTORY
from jfs.meta.model.quota import USER as OF_USER
from jfs.meta.model.quota import QuotaKey
from jfs.meta.operations import cloning
from jfs.meta.store.base import Tx
from jfs.meta.volume import SUPERUSER, Caller, Meta
from jfs.meta.volume.quotas import Limits, set_quota
from meta_volumes import errno_of, new_file, volume, write
from store_engines import ALL

USER = Caller(1000, 2000, 0, checked=True)
DAY = 86400


async def names(meta: Meta, ino: int) -> dict[bytes, int]:
    found: dict[bytes, int] = {}
    async for page in meta.list_directory(SUPERUSER, ino, plus=False):
        found |= dict(zip(page.names, (entry.ino for entry in page.entries), strict=True))
    return found


async def build(meta: Meta) -> int:
    """A tree of every kind; its top."""
    top, _ = await meta.mkdir(SUPERUSER, ROOT, b"src", 0o755)
    below, _ = await meta.mkdir(SUPERUSER, top, b"dir", 0o775)
    await meta.mkdir(SUPERUSER, below, b"empty", 0o700)
    file = await new_file(meta, b"file", parent=top)
    await write(meta, file, 0, 5000)
    await write(meta, file, 100, 70)
    await write(meta, file, 100 << 20, 4096)
    await meta.setxattr(SUPERUSER, file, b"user.a", b"value")
    await meta.setxattr(SUPERUSER, file, b"user.empty", b"")
    await meta.link(SUPERUSER, file, below, b"hard")
    await meta.symlink(SUPERUSER, below, b"link", b"../file")
    await meta.mknod(SUPERUSER, below, b"fifo", 4, 0o640)
    for number in range(30):
        await write(meta, await new_file(meta, b"f%d" % number, parent=below), 0, 10)
    return top


async def content(meta: Meta, ino: int) -> Any:
    return [(indx, [record[1:] for record in records]) for indx, records in await meta.file_chunks(ino)]


@pytest.mark.parametrize("engine", ALL)
async def test_a_tree_is_cloned_with_everything(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        top = await build(meta)
        seen: list[tuple[int, int]] = []
        count = await meta.clone(SUPERUSER, top, ROOT, b"copy", umask=0o27, progress=lambda *at: seen.append(at))
        assert count == 37
        assert seen[-1] == (37, 37)
        copy = (await names(meta, ROOT))[b"copy"]
        source, target = await names(meta, top), await names(meta, copy)
        assert source.keys() == target.keys()
        assert {"file", "dir"} == {name.decode() for name in target}
        attr = await meta.getattr(copy)
        assert (attr.kind, attr.mode, attr.nlink, attr.parent) == (DIRECTORY, 0o750, 3, ROOT)
        file = target[b"file"]
        attr = await meta.getattr(file)
        assert (attr.kind, attr.mode, attr.nlink, attr.length, attr.parent) == (
            FILE,
            0o640,
            1,
            (100 << 20) + 4096,
            copy,
        )
        assert await content(meta, file) == await content(meta, source[b"file"])
        assert await meta.getxattr(file, b"user.a") == b"value"
        assert await meta.getxattr(file, b"user.empty") == b""
        below = await names(meta, target[b"dir"])
        assert below.keys() == (await names(meta, source[b"dir"])).keys()
        assert below[b"hard"] != file  # hard links become files of their own
        assert await meta.readlink(below[b"link"]) == b"../file"
        assert (await meta.getattr(below[b"link"])).kind == SYMLINK
        assert (await meta.getattr(target[b"dir"])).nlink == 3
        (stat,) = await meta.store.get(DirStatKey(target[b"dir"]))
        (wanted,) = await meta.store.get(DirStatKey(source[b"dir"]))
        assert stat == wanted
        slices = {(r.id, r.size) for _, records in await meta.file_chunks(file) for r in records}
        assert len(slices) == 3
        assert [(await meta.store.get(SliceRefKey(*one)))[0] for one in slices] == [3, 3, 3]
        assert [key async for key, _ in meta.store.scan(DetachedKey)] == []
        # Each goes without the other.
        await meta.remove_tree(SUPERUSER, ROOT, b"src", skip_trash=True)
        assert await content(meta, file)
        await meta.remove_tree(SUPERUSER, ROOT, b"copy", skip_trash=True)
        await meta.close_session()
        assert {id for id, _ in made.deleted} >= {id for id, _ in slices}


async def test_owner_mode_and_times_are_the_callers_or_the_sources(tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client()
        file = await new_file(meta, b"f", mode=0o666)
        await meta.setattr(SUPERUSER, ROOT, (await _mode(0o777)))
        before = await meta.getattr(file)
        made.clock.advance(100)
        await meta.clone(USER, file, ROOT, b"mine", umask=0o77)
        await meta.clone(USER, file, ROOT, b"kept", umask=0o77, preserve=True)
        found = await names(meta, ROOT)
        mine, kept = await meta.getattr(found[b"mine"]), await meta.getattr(found[b"kept"])
        assert (mine.uid, mine.gid, mine.mode) == (1000, 2000, 0o600)
        assert mine.mtime == before.mtime + 100
        assert kept == before._replace(parent=ROOT)


async def _mode(mode: int) -> Any:
    from jfs.meta.operations.attributes import AttrChange

    return AttrChange(mode=mode)


async def test_what_cannot_be_cloned(tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client()
        top = await build(meta)
        secret = await new_file(meta, b"secret", mode=0o600)
        closed, _ = await meta.mkdir(SUPERUSER, ROOT, b"closed", 0o755)
        open_, _ = await meta.mkdir(SUPERUSER, ROOT, b"open", 0o777)
        free = (await meta.statfs()).used
        for caller, source, parent, name, wanted in (
            (SUPERUSER, 9999, ROOT, b"x", errno.ENOENT),
            (SUPERUSER, top, 9999, b"x", errno.ENOENT),
            (SUPERUSER, top, ROOT, b"src", errno.EEXIST),
            (SUPERUSER, top, ROOT, b"a/b", errno.EINVAL),
            (SUPERUSER, top, ROOT, b"x" * 256, errno.ENAMETOOLONG),
            (SUPERUSER, top, secret, b"x", errno.ENOTDIR),
            (SUPERUSER, top, ROOT, b".trash", errno.EPERM),
            (USER, secret, open_, b"x", errno.EACCES),
            (USER, top, closed, b"x", errno.EACCES),
            (USER, top, open_, b"x", errno.EACCES),  # a directory below cannot be read
        ):
            assert await errno_of(meta.clone(caller, source, parent, name)) == wanted, (source, parent, name)
        assert not await names(meta, open_)
        assert [key async for key, _ in meta.store.scan(DetachedKey)] == []
        assert (await meta.statfs()).used == free


async def test_a_clone_into_its_own_source(tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client()
        top = await build(meta)
        assert await meta.clone(SUPERUSER, top, top, b"self") == 37
        assert await meta.clone(SUPERUSER, top, ROOT, b"both") == 74


@pytest.mark.parametrize("engine", ALL)
async def test_limits_and_quotas_hold_for_the_whole_tree(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, inodes=120) as made:
        meta = await made.client()
        top = await build(meta)
        target, _ = await meta.mkdir(SUPERUSER, ROOT, b"target", 0o755)
        await set_quota(
            await made.store(), meta.setting, QuotaKey(OF_DIRECTORY, target), Limits(inodes=40), strict=True
        )
        meta = await made.client()
        assert await meta.clone(SUPERUSER, top, target, b"one") == 37
        assert await errno_of(meta.clone(SUPERUSER, top, target, b"two")) == errno.EDQUOT
        assert await meta.clone(SUPERUSER, top, ROOT, b"two") == 37
        assert await errno_of(meta.clone(SUPERUSER, top, ROOT, b"three")) == errno.ENOSPC
        (quota,) = await meta.store.get(QuotaKey(OF_DIRECTORY, target))
        assert quota is not None
        assert quota.used_inodes == 37
        # What is made in the clone is counted from now on.
        one = (await names(meta, target))[b"one"]
        await new_file(meta, b"more", parent=one)
        (quota,) = await meta.store.get(QuotaKey(OF_DIRECTORY, target))
        assert quota is not None
        assert quota.used_inodes == 38


@pytest.mark.parametrize("preserve", [False, True])
async def test_copies_are_charged_to_their_owners(preserve: bool, tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client()
        top = await build(meta)
        await meta.setattr(SUPERUSER, ROOT, await _mode(0o777))
        await meta.setattr(
            SUPERUSER, (await names(meta, (await names(meta, top))[b"dir"]))[b"empty"], await _mode(0o755)
        )
        await set_quota(await made.store(), meta.setting, QuotaKey(OF_USER, 1000), Limits(inodes=50), strict=True)
        meta = await made.client()
        owner = 0 if preserve else 1000
        for name, count in ((b"one", 37), (b"two", 74)):
            if count > 50 and not preserve:
                assert await errno_of(meta.clone(USER, top, ROOT, name)) == errno.EDQUOT
                break
            assert await meta.clone(USER, top, ROOT, name, preserve=preserve) == 37
        (quota,) = await meta.store.get(QuotaKey(OF_USER, owner))
        assert quota is not None
        assert quota.used_inodes == (36 + 2 * 37 if preserve else 37)  # hard links become files of their own


@pytest.mark.parametrize("engine", ALL)
async def test_an_interrupted_clone_is_a_detached_tree(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        top = await build(meta)
        before = await meta.statfs()
        reached = asyncio.Event()

        def progress(done: int, total: int) -> None:
            if done == 20:
                reached.set()

        task = asyncio.create_task(meta.clone(SUPERUSER, top, ROOT, b"copy", progress=progress))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert b"copy" not in await names(meta, ROOT)
        (detached,) = [key.ino async for key, _ in meta.store.scan(DetachedKey)]
        assert len(await names(meta, detached)) in (1, 2)
        now = made.clock() // 10**9
        assert await meta.drop_abandoned(now - DAY) == 0
        made.clock.advance(2 * DAY)
        assert await meta.drop_abandoned(made.clock() // 10**9 - DAY) == 1
        assert [key async for key, _ in meta.store.scan(DetachedKey)] == []
        after = await meta.statfs()
        assert (after.used, after.inodes) == (before.used, before.inodes)
        assert await content(meta, (await names(meta, top))[b"file"])


async def test_a_clone_that_was_cleaned_up_meanwhile_gets_no_entry(tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client()
        rules = meta._rules()

        async def attach(tx: Tx) -> Any:
            return await cloning.attach(tx, SUPERUSER, rules, 99, ROOT, b"copy", DirStat(0, 0, 0), 0)

        with pytest.raises(FsError) as caught:
            await meta.store.run(attach)
        assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("engine", ALL)
async def test_a_file_of_many_chunks(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file beyond the number of chunks that are asked for one by one."""
    monkeypatch.setattr(cloning, "MANY_CHUNKS", 10)
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        file = await new_file(meta, b"f")
        for chunk in (0, 3, 40):
            await write(meta, file, chunk << 26, 100)
        await meta.clone(SUPERUSER, file, ROOT, b"copy")
        assert await content(meta, (await names(meta, ROOT))[b"copy"]) == await content(meta, file)


async def test_writes_beside_a_clone_never_break_references(tmp_path: Path) -> None:
    async with volume("sqlite3", tmp_path) as made:
        meta, other = await made.client(), await made.client()
        top = await build(meta)
        files = list((await names(meta, top)).values())

        async def disturb() -> None:
            for number in range(20):
                await write(other, (await names(other, top))[b"file"], number * 50, 100)
                await new_file(other, b"new%d" % number, parent=top)

        await asyncio.gather(disturb(), *(meta.clone(SUPERUSER, top, ROOT, b"c%d" % n) for n in range(3)))
        assert len(files) == 2
        assert {b"c0", b"c1", b"c2"} <= (await names(meta, ROOT)).keys()


async def test_read_only(tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        file = await new_file(await made.client(), b"f")
        meta = await made.client(read_only=True)
        assert await errno_of(meta.clone(SUPERUSER, file, ROOT, b"copy")) == errno.EROFS
        assert os.O_RDONLY == 0
