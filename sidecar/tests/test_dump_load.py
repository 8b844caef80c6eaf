"""Dumps of volumes the real client wrote are those it makes itself; what was dumped loads into any engine as the same volume."""

import asyncio
import gzip
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import store_engines as engines
from jfs.check import check
from jfs.cli.main import main
from jfs.dump import binary, form, reader
from jfs.dump.writer import Dump
from jfs.errors import VolumeError
from jfs.meta.connect import connect
from jfs.meta.engines.memory.store import MemoryStore
from jfs.meta.model.keys import EdgeKey, NodeKey
from jfs.meta.model.quota import DIRECTORY, GROUP, USER, Quota, QuotaKey
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume import load_setting

SQLITE = ["sqlite-plain", "sqlite-zstd", "sqlite-acl-quota", "sqlite-aes"]


@pytest.fixture(params=SQLITE)
async def golden(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[str, Store]]:
    name: str = request.param
    shutil.copyfile(engines.golden() / name / "meta.db", tmp_path / "meta.db")
    store = await connect(f"sqlite3://{tmp_path}/meta.db")
    yield name, store
    await store.close()


async def dumped(store: Store, **options: Any) -> str:
    return "".join([piece async for piece in Dump(store, await load_setting(store), **options).pieces()])


def comparable(document: dict[str, Any]) -> dict[str, Any]:
    """A dump without what may differ: the order of lists, counters a busy client had not stored yet."""
    for top in ("FSTree", "Trash"):
        todo = [document[top]] if top in document else []
        while todo:
            entry = todo.pop()
            for name in ("xattrs",):
                if name in entry:
                    entry[name] = sorted(entry[name], key=lambda one: one["name"])
            todo += (entry.get("entries") or {}).values()
    return document


async def test_the_dump_is_the_real_clients(tmp_path: Path) -> None:
    name = "sqlite-plain"
    shutil.copyfile(engines.golden() / name / "meta.db", tmp_path / "meta.db")
    store = await connect(f"sqlite3://{tmp_path}/meta.db")
    try:
        ours = comparable(json.loads(await dumped(store)))
    finally:
        await store.close()
    real = comparable(json.loads((engines.golden() / name / "about" / "dump.json").read_text()))
    for top in ("FSTree", "Trash", "Setting", "Sustained", "DelFiles"):
        assert ours.get(top) == real.get(top), top
    assert ours["Counters"].keys() == real["Counters"].keys()
    assert ours.get("Quotas") == real.get("Quotas")


async def same_after(store: Store, loaded: Store) -> None:
    """The two stores hold the same volume: their dumps are equal, and the loaded one is sound."""
    assert not await check(loaded)
    before, after = comparable(json.loads(await dumped(store))), comparable(json.loads(await dumped(loaded)))
    for document in (before, after):
        counters = document["Counters"]
        for name in ("nextSession", "usedSpace", "usedInodes"):
            del counters[name]
    assert after == before


async def test_json_into_memory(golden: tuple[str, Store]) -> None:
    _, store = golden
    loaded = MemoryStore()
    count = await reader.load(loaded, io.BytesIO((await dumped(store, keep_secrets=True)).encode()))
    assert count > 10
    await same_after(store, loaded)


async def test_binary_into_memory(golden: tuple[str, Store]) -> None:
    _, store = golden
    file = io.BytesIO()
    await binary.write(store, await load_setting(store), file, keep_secrets=True, written=lambda count: None)
    loaded = MemoryStore()
    await binary.load(loaded, file)
    await same_after(store, loaded)


@pytest.mark.parametrize("name", ["sqlite-plain", "redis-plain", "redis-quota"])
async def test_the_real_clients_dumps_load(name: str) -> None:
    about = engines.golden() / name / "about"
    for file in (about / "dump.json", about / "dump.bin"):
        loaded = MemoryStore()
        with file.open("rb") as opened:
            if file.suffix == ".bin":
                await binary.load(loaded, opened)
            else:
                await reader.load(loaded, opened)
        assert not await check(loaded)
        ours, theirs = json.loads(await dumped(loaded)), json.loads((about / "dump.json").read_text())
        assert comparable(ours)["FSTree"] == comparable(theirs)["FSTree"]
        for kind in ("Quotas", "UserQuotas", "GroupQuotas"):
            assert ours.get(kind) == theirs.get(kind), kind


async def test_quotas_of_owners_are_where_the_real_client_has_them() -> None:
    """In lists of their own; those of a dump that has them all in one are found as well."""
    store, loaded, again = MemoryStore(), MemoryStore(), MemoryStore()
    limits = {QuotaKey(USER, 7): Quota(1 << 30, -1, 0, 0), QuotaKey(GROUP, 8): Quota(-1, 9, 0, 0)}
    with (engines.golden() / "redis-quota" / "about" / "dump.bin").open("rb") as opened:
        await binary.load(store, opened)

    async def limit(tx: Tx) -> None:
        for key, quota in limits.items():
            tx.put(key, quota)

    await store.run(limit)
    file = io.BytesIO()
    await binary.write(store, await load_setting(store), file, keep_secrets=True, written=lambda count: None)
    (quotas,) = [message for name, message in binary.segments(file) if name == "quota"]
    assert 7 in [one.key for one in quotas.user_quotas]
    assert 8 in [one.key for one in quotas.group_quotas]
    assert {one.type for one in quotas.quotas} <= {DIRECTORY}
    await binary.load(loaded, file, together=4)
    assert await loaded.get(*limits) == tuple(limits.values())
    in_one = type(quotas)(quotas=[*quotas.quotas, *quotas.user_quotas, *quotas.group_quotas])
    other = io.BytesIO()
    writer = binary.Writer(other)
    for name, message in binary.segments(file):
        writer.segment(name, in_one if name == "quota" else message, 1)
    writer.finish()
    await binary.load(again, other)
    assert await again.get(*limits) == tuple(limits.values())


class Failing(MemoryStore):
    """Its third transaction fails, while others are under way."""

    begun = 0
    ended = 0

    async def run(self, operation: Any, **options: Any) -> Any:
        self.begun += 1
        number = self.begun
        await asyncio.sleep(0)
        try:
            if number == 3:
                raise VolumeError("the database had enough")
            return await super().run(operation, **options)
        finally:
            self.ended += 1


async def test_a_load_that_fails_leaves_no_transaction_behind() -> None:
    store = Failing()
    with (
        (engines.golden() / "redis-plain" / "about" / "dump.bin").open("rb") as opened,
        pytest.raises(VolumeError, match="had enough"),
    ):
        await binary.load(store, opened, together=3)
    assert store.begun == store.ended > 2
    assert await store.is_blank()


@pytest.mark.parametrize("cut", [1, 100, 2000, -3])
async def test_a_cut_dump_is_refused_and_leaves_nothing(golden: tuple[str, Store], cut: int) -> None:
    _, store = golden
    document = (await dumped(store)).encode()
    loaded = MemoryStore()
    with pytest.raises(VolumeError, match="no JSON dump"):
        await reader.load(loaded, io.BytesIO(document[:cut]))
    assert await loaded.is_blank()
    file = io.BytesIO()
    await binary.write(store, await load_setting(store), file, keep_secrets=False, written=lambda count: None)
    with pytest.raises(VolumeError, match=r"no binary dump|damaged"):
        await binary.load(loaded, io.BytesIO(file.getvalue()[:cut]))
    assert await loaded.is_blank()


async def test_only_an_empty_database_is_loaded_into(golden: tuple[str, Store]) -> None:
    _, store = golden
    document = (await dumped(store)).encode()
    with pytest.raises(VolumeError, match="not empty"):
        await reader.load(store, io.BytesIO(document))


@pytest.mark.parametrize("raw", [b"plain", b"a b", b'"\\%', b"\xff\xfe", "\u00e9\u20ac".encode(), bytes(range(1, 256))])
def test_names(raw: bytes) -> None:
    text = form.escape(raw)
    assert not set(text) & set(' "\\')
    assert form.unescape(text) == raw
    assert json.loads(json.dumps(text)) == text


async def test_a_subdirectory(golden: tuple[str, Store]) -> None:
    _, store = golden
    found = await store.lookup(1, b"docs")
    if found is None:
        return
    document = json.loads(await dumped(store, root=found[0].ino))
    assert document["FSTree"]["attr"]["inode"] == 1
    assert "hello.txt" in document["FSTree"]["entries"]
    assert "Trash" not in document
    loaded = MemoryStore()
    await reader.load(loaded, io.BytesIO(json.dumps(document).encode()))
    assert not await check(loaded)
    entry, attr = await loaded.get(EdgeKey(1, b"hello.txt"), NodeKey(1))
    assert entry is not None
    assert attr is not None


def test_the_commands(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    shutil.copyfile(engines.golden() / "sqlite-plain" / "meta.db", tmp_path / "meta.db")
    url = f"sqlite3://{tmp_path}/meta.db"
    for number, (name, *options) in enumerate([("a.json",), ("a.json.gz",), ("a.bin", "--binary")]):
        assert main(["dump", url, str(tmp_path / name), *options]) == 0
        assert main(["load", f"sqlite3://{tmp_path}/loaded{number}.db", str(tmp_path / name), *options]) == 0
        assert main(["dump", f"sqlite3://{tmp_path}/loaded{number}.db", str(tmp_path / f"again{number}.json")]) == 0
    assert json.loads(gzip.decompress((tmp_path / "a.json.gz").read_bytes()))["FSTree"]
    trees = [json.loads((tmp_path / name).read_text())["FSTree"] for name in ("a.json", "again0.json", "again2.json")]
    assert trees[0] == trees[1] == trees[2]
    assert (tmp_path / "a.json").stat().st_mode & 0o077 == 0
    capfdbinary.readouterr()
    assert main(["load", str(tmp_path / "a.bin"), "--binary", "--stat"]) == 0
    assert b"Backup Version: 1" in capfdbinary.readouterr().out
    assert main(["load", str(tmp_path / "a.bin"), "--binary", "--stat", "--offset", "0"]) == 0
    assert b"Segment: format" in capfdbinary.readouterr().out
    assert main(["load", str(tmp_path / "a.bin"), "--binary", "--stat", "--offset", "1"]) == 1
    assert b"no segment" in capfdbinary.readouterr().err
    assert main(["load", f"sqlite3://{tmp_path}/b.db", str(tmp_path / "a.bin"), "--binary", "--offset", "0"]) == 1
    assert b"belongs to --stat" in capfdbinary.readouterr().err
    assert main(["dump", url, str(tmp_path / "b.json"), "--fast", "--threads", "2"]) == 0
    assert b"--fast and --threads: " in capfdbinary.readouterr().err
    assert main(["dump", url]) == 0
    assert json.loads(capfdbinary.readouterr().out)["Setting"]["Name"] == "sqlite-plain"
    assert main(["load", url, str(tmp_path / "a.json")]) == 1
    assert b"not empty" in capfdbinary.readouterr().err
