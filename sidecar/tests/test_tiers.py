"""Tiers of files that exist: objects first, then the attributes; what is written meanwhile; what is gone; the S3 requests; the command,
beside the real client's on the same volume."""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from jfs.check import check
from jfs.cli.main import main
from jfs.errors import FsError, ObjectNotFound, ObjectUnavailable, VolumeError
from jfs.format.constants import CHUNK, ROOT
from jfs.format.slices import Slice
from jfs.meta.connect import connect
from jfs.meta.model.keys import ChunkKey, NodeKey
from jfs.meta.volume import SUPERUSER, Meta, MetaOptions
from jfs.object.memory import MemoryStorage
from jfs.vfs.tiers import Tiers
from meta_volumes import Volume, volume
from mount_parts import JFS, REAL, mounted, really_mounted, run
from mount_parts import Volume as Formatted
from seaweed_server import ACCESS_KEY, SECRET_KEY, SeaweedServer
from test_object_s3 import serving


class Classes(MemoryStorage):
    """Notes the tier of every object asked for; `before` may do something else first."""

    def __init__(self) -> None:
        super().__init__()
        self.tiers: dict[str, int] = {}
        self.thawed: dict[str, int] = {}
        self.gone: set[str] = set()
        self.before: Any = None

    async def change_tier(self, key: str, tier: int) -> None:
        if self.before is not None:
            await self.before(key)
        if key in self.gone:
            raise ObjectNotFound(key)
        self.tiers[key] = tier

    async def thaw(self, key: str, days: int) -> None:
        self.thawed[key] = days


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[tuple[Volume, Meta, Classes, Tiers]]:
    async with volume("memory", tmp_path) as one:
        meta = await one.client()
        storage = Classes()
        await meta.store.allot("nextChunk", 10)
        yield one, meta, storage, Tiers(meta.store, storage, meta.setting)
        assert await check(meta.store) == []


async def file(meta: Meta, parent: int, name: bytes, *slices: tuple[int, int]) -> int:
    """A file with slices (id, size) one behind the other."""
    ino, _, _ = await meta.create(SUPERUSER, parent, name, 0o644, 0)
    at = 0
    for id, size in slices:
        await meta.commit_slice(ino, at // CHUNK, at % CHUNK, Slice(at % CHUNK, id, size, 0, size), time.time_ns())
        at += size
    await meta.release(ino)
    return ino


async def tier_of(meta: Meta, ino: int) -> int:
    (attr,) = await meta.store.get(NodeKey(ino))
    return attr.tier


async def test_a_file_has_its_tier_when_its_objects_have_it(made: tuple[Volume, Meta, Classes, Tiers]) -> None:
    _, meta, storage, tiers = made
    ino = await file(meta, ROOT, b"f", (1, 5 << 20), (2, 10))

    async def before(key: str) -> None:
        assert await tier_of(meta, ino) == 0
        if key.endswith("/2_0_10"):
            raise ObjectUnavailable("away")

    storage.before = before
    with pytest.raises(ObjectUnavailable):
        await tiers.change(ino, 2, recursive=False, force=False)
    assert await tier_of(meta, ino) == 0
    storage.before = None
    await tiers.change(ino, 2, recursive=False, force=False)
    assert await tier_of(meta, ino) == 2
    assert storage.tiers == {
        "chunks/0/0/1_0_4194304": 2,
        "chunks/0/0/1_1_1048576": 2,
        "chunks/0/0/2_0_10": 2,
    }
    storage.tiers.clear()
    await tiers.change(ino, 2, recursive=False, force=False)
    assert not storage.tiers
    await tiers.change(ino, 2, recursive=False, force=True)
    assert len(storage.tiers) == 3


async def test_what_is_written_or_compacted_meanwhile(made: tuple[Volume, Meta, Classes, Tiers]) -> None:
    _, meta, storage, tiers = made
    ino = await file(meta, ROOT, b"f", (1, 10), (2, 10))
    written: list[int] = []

    async def before(key: str) -> None:
        if not written:
            written.append(3)
            await meta.commit_slice(ino, 0, 0, Slice(0, 3, 20, 0, 20), time.time_ns())
            storage.gone.add("chunks/0/0/1_0_10")

    storage.before = before
    with pytest.raises(VolumeError, match="no object chunks/0/0/1_0_10"):  # the records still name it
        await tiers.change(ino, 1, recursive=False, force=False)
    assert storage.tiers["chunks/0/0/3_0_20"] == 1
    assert await tier_of(meta, ino) == 0
    storage.gone.clear()
    await tiers.change(ino, 1, recursive=False, force=False)
    assert await tier_of(meta, ino) == 1


async def test_trees(made: tuple[Volume, Meta, Classes, Tiers]) -> None:
    _, meta, storage, tiers = made
    d, _ = await meta.mkdir(SUPERUSER, ROOT, b"d", 0o755)
    e, _ = await meta.mkdir(SUPERUSER, d, b"e", 0o755)
    f = await file(meta, e, b"f", (1, 10))
    link, _ = await meta.symlink(SUPERUSER, d, b"l", b"e/f")
    await tiers.change(d, 1, recursive=False, force=False)
    assert [await tier_of(meta, ino) for ino in (d, e, f, link)] == [1, 0, 0, 0]
    before = (await meta.store.get(NodeKey(f)))[0]
    await tiers.change(d, 1, recursive=True, force=False)
    assert [await tier_of(meta, ino) for ino in (d, e, f, link)] == [1, 1, 1, 0]
    after = (await meta.store.get(NodeKey(f)))[0]
    assert (after.ctime, after.ctimensec) > (before.ctime, before.ctimensec)
    assert after._replace(ctime=0, ctimensec=0, tier=0) == before._replace(ctime=0, ctimensec=0)
    assert storage.tiers == {"chunks/0/0/1_0_10": 1}
    await tiers.thaw(d, 5)
    assert storage.thawed == {"chunks/0/0/1_0_10": 5}
    (ino, _) = await meta.lookup(SUPERUSER, d, b"l")
    with pytest.raises(FsError):
        await tiers.change(ino, 1, recursive=False, force=False)


async def test_only_the_blocks_that_a_file_uses(made: tuple[Volume, Meta, Classes, Tiers]) -> None:
    """A slice may be shared with other files, of which each has a part."""
    _, meta, storage, tiers = made
    source = await file(meta, ROOT, b"source", (1, 9 << 20))
    target = await file(meta, ROOT, b"target")
    await meta.copy_range(source, 5 << 20, target, 0, 1 << 20)
    assert (await meta.store.get(ChunkKey(target, 0)))[0]
    await tiers.change(target, 3, recursive=False, force=False)
    assert storage.tiers == {"chunks/0/0/1_1_4194304": 3}


async def test_a_copy_onto_itself_keeps_content_and_metadata() -> None:
    seen: list[Any] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append((request.method, request.path_qs, request.headers.copy(), await request.read()))
        if request.method == "HEAD":
            return web.Response(headers={"x-amz-meta-crc32c": "77", "Content-Type": "application/octet-stream"})
        if "fails" in request.path and request.method == "PUT":
            return web.Response(body=b"<Error><Code>InternalError</Code></Error>")  # after its 200 was sent
        if "warm" in request.path:
            return web.Response(status=403, body=b"<Error><Code>InvalidObjectState</Code></Error>")
        return web.Response(status=202 if request.method == "POST" else 200)

    async with serving(handler, storage_class="GLACIER") as storage:
        await storage.change_tier("a b", 0)
        await storage.thaw("a b", 4)
        await storage.thaw("warm", 4)
        with pytest.raises(ObjectUnavailable, match="InternalError"):
            await storage.change_tier("fails", 0)
    (_, put, thaw, *_) = seen
    assert put[:2] == ("PUT", "/b/a%20b")
    assert put[2]["x-amz-copy-source"] == "/b/a%20b"
    assert put[2]["x-amz-storage-class"] == "GLACIER"
    assert put[2]["x-amz-meta-crc32c"] == "77"
    assert put[2]["x-amz-metadata-directive"] == "REPLACE"
    assert thaw[0] == "POST"
    assert thaw[1].startswith("/b/a%20b?restore")
    assert thaw[3] == b"<RestoreRequest><Days>4</Days></RestoreRequest>"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "U", "/f"], "needs --tier"),
        (["set", "U", "--tier", "4", "/f"], "tiers 0 to 3"),
        (["set", "U", "--tier", "1"], "META-URL and PATH"),
        (["set", "U", "--tier", "1", "/f"], "no tier 1"),
        (["set", "U", "--tier", "0", "/g"], "no file or directory /g"),
        (["set", "U", "--tier", "0", "/f", "-r"], "no directory"),
        (["restore", "U", "/f", "--tier", "1"], "belongs to tier set"),
        (["restore", "U", "/f"], "without archives"),
        (["list", "U", "/f"], "one META-URL"),
    ],
)
def test_words_that_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"sqlite3://{tmp_path}/meta.db"
    assert main(["format", url, "demo", "--storage", "file", "--bucket", f"{tmp_path}/objects"]) == 0
    asyncio.run(_one_file(url))
    capsys.readouterr()
    assert main(["tier", *(url if word == "U" else word for word in words)]) == 1
    assert said in capsys.readouterr().err


async def _one_file(url: str) -> None:
    async def delete(slice_id: int, size: int) -> None:
        raise AssertionError

    meta = await Meta.load(await connect(url), MetaOptions(no_bgjob=True), delete_objects=delete)
    await file(meta, ROOT, b"f", (1, 10))
    await meta.close()


def classes(bucket: str) -> dict[str, tuple[Any, Any]]:
    """Storage class and checksum of each object below a prefix."""

    async def listed() -> dict[str, tuple[Any, Any]]:
        import aiobotocore.session

        server, _, name = bucket.rpartition("/")
        session: Any = aiobotocore.session.get_session()
        async with session.create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=server,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        ) as client:
            found = {}
            for one in (await client.list_objects_v2(Bucket=name)).get("Contents", ()):
                if "/chunks/" in one["Key"]:
                    head = await client.head_object(Bucket=name, Key=one["Key"])
                    found[one["Key"]] = (head.get("StorageClass"), {k.lower(): v for k, v in head["Metadata"].items()})
            return found

    return asyncio.run(listed())


def tree(where: Path) -> None:
    (where / "d" / "e").mkdir(parents=True)
    (where / "d" / "f").write_bytes(b"f" * (5 << 20))
    (where / "d" / "e" / "g").write_bytes(b"g")
    os.link(where / "d" / "f", where / "hard")
    os.symlink("f", where / "d" / "l")
    (where / "z").write_bytes(b"z")


@pytest.mark.real
@pytest.mark.timeout(120)
def test_both_clients_leave_the_same_records(tmp_path: Path) -> None:
    left = {}
    for name, client in (("real", [REAL]), ("ours", list(JFS))):
        url = f"sqlite3://{tmp_path}/{name}.db"
        made = Formatted(url, tmp_path / f"{name}-objects").format()
        for tier, kind in (("1", "STANDARD_IA"), ("2", "ONEZONE_IA")):
            run(REAL, "config", url, "--tier", tier, "--storage-class", kind, "--yes")
        run(REAL, "config", url, "--changelog", "--yes")
        with mounted(made, tmp_path / name) as where:
            tree(where)
            run(*client, "tier", "set", url, "--tier", "1", "/d", "-r")
            run(*client, "tier", "set", url, "--tier", "2", "/d/e/g")
            run(*client, "tier", "set", url, "--tier", "2", "/z")
            run(*client, "tier", "set", url, "--tier", "0", "/z")
        with closing(sqlite3.connect(f"{tmp_path}/{name}.db")) as database:
            tiers = database.execute("SELECT inode, type, tier_id FROM jfs_node ORDER BY inode").fetchall()
            entries = database.execute(
                "SELECT entry FROM jfs_change_log WHERE entry LIKE '%SETATTR(_,1024,%'"
            ).fetchall()
        left[name] = (tiers, sorted(entry.partition("|")[2].split(",")[:7] for (entry,) in entries))
        run(REAL, "fsck", url)
        run(*JFS, "fsck", url)
    assert left["ours"] == left["real"]
    assert {tier for _, _, tier in left["ours"][0]} == {0, 1, 2}


@pytest.mark.real
@pytest.mark.timeout(120)
def test_objects_of_a_server(seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes, contents and checksums after a change and back; the real client goes on with both."""
    monkeypatch.setenv("ACCESS_KEY", ACCESS_KEY)
    monkeypatch.setenv("SECRET_KEY", SECRET_KEY)
    url, bucket = f"sqlite3://{tmp_path}/meta.db", f"{seaweed.endpoint}/tiers"
    run(REAL, "format", "--storage", "s3", "--bucket", bucket, url, "tiers")
    run(REAL, "config", url, "--tier", "1", "--storage-class", "STANDARD_IA", "--yes")
    with mounted(Formatted(url, tmp_path / "unused"), tmp_path / "mnt") as where:
        tree(where)
        before = classes(bucket)
        run(*JFS, "tier", "set", url, "--tier", "1", "/d", "-r")
        after = classes(bucket)
        run(*JFS, "tier", "set", url, "--tier", "0", "/d/e/g", "-f")
        back = classes(bucket)
    assert len(before) == 4
    assert {key: checksum for key, (_, checksum) in before.items()} == {
        key: checksum for key, (_, checksum) in after.items()
    }
    assert [kind for kind, _ in after.values()].count("STANDARD_IA") == 3
    assert [kind for kind, _ in back.values()].count("STANDARD_IA") == 2
    with really_mounted(Formatted(url, tmp_path / "unused"), tmp_path / "mnt") as where:
        assert (where / "d" / "e" / "g").read_bytes() == b"g"
        assert (where / "hard").read_bytes() == b"f" * (5 << 20)
    run(*JFS, "fsck", url, "--content")
