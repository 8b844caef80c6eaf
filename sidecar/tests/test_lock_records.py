"""Lock records: the arithmetic of ranges, their form in every engine, tries and waits of several clients, dead sessions (format §3.4)."""

import asyncio
import errno
import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from jfs.errors import StoreUnavailable
from jfs.format.constants import ROOT
from jfs.meta.engines.redis.store import RedisStore
from jfs.meta.engines.sqlite.locks import LockRecords
from jfs.meta.model.locks import (
    END,
    READ,
    UNLOCK,
    WRITE,
    Flock,
    FlockKey,
    LockedKey,
    Plock,
    PlockKey,
    Range,
    pack_ranges,
    unpack_ranges,
    with_range,
)
from jfs.meta.store.base import Tx
from jfs.meta.volume import Meta
from jfs.meta.volume import locking as locking_module
from jfs.meta.volume.session import EXPIRE_BEATS
from meta_volumes import Volume, errno_of, volume
from store_engines import ALL

INO = ROOT  # it exists, as whatever is locked does: in SQL its row is what two tries at the same time meet at
BIG = 0xFEDC_BA98_7654_3210  # an owner whose highest bit is set
ONE, TWO, THREE = 0x1A2B, BIG, 3


@pytest.fixture(params=ALL)
async def made(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Volume]:
    async with volume(request.param, tmp_path) as made:
        yield made


def whole(kind: int, pid: int = 9) -> Range:
    return Range(kind, pid, 0, END)


def test_stored_form_of_ranges() -> None:
    raw = bytes.fromhex("00000001000004d200000000000000000000000000000009")
    assert unpack_ranges(raw) == [Range(WRITE, 1234, 0, 9)]
    assert pack_ranges([Range(READ, 5, 0, END)]).hex() == "000000000000000500000000000000007fffffffffffffff"


@pytest.mark.parametrize("seed", range(20))
def test_ranges_agree_with_a_lock_of_every_byte(seed: int) -> None:
    chance = random.Random(seed)
    ranges: list[Range] = []
    model: dict[int, tuple[int, int]] = {}
    for _ in range(60):
        start = chance.randrange(40)
        new = Range(chance.randrange(3), chance.randrange(1, 3), start, chance.randrange(start, 40))
        ranges = with_range(ranges, new)
        for byte in range(new.start, new.end + 1):
            model.pop(byte, None)
            if new.kind != UNLOCK:
                model[byte] = (new.kind, new.pid)
        shown = {byte: (r.kind, r.pid) for r in ranges for byte in range(r.start, r.end + 1)}
        assert shown == model
        assert ranges == sorted(ranges, key=lambda r: r.start)
        for left, right in itertools.pairwise(ranges):
            assert left.end < right.start
            assert left.end + 1 < right.start or left[:2] != right[:2], "neighbours that could be one"


async def test_records_are_stored_replaced_and_removed(made: Volume) -> None:
    store = await made.store()
    flocks = (Flock(1, 5, True), Flock(2, BIG, False))
    plocks = (Plock(1, BIG, pack_ranges([whole(READ)])), Plock(3, 4, pack_ranges([Range(WRITE, 1, 5, 6)])))
    steps: list[tuple[Any, Any]] = [(FlockKey(INO), flocks), (PlockKey(INO), plocks)]
    for key, locks in steps:
        for record in (locks, locks[:1], None, locks, locks[1:], None):

            async def operation(tx: Tx, key: Any = key, record: Any = record) -> None:
                await tx.get(key)
                if record is None:
                    tx.delete(key)
                else:
                    tx.put(key, record)
                assert await tx.get(key) == (record,)

            await store.run(operation)
            assert await store.get(key) == (record,)
            assert await store.run(lambda tx, key=key: tx.get(key)) == (record,)  # type: ignore[misc]


async def test_the_index_of_a_sessions_locks(made: Volume) -> None:
    meta = await made.client()
    mark, other = LockedKey(meta.sid, INO, False), LockedKey(meta.sid, INO, True)
    await meta.locks.flock(INO, ONE, READ, wait=False)
    assert await meta.store.get(mark, other) == (True, None)
    await meta.locks.flock(INO, TWO, READ, wait=False)
    await meta.locks.setlk(INO, ONE, whole(WRITE), wait=False)
    await meta.locks.flock(INO, ONE, UNLOCK, wait=False)
    assert await meta.store.get(mark, other) == (True, True)
    await meta.locks.flock(INO, TWO, UNLOCK, wait=False)
    await meta.locks.setlk(INO, ONE, whole(UNLOCK), wait=False)
    assert await meta.store.get(mark, other) == (None, None)
    assert await meta.store.get(FlockKey(INO), PlockKey(INO)) == (None, None)


async def test_flocks_of_two_clients(made: Volume) -> None:
    one, two = await made.client(), await made.client()
    await one.locks.flock(INO, ONE, READ, wait=False)
    await two.locks.flock(INO, ONE, READ, wait=False)  # owners are told apart by their sessions
    assert await errno_of(two.locks.flock(INO, TWO, WRITE, wait=False)) == errno.EAGAIN
    await one.locks.flock(INO, ONE, UNLOCK, wait=False)
    await two.locks.flock(INO, ONE, WRITE, wait=False)
    assert await errno_of(one.locks.flock(INO, ONE, READ, wait=False)) == errno.EAGAIN
    await two.locks.flock(INO, ONE, READ, wait=False)
    await one.locks.flock(INO, ONE, READ, wait=False)
    assert await one.store.get(FlockKey(INO)) == ((Flock(one.sid, ONE, False), Flock(two.sid, ONE, False)),)


async def test_a_flock_that_cannot_be_converted_is_lost(made: Volume) -> None:
    meta = await made.client()
    await meta.locks.flock(INO, ONE, READ, wait=False)
    await meta.locks.flock(INO, TWO, READ, wait=False)
    assert await errno_of(meta.locks.flock(INO, ONE, WRITE, wait=False)) == errno.EAGAIN
    assert not meta.locks.holds(INO, ONE)
    await meta.locks.flock(INO, TWO, WRITE, wait=False)


async def test_ranges_of_two_clients(made: Volume) -> None:
    one, two = await made.client(), await made.client()
    await one.locks.setlk(INO, ONE, Range(WRITE, 11, 0, 9), wait=False)
    await one.locks.setlk(INO, ONE, Range(READ, 11, 20, 29), wait=False)
    await two.locks.setlk(INO, ONE, Range(WRITE, 22, 10, 19), wait=False)
    await two.locks.setlk(INO, ONE, Range(READ, 22, 25, END), wait=False)
    assert await errno_of(two.locks.setlk(INO, ONE, Range(READ, 22, 9, 9), wait=False)) == errno.EAGAIN
    assert await errno_of(two.locks.setlk(INO, ONE, Range(WRITE, 22, 29, 40), wait=False)) == errno.EAGAIN
    assert await one.locks.getlk(INO, TWO, Range(READ, 1, 5, 50)) == Range(WRITE, 11, 0, 9)
    assert await two.locks.getlk(INO, ONE, Range(READ, 1, 5, 50)) == Range(WRITE, 0, 0, 9)  # its pid means nothing here
    assert await one.locks.getlk(INO, ONE, Range(READ, 1, 0, 9)) is None
    await one.locks.release_ranges(INO, ONE)
    assert await two.locks.getlk(INO, ONE, whole(WRITE)) is None
    await two.locks.setlk(INO, ONE, whole(WRITE), wait=False)
    assert await two.store.get(PlockKey(INO)) == ((Plock(two.sid, ONE, pack_ranges([whole(WRITE, 9)])),),)


async def waiting(meta: Meta, owner: int, wanted: Range) -> "asyncio.Task[Any]":
    """A task that waits for a lock, after its first try."""
    task = asyncio.create_task(meta.locks.setlk(INO, owner, wanted, wait=True))
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert not task.done()
    return task


async def test_a_waiter_gets_what_is_given_back_here(made: Volume) -> None:
    meta = await made.client()
    await meta.locks.setlk(INO, ONE, whole(WRITE), wait=False)
    task = await waiting(meta, TWO, Range(WRITE, 2, 5, 6))
    await meta.locks.release_ranges(INO, ONE)
    await task
    assert meta.locks.holds_ranges(INO, TWO)


async def test_a_waiter_gets_what_another_client_gives_back(made: Volume) -> None:
    one, two = await made.client(), await made.client()
    await one.locks.setlk(INO, ONE, whole(WRITE), wait=False)
    task = await waiting(two, ONE, whole(READ))
    await one.locks.release_ranges(INO, ONE)
    async with asyncio.timeout(10):
        await task


async def test_a_wait_ends_when_it_is_cancelled(made: Volume) -> None:
    meta = await made.client()
    await meta.locks.setlk(INO, ONE, whole(WRITE), wait=False)
    task = await waiting(meta, TWO, whole(WRITE))
    behind = await waiting(meta, THREE, whole(WRITE))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not meta.locks.holds(INO, TWO)
    await meta.locks.release_ranges(INO, ONE)
    await behind


async def test_many_waiters_take_turns_without_a_stampede(made: Volume) -> None:
    meta, count = await made.client(), 30
    tries = 0
    run = meta.store.run

    async def counted(operation: Any, *, near: Any = ()) -> Any:
        nonlocal tries
        tries += 1
        return await run(operation, near=near)

    meta.store.run = counted  # type: ignore[method-assign]
    inside = 0

    async def work(owner: int) -> None:
        nonlocal inside
        await meta.locks.flock(INO, owner, WRITE, wait=True)
        assert inside == 0
        inside += 1
        await asyncio.sleep(0)
        inside -= 1
        await meta.locks.flock(INO, owner, UNLOCK, wait=False)

    await asyncio.gather(*(work(owner) for owner in range(1, count + 1)))
    # A first try, a second one when it is its turn, an unlock, and a few that a slow machine takes for lost; a stampede has count * count.
    assert tries <= 8 * count
    assert await meta.store.get(FlockKey(INO)) == (None,)


async def test_clients_exclude_each_other(made: Volume) -> None:
    clients = [await made.client() for _ in range(3)]
    holder = 0

    async def work(meta: Meta, owner: int) -> None:
        nonlocal holder
        for turn in range(6):
            if turn % 2:
                await meta.locks.flock(INO, owner, WRITE, wait=True)
            else:
                await meta.locks.setlk(INO, owner, Range(WRITE, 1, 10, 20), wait=True)
                await meta.locks.flock(INO, owner, WRITE, wait=True)
            assert holder == 0
            holder = owner
            await asyncio.sleep(0.001)
            holder = 0
            await meta.locks.release(INO, owner)

    async with asyncio.timeout(25):
        await asyncio.gather(*(work(meta, 10 * n + o) for n, meta in enumerate(clients, 1) for o in (1, 2)))
    assert await clients[0].store.get(FlockKey(INO), PlockKey(INO)) == (None, None)


@pytest.mark.parametrize("shared", [True, False])
async def test_the_locks_of_a_dead_session_go(made: Volume, shared: bool) -> None:
    one, two = await made.client(), await made.client(heartbeat=60.0)
    kind = READ if shared else WRITE
    await one.locks.flock(INO, ONE, kind, wait=False)
    await one.locks.setlk(INO, ONE, whole(kind), wait=False)
    assert one._life is not None
    await one._life.stop()  # killed
    for _ in range(EXPIRE_BEATS + 1):
        made.clock.advance(100)
        await two.heartbeat()
    await two.locks.flock(INO, ONE, WRITE, wait=False)
    await two.locks.setlk(INO, ONE, whole(WRITE), wait=False)


async def test_a_session_that_ends_gives_its_locks_back(made: Volume) -> None:
    one, two = await made.client(), await made.client()
    await one.locks.flock(INO, ONE, READ, wait=False)
    await one.locks.setlk(INO, ONE, whole(WRITE), wait=False)
    await one.close_session()
    await two.locks.flock(INO, ONE, WRITE, wait=False)
    await two.locks.setlk(INO, ONE, whole(WRITE), wait=False)


async def test_a_lock_that_could_not_be_given_back_is_given_back_later(
    made: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking_module, "_FIRST_RETRY", 0.01)
    one, two = await made.client(), await made.client()
    await one.locks.flock(INO, ONE, WRITE, wait=False)
    run, answers = one.store.run, False

    async def sometimes(operation: Any, *, near: Any = ()) -> Any:
        if not answers:
            raise StoreUnavailable("the database does not answer")
        return await run(operation, near=near)

    monkeypatch.setattr(one.store, "run", sometimes)
    await one.locks.release(INO, ONE)
    assert await errno_of(two.locks.flock(INO, ONE, WRITE, wait=False)) == errno.EAGAIN
    answers = True
    async with asyncio.timeout(10):
        await two.locks.flock(INO, ONE, WRITE, wait=True)
        await two.locks.flock(INO, ONE, UNLOCK, wait=False)
        await one.locks.flock(INO, ONE, WRITE, wait=True)
    assert one.locks.holds(INO, ONE)


async def test_without_locks_nothing_is_asked(made: Volume) -> None:
    meta = await made.client()

    async def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the database was asked")

    meta.store.run = refuse  # type: ignore[method-assign]
    assert not meta.locks.holds(INO, ONE)
    await meta.locks.release(INO, ONE)
    await meta.locks.flock(INO, ONE, UNLOCK, wait=False)
    del meta.store.run


def test_owners_are_signed_in_sql() -> None:
    import sqlite3

    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE jfs_flock(inode, sid, owner, ltype)")
    records = LockRecords(connection, "jfs_")
    records.write_flocks(FlockKey(1), (Flock(2, BIG, True), Flock(3, 7, False)), None)
    assert connection.execute("SELECT * FROM jfs_flock ORDER BY sid").fetchall() == [
        (1, 2, BIG - (1 << 64), 87),
        (1, 3, 7, 82),
    ]
    connection.close()


@pytest.mark.real
async def test_an_uncontended_lock_takes_one_round_trip_on_redis(tmp_path: Path) -> None:
    async with volume("redis", tmp_path) as made:
        meta = await made.client()
        link = cast("RedisStore", meta.store)._link
        asked = 0
        read = link.read

        async def counted(commands: Any) -> Any:
            nonlocal asked
            asked += 1
            return await read(commands)

        link.read = counted  # type: ignore[method-assign]
        for owner, start in ((ONE, 0), (TWO, 100)):
            for turn in range(3):
                await meta.locks.setlk(INO, owner, Range(WRITE, 1, start + turn, start + turn), wait=False)
                await meta.locks.flock(INO, owner, READ, wait=False)
        for owner in (TWO, ONE):
            await meta.locks.release(INO, owner)
        assert asked == 2  # one look at each kind of lock; after that what was written is known
        assert await meta.store.get(FlockKey(INO), PlockKey(INO)) == (None, None)
