"""Volumes at database servers whose connections break: a place at a server of each engine, stores that go there straight or through
a proxy, and operations with a look at whether each was done exactly once."""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest
from database_servers import KV, blank, kv_database, server
from fault_proxy import FaultProxy
from jfs.format.constants import FILE, ROOT
from jfs.format.setting import new_setting
from jfs.format.slices import Slice, unpack
from jfs.meta.connect import connect
from jfs.meta.engines.kv.store import KvStore
from jfs.meta.engines.kv.tikv import TikvDatabase
from jfs.meta.engines.redis.store import RedisStore
from jfs.meta.engines.redis.url import parse_address
from jfs.meta.model.keys import ChunkKey, EdgeKey, NodeKey
from jfs.meta.model.locks import WRITE, FlockKey, PlockKey, Range
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume import NOREPLACE, SUPERUSER, AttrChange, Meta, MetaOptions, format_volume
from meta_volumes import UUID, entries

NO_CACHES = MetaOptions(attr_timeout=0, entry_timeout=0, dir_entry_timeout=0, skip_dir_mtime=0)

Act = Callable[[Meta, int, int], Awaitable[object]]
Look = Callable[[Store, int, int], Awaitable[bool]]


@dataclass(frozen=True)
class Place:
    """A volume's place at a server that listens on *port*."""

    engine: str
    url: str
    port: int

    async def store(self, proxy: FaultProxy | None = None) -> Store:
        """A store there; every connection of it goes through *proxy*."""
        url = self.url if proxy is None else self.url.replace(f":{self.port}", f":{proxy.port}")
        if self.engine.startswith("redis"):
            redis = RedisStore(
                parse_address(self.url if "cluster" in self.engine else url), use_scripts="watch" not in self.engine
            )
            if proxy is not None:
                _lead_owner_through(redis, self.port, proxy.port)
            await redis.open()
            return redis
        if self.engine not in KV:
            return await connect(url)
        database = kv_database(url)
        if proxy is not None and isinstance(database, TikvDatabase):
            _lead_all_through(database, proxy.port)
        await database.open()
        return KvStore(database, usage_seconds=0)

    async def volume(self) -> Store:
        """A new volume; a store that goes to it straight."""
        store = await self.store()
        await store.reset()
        setting = new_setting("demo", UUID, trash_days=0, bucket="/var/jfs/")
        await format_volume(store, setting, force=False, no_update=False, now=10**18)
        return store

    async def client(self, proxy: FaultProxy | None = None) -> Meta:
        """A mounted client."""
        meta = await Meta.load(await self.store(proxy), NO_CACHES, delete_objects=_keep_objects)
        await meta.start_session()
        return meta


def place_at_server(engine: str) -> Place:
    """A new one, for every engine but Redis."""
    return Place(engine, blank(engine), server(engine).port)


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have clients give up an answer after *seconds*. Redis is told in its address."""
    for module in ("sql.postgres", "sql.mysql"):
        monkeypatch.setattr(f"jfs.meta.engines.{module}._ANSWER_WITHIN", seconds)
    monkeypatch.setattr("jfs.meta.engines.kv.calls.ANSWER_WITHIN", seconds)
    for module in ("postgres", "mysql"):
        monkeypatch.setattr(f"jfs.meta.engines.sql.{module}._CONNECT_WITHIN", seconds)


def _lead_owner_through(store: RedisStore, port: int, proxy: int) -> None:
    """The nodes of a Cluster tell where the others are, past the proxy."""
    cluster = store._link._cluster
    if cluster is None:
        return
    owner = cluster.owner

    async def led() -> tuple[str, int]:
        host, at = await owner()
        return host, proxy if at == port else at

    cluster.owner = led  # type: ignore[method-assign]


def _lead_all_through(database: TikvDatabase, port: int) -> None:
    """TiKV's client asks where the stores are, and would go there past the proxy."""
    servers = database.placement._servers
    connection = servers.connection
    servers.connection = lambda server: connection(f"127.0.0.1:{port}")  # type: ignore[method-assign]


async def _keep_objects(id: int, size: int) -> None:
    return


# Each operation in a directory with the file `f` (its inode is given) and the directory `d`; and whether it was done exactly once.


async def commit(meta: Meta, parent: int, ino: int) -> None:
    id = await meta.new_slice_id()
    await meta.commit_slice(ino, 0, 0, Slice(0, id, 5000, 0, 5000), 10**18)


async def has_one_slice(store: Store, parent: int, ino: int) -> bool:
    raw, attr = await store.get(ChunkKey(ino, 0), NodeKey(ino))
    return bool(len(unpack(raw)) == 1 and attr.length == 5000)


async def names(store: Store, parent: int = ROOT) -> set[bytes]:
    return set(await entries(store, parent))


async def is_linked_twice(store: Store, parent: int, ino: int) -> bool:
    (attr,) = await store.get(NodeKey(ino))
    return attr.nlink == 2 and await names(store, parent) == {b"f", b"g", b"d"}


async def is_removed(store: Store, parent: int, ino: int) -> bool:
    return (await store.get(NodeKey(ino)))[0] is None and await names(store, parent) == {b"d"}


async def has_mode(store: Store, parent: int, ino: int) -> bool:
    (attr,) = await store.get(NodeKey(ino))
    return bool(attr.mode == 0o600)


async def has_value(store: Store, parent: int, ino: int) -> bool:
    async def read(tx: Tx) -> list[bytes]:
        return list(await tx.xattr_names(ino))

    return await store.run(read) == [b"user.k"]


def made(name: bytes) -> Look:
    async def look(store: Store, parent: int, ino: int) -> bool:
        (edge,) = await store.get(EdgeKey(parent, name))
        return edge is not None and (await store.get(NodeKey(edge.ino)))[0] is not None

    return look


def moved(name: bytes) -> Look:
    async def look(store: Store, parent: int, ino: int) -> bool:
        (edge,) = await store.get(EdgeKey(parent, name))
        return edge is not None and edge.ino == ino and b"f" not in await names(store, parent)

    return look


async def has_flock(store: Store, parent: int, ino: int) -> bool:
    (locks,) = await store.get(FlockKey(ino))
    return len(locks) == 1


async def has_plock(store: Store, parent: int, ino: int) -> bool:
    (locks,) = await store.get(PlockKey(ino))
    return len(locks) == 1


OPERATIONS: dict[str, tuple[Act, Look]] = {
    "create": (lambda meta, at, ino: meta.create(SUPERUSER, at, b"new", 0o644, os.O_RDWR | os.O_EXCL), made(b"new")),
    "mknod": (lambda meta, at, ino: meta.mknod(SUPERUSER, at, b"new", FILE, 0o644), made(b"new")),
    "mkdir": (lambda meta, at, ino: meta.mkdir(SUPERUSER, at, b"new", 0o755), made(b"new")),
    "symlink": (lambda meta, at, ino: meta.symlink(SUPERUSER, at, b"new", b"f"), made(b"new")),
    "link": (lambda meta, at, ino: meta.link(SUPERUSER, ino, at, b"g"), is_linked_twice),
    "unlink": (lambda meta, at, ino: meta.unlink(SUPERUSER, at, b"f"), is_removed),
    "rename": (lambda meta, at, ino: meta.rename(SUPERUSER, at, b"f", at, b"g", NOREPLACE), moved(b"g")),
    "setattr": (lambda meta, at, ino: meta.setattr(SUPERUSER, ino, AttrChange(mode=0o600)), has_mode),
    "setxattr": (lambda meta, at, ino: meta.setxattr(SUPERUSER, ino, b"user.k", b"v", 1), has_value),
    "commit": (commit, has_one_slice),
    "flock": (lambda meta, at, ino: meta.locks.flock(ino, 7, WRITE, wait=False), has_flock),
    "setlk": (lambda meta, at, ino: meta.locks.setlk(ino, 7, Range(WRITE, 1, 0, 10), wait=False), has_plock),
}
