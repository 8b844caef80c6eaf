"""One contract for all object storages: memory, a directory, and a real S3 server (SeaweedFS)."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from jfs.errors import ObjectNotFound
from jfs.object.base import ObjectStorage
from jfs.object.connect import for_volume, open_storage
from jfs.object.encrypted import EncryptedStorage
from jfs.object.encryption import load
from jfs.object.selftest import probe
from rsa_keys import pem

MIB = 1 << 20


@pytest.fixture(
    params=["mem", "file", "encrypted", *(pytest.param(n, marks=pytest.mark.real) for n in ("s3", "encrypted s3"))]
)
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStorage]:
    name = f"vol-{uuid.uuid4().hex[:8]}"
    cipher = load(pem(), "aes256gcm-rsa", "", name) if "encrypted" in request.param else None
    if "s3" in request.param:
        from seaweed_server import ACCESS_KEY, SECRET_KEY

        server = request.getfixturevalue("seaweed")
        opened = open_storage("s3", server.bucket_url, access_key=ACCESS_KEY, secret_key=SECRET_KEY)
    else:
        opened = open_storage("mem" if cipher else request.param, str(tmp_path / "bucket"))
    volume = for_volume(EncryptedStorage(opened, cipher) if cipher else opened, name)
    await volume.create_bucket()
    yield volume
    await volume.close()


async def keys(storage: ObjectStorage, prefix: str = "", after: str = "") -> list[str]:
    return [info.key async for info in storage.list(prefix, after)]


@pytest.mark.parametrize("size", [0, 1, 5000, 100_000, 4 * MIB + 7])
async def test_what_was_put_is_got(storage: ObjectStorage, size: int) -> None:
    data = os.urandom(size)
    await storage.put("chunks/0/0/1_0_5", memoryview(data))
    assert bytes(await storage.get("chunks/0/0/1_0_5")) == data
    info = await storage.head("chunks/0/0/1_0_5")
    assert (info.key, info.size) == ("chunks/0/0/1_0_5", size)
    assert info.mtime > 1_600_000_000


async def test_put_takes_every_kind_of_buffer(storage: ObjectStorage) -> None:
    whole = bytearray(b"0123456789")
    for number, data in enumerate((b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4])):
        await storage.put(f"kind{number}", data)
        assert bytes(await storage.get(f"kind{number}")) == b"abc"
    await storage.put("part", memoryview(whole)[2:6])
    whole[2:6] = b"----"
    assert bytes(await storage.get("part")) == b"2345"


async def test_put_replaces(storage: ObjectStorage) -> None:
    await storage.put("object", b"a long first content")
    await storage.put("object", b"second")
    assert bytes(await storage.get("object")) == b"second"


async def test_ranges(storage: ObjectStorage) -> None:
    data = os.urandom(2 * MIB)
    await storage.put("object", data)
    for offset, size in (
        (0, 10),
        (5, 10),
        (MIB, MIB),
        (MIB, 2 * MIB),
        (len(data) - 1, 100),
        (100, -1),
        (0, -1),
        (7, 0),
    ):
        wanted = data[offset:] if size < 0 else data[offset : offset + size]
        assert bytes(await storage.get("object", offset, size)) == wanted
    assert bytes(await storage.get("object", len(data), 10)) == b""


async def test_missing_objects(storage: ObjectStorage) -> None:
    for key in ("missing", "deep/er/missing"):
        with pytest.raises(ObjectNotFound, match=r"missing"):
            await storage.get(key)
        with pytest.raises(ObjectNotFound):
            await storage.get(key, 3, 5)
        with pytest.raises(ObjectNotFound):
            await storage.head(key)
        await storage.delete(key)


async def test_prefix_of_a_key_is_no_object(storage: ObjectStorage) -> None:
    await storage.put("a/b/c", b"x")
    with pytest.raises(ObjectNotFound):
        await storage.get("a/b")


async def test_delete(storage: ObjectStorage) -> None:
    await storage.put("a/one", b"1")
    await storage.put("a/two", b"2")
    await storage.delete("a/one")
    await storage.delete("a/one")
    with pytest.raises(ObjectNotFound):
        await storage.get("a/one")
    assert await keys(storage) == ["a/two"]


async def test_listing_is_in_byte_order_by_prefix_and_after(storage: ObjectStorage) -> None:
    names = [
        "chunks/0/1/10_0_5",
        "chunks/0/1/9_0_5",
        "chunks/00",
        "chunks/ü",
        "juicefs_uuid",
        "meta/dump",
    ]
    for name in names:
        await storage.put(name, name.encode())
    ordered = sorted(names, key=str.encode)
    assert await keys(storage) == ordered
    assert await keys(storage, "chunks/") == [name for name in ordered if name.startswith("chunks/")]
    assert await keys(storage, "chunks/0/1/1") == ["chunks/0/1/10_0_5"]
    assert await keys(storage, "nothing") == []
    for after in (*ordered, "chunks/0/1/99", "a", "z"):
        assert await keys(storage, "", after) == [name for name in ordered if name.encode() > after.encode()]
    assert [info.size async for info in storage.list()] == [len(name.encode()) for name in ordered]


async def test_directory_is_sorted_by_whole_keys(tmp_path: Path) -> None:
    """A directory `0` comes after a file `0-0`, since its keys go on with a slash."""
    storage = open_storage("file", str(tmp_path))
    for name in ("0/1", "0-0", "00", "0/.hidden"):
        await storage.put(name, b"x")
    assert await keys(storage) == ["0-0", "0/.hidden", "0/1", "00"]


async def test_keys_with_special_characters(storage: ObjectStorage) -> None:
    key = "testing/a b+c%20d&e=f;ü(1)~'*"
    await storage.put(key, b"x")
    assert bytes(await storage.get(key)) == b"x"
    assert await keys(storage) == [key]
    await storage.delete(key)
    assert await keys(storage) == []


async def test_many_requests_at_once(storage: ObjectStorage) -> None:
    contents = {f"chunks/0/{number}/{number}_0_70000": os.urandom(70_000) for number in range(60)}
    await asyncio.gather(*(storage.put(key, data) for key, data in contents.items()))
    got = await asyncio.gather(*(storage.get(key) for key in contents))
    assert [bytes(data) for data in got] == list(contents.values())
    await asyncio.gather(*(storage.delete(key) for key in contents))
    await storage.remove_bucket_parts("")
    assert await keys(storage) == []


async def test_volumes_of_one_bucket_do_not_see_each_other(tmp_path: Path) -> None:
    bucket = open_storage("file", str(tmp_path))
    first, second = for_volume(bucket, "one"), for_volume(bucket, "one-more")
    await first.put("object", b"1")
    await second.put("object", b"2")
    assert await keys(first) == ["object"]
    assert bytes(await first.get("object")) == b"1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "one-more"]


async def test_probe_leaves_nothing(storage: ObjectStorage) -> None:
    await probe(storage)
    assert await keys(storage) == []


async def test_create_bucket_twice(storage: ObjectStorage) -> None:
    await storage.create_bucket()
    await storage.create_bucket()
