"""Volumes that the real client wrote: every record decodes to what a real mount showed, and is written back byte by byte."""

import base64
import json
import os
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import store_engines as engines
from database_servers import etcd_dump, etcd_load, new_name, server, sql_server
from jfs.format.constants import CHUNK, DIRECTORY, ROOT, TRASH
from jfs.format.slices import unpack
from jfs.meta.connect import connect
from jfs.meta.engines.redis.connection import Command
from jfs.meta.engines.redis.link import Link
from jfs.meta.engines.redis.url import parse_address
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import (
    ChunkKey,
    CounterKey,
    DelayedKey,
    DeletedFileKey,
    DirStat,
    DirStatKey,
    EdgeKey,
    Key,
    NodeKey,
    ParentKey,
    SessionKey,
    SettingKey,
    SliceRefKey,
    SustainedKey,
    SymlinkKey,
    XattrKey,
)
from jfs.meta.store.base import Store, Tx

SQLITE = ["sqlite-plain", "sqlite-zstd", "sqlite-live", "sqlite-aes", "sqlite-acl-quota"]
REDIS = [
    "redis-plain",
    "redis-trash-lz4",
    "redis-hash",
    "redis-live",
    "redis-acl",
    "redis-tier",
    "redis-clone",
    "redis-upgraded",
]
SERVERS = ["postgres-plain", "mysql-plain"]
ETCD = ["etcd-plain"]
VOLUMES = [*SQLITE, *(pytest.param(name, marks=pytest.mark.real) for name in (*REDIS, *SERVERS, *ETCD))]
TYPES = {"dir": "d", "file": "-", "symlink": "l", "fifo": "p", "block": "b", "char": "c", "socket": "s"}


@asynccontextmanager
async def opened(volume: str, folder: Path) -> AsyncIterator[str]:
    """The address of a copy of a golden volume."""
    source = engines.golden() / volume
    async with AsyncExitStack() as stack:
        if volume.startswith("sqlite"):
            shutil.copyfile(source / "meta.db", folder / "meta.db")
            yield f"sqlite3://{folder}/meta.db"
        elif volume in ETCD:
            pairs = [json.loads(line) for line in (source / "etcd.jsonl").read_text().splitlines()]
            etcd_load([(base64.b64decode(p["key"]), base64.b64decode(p["value"])) for p in pairs])
            yield server("etcd").url(volume)
        elif volume in SERVERS:
            databases = sql_server(volume.partition("-")[0])
            name = new_name()
            address = databases.url(name)
            databases.run((source / f"{databases.engine}.sql").read_text(), name)
            yield address
        else:
            shutil.copyfile(source / "dump.rdb", folder / "dump.rdb")
            options = ("--dir", str(folder), "--dbfilename", "dump.rdb")
            yield f"unix://{await stack.enter_async_context(engines.redis_server(*options))}"


async def walk(store: Store, root: int) -> dict[bytes, tuple[int, Attr | None]]:
    """Paths below *root* with inode and attributes."""
    found: dict[bytes, tuple[int, Attr | None]] = {}
    todo = [(b"", root)]
    while todo:
        path, ino = todo.pop()
        async for page in store.list_directory(ino, plus=True):
            assert page.attrs is not None
            for name, entry, attr in zip(page.names, page.entries, page.attrs, strict=True):
                found[path + name] = entry.ino, attr
                assert await store.lookup(ino, name) == (entry, attr)
                if entry.kind == DIRECTORY:
                    todo.append((path + name + b"/", entry.ino))
    return found


def assert_shown(attr: Attr, entry: dict[str, Any]) -> None:
    """The attributes are what lstat showed."""
    shown = {
        "type": {letter: name for name, letter in TYPES.items()}[stat.filemode(attr.st_mode)[0].replace("?", "-")],
        "mode": f"{attr.mode:04o}",
        "uid": attr.uid,
        "gid": attr.gid,
        "size": attr.length,
        "nlink": attr.nlink,
        "atime_ns": attr.atime * 10**9 + attr.atimensec,
        "mtime_ns": attr.mtime * 10**9 + attr.mtimensec,
        "ctime_ns": attr.ctime * 10**9 + attr.ctimensec,
    }
    if "rdev" in entry:
        shown["rdev"] = [os.major(attr.rdev), os.minor(attr.rdev)]
    assert {name: entry[name] for name in shown} == shown, entry["path"]


@pytest.mark.parametrize("volume", VOLUMES)
async def test_the_tree_decodes(volume: str, tmp_path: Path) -> None:
    expected = json.loads((engines.golden() / volume / "expected.json").read_text())
    async with opened(volume, tmp_path) as url:
        store = await connect(url)
        try:
            (root,) = await store.get(NodeKey(ROOT))
            assert_shown(root, next(entry for entry in expected["entries"] if entry["path"] == "."))
            for top, entries in ((ROOT, expected["entries"]), (TRASH, expected.get("trash", []))):
                found = await walk(store, top)
                listed = {
                    base64.b64decode(entry["path_b64"]) if "path_b64" in entry else os.fsencode(entry["path"]): entry
                    for entry in entries
                    if entry["path"] != "."
                }
                assert found.keys() == listed.keys()
                for path, entry in listed.items():
                    ino, attr = found[path]
                    assert ino == entry["ino"]
                    assert attr is not None
                    assert_shown(attr, entry)
                    await assert_details(store, ino, attr, entry)
        finally:
            await store.close()


async def assert_details(store: Store, ino: int, attr: Attr, entry: dict[str, Any]) -> None:
    """Targets, extended attributes and slices."""
    if entry["type"] == "symlink":
        target = base64.b64decode(entry["target_b64"]) if "target_b64" in entry else os.fsencode(entry["target"])
        assert await store.get(SymlinkKey(ino)) == (target,)
    wanted = {
        name.encode(): base64.b64decode(value)
        for name, value in entry.get("xattrs", {}).items()
        if not name.startswith("system.posix_acl")
    }
    names = await store.run(lambda tx: tx.xattr_names(ino))
    unreadable = {name.encode() for name in entry.get("xattr_errors", {})}  # by the real client: empty ones on etcd
    assert set(names) - unreadable == wanted.keys()
    for name, value in wanted.items():
        assert await store.get(XattrKey(ino, name)) == (value,)
    if entry["type"] == "file":
        indexes = await store.chunk_indexes(ino)
        for indx in indexes:
            (records,) = await store.get(ChunkKey(ino, indx))
            assert all(piece.pos + piece.len <= CHUNK for piece in unpack(records))
        below = [indx for indx in indexes if indx * CHUNK < attr.length]
        assert await store.chunk_indexes(ino, attr.length) == (below if store.name == "redis" else indexes)


async def all_keys(store: Store) -> list[Key[Any]]:
    """Keys of every record that can be listed."""
    keys: list[Key[Any]] = [SettingKey()]
    keys += [
        CounterKey(name)
        for name in (
            "nextInode",
            "nextChunk",
            "nextSession",
            "nextTrash",
            "usedSpace",
            "totalInodes",
            "lastCleanupFiles",
        )
    ]
    inodes = [ino async for ino, _ in store.nodes()]
    for ino in inodes:
        keys += [NodeKey(ino), SymlinkKey(ino), DirStatKey(ino)]

        async def wide(tx: Tx, ino: int = ino) -> list[Key[Any]]:
            names, parents = await tx.xattr_names(ino), await tx.parents(ino)
            return [*(XattrKey(ino, name) for name in names), *(ParentKey(ino, parent) for parent in parents)]

        keys += await store.run(wide)
        async for page in store.list_directory(ino, plus=False):
            keys += [EdgeKey(ino, name) for name in page.names]
    async for ino, indx, records in store.chunks():
        keys.append(ChunkKey(ino, indx))
        keys += {SliceRefKey(piece.id, piece.size) for piece in unpack(records) if piece.id}
    async for sid, _ in store.sessions():
        keys.append(SessionKey(sid))
        keys += [SustainedKey(sid, ino) async for ino in store.sustained(sid)]
    keys += [DeletedFileKey(ino, length) async for ino, length, _ in store.deleted_files()]
    keys += [DelayedKey(slice_id, time) async for slice_id, time, _ in store.delayed_slices()]
    return keys


async def redis_content(url: str) -> dict[bytes, Any]:
    """Every key's value as Redis shows it; explicit zeros among the slice references mean the same as none."""
    link = Link(parse_address(url))
    readers: dict[bytes, tuple[bytes, ...]] = {
        b"string": (b"GET",),
        b"hash": (b"HGETALL",),
        b"list": (b"LRANGE", b"0", b"-1"),
        b"set": (b"SMEMBERS",),
        b"zset": (b"ZRANGE", b"0", b"-1", b"WITHSCORES"),
    }
    content: dict[bytes, Any] = {}
    try:
        (names,) = await link.read([(b"KEYS", b"*")])
        for name in names:
            (kind,) = await link.read([(b"TYPE", name)])
            command, *rest = readers[kind if isinstance(kind, bytes) else str(kind).encode()]
            read: Command = (command, name, *rest)
            (value,) = await link.read([read])
            if command == b"HGETALL":
                value = dict(zip(value[::2], value[1::2], strict=True))
                if name == b"sliceRef":
                    value = {field: count for field, count in value.items() if count != b"0"}
            content[name] = sorted(value) if command == b"SMEMBERS" else value
    finally:
        await link.close()
    return {name: value for name, value in content.items() if value}


def sqlite_content(path: Path) -> dict[str, Any]:
    """Every row, slices and names as bytes."""
    connection = sqlite3.connect(path)
    connection.text_factory = bytes
    try:
        # sqlite_sequence counts the insertions that were tried
        tables = [
            name.decode()
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
            if name != b"sqlite_sequence"
        ]
        return {name: sorted(connection.execute(f"SELECT * FROM `{name}`").fetchall(), key=repr) for name in tables}
    finally:
        connection.close()


def server_content(url: str) -> dict[str, str]:
    """The rows of every table as the server's own tool shows them."""
    databases = sql_server(url.partition(":")[0])
    database = url.partition("?")[0].rpartition("/")[2]
    schema = "current_schema()" if databases.engine == "postgres" else "database()"
    names = databases.run(
        f"SELECT table_name FROM information_schema.tables WHERE table_schema={schema}", database
    ).split()
    return {name: "".join(sorted(databases.run(f"SELECT * FROM {name}", database).splitlines(True))) for name in names}


@pytest.mark.parametrize("volume", VOLUMES)
async def test_what_was_read_is_written_back_as_it_was(volume: str, tmp_path: Path) -> None:
    async with opened(volume, tmp_path) as url:

        async def content() -> dict[Any, Any]:
            if volume.startswith("sqlite"):
                return sqlite_content(tmp_path / "meta.db")
            if volume in ETCD:
                return {key: value for key, value in etcd_dump() if key.startswith(b"/etcd-plain")}
            if volume in SERVERS:
                return server_content(url)
            return await redis_content(url)

        before = await content()
        store = await connect(url)
        try:
            keys = await all_keys(store)
            assert len(keys) > 10
            records = await store.get(*keys)

            for start in range(0, len(keys), 100):

                async def rewrite(tx: Tx, start: int = start) -> None:
                    for key, record in list(zip(keys, records, strict=True))[start : start + 100]:
                        if record is not None:
                            tx.put(key, record)

                await store.run(rewrite)
            after = await content()
            assert after.keys() == before.keys()
            for name, value in before.items():
                assert after[name] == value, name

            for start in range(0, len(keys), 100):

                async def add_nothing(tx: Tx, start: int = start) -> None:
                    for key, record in list(zip(keys, records, strict=True))[start : start + 100]:
                        if isinstance(key, CounterKey | SliceRefKey | ParentKey) and record is not None:
                            tx.add(key, 5)
                            tx.add(key, -5)
                        elif isinstance(key, DirStatKey):
                            tx.add_stat(key, DirStat(0, 0, 0))

                await store.run(add_nothing)
            assert await store.get(*keys) == records
        finally:
            await store.close()
