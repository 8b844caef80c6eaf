"""How often an operation asks the database: round trips on Redis, statements on SQLite. The table in ARCHITECTURE.md says the same.

A mount asks that has just used the directory, and the names have been looked up, as the kernel does; caches of attributes and
entries are off, ids are at hand, the directory's mtime is young, and the volume keeps a trash.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from jfs.errors import FsError
from jfs.format.slices import Slice
from jfs.meta.engines.kv.calls import Servers, Stream
from jfs.meta.engines.kv.store import KvStore
from jfs.meta.engines.redis.connection import Connection
from jfs.meta.engines.sql.mysql import MysqlLink
from jfs.meta.engines.sql.postgres import PostgresLink
from jfs.meta.engines.sqlite.store import SqliteStore
from jfs.meta.model.locks import UNLOCK, WRITE, Range
from jfs.meta.operations.attributes import AttrChange
from jfs.meta.volume import SUPERUSER, Meta
from meta_volumes import START, volume

# On Redis with scripts, on Redis without, statements on SQLite; on PostgreSQL and MySQL, etcd, TiKV (timestamps included).
TRIPS = {
    "lookup": (1, 2, 1, 1, 2, 2),
    "lookup of a missing name": (1, 1, 1, 1, 1, 1),
    "getattr": (1, 1, 1, 1, 1, 1),
    "create": (1, 2, 8, 1, 1, 5),
    "mkdir": (1, 2, 10, 1, 1, 5),
    "open": (1, 1, 2, 1, 1, 1),
    "setattr": (1, 2, 4, 1, 1, 5),
    "setattr of a young file": (0, 0, 0, 0, 0, 0),
    "write commit": (1, 2, 7, 1, 2, 6),
    "write commit with attributes held back": (1, 2, 7, 1, 2, 6),
    "truncate": (1, 2, 6, 1, 2, 6),
    "rename": (1, 3, 11, 1, 1, 5),
    "unlink into the trash": (1, 2, 9, 1, 1, 5),
    "unlink for good": (1, 2, 11, 1, 2, 8),
    "rmdir": (1, 3, 12, 2, 2, 8),
    "page of a listing with attributes": (2, 2, 1, 1, 2, 3),
    "setxattr": (2, 2, 6, 2, 2, 5),
    "getxattr": (1, 1, 1, 1, 1, 1),
    "lock": (1, 3, 6, 3, 3, 6),
    "unlock": (1, 2, 4, 2, 2, 5),
}
ENGINES = [
    pytest.param("redis", marks=pytest.mark.real),
    pytest.param("redis-watch", marks=pytest.mark.real),
    pytest.param("sqlite3"),
    *(pytest.param(name, marks=pytest.mark.real) for name in ("postgres", "mysql", "etcd", "tikv")),
]
COLUMN = {"redis": 0, "redis-watch": 1, "sqlite3": 2, "postgres": 3, "mysql": 3, "etcd": 4, "tikv": 5}
# What stands for one question to the database.
QUESTIONS: list[tuple[type, tuple[str, ...]]] = [
    (PostgresLink, ("_ask", "_run")),
    (MysqlLink, ("_texts",)),
    (Servers, ("ask",)),
    (Stream, ("ask",)),
]


class Counted:
    """How often the database was asked since `begin`."""

    def __init__(self) -> None:
        self.count = 0

    def one(self, *_: Any) -> None:
        self.count += 1

    def calls_of(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call of which counts."""

        def counting(*args: Any, **more: Any) -> Any:
            self.one()
            return original(*args, **more)

        return counting


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counter = Counted()
    request = Connection.request

    def counting(self: Connection, packet: bytes, count: int) -> Any:
        counter.one()
        return request(self, packet, count)

    monkeypatch.setattr(Connection, "request", counting)
    for kind, names in QUESTIONS:
        for name in names:
            monkeypatch.setattr(kind, name, counter.calls_of(getattr(kind, name)))
    return counter


@pytest.fixture(params=ENGINES)
async def mounted(
    request: pytest.FixtureRequest, tmp_path: Path, counted: Counted
) -> AsyncIterator[tuple[str, Meta, Counted]]:
    async with volume(request.param, tmp_path, trash_days=1) as made:
        meta = await made.client(hold_attrs=60.0, skip_dir_mtime=3600.0)
        if isinstance(meta.store, SqliteStore):
            meta.store._database.connection.set_trace_callback(counted.one)
        if isinstance(meta.store, KvStore):
            meta.store._usage._seconds = 3600.0  # usage goes in a transaction of its own, once a second
        yield request.param, meta, counted


async def trips(meta: Meta, counted: Counted) -> dict[str, int]:
    """What each operation costs."""
    folder, _ = await meta.mkdir(SUPERUSER, 1, b"folder", 0o755)
    other, _ = await meta.mkdir(SUPERUSER, folder, b"other", 0o755)
    file, _, _ = await meta.create(SUPERUSER, folder, b"file", 0o644, os.O_RDWR)
    for name in (b"old", b"older", b"oldest"):
        await meta.release((await meta.create(SUPERUSER, folder, name, 0o644, os.O_RDWR))[0])
    await meta.setxattr(SUPERUSER, file, b"user.a", b"1")
    await meta.unlink(SUPERUSER, folder, b"oldest")  # makes the trash's hour
    for kind in (WRITE, UNLOCK):
        await meta.locks.setlk(file, 1, Range(kind, 1, 0, 9), wait=False)
    id = await meta.new_slice_id()
    found: dict[str, int] = {}

    async def count(what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        before = counted.count
        result = await call()
        found[what] = counted.count - before
        return result

    async def missing(parent: int, name: bytes) -> None:
        with pytest.raises(FsError):
            await meta.lookup(SUPERUSER, parent, name)

    async def page() -> None:
        async for _ in meta.store.list_directory(folder, plus=True):
            pass

    await count("lookup", lambda: meta.lookup(SUPERUSER, folder, b"file"))
    await count("lookup of a missing name", lambda: missing(folder, b"new"))
    await count("getattr", lambda: meta.getattr(file))
    young, _, _ = await count("create", lambda: meta.create(SUPERUSER, folder, b"new", 0o600, os.O_RDWR | os.O_EXCL))
    await missing(folder, b"newer")  # the kernel looks names up first
    await count("mkdir", lambda: meta.mkdir(SUPERUSER, folder, b"newer", 0o755))
    await count("open", lambda: meta.open(SUPERUSER, file, os.O_RDONLY))
    await count("setattr", lambda: meta.setattr(SUPERUSER, file, AttrChange(mode=0o600)))

    async def hold() -> None:
        assert meta.hold_attrs(SUPERUSER, young, AttrChange(mode=0o644, mtime=START)) is not None

    await count("setattr of a young file", hold)
    await count(
        "write commit with attributes held back", lambda: meta.commit_slice(young, 0, 0, Slice(0, id, 9, 0, 9), START)
    )
    await count("write commit", lambda: meta.commit_slice(file, 0, 0, Slice(0, id + 1, 9, 0, 9), START))
    await count("truncate", lambda: meta.truncate(SUPERUSER, file, 5, opened=True))
    await missing(other, b"moved")
    await count("rename", lambda: meta.rename(SUPERUSER, folder, b"new", other, b"moved"))
    await count("unlink into the trash", lambda: meta.unlink(SUPERUSER, folder, b"old"))
    await count("unlink for good", lambda: meta.unlink(SUPERUSER, folder, b"older", skip_trash=True))
    while True:  # its chunks go in the background
        if not [queued async for queued in meta.store.deleted_files()]:
            break
        await asyncio.sleep(0.01)
    await count("rmdir", lambda: meta.rmdir(SUPERUSER, folder, b"newer"))
    await count("page of a listing with attributes", page)
    await count("setxattr", lambda: meta.setxattr(SUPERUSER, file, b"user.b", b"1"))
    await count("getxattr", lambda: meta.getxattr(file, b"user.a"))
    await count("lock", lambda: meta.locks.setlk(file, 1, Range(WRITE, 1, 0, 9), wait=False))
    await count("unlock", lambda: meta.locks.setlk(file, 1, Range(UNLOCK, 1, 0, 9), wait=False))
    return found


async def test_no_operation_asks_more_often_than_it_must(mounted: tuple[str, Meta, Counted]) -> None:
    engine, meta, counted = mounted
    assert await trips(meta, counted) == {what: numbers[COLUMN[engine]] for what, numbers in TRIPS.items()}


def test_the_architecture_says_so() -> None:
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| ([a-z ]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert {what: tuple(map(int, numbers)) for what, *numbers in rows} == TRIPS
