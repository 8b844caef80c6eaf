"""A connection to Redis that breaks at every packet of an operation, before the server has it or before its answer arrives: the operation
is done once, and says so. Where the outcome cannot be found out it says EIO, never a success that was none."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import pytest
from crash_rig import KillableRedis
from fault_proxy import Direction, FaultProxy
from jfs.check import check
from jfs.errors import FsError, StoreUnavailable
from jfs.format.constants import FILE, ROOT
from jfs.format.setting import new_setting
from jfs.format.slices import Slice, unpack
from jfs.meta.engines.redis.store import RedisStore
from jfs.meta.engines.redis.url import parse_address
from jfs.meta.model.keys import ChunkKey, EdgeKey, NodeKey
from jfs.meta.model.locks import WRITE, FlockKey, PlockKey, Range
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume import NOREPLACE, SUPERUSER, AttrChange, Meta, MetaOptions, format_volume
from meta_volumes import UUID, entries, new_file

pytestmark = pytest.mark.real
NO_CACHES = MetaOptions(attr_timeout=0, entry_timeout=0, dir_entry_timeout=0, skip_dir_mtime=0)

Act = Callable[[Meta, int], Awaitable[object]]
Look = Callable[[Store, int], Awaitable[bool]]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KillableRedis]:
    server = KillableRedis(tmp_path_factory.mktemp("redis"), "--appendonly", "no")
    yield server
    server.kill()


@pytest.fixture
def proxy(redis: KillableRedis) -> Iterator[FaultProxy]:
    with FaultProxy(redis.port) as proxy:
        yield proxy


async def opened(port: int, *, scripts: bool = True, options: str = "", user: str = "") -> RedisStore:
    store = RedisStore(parse_address(f"redis://{user}127.0.0.1:{port}/1{options}"), use_scripts=scripts)
    await store.open()
    return store


# Each operation on a volume with the file `f` (its inode is given) and the directory `d`; and whether it was done exactly once.


async def commit(meta: Meta, ino: int) -> None:
    id = await meta.new_slice_id()
    await meta.commit_slice(ino, 0, 0, Slice(0, id, 5000, 0, 5000), 10**18)


async def has_one_slice(store: Store, ino: int) -> bool:
    raw, attr = await store.get(ChunkKey(ino, 0), NodeKey(ino))
    return bool(len(unpack(raw)) == 1 and attr.length == 5000)


async def names(store: Store) -> set[bytes]:
    return set(await entries(store, ROOT))


async def is_linked_twice(store: Store, ino: int) -> bool:
    (attr,) = await store.get(NodeKey(ino))
    return attr.nlink == 2 and await names(store) == {b"f", b"g", b"d"}


async def is_removed(store: Store, ino: int) -> bool:
    return (await store.get(NodeKey(ino)))[0] is None and await names(store) == {b"d"}


async def has_mode(store: Store, ino: int) -> bool:
    (attr,) = await store.get(NodeKey(ino))
    return bool(attr.mode == 0o600)


async def has_value(store: Store, ino: int) -> bool:
    async def read(tx: Tx) -> list[bytes]:
        return list(await tx.xattr_names(ino))

    return await store.run(read) == [b"user.k"]


def made(name: bytes) -> Look:
    async def look(store: Store, ino: int) -> bool:
        (edge,) = await store.get(EdgeKey(ROOT, name))
        return edge is not None and (await store.get(NodeKey(edge.ino)))[0] is not None

    return look


def moved(name: bytes) -> Look:
    async def look(store: Store, ino: int) -> bool:
        (edge,) = await store.get(EdgeKey(ROOT, name))
        return edge is not None and edge.ino == ino and b"f" not in await names(store)

    return look


async def has_flock(store: Store, ino: int) -> bool:
    (locks,) = await store.get(FlockKey(ino))
    return len(locks) == 1


async def has_plock(store: Store, ino: int) -> bool:
    (locks,) = await store.get(PlockKey(ino))
    return len(locks) == 1


OPERATIONS: dict[str, tuple[Act, Look]] = {
    "create": (lambda meta, ino: meta.create(SUPERUSER, ROOT, b"new", 0o644, os.O_RDWR | os.O_EXCL), made(b"new")),
    "mknod": (lambda meta, ino: meta.mknod(SUPERUSER, ROOT, b"new", FILE, 0o644), made(b"new")),
    "mkdir": (lambda meta, ino: meta.mkdir(SUPERUSER, ROOT, b"new", 0o755), made(b"new")),
    "symlink": (lambda meta, ino: meta.symlink(SUPERUSER, ROOT, b"new", b"f"), made(b"new")),
    "link": (lambda meta, ino: meta.link(SUPERUSER, ino, ROOT, b"g"), is_linked_twice),
    "unlink": (lambda meta, ino: meta.unlink(SUPERUSER, ROOT, b"f"), is_removed),
    "rename": (lambda meta, ino: meta.rename(SUPERUSER, ROOT, b"f", ROOT, b"g", NOREPLACE), moved(b"g")),
    "setattr": (lambda meta, ino: meta.setattr(SUPERUSER, ino, AttrChange(mode=0o600)), has_mode),
    "setxattr": (lambda meta, ino: meta.setxattr(SUPERUSER, ino, b"user.k", b"v", 1), has_value),
    "commit": (commit, has_one_slice),
    "flock": (lambda meta, ino: meta.locks.flock(ino, 7, WRITE, wait=False), has_flock),
    "setlk": (lambda meta, ino: meta.locks.setlk(ino, 7, Range(WRITE, 0, 10, 1), wait=False), has_plock),
}


async def new_volume(store: Store) -> None:
    await store.reset()
    setting = new_setting("demo", UUID, trash_days=0, bucket="/var/jfs/")
    await format_volume(store, setting, force=False, no_update=False, now=10**18)


async def keep_objects(id: int, size: int) -> None:
    return


@pytest.mark.parametrize("scripts", [True, False], ids=["script", "watch"])
@pytest.mark.parametrize("name", OPERATIONS)
async def test_once_whatever_packet_is_lost(redis: KillableRedis, proxy: FaultProxy, name: str, scripts: bool) -> None:
    act, look = OPERATIONS[name]
    direct = await opened(redis.port)
    hits: dict[Direction, int] = {"request": 0, "answer": 0}
    try:
        for direction in hits:
            for packet in range(12):
                await new_volume(direct)
                meta = await Meta.load(
                    await opened(proxy.port, scripts=scripts), NO_CACHES, delete_objects=keep_objects
                )
                try:
                    await meta.start_session()
                    ino = await new_file(meta, b"f")
                    await meta.mkdir(SUPERUSER, ROOT, b"d", 0o755)
                    proxy.plan(direction, "packets", packet, "reset" if packet % 2 else "close")
                    await act(meta, ino)
                    hit = proxy.hit.is_set()
                    proxy.no_plan()
                    assert await look(direct, ino), f"{direction} {packet}"
                finally:
                    proxy.no_plan()
                    await meta.close()
                assert not await check(direct), f"{direction} {packet}"
                if not hit:
                    break
                hits[direction] += 1
    finally:
        await direct.close()
    assert all(hits.values()), hits


async def test_a_server_that_does_it_late(redis: KillableRedis, proxy: FaultProxy) -> None:
    """The client gives a stopped server up; when that goes on it finds the request in its buffers. It is done once or not at all."""
    direct = await opened(redis.port)
    await new_volume(direct)
    meta = await Meta.load(
        await opened(proxy.port, options="?read-timeout=300ms"), NO_CACHES, delete_objects=keep_objects
    )
    try:
        await meta.start_session()
        ino = await new_file(meta, b"f")
        os.kill(redis.process.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(1.0, os.kill, redis.process.pid, signal.SIGCONT)
        await commit(meta, ino)
        assert await has_one_slice(direct, ino)
    finally:
        os.kill(redis.process.pid, signal.SIGCONT)
        await meta.close()
        assert not await check(direct)
        await direct.close()


async def test_without_the_right_to_end_a_connection_the_outcome_is_unknown(
    redis: KillableRedis, proxy: FaultProxy
) -> None:
    redis.ask("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*", "+@all", "-client|kill")
    direct = await opened(redis.port)
    await new_volume(direct)
    meta = await Meta.load(await opened(proxy.port, user="limited:x@"), NO_CACHES, delete_objects=keep_objects)
    try:
        await meta.start_session()
        await meta.mkdir(SUPERUSER, ROOT, b"a", 0o755)
        proxy.plan("answer", "packets", 1, "reset")  # after that to reading whether the name is free
        with pytest.raises(StoreUnavailable, match="unknown"):
            await meta.mkdir(SUPERUSER, ROOT, b"b", 0o755)
        with suppress(FsError):  # EEXIST: it was made
            await meta.mkdir(SUPERUSER, ROOT, b"b", 0o755)
        assert {b"a", b"b"} <= await names(direct)
    finally:
        await meta.close()
        assert not await check(direct)
        await direct.close()


async def test_another_clients_change_makes_the_outcome_unknown_or_right(
    redis: KillableRedis, proxy: FaultProxy
) -> None:
    """Another client removes what was just made, before its maker can look: it must not be made again."""
    direct = await opened(redis.port)
    await new_volume(direct)
    other = await Meta.load(await opened(redis.port), NO_CACHES, delete_objects=keep_objects)
    meta = await Meta.load(await opened(proxy.port), NO_CACHES, delete_objects=keep_objects)
    try:
        await meta.start_session()
        await other.start_session()
        await new_file(meta, b"first")
        proxy.plan("answer", "packets", 1, "reset")
        proxy.refuse()
        making = asyncio.create_task(meta.mknod(SUPERUSER, ROOT, b"new", FILE, 0o644))
        async with asyncio.timeout(20):
            present = await names(direct)
            while b"new" not in present:
                present = await names(direct)
        await other.unlink(SUPERUSER, ROOT, b"new")
        proxy.accept()
        with suppress(StoreUnavailable):
            await making
        assert await names(direct) == {b"first"}
    finally:
        proxy.accept()
        await meta.close()
        await other.close()
        assert not await check(direct)
        await direct.close()
