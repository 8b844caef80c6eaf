"""A commit to Redis whose answer is lost while the server stands still, or does not let us end the connection (see also
`test_lost_answers`)."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from crash_rig import KillableRedis
from fault_proxy import FaultProxy
from jfs.check import check
from jfs.errors import FsError, StoreUnavailable
from jfs.format.constants import ROOT
from jfs.meta.volume import SUPERUSER
from lost_answers import Place, commit, has_one_slice, names
from meta_volumes import new_file

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableRedis]:
    server = KillableRedis(tmp_path_factory.mktemp("redis"), "--appendonly", "no")
    yield server
    server.kill()


@pytest.fixture
def place(redis: KillableRedis) -> Place:
    return Place("redis", f"{redis.url}/1", redis.port)


@pytest.fixture
def proxy(redis: KillableRedis) -> Iterator[FaultProxy]:
    with FaultProxy(redis.port) as proxy:
        yield proxy


async def test_a_server_that_does_it_late(redis: KillableRedis, place: Place, proxy: FaultProxy) -> None:
    """The client gives a stopped server up; when that goes on it finds the request in its buffers. It is done once or not at all."""
    direct = await place.volume()
    meta = await replace(place, url=f"{place.url}?read-timeout=300ms").client(proxy)
    try:
        ino = await new_file(meta, b"f")
        os.kill(redis.process.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(1.0, os.kill, redis.process.pid, signal.SIGCONT)
        await commit(meta, ROOT, ino)
        assert await has_one_slice(direct, ROOT, ino)
    finally:
        os.kill(redis.process.pid, signal.SIGCONT)
        await meta.close()
        damages = await check(direct)
        await direct.close()
    assert not damages


async def test_without_the_right_to_end_a_connection_the_outcome_is_unknown(
    redis: KillableRedis, place: Place, proxy: FaultProxy
) -> None:
    redis.ask("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all", "-client|kill")
    direct = await place.volume()
    meta = await replace(place, url=place.url.replace("//", "//limited:x@")).client(proxy)
    try:
        await meta.mkdir(SUPERUSER, ROOT, b"a", 0o755)
        proxy.plan("answer", "packets", 1, "reset")  # after that to reading whether the name is free
        with pytest.raises(StoreUnavailable, match="unknown"):
            await meta.mkdir(SUPERUSER, ROOT, b"b", 0o755)
        with suppress(FsError):  # EEXIST: it was made
            await meta.mkdir(SUPERUSER, ROOT, b"b", 0o755)
        assert {b"a", b"b"} <= await names(direct)
    finally:
        await meta.close()
        damages = await check(direct)
        await direct.close()
    assert not damages
