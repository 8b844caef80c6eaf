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
    await other.heartbeat()
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


async def test_a_clock_that_jumps_ahead_takes_others_for_dead_until_they_beat(made: Volume) -> None:
    """As with the real client: sessions are believed by the clock of who looks."""
    here, ahead = await made.client(), await made.client()
    made.clock.advance(3600)
    await ahead.heartbeat()
    assert await sids(ahead) == [ahead.sid]
    made.clock.advance(-3600)
    await here.heartbeat()
    assert await sids(ahead) == sorted((here.sid, ahead.sid))
    ino = await new_file(here, b"f")
    await write(here, ino, 0, 100)
    await audit(here.store)


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
