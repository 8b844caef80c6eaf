"""The trash: hour directories, names, what goes there and what not, its expiry (format §3.13), on every engine."""

import errno
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jfs.format.constants import SKIP_TRASH, TRASH
from jfs.meta.model.keys import DelayedKey, SliceRefKey
from jfs.meta.operations.removal import trash_name
from jfs.meta.store.base import Tx
from jfs.meta.volume import SUPERUSER, AttrChange, Caller, Meta
from meta_volumes import Volume, audit, entries, errno_of, new_file, node, volume, write
from store_engines import ALL

HOUR = TRASH + 1
USER = Caller(1000, 1000, 0)


@pytest.fixture(params=ALL)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume(request.param, tmp_path, trash_days=1) as made:
        yield made


async def trash(meta: Meta, hour: int = HOUR) -> dict[bytes, int]:
    return {name: ino for name, (ino, _) in (await entries(meta.store, hour)).items()}


def test_names_are_cut_at_their_end() -> None:
    assert trash_name(1, 23, b"name") == b"1-23-name"
    assert trash_name(1, 23, b"x" * 255) == b"1-23-" + b"x" * 250


async def test_removed_entries_move_to_the_hour(made: Volume) -> None:
    meta = await made.client()
    d, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
    f = await new_file(meta, b"f", parent=d)
    await write(meta, f, 0, 5000)
    s, _ = await meta.symlink(SUPERUSER, d, b"s", b"t")
    assert await meta.unlink(SUPERUSER, d, b"f") == 0
    assert await meta.unlink(SUPERUSER, d, b"s") == 0
    await meta.rmdir(SUPERUSER, 1, b"d")
    assert list(await entries(meta.store, TRASH)) == [b"2023-11-14-22"]
    assert await trash(meta) == {b"%d-%d-f" % (d, f): f, b"%d-%d-s" % (d, s): s, b"1-%d-d" % d: d}
    hour = await node(meta.store, HOUR)
    assert hour is not None
    assert (hour.mode, hour.uid, hour.nlink, hour.parent, hour.length) == (0o555, 0, 2, TRASH, 4096)
    moved = await node(meta.store, f)
    assert moved is not None
    assert (moved.nlink, moved.parent, moved.length) == (1, HOUR, 5000)
    assert await meta.lookup(SUPERUSER, 1, b".trash") == (TRASH, await meta.getattr(TRASH))
    assert (await meta.getattr(1)).nlink == 2
    await audit(meta.store)
    assert made.deleted == []


async def test_what_lies_in_the_trash_cannot_be_changed(made: Volume) -> None:
    meta = await made.client()
    f = await new_file(meta, b"f")
    await meta.unlink(SUPERUSER, 1, b"f")
    name = b"1-%d-f" % f
    assert await errno_of(meta.setattr(SUPERUSER, f, AttrChange(mode=0))) == errno.EPERM
    assert await errno_of(meta.truncate(SUPERUSER, f, 5, opened=False)) == errno.EPERM
    assert await errno_of(meta.setxattr(SUPERUSER, f, b"user.a", b"")) == errno.EPERM
    assert await errno_of(meta.open(SUPERUSER, f, os.O_RDWR)) == errno.EPERM
    assert await errno_of(meta.open(SUPERUSER, f, os.O_RDONLY)) == 0
    assert await errno_of(meta.rename(USER, HOUR, name, 1, b"x")) == errno.EPERM
    assert await errno_of(meta.unlink(USER, HOUR, name)) == errno.EPERM
    assert await errno_of(meta.mkdir(SUPERUSER, HOUR, b"x", 0o755)) == errno.EPERM
    # root takes it back by renaming it out
    await meta.rename(SUPERUSER, HOUR, name, 1, b"back")
    assert await meta.lookup(SUPERUSER, 1, b"back") == (f, await node(meta.store, f))
    await audit(meta.store)


async def test_a_directory_in_the_trash_takes_nothing_more(made: Volume) -> None:
    meta = await made.client()
    d, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
    f = await new_file(meta, b"f")
    await meta.rmdir(SUPERUSER, 1, b"d")
    assert await errno_of(meta.mkdir(SUPERUSER, d, b"x", 0o755)) == errno.ENOENT
    assert await errno_of(meta.link(SUPERUSER, f, d, b"x")) == errno.ENOENT
    assert await errno_of(meta.rename(SUPERUSER, 1, b"f", d, b"x")) == errno.ENOENT


async def test_the_same_link_twice_goes_for_real_the_second_time(made: Volume) -> None:
    meta = await made.client()
    f = await new_file(meta, b"f")
    await meta.link(SUPERUSER, f, 1, b"g")
    await meta.unlink(SUPERUSER, 1, b"f")
    await meta.link(SUPERUSER, f, 1, b"f")
    await audit(meta.store)
    assert (await meta.getattr(f)).nlink == 3
    await meta.unlink(SUPERUSER, 1, b"f")
    assert (await meta.getattr(f)).nlink == 2
    assert await trash(meta) == {b"1-%d-f" % f: f}
    await audit(meta.store)


async def test_rename_over_a_linked_file_whose_name_is_in_the_trash_already(made: Volume) -> None:
    meta = await made.client()
    f = await new_file(meta, b"f")
    await meta.link(SUPERUSER, f, 1, b"g")
    await meta.unlink(SUPERUSER, 1, b"f")
    await meta.link(SUPERUSER, f, 1, b"f")
    await new_file(meta, b"new")
    await meta.rename(SUPERUSER, 1, b"new", 1, b"f")
    assert await trash(meta) == {b"1-%d-f" % f: f}
    await audit(meta.store)


async def test_replaced_files_and_directories_go_to_the_trash(made: Volume) -> None:
    meta = await made.client()
    old = await new_file(meta, b"old")
    await new_file(meta, b"new")
    d, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
    e, _ = await meta.mkdir(SUPERUSER, 1, b"e", 0o755)
    await meta.rename(SUPERUSER, 1, b"new", 1, b"old")
    await meta.rename(SUPERUSER, 1, b"e", 1, b"d")
    assert await trash(meta) == {b"1-%d-old" % old: old, b"1-%d-d" % d: d}
    assert (await meta.lookup(SUPERUSER, 1, b"d"))[0] == e
    await audit(meta.store)


async def test_skip_trash(made: Volume) -> None:
    meta = await made.client()
    f = await new_file(meta, b"f")
    await meta.setattr(SUPERUSER, f, AttrChange(flags=SKIP_TRASH))
    assert await meta.unlink(SUPERUSER, 1, b"f") == f
    g = await new_file(meta, b"g")
    assert await meta.unlink(SUPERUSER, 1, b"g", skip_trash=True) == g
    assert await trash(meta) == {}
    await audit(meta.store)


async def test_clients_share_the_hour_and_make_the_next(made: Volume) -> None:
    first, second = await made.client(), await made.client()
    for meta, name in ((first, b"a"), (second, b"b")):
        await new_file(meta, name)
        await meta.unlink(SUPERUSER, 1, name)
    assert len(await trash(first)) == 2
    made.clock.advance(3600)
    await new_file(first, b"c")
    await first.unlink(SUPERUSER, 1, b"c")
    assert set(await entries(first.store, TRASH)) == {b"2023-11-14-22", b"2023-11-14-23"}
    await audit(first.store)


async def test_the_trash_expires_after_its_days_and_two_hours(made: Volume) -> None:
    meta = await made.client(no_bgjob=True)
    f = await new_file(meta, b"f")
    slices = await write(meta, f, 0, 100)
    d, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
    below = await new_file(meta, b"below", parent=d)
    await meta.unlink(SUPERUSER, 1, b"f")
    await meta.unlink(SUPERUSER, d, b"below")
    await meta.rmdir(SUPERUSER, 1, b"d")
    # `restore` rebuilds trees inside an hour directory: then directories in there are not empty.
    await meta.rename(SUPERUSER, HOUR, b"%d-%d-below" % (d, below), 1, b"below")
    made.clock.advance(25.5 * 3600)
    await meta.unlink(SUPERUSER, 1, b"below")
    assert await meta.jobs().trash()
    assert len(await trash(meta)) == 2, "not older than the trash days and two hours yet"
    made.clock.advance(3600)
    assert await meta.jobs().trash()
    assert list(await entries(meta.store, TRASH)) == [b"2023-11-15-23"]
    await meta._deletion.drain(20)
    assert made.deleted == slices
    assert await errno_of(meta.getattr(f)) == errno.ENOENT
    assert await errno_of(meta.getattr(d)) == errno.ENOENT
    await audit(meta.store)


async def test_delayed_slices_expire(made: Volume) -> None:
    made.sound = False  # the references stand for lists that are not there
    meta = await made.client(no_bgjob=True)
    old, new = made.clock() // 10**9, made.clock() // 10**9 + 3600
    pack = struct.Struct(">QI").pack

    async def delay(tx: Tx) -> None:
        for id, size in ((7, 100), (8, 200), (9, 300)):
            tx.put(SliceRefKey(id, size), 1)
        tx.add(SliceRefKey(8, 200), 1)
        tx.put(DelayedKey(50, old), pack(7, 100) + pack(8, 200))
        tx.put(DelayedKey(51, new), pack(9, 300))

    await meta.store.run(delay)
    made.clock.advance(24 * 3600 + 60)
    await meta.jobs().trash()
    assert made.deleted == [(7, 100)]
    assert [key async for key in meta.store.delayed_slices()] == [(51, new, pack(9, 300))]
    assert await meta.store.get(SliceRefKey(8, 200)) == (1,)


async def test_the_hour_can_be_removed_while_it_is_in_use(made: Volume) -> None:
    meta = await made.client()
    for name in (b"a", b"b"):
        await new_file(meta, name)
    await meta.unlink(SUPERUSER, 1, b"a")
    await meta.remove_tree(SUPERUSER, TRASH, b"2023-11-14-22", skip_trash=True)
    assert await entries(meta.store, TRASH) == {}
    await meta.unlink(SUPERUSER, 1, b"b")
    assert len(await trash(meta, HOUR + 1)) == 1
    await audit(meta.store)
