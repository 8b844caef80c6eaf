"""Databases for the record store's tests: every engine by name, each opened by any number of clients at once.

`redis` commits by scripts, `redis-watch` as if the server did not allow them. Both need a redis-server on this machine; one
is started for each database, on a socket in a directory of its own. `valkey` is the same with Valkey's server; `redis-cluster` has a
number of its own in the Cluster of this test run.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from database_servers import KV, blank, kv_database
from jfs.meta.connect import connect
from jfs.meta.engines.kv.store import KvStore
from jfs.meta.engines.redis.store import RedisStore
from jfs.meta.engines.redis.url import parse_address
from jfs.meta.model.attr import Attr
from jfs.meta.store.base import Store
from redis_cluster import REDIS as REDIS_SERVER
from redis_cluster import valkey

FAST = ["memory", "sqlite3"]
REDIS = [pytest.param(name, marks=pytest.mark.real) for name in ("redis", "redis-watch", "redis-cluster", "valkey")]
SERVERS = [pytest.param(name, marks=pytest.mark.real) for name in ("postgres", "mysql", "etcd", "tikv")]
SQL = ("sqlite3", "postgres", "mysql")  # engines whose rows are counted otherwise (format §3.9, §3.12)
ALL = [*FAST, *REDIS, *SERVERS]

OpenClient = Callable[[], Awaitable[Store]]


def golden() -> Path:
    """The volumes written by the real client: JFS_GOLDEN, or the folder shared/golden beside the repository."""
    folder = Path(os.environ.get("JFS_GOLDEN") or Path(__file__).parents[3] / "shared" / "golden")
    assert (folder / "README.md").exists(), f"no golden volumes in {folder}; set JFS_GOLDEN to their folder"
    return folder


@asynccontextmanager
async def redis_server(*options: str, program: str = REDIS_SERVER) -> AsyncIterator[Path]:
    """A redis-server of this test's own; its Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="jfs-redis-"))  # a socket's path must be short
    socket = folder / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    server = await asyncio.create_subprocess_exec(
        *command, "--dir", str(folder), *options, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            while not await _accepts(socket):
                assert server.returncode is None, "redis-server did not start"
                await asyncio.sleep(0.01)
        yield socket
    finally:
        if server.returncode is None:
            server.kill()
        await server.wait()
        shutil.rmtree(folder)


async def _accepts(socket: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(socket)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


@asynccontextmanager
async def database(engine: str, folder: Path) -> AsyncIterator[OpenClient]:
    """A blank database of *engine*; call what is yielded once for each client. All clients are closed at the end."""
    async with AsyncExitStack() as stack:
        if engine == "memory":
            url = f"memory://{folder}"
        elif engine == "sqlite3":
            url = f"sqlite3://{folder}/meta.db"
        elif engine in ("postgres", "mysql", "redis-cluster", *KV):
            url = blank(engine)
        else:
            program = valkey() if engine == "valkey" else REDIS_SERVER
            url = f"unix://{await stack.enter_async_context(redis_server(program=program))}?db=1"

        async def open_client() -> Store:
            if engine == "redis-watch":
                redis = RedisStore(parse_address(url), use_scripts=False)
                await redis.open()
                store: Store = redis
            elif engine in KV:
                database = kv_database(url)
                await database.open()
                store = KvStore(database, usage_seconds=0)
            else:
                store = await connect(url)
            stack.push_async_callback(store.close)
            return store

        yield open_client


def directory(nlink: int = 2, parent: int = 1, mtime: int = 1_700_000_000) -> Attr:
    """Attributes of a directory."""
    return Attr(0, 0o42755 & 0xFFF | 2 << 12, 1, 2, mtime, 1, mtime, 2, mtime, 3, nlink, 4096, 0, parent)


def file(length: int = 0, nlink: int = 1, parent: int = 1) -> Attr:
    """Attributes of a regular file."""
    return Attr(0, 0o644 | 1 << 12, 1000, 2_000_000_000, -2, 999_999_999, 5, 6, 7, 8, nlink, length, 0, parent)
