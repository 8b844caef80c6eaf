"""A connection to a database server that breaks or stalls at every packet of an operation, before the server has it or before its answer
arrives: the operation is done once, and says so. Where the outcome cannot be found out it says EIO, never a success that was none."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crash_rig import KillableRedis
from fault_proxy import Direction, FaultProxy, How
from jfs.check import check
from jfs.errors import StoreUnavailable
from jfs.format.constants import FILE, ROOT
from jfs.meta.model.keys import Key
from jfs.meta.model.locks import READ, UNLOCK, FlockKey, PlockKey, Range
from jfs.meta.volume import SUPERUSER, Meta
from lost_answers import OPERATIONS, Place, impatient, names, place_at_server
from meta_volumes import new_file
from redis_cluster import shared_cluster

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]
ENGINES = ["redis", "redis-watch", "redis-cluster", "postgres", "mysql", "etcd", "tikv"]
DIRECTIONS: tuple[Direction, ...] = ("request", "answer")
BREAKS: tuple[How, ...] = ("reset", "close", "half-close")
_MOST = 60  # packets of one operation
_ANSWER_WITHIN = 0.5  # seconds after which a client gives up


@pytest.fixture(params=ENGINES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "redis-cluster":
        cluster = shared_cluster()
        database = cluster.database_at(cluster.nodes[0])
        url = f"{cluster.url(database)}?read-timeout={int(_ANSWER_WITHIN * 1000)}ms"
        yield Place(request.param, url, cluster.nodes[0].port)
        return
    if not request.param.startswith("redis"):
        yield place_at_server(request.param)
        return
    redis = KillableRedis(tmp_path / "redis", "--appendonly", "no")
    try:
        url = f"{redis.url}/1?read-timeout={int(_ANSWER_WITHIN * 1000)}ms"
        yield Place(request.param, url, redis.port)
    finally:
        redis.kill()


@pytest.fixture
def proxy(place: Place) -> Iterator[FaultProxy]:
    with FaultProxy(place.port) as proxy:
        yield proxy


@pytest.mark.parametrize("name", OPERATIONS)
async def test_once_whatever_packet_is_lost(place: Place, proxy: FaultProxy, name: str) -> None:
    await once(place, proxy, name, BREAKS)


@pytest.mark.parametrize("name", ["create", "unlink", "commit"])
async def test_once_whatever_packet_stalls(
    place: Place, proxy: FaultProxy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gives up and finds out; what stalled arrives afterwards, and is done no more."""
    impatient(monkeypatch, _ANSWER_WITHIN)
    await once(place, proxy, name, ("stall",))


async def once(place: Place, proxy: FaultProxy, name: str, faults: tuple[How, ...]) -> None:
    act, look = OPERATIONS[name]
    direct = await place.volume()
    meta = await place.client(proxy)
    done = []
    try:
        for direction in DIRECTIONS:
            packet = 0
            for packet in range(_MOST):
                at, _ = await meta.mkdir(SUPERUSER, ROOT, f"{direction}{packet}".encode(), 0o755)
                ino = await new_file(meta, b"f", parent=at)
                await meta.mkdir(SUPERUSER, at, b"d", 0o755)
                proxy.plan(direction, "packets", packet, faults[packet % len(faults)])
                await act(meta, at, ino)
                hit = proxy.hit.is_set()
                proxy.no_plan()
                proxy.resume()
                assert await look(direct, at, ino), f"{direction} {packet}"
                done.append((at, ino, f"{direction} {packet}"))
                if not hit:
                    break
            assert 0 < packet < _MOST - 1, "the faults did not reach every packet"
        for at, ino, when in done:  # nor was it done again since, when what stalled went on
            assert await look(direct, at, ino), when
    finally:
        proxy.no_plan()
        proxy.resume()
        await meta.close()
        damages = await check(direct)
        await direct.close()
    assert not damages


@pytest.mark.parametrize("place", ["redis", "redis-watch"], indirect=True)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", ["flock", "fcntl"])
async def test_a_lock_whose_answer_is_lost_while_others_lock(
    place: Place, proxy: FaultProxy, kind: str, direction: Direction
) -> None:
    """Another client changes the record of locks before the outcome is looked for: what is the own owner's in it tells all the same."""
    direct = await place.volume()
    other = await place.client()
    meta = await place.client(proxy)
    key: Key[Any] = FlockKey(ROOT) if kind == "flock" else PlockKey(ROOT)

    async def lock(volume: Meta, how: int) -> None:
        if kind == "flock":
            await volume.locks.flock(ROOT, 7, how, wait=True)
        else:
            await volume.locks.setlk(ROOT, 7, Range(how, 1, 0, 10), wait=True)

    try:
        proxy.plan(direction, "packets", 1, "reset")  # after that to reading the locks
        proxy.refuse()
        taking = asyncio.create_task(lock(meta, READ))
        assert await asyncio.to_thread(proxy.hit.wait, 20)
        if direction == "answer":
            async with asyncio.timeout(20):
                (taken,) = await direct.get(key)
                while not taken:
                    (taken,) = await direct.get(key)
        await lock(other, READ)
        proxy.accept()
        await taking
        (held,) = await direct.get(key)
        assert len(held) == 2
        await lock(meta, UNLOCK)
        await lock(other, UNLOCK)
        assert not (await direct.get(key))[0]
    finally:
        proxy.accept()
        await meta.close()
        await other.close()
        damages = await check(direct)
        await direct.close()
    assert not damages


async def test_another_clients_change_makes_the_outcome_unknown_or_right(place: Place, proxy: FaultProxy) -> None:
    """Another client removes what was just made, before its maker can look: it must not be made again."""
    direct = await place.volume()
    other = await place.client()
    meta = await place.client(proxy)
    try:
        await new_file(meta, b"first")
        packet = 0
        for packet in range(_MOST):
            proxy.plan("answer", "packets", packet, "reset")
            making = asyncio.create_task(meta.mknod(SUPERUSER, ROOT, b"new", FILE, 0o644))
            hitting = asyncio.create_task(asyncio.to_thread(proxy.hit.wait))
            await asyncio.wait([making, hitting], return_when=asyncio.FIRST_COMPLETED)
            hit = proxy.hit.is_set()
            proxy.hit.set()
            await hitting
            if not hit:
                break
            proxy.refuse()
            made = b"new" in await names(direct)
            if made:
                await other.unlink(SUPERUSER, ROOT, b"new")
            proxy.accept()
            sure = False
            with suppress(StoreUnavailable):
                await making
                sure = True
            present = b"new" in await names(direct)
            assert not (made and present), "it was made twice"
            assert made or present or not sure, "it was not made"
            if present:
                await other.unlink(SUPERUSER, ROOT, b"new")
        assert 0 < packet < _MOST - 1
    finally:
        proxy.no_plan()
        proxy.accept()
        await meta.close()
        await other.close()
        damages = await check(direct)
        await direct.close()
    assert not damages
