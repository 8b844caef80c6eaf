"""A client that was cut off for so long that others took it for dead, and comes back; clocks that jump (format §7.1)."""

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jfs.format.slices import Slice
from jfs.meta.model.keys import NodeKey, SessionKey
from jfs.meta.model.locks import UNLOCK, WRITE, Range
from jfs.meta.volume import SUPERUSER, Meta
from meta_volumes import Volume, audit, errno_of, new_file, volume, write
from store_engines import ALL

OWNER = 5


@pytest.fixture(params=ALL)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume(request.param, tmp_path) as made:
        yield made


async def sids(meta: Meta) -> list[int]:
    return sorted([sid async for sid, _ in meta.store.sessions()])


async def test_a_client_that_was_taken_for_dead_comes_back(made: Volume) -> None:
    cut_off, other = await made.client(), await made.client()
    unnamed, _, _ = await cut_off.create(SUPERUSER, 1, b"unnamed", 0o644, os.O_RDWR)
    await write(cut_off, unnamed, 0, 100)
    await cut_off.unlink(SUPERUSER, 1, b"unnamed")
    named, _, _ = await cut_off.create(SUPERUSER, 1, b"named", 0o644, os.O_RDWR)
    await cut_off.locks.flock(named, OWNER, WRITE, wait=False)
    await cut_off.locks.setlk(named, OWNER, Range(WRITE, 1, 0, 9), wait=False)
    made.clock.advance(310)
    await made.beat(other)
    assert await sids(other) == [other.sid]
    # The other client has taken over what the dead one left.
    await other.locks.flock(named, OWNER, WRITE, wait=False)
    await cut_off.heartbeat()
    assert await sids(other) == sorted((cut_off.sid, other.sid))
    # A file without a name is gone for good: nobody can write to it, and nothing comes back by trying.
    id = await cut_off.new_slice_id()
    assert await errno_of(cut_off.commit_slice(unnamed, 0, 0, Slice(0, id, 10, 0, 10), made.clock())) == errno.ENOENT
    assert await errno_of(cut_off.getattr(unnamed)) == errno.ENOENT
    await cut_off.release(unnamed)
    # Named files go on; the lock is the other's now.
    await write(cut_off, named, 0, 50)
    assert await errno_of(cut_off.locks.flock(named, OWNER + 1, WRITE, wait=False)) == errno.EAGAIN
    await cut_off.locks.setlk(named, OWNER, Range(UNLOCK, 1, 0, 9), wait=False)
    await cut_off.locks.release(named, OWNER)
    await other.locks.release(named, OWNER)
    await cut_off.locks.flock(named, OWNER + 1, WRITE, wait=False)
    # A file that loses its name now is kept for the session that is back.
    await cut_off.unlink(SUPERUSER, 1, b"named")
    await other.heartbeat()
    assert (await other.store.get(NodeKey(named)))[0] is not None
    await cut_off.locks.release(named, OWNER + 1)
    await cut_off.release(named)
    await cut_off._deletion.drain(20)
    await other._deletion.drain(20)
    await audit(other.store)


@pytest.mark.parametrize("ahead", [3600.0, -3600.0, 400 * 86400.0])
async def test_clocks_that_differ(made: Volume, ahead: float) -> None:
    """Whoever beats is alive, whatever its clock says: it keeps its locks and files without a name."""
    here, other = await made.client(), await made.client(ahead=ahead)
    unnamed = []
    for number, meta in enumerate((here, other)):
        ino, _, _ = await meta.create(SUPERUSER, 1, b"f%d" % number, 0o644, os.O_RDWR)
        await meta.unlink(SUPERUSER, 1, b"f%d" % number)
        await meta.locks.flock(ino, OWNER, WRITE, wait=False)
        unnamed.append(ino)
    await made.beat(here, other, beats=20)
    assert await sids(here) == sorted((here.sid, other.sid))
    for meta, ino in zip((other, here), unnamed, strict=True):
        assert await errno_of(meta.locks.flock(ino, OWNER + 1, WRITE, wait=False)) == errno.EAGAIN
        await meta.getattr(ino)
    await here.locks.release(unnamed[0], OWNER)
    await here.release(unnamed[0])
    # A dead client is found; one whose clock was ahead is believed for that much longer: its record may mean that.
    assert other._life is not None
    await other._life.stop()
    await made.beat(here, beats=20)
    assert (await sids(here) == [here.sid]) == (ahead < 0)
    made.clock.advance(max(ahead, 0))
    await made.beat(here)
    assert await sids(here) == [here.sid]
    await here._deletion.drain(20)
    await audit(here.store)


async def test_a_clock_that_was_far_ahead_does_not_stop_the_jobs(made: Volume) -> None:
    here, ahead = await made.client(), await made.client(ahead=400 * 86400.0)
    await ahead.heartbeat()
    await ahead.close()
    dead = await made.client()
    assert dead._life is not None
    await dead._life.stop()
    made.clock.advance(100)
    await made.beat(here)
    assert await sids(here) == [here.sid]


async def test_a_clock_that_jumps_back(made: Volume) -> None:
    meta = await made.client()
    ino = await new_file(meta, b"f")
    await write(meta, ino, 0, 100)
    made.clock.advance(-100_000)
    await meta.heartbeat()
    (session,) = await meta.store.get(SessionKey(meta.sid))
    assert session is not None
    await write(meta, ino, 100, 100)
    attr = await meta.getattr(ino)
    assert attr.length == 200
    assert attr.mtime <= made.clock() // 10**9
    await meta.unlink(SUPERUSER, 1, b"f")
    await meta._deletion.drain(20)
    assert len(made.deleted) == 2
    await audit(meta.store)
