"""Attributes of young files: shown at once, committed with the data or soon after, never over what others changed meanwhile."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from jfs.errors import FsError
from jfs.format.slices import Slice
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import NodeKey
from jfs.meta.operations.attributes import AttrChange
from jfs.meta.volume import SUPERUSER, Caller, Meta
from jfs.meta.volume.held import merged_onto
from jfs.survival.attributes import SetAttributes
from meta_volumes import Volume, volume
from store_engines import ALL

SECOND = 10**9
TIME = 1_600_000_000 * SECOND + 5


@pytest.fixture(params=ALL)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume(request.param, tmp_path) as made:
        yield made


async def stored(meta: Meta, ino: int) -> Attr:
    (attr,) = await meta.store.get(NodeKey(ino))
    assert attr is not None
    return Attr(*attr)


async def young(meta: Meta, name: bytes = b"f", caller: Caller = SUPERUSER) -> int:
    return (await meta.create(caller, 1, name, 0o600, os.O_EXCL | os.O_WRONLY))[0]


async def commit(meta: Meta, ino: int, size: int = 100, *, pos: int = 0) -> Attr:
    id = await meta.new_slice_id()
    return await meta.commit_slice(ino, 0, pos, Slice(pos, id, size, 0, size), meta._clock())


async def test_what_tar_sets_is_committed_with_the_data(made: Volume) -> None:
    meta = await made.client(hold_attrs=60.0)
    ino = await young(meta)
    assert meta.hold_attrs(SUPERUSER, ino, AttrChange(mtime=TIME)) is not None
    assert meta.hold_attrs(SUPERUSER, ino, AttrChange(uid=7, gid=8)) is not None
    shown = meta.hold_attrs(SUPERUSER, ino, AttrChange(mode=0o644))
    assert shown is not None
    assert (shown.mode, shown.uid, shown.gid, shown.mtime) == (0o644, 7, 8, TIME // SECOND)
    assert (await meta.getattr(ino)).uid == 7
    assert (await meta.lookup(SUPERUSER, 1, b"f"))[1].mode == 0o644
    assert (await stored(meta, ino)).uid == 0
    await commit(meta, ino)
    attr = await stored(meta, ino)
    assert (attr.mode, attr.uid, attr.gid, attr.mtime, attr.mtimensec) == (0o644, 7, 8, TIME // SECOND, 5)
    assert attr.length == 100
    assert not meta.holds_attrs(ino)


async def test_a_later_piece_of_what_was_written_before_does_not_move_the_time(made: Volume) -> None:
    meta = await made.client(hold_attrs=60.0)
    ino = await young(meta)
    meta.hold_attrs(SUPERUSER, ino, AttrChange(mtime=TIME))
    await commit(meta, ino)
    await commit(meta, ino, pos=100)
    assert (await stored(meta, ino)).mtime == TIME // SECOND
    meta.wrote(ino)
    await commit(meta, ino, pos=200)
    assert (await stored(meta, ino)).mtime != TIME // SECOND


async def test_a_write_after_the_time_was_set_wins(made: Volume) -> None:
    meta = await made.client(hold_attrs=60.0)
    ino = await young(meta)
    meta.hold_attrs(SUPERUSER, ino, AttrChange(mtime=TIME, mode=0o640))
    meta.wrote(ino)
    attr = await commit(meta, ino)
    assert attr.mtime != TIME // SECOND
    assert attr.mode == 0o640


async def test_without_data_it_is_committed_on_request_and_by_the_clock(made: Volume) -> None:
    meta = await made.client(hold_attrs=60.0)
    ino = await young(meta)
    meta.hold_attrs(SUPERUSER, ino, AttrChange(mode=0o400, mtime=TIME))
    assert meta.holds_attrs(ino)
    await meta.settle_attrs(ino)
    attr = await stored(meta, ino)
    assert (attr.mode, attr.mtime) == (0o400, TIME // SECOND)
    assert not meta.holds_attrs(ino)

    hasty = await made.client(hold_attrs=0.001)
    other = await young(hasty, b"g")
    hasty.hold_attrs(SUPERUSER, other, AttrChange(mode=0o440))
    for _ in range(4000):
        if not hasty.holds_attrs(other):
            break
        await asyncio.sleep(0.005)
    assert (await stored(hasty, other)).mode == 0o440


@pytest.mark.parametrize("how", ["release", "chmod", "truncate", "open", "list", "close"])
async def test_nobody_here_sees_older_attributes(made: Volume, how: str) -> None:
    meta = await made.client(hold_attrs=60.0)
    ino = await young(meta)
    meta.hold_attrs(SUPERUSER, ino, AttrChange(uid=9, mtime=TIME))
    if how == "release":
        await meta.release(ino)
    elif how == "chmod":
        await meta.setattr(SUPERUSER, ino, AttrChange(mode=0o444))
    elif how == "truncate":
        assert (await meta.truncate(SUPERUSER, ino, 10, opened=True)).mtime != TIME // SECOND
    elif how == "open":
        assert (await meta.open(SUPERUSER, ino, os.O_RDONLY)).uid == 9
    elif how == "list":
        found = [
            attr
            for page in [p async for p in meta.list_directory(SUPERUSER, 1, plus=True)]
            for attr in page.attrs or ()
        ]
        assert [attr.uid for attr in found if attr is not None] == [9]
    else:
        await meta.close_session()
    assert (await stored(meta, ino)).uid == 9


async def test_what_another_client_changed_meanwhile_stays(made: Volume) -> None:
    meta, other = await made.client(hold_attrs=60.0), await made.client()
    ino = await young(meta)
    meta.hold_attrs(SUPERUSER, ino, AttrChange(mode=0o644, uid=5, mtime=TIME))
    await other.setattr(SUPERUSER, ino, AttrChange(mode=0o700, mtime=TIME + SECOND))
    await meta.settle_attrs(ino)
    attr = await stored(meta, ino)
    assert (attr.mode, attr.uid, attr.mtime) == (0o700, 5, TIME // SECOND + 1)


async def test_nothing_is_held_while_a_commit_is_under_way(made: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """A successor could not tell whether the record is what it was, or what that commit made of it."""
    meta = await made.client(hold_attrs=60.0)
    ino = await young(meta)
    id = await meta.new_slice_id()
    began, go_on, run = asyncio.Event(), asyncio.Event(), meta.store.run

    async def slow(*what: Any, **more: Any) -> Any:
        began.set()
        await go_on.wait()
        return await run(*what, **more)

    with monkeypatch.context() as patch:
        patch.setattr(meta.store, "run", slow)
        commits = asyncio.create_task(meta.commit_slice(ino, 0, 0, Slice(0, id, 100, 0, 100), meta._clock()))
        await began.wait()
        assert meta.hold_attrs(SUPERUSER, ino, AttrChange(mtime=TIME)) is None
    go_on.set()
    await commits
    assert meta.hold_attrs(SUPERUSER, ino, AttrChange(mtime=TIME)) is not None


@pytest.mark.parametrize("known", [True, False], ids=["committed", "outcome-unknown"])
async def test_a_successor_does_not_move_a_time_that_was_set(made: Volume, tmp_path: Path, known: bool) -> None:
    """The first piece was committed with the time, and the process ended; the second was written before the time was set, too."""
    path = tmp_path / "attributes"
    meta, successor = await made.client(hold_attrs=60.0), await made.client(hold_attrs=60.0)
    meta.keep_attrs(SetAttributes(str(path)))
    ino = await young(meta)
    assert meta.hold_attrs(SUPERUSER, ino, AttrChange(mtime=TIME, mode=0o640)) is not None
    before = path.read_bytes()
    await commit(meta, ino)
    if not known:
        path.write_bytes(before)
    successor.keep_attrs(SetAttributes(str(path)))
    assert successor.holds_mtime(ino)
    assert (await successor.getattr(ino)).mtime == TIME // SECOND
    await commit(successor, ino, pos=100)
    attr = await stored(successor, ino)
    assert (attr.mtime, attr.mtimensec, attr.mode) == (TIME // SECOND, 5, 0o640)
    assert successor.hold_attrs(SUPERUSER, ino, AttrChange(mode=0o600)) is None
    await successor.setattr(SUPERUSER, ino, AttrChange(mode=0o600))
    assert (await stored(meta, ino)).mode == 0o600
    assert SetAttributes(str(path)).left() == []


async def test_a_file_that_another_client_removed_holds_nothing(made: Volume) -> None:
    meta, other = await made.client(hold_attrs=60.0), await made.client()
    ino = await young(meta)
    meta.hold_attrs(SUPERUSER, ino, AttrChange(mode=0o644))
    await other.unlink(SUPERUSER, 1, b"f", skip_trash=True)
    await meta.settle_attrs(ino)
    assert not meta.holds_attrs(ino)
    assert meta.hold_attrs(SUPERUSER, ino, AttrChange(mode=0o600)) is None


async def test_only_young_open_files_are_held_and_rights_are_checked(made: Volume) -> None:
    meta = await made.client(hold_attrs=60.0)
    ino = await young(meta)
    stranger = Caller(1000, 1000, os.getpid())
    with pytest.raises(FsError) as refused:
        meta.hold_attrs(stranger, ino, AttrChange(mode=0o666))
    assert refused.value.errno == errno.EPERM
    await meta.release(ino)
    assert meta.hold_attrs(SUPERUSER, ino, AttrChange(mode=0o644)) is None
    never = await made.client(hold_attrs=0.0)
    assert never.hold_attrs(SUPERUSER, await young(never, b"g"), AttrChange(mode=0o644)) is None


def test_merge_takes_fields_one_by_one() -> None:
    base = Attr(0, 0x1180, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1)
    want = base._replace(kind_mode=0x11A4, gid=2, mtime=9, atime=7)
    foreign = base._replace(gid=3, mtime=4)
    merged = merged_onto(foreign, foreign._replace(length=5), base, want, mtime=True)
    assert (merged.kind_mode, merged.uid, merged.gid, merged.mtime, merged.atime, merged.length) == (
        0x11A4,
        1,
        3,
        4,
        7,
        5,
    )
    assert merged_onto(base, base, base, want, mtime=False).mtime == 1
