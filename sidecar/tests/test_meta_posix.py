"""Rules of POSIX and Linux that the real client leaves out, on the record store: names for nameless files, whiteouts, times of
extended attributes and of truncations that change nothing, sizes far away."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jfs.format.constants import CHAR_DEVICE
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import ParentKey
from jfs.meta.operations import ranges
from jfs.meta.operations.ranges import KEEP_SIZE, PUNCH_HOLE
from jfs.meta.operations.renaming import NOREPLACE, WHITEOUT
from jfs.meta.volume import SUPERUSER, AttrChange, Caller, Meta
from meta_volumes import Volume, audit, errno_of, new_file, volume, write
from store_engines import ALL


@pytest.fixture(params=ALL)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume(request.param, tmp_path) as opened:
        yield opened


async def nameless(meta: Meta, parent: int = 1) -> int:
    """An open file without a name, as O_TMPFILE makes it."""
    ino, _, _ = await meta.create(SUPERUSER, parent, b"for a moment", 0o600, os.O_RDWR)
    await meta.unlink(SUPERUSER, parent, b"for a moment", skip_trash=True)
    return ino


async def test_a_nameless_file_gets_a_name(made: Volume) -> None:
    meta = await made.client()
    directory, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
    ino = await nameless(meta)
    await write(meta, ino, 0, 5000)
    attr = await meta.link(SUPERUSER, ino, directory, b"named", nameless=True)
    assert (attr.nlink, attr.parent) == (1, directory)
    assert await meta.link(SUPERUSER, ino, 1, b"again") == await meta.getattr(ino)
    assert await meta.store.get(ParentKey(ino, directory), ParentKey(ino, 1)) == (1, 1)
    assert [kept async for kept in meta.store.sustained(meta.sid)] == []
    await meta.release(ino)
    assert (await meta.lookup(SUPERUSER, directory, b"named"))[1].length == 5000
    await audit(meta.store)


async def test_a_nameless_file_that_got_a_name_and_lost_it_again_goes_with_its_last_handle(made: Volume) -> None:
    meta = await made.client()
    ino = await nameless(meta)
    await meta.link(SUPERUSER, ino, 1, b"named", nameless=True)
    await meta.unlink(SUPERUSER, 1, b"named")
    assert (await meta.getattr(ino)).nlink == 0
    await meta.release(ino)
    assert await errno_of(meta.getattr(ino)) == errno.ENOENT
    await audit(meta.store)


async def test_whiteout(made: Volume) -> None:
    meta = await made.client()
    directory, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o2777)
    await meta.setattr(SUPERUSER, directory, AttrChange(gid=77))
    ino = await new_file(meta, b"f", parent=directory)
    await new_file(meta, b"replaced")
    caller = Caller(1000, 1000, 0)
    await meta.rename(caller, directory, b"f", 1, b"replaced", WHITEOUT)
    assert (await meta.lookup(SUPERUSER, 1, b"replaced"))[0] == ino
    _, attr = await meta.lookup(SUPERUSER, directory, b"f")
    assert (attr.kind, attr.mode, attr.rdev, attr.nlink) == (CHAR_DEVICE, 0, 0, 1)
    assert (attr.uid, attr.gid, attr.parent) == (1000, 77, directory)
    await meta.rename(SUPERUSER, 1, b"replaced", 1, b"new", WHITEOUT | NOREPLACE)
    await meta.unlink(SUPERUSER, 1, b"replaced")
    await audit(meta.store)


def changed(before: Attr, after: Attr) -> tuple[bool, bool]:
    """Whether mtime and ctime are not what they were."""
    return (
        (before.mtime, before.mtimensec) != (after.mtime, after.mtimensec),
        (before.ctime, before.ctimensec) != (after.ctime, after.ctimensec),
    )


async def test_extended_attributes_move_ctime(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    before = await meta.getattr(ino)
    await meta.setxattr(SUPERUSER, ino, b"user.a", b"1")
    between = await meta.getattr(ino)
    assert changed(before, between) == (False, True)
    await meta.setxattr(SUPERUSER, ino, b"user.a", b"1")  # the same once more
    assert changed(between, await meta.getattr(ino)) == (False, True)
    between = await meta.getattr(ino)
    await meta.removexattr(SUPERUSER, ino, b"user.a")
    assert changed(between, await meta.getattr(ino)) == (False, True)


async def test_changes_that_change_nothing_move_times(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    await write(meta, ino, 0, 100)
    before = await meta.getattr(ino)
    await meta.truncate(SUPERUSER, ino, 100, opened=False)
    between = await meta.getattr(ino)
    assert changed(before, between) == (True, True)
    await meta.setattr(SUPERUSER, ino, AttrChange(mode=0o644, uid=0))
    assert changed(between, await meta.getattr(ino)) == (False, True)


def test_a_file_that_grows_far_is_not_walked_through() -> None:
    """Each chunk between the end and an allocation far away took memory until there was none left."""
    assert ranges.needs_chunks(0, 1 << 50, 1)
    assert not ranges.needs_chunks(KEEP_SIZE, 1 << 50, 1)
    assert ranges.needs_chunks(KEEP_SIZE | PUNCH_HOLE, 0, 1 << 50)
    assert not ranges.needs_chunks(0, 1 << 30, 1 << 20)


async def test_sizes_far_away(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    await write(meta, ino, 0, 100)
    await meta.fallocate(ino, 0, (1 << 57) - 10, 10)
    assert (await meta.getattr(ino)).length == 1 << 57
    await write(meta, ino, 1 << 56, 100)
    await meta.fallocate(ino, PUNCH_HOLE | KEEP_SIZE, 0, 1 << 57)
    assert await errno_of(meta.seek_data(ino, 0, 1 << 57)) == errno.ENXIO
    await meta.truncate(SUPERUSER, ino, 50, opened=False)
    await meta.truncate(SUPERUSER, ino, (1 << 57) - 1, opened=False)
    await audit(meta.store)
    await meta.unlink(SUPERUSER, 1, b"f")


async def test_what_is_held_of_a_young_file_does_not_hide_its_links(made: Volume) -> None:
    meta = await made.client(hold_attrs=1000.0, attr_timeout=1000.0)
    ino, _, _ = await meta.create(SUPERUSER, 1, b"f", 0o644, os.O_RDWR)
    held = meta.hold_attrs(SUPERUSER, ino, AttrChange(mode=0o600))
    assert held is not None
    assert (await meta.link(SUPERUSER, ino, 1, b"g")).nlink == 2
    held = meta.hold_attrs(SUPERUSER, ino, AttrChange(uid=1000))
    assert held is not None
    assert (held.nlink, held.mode, held.uid) == (2, 0o600, 1000)
    await meta.rename(SUPERUSER, 1, b"g", 1, b"h")
    await meta.unlink(SUPERUSER, 1, b"f")
    held = meta.hold_attrs(SUPERUSER, ino, AttrChange(uid=1001))
    assert held is not None
    assert held == await meta.getattr(ino)
    assert (held.nlink, held.mode, held.uid) == (1, 0o600, 1001)
    await meta.release(ino)
    other = await made.client()
    attr = (await other.lookup(SUPERUSER, 1, b"h"))[1]
    assert (attr.nlink, attr.mode, attr.uid) == (1, 0o600, 1001)


async def test_two_clients_never_move_directories_into_each_other(made: Volume) -> None:
    one, other = await made.client(), await made.client()
    tops = [(await one.mkdir(SUPERUSER, 1, name, 0o755))[0] for name in (b"a", b"b")]
    inner = [(await one.mkdir(SUPERUSER, top, b"in", 0o755))[0] for top in tops]
    deep = [(await one.mkdir(SUPERUSER, top, b"deep", 0o755))[0] for top in inner]
    for _ in range(10):
        outcomes = await asyncio.gather(
            errno_of(one.rename(SUPERUSER, 1, b"a", deep[1], b"x")),
            errno_of(other.rename(SUPERUSER, 1, b"b", deep[0], b"x")),
        )
        assert sorted(outcomes) == [0, errno.EINVAL]
        await audit(one.store)
        for place, name in zip((deep[1], deep[0]), (b"a", b"b"), strict=True):
            await errno_of(one.rename(SUPERUSER, place, b"x", 1, name))
