"""The examination of metadata: sound volumes have no damage, each damage has its name, repairs leave nothing that can be repaired."""

import inspect
import time
from pathlib import Path
from typing import Any

import pytest
from jfs.check import check, examine
from jfs.check.examination import repair
from jfs.check.paths import Paths, inodes_of
from jfs.format.constants import ROOT
from jfs.meta.model.keys import ChunkKey, CounterKey, NodeKey
from jfs.meta.store.base import Tx
from jfs.meta.volume import SUPERUSER
from meta_volumes import audit, new_file, volume, write
from store_engines import ALL, REDIS, SQL
from volume_damage import CASES, PARENTS, Case, build


async def injure(store: Any, case: Case, parts: Any) -> None:
    async def operation(tx: Tx) -> None:
        done = case.damage(tx, parts)
        if inspect.isawaitable(done):
            await done

    await store.run(operation)


@pytest.mark.parametrize("engine", ALL)
async def test_each_damage_is_named_and_repaired(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        parts = await build(meta)
        await meta.close_session()
        store = meta.store
        assert await check(store) == []
        before = await copied(store)
        for case in [*CASES, *([] if engine in SQL else [PARENTS])]:
            await injure(store, case, parts)
            damages = await check(store)
            assert {damage.kind for damage in damages} == case.kinds, (case.name, damages)
            assert all(damage.fix is not None or damage.remedy for damage in damages), case.name
            await repair(store)
            left = await check(store)
            assert {damage.kind for damage in left} == case.left, (case.name, left)
            assert all(damage.fix is None for damage in left), (case.name, left)
            if (
                case.name != "references without use"
                and not case.left
                and case.kinds <= {"nlink", "parent", "usage", "counter", "references", "parents"}
            ):
                after = await copied(store)
                after["counters"] = before["counters"] if case.name.startswith("next") else after["counters"]
                assert after == before, case.name
            await restored(store, made, before)


async def copied(store: Any) -> dict[str, Any]:
    """All records that a repair may touch."""
    from jfs.meta.model import keys

    kinds = (
        keys.NodeKey,
        keys.EdgeKey,
        keys.ChunkKey,
        keys.ParentKey,
        keys.DirStatKey,
        keys.SymlinkKey,
        keys.SustainedKey,
    )
    records: dict[str, Any] = {kind.__name__: {k: r async for k, r in store.scan(kind)} for kind in kinds}
    # A count of 1 is no record on some engines.
    records["references"] = {k: r async for k, r in store.scan(keys.SliceRefKey) if r != 1 or store.name in SQL}
    records["xattrs"] = {k async for k, _ in store.scan(keys.XattrKey)}
    records["queue"] = [entry async for entry in store.deleted_files()]
    records["counters"] = await store.get(*map(CounterKey, ("usedSpace", "totalInodes", "nextInode", "nextChunk")))
    return records


async def restored(store: Any, made: Any, before: dict[str, Any]) -> None:
    """Back to the records of *before*."""
    from jfs.meta.model import keys

    now = await copied(store)

    async def operation(tx: Tx) -> None:
        for name in (
            "NodeKey",
            "EdgeKey",
            "ChunkKey",
            "DirStatKey",
            "SymlinkKey",
            "SustainedKey",
            "references",
            "ParentKey",
        ):
            for key in now[name]:
                if key not in before[name]:
                    tx.delete(key)
            for key, record in before[name].items():
                tx.put(key, record)
        for key in now["xattrs"] - before["xattrs"]:
            tx.delete(key)
        for key in before["xattrs"] - now["xattrs"]:
            tx.put(key, b"y")
        for ino, length, _ in now["queue"]:
            tx.delete(keys.DeletedFileKey(ino, length))
        for name, value in zip(("usedSpace", "totalInodes", "nextInode", "nextChunk"), before["counters"], strict=True):
            tx.put(CounterKey(name), value)

    await store.run(operation)
    assert await check(store) == []


@pytest.mark.parametrize("engine", ALL)
async def test_volumes_in_use_are_sound(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, trash_days=1) as made:
        meta = await made.client()
        parts = await build(meta)
        held = await new_file(meta, b"held")
        await meta.open(SUPERUSER, held, 2)
        await write(meta, held, 0, 10)
        await meta.unlink(SUPERUSER, ROOT, b"held", skip_trash=True)
        await meta.unlink(SUPERUSER, parts.sub, b"again")
        await meta.unlink(SUPERUSER, parts.directory, b"linked")
        await meta.rename(SUPERUSER, parts.directory, b"file", parts.sub, b"moved", 0)
        await meta.remove_tree(SUPERUSER, parts.directory, b"sub")
        assert [
            damage for damage in (await examine(meta.store, now=made.clock.now // 10**9))[1] if not damage.note
        ] == []
        await meta.release(held)
        await meta.close_session()
        assert await check(meta.store) == []
        await audit(meta.store)


async def test_a_torn_list_keeps_references_from_being_repaired(tmp_path: Path) -> None:
    async with volume("sqlite3", tmp_path) as made:
        made.sound = False
        meta = await made.client()
        parts = await build(meta)
        await meta.close_session()

        async def tear(tx: Tx) -> None:
            tx.put(ChunkKey(parts.long, 0), b"x" * 25)

        await meta.store.run(tear)
        damages = await check(meta.store)
        assert {damage.kind for damage in damages} == {"corrupt", "references"}
        await repair(meta.store)
        assert {damage.identity for damage in await check(meta.store)} == {damage.identity for damage in damages}


@pytest.mark.parametrize("engine", REDIS[:1])
async def test_a_record_that_does_not_decode_is_one_damage(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        made.sound = False
        meta = await made.client()
        parts = await build(meta)
        await meta.close_session()
        store: Any = meta.store
        await store._link.change([(b"SET", b"i%d" % parts.file, b"short")])
        damages = await check(store)
        assert "corrupt" in {damage.kind for damage in damages}
        assert not {"dangling", "leaked", "counter", "orphan"} & {damage.kind for damage in damages}
        assert all(damage.fix is None for damage in damages), damages
        await store._link.change([(b"HDEL", b"dirUsedSpace", b"%d" % parts.directory)])
        assert any("missing or broken" in damage.text for damage in await check(store))


async def test_what_changes_while_it_is_looked_at_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client()
        await build(meta)
        scan = meta.store.scan
        looks = 0

        async def busy(kind: Any) -> Any:
            nonlocal looks
            if kind is not NodeKey:
                async for found in scan(kind):
                    yield found
                return
            looks += 1
            async for found in scan(kind):
                yield found
            await new_file(meta, b"new-%d" % looks)

        monkeypatch.setattr(meta.store, "scan", busy)
        monkeypatch.setattr("jfs.check.examination.SETTLE", 0.0)
        _, damages = await examine(meta.store, now=made.clock.now // 10**9)
        assert looks == 2
        assert damages == []


async def test_old_waiting_files_and_expired_sessions_are_notes(tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client(max_deletes=0)
        ino = await new_file(meta, b"f")
        await write(meta, ino, 0, 10)
        await meta.unlink(SUPERUSER, ROOT, b"f")
        held = await new_file(meta, b"held")
        await meta.open(SUPERUSER, held, 2)
        await meta.unlink(SUPERUSER, ROOT, b"held")
        _, damages = await examine(meta.store, now=int(time.time()) + 10**9)
        assert {damage.kind for damage in damages} == {"queue", "sustained"}
        assert all(damage.note for damage in damages)


async def test_paths_of_places(tmp_path: Path) -> None:
    async with volume("memory", tmp_path, trash_days=1) as made:
        meta = await made.client()
        parts = await build(meta)
        await new_file(meta, b"\xff", parent=parts.sub)
        gone = await new_file(meta, b"gone")
        await meta.unlink(SUPERUSER, ROOT, b"gone")
        facts, _ = await examine(meta.store)
        paths = Paths(facts)
        places = [parts.file, (parts.sub, b"x"), (parts.sub, b"\xff"), gone, ROOT, 10**6, None]
        await paths.learn(meta.store, inodes_of(places))
        named = [paths.of(place) for place in places]
        assert named[:3] == ["/dir/file", "/dir/sub/x", "/dir/sub/\\xff"]
        assert named[3].startswith("/.trash/")
        assert named[3].endswith(f"/1-{gone}-gone")
        assert named[4:] == ["/", f"inode {10**6}", "the volume"]
