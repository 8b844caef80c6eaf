"""rename in all its forms, with every side record checked afterwards (format §5.3 rename), on every engine."""

import errno
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jfs.meta.volume import EXCHANGE, NOREPLACE, SUPERUSER, Meta
from meta_volumes import Volume, audit, entries, errno_of, new_file, settle, volume, write
from store_engines import ALL


@pytest.fixture(params=ALL)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume(request.param, tmp_path) as made:
        yield made


async def inode(meta: Meta, parent: int, name: bytes) -> int:
    return (await meta.lookup(SUPERUSER, parent, name))[0]


async def make(meta: Meta, parent: int, name: bytes, what: str) -> int:
    """A file with data, a directory, a symlink, or a file with another link in the root."""
    if what == "directory":
        return (await meta.mkdir(SUPERUSER, parent, name, 0o755))[0]
    if what == "symlink":
        return (await meta.symlink(SUPERUSER, parent, name, b"target"))[0]
    ino = await new_file(meta, name, parent=parent)
    await write(meta, ino, 0, 5000)
    if what == "linked":
        await meta.link(SUPERUSER, ino, 1, name + b"-link")
    return ino


KINDS = ("file", "directory", "symlink", "linked")


async def test_every_kind_moves_between_and_within_directories(made: Volume) -> None:
    meta = await made.client()
    a, b = [(await meta.mkdir(SUPERUSER, 1, name, 0o755))[0] for name in (b"A", b"B")]
    for what in KINDS:
        name = what.encode()
        ino = await make(meta, a, name, what)
        await meta.rename(SUPERUSER, a, name, b, name)
        assert await inode(meta, b, name) == ino
        await meta.rename(SUPERUSER, b, name, b, name + b"2", NOREPLACE)
        assert await inode(meta, b, name + b"2") == ino
        assert (await meta.getattr(ino)).parent == (0 if what == "linked" else b)
        await audit(meta.store)
    assert await entries(meta.store, a) == {}


@pytest.mark.parametrize("within", [False, True])
async def test_every_pair_is_exchanged(made: Volume, within: bool) -> None:
    meta = await made.client()
    a, b = [(await meta.mkdir(SUPERUSER, 1, name, 0o755))[0] for name in (b"A", b"B")]
    target = a if within else b
    for number, (left, right) in enumerate(itertools.product(KINDS, KINDS)):
        x, y = b"x%d" % number, b"y%d" % number
        one, two = await make(meta, a, x, left), await make(meta, target, y, right)
        await meta.rename(SUPERUSER, a, x, target, y, EXCHANGE)
        assert (await inode(meta, a, x), await inode(meta, target, y)) == (two, one)
    await audit(meta.store)


@pytest.mark.parametrize("within", [False, True])
async def test_every_kind_is_replaced(made: Volume, within: bool) -> None:
    meta = await made.client()
    a, b = [(await meta.mkdir(SUPERUSER, 1, name, 0o755))[0] for name in (b"A", b"B")]
    target = a if within else b
    others = [kind for kind in KINDS if kind != "directory"]
    for number, (left, right) in enumerate([*itertools.product(others, others), ("directory", "directory")]):
        x, y = b"x%d" % number, b"y%d" % number
        one, two = await make(meta, a, x, left), await make(meta, target, y, right)
        await meta.rename(SUPERUSER, a, x, target, y)
        assert await inode(meta, target, y) == one
        assert x not in await entries(meta.store, a)
        if right == "linked":
            assert (await meta.getattr(two)).nlink == 1
    await audit(meta.store)


async def test_two_names_of_one_inode_are_left_alone(made: Volume) -> None:
    meta = await made.client()
    ino = await make(meta, 1, b"f", "linked")
    for flags in (0, EXCHANGE):
        await meta.rename(SUPERUSER, 1, b"f", 1, b"f-link", flags)
        assert set(await entries(meta.store, 1)) == {b"f", b"f-link"}
    assert (await meta.getattr(ino)).nlink == 2
    await audit(meta.store)


async def test_a_replaced_open_file_lives_on(made: Volume) -> None:
    meta = await made.client()
    old, _, _ = await meta.create(SUPERUSER, 1, b"old", 0o644, os.O_RDWR)
    await new_file(meta, b"new")
    await meta.rename(SUPERUSER, 1, b"new", 1, b"old")
    assert (await meta.getattr(old)).nlink == 0
    assert [kept async for kept in meta.store.sustained(meta.sid)] == [old]
    await audit(meta.store)
    await meta.release(old)
    assert [kept async for kept in meta.store.sustained(meta.sid)] == []
    await audit(meta.store)


async def test_a_replaced_file_lingers_until_the_kernel_forgets_it(made: Volume) -> None:
    """A process that has found the old file by its name opens it after the rename."""
    meta = await made.client()
    meta.lingering.on = True
    old, new = await new_file(meta, b"old"), await new_file(meta, b"new")
    slices = await write(meta, old, 0, 5000)
    await meta.rename(SUPERUSER, 1, b"new", 1, b"old")
    assert await inode(meta, 1, b"old") == new
    assert old in meta.lingering
    assert (await meta.open(SUPERUSER, old, os.O_RDONLY)).nlink == 0
    await meta.release(old)
    assert (await meta.getattr(old)).length == 5000
    await audit(meta.store)
    meta.lingering.forgotten(old)
    meta.lingering.forgotten(old)  # another file's turn: nothing happens twice
    await settle(meta)
    assert await errno_of(meta.open(SUPERUSER, old, os.O_RDONLY)) == errno.ENOENT
    assert [kept async for kept in meta.store.sustained(meta.sid)] == []
    assert made.deleted == slices
    await audit(meta.store)


async def test_what_lingers_goes_with_the_session(made: Volume) -> None:
    meta = await made.client()
    meta.lingering.on = True
    for name in (b"a", b"b"):
        await write(meta, await new_file(meta, name), 0, 5000)
        await meta.rename(SUPERUSER, 1, name, 1, b"all")
    await meta.close_session()
    await audit(meta.store)
    assert len(made.deleted) == 1


async def test_what_a_replaced_link_or_directory_was_is_remembered(made: Volume) -> None:
    meta = await made.client()
    for what in ("symlink", "directory"):
        old = await make(meta, 1, b"old", what)
        await make(meta, 1, b"new", what)
        await meta.rename(SUPERUSER, 1, b"new", 1, b"old")
        was = meta.gone(old)
        assert was is not None
        assert was.nlink == 0
        assert meta.gone_text(old) == (b"target" if what == "symlink" else None)
        await (meta.unlink if what == "symlink" else meta.rmdir)(SUPERUSER, 1, b"old")
    await audit(meta.store)
