"""Objects against metadata: what is missing, too short, leaked, young, delayed or pending, and what deleting leaves."""

import argparse
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from jfs.check import check, examine
from jfs.check.objects import Block, Expectation, Listing, compare, confirm
from jfs.check.verify import ContentCheck, find_blocks, in_scope, look_at
from jfs.chunk.blocks import BlockFormat, BlockLimits, BlockStore
from jfs.chunk.compaction import SliceCopier
from jfs.cli import fsck, gc
from jfs.errors import VolumeError
from jfs.format.constants import ROOT
from jfs.format.slices import Slice
from jfs.meta.connect import connect
from jfs.meta.model.keys import ChunkKey, SliceRefKey
from jfs.meta.volume import SUPERUSER, Meta
from jfs.object.file import FileStorage
from jfs.object.memory import MemoryStorage
from meta_volumes import Volume, audit, new_file, volume

BLOCK = 64 << 10


class Files:
    """Writes data and metadata of files."""

    def __init__(self, meta: Meta, blocks: BlockStore) -> None:
        self.meta = meta
        self.blocks = blocks

    async def write(self, ino: int, offset: int, size: int) -> int:
        """Store a slice; its id."""
        id = await self.meta.new_slice_id()
        data = os.urandom(size)
        for indx in range(-(-size // BLOCK)):
            await self.blocks.put_block(id, indx, data[indx * BLOCK : (indx + 1) * BLOCK])
        await self.meta.commit_slice(ino, 0, offset, Slice(offset, id, size, 0, size), self.meta._clock())
        return id


@asynccontextmanager
async def filled(
    folder: Path, storage: Any = None, **setting: Any
) -> AsyncIterator[tuple[Volume, Files, dict[str, int]]]:
    """A volume on SQLite with some files; the slice ids by file name."""
    options = {"block_size": BLOCK, "compression": "none"} | setting
    storage = storage if storage is not None else MemoryStorage()
    async with volume("sqlite3", folder, **options) as made:
        meta = await made.client()
        limits = BlockLimits(io_retries=1, pause=lambda tried: 0.0)
        blocks = BlockStore(storage, BlockFormat(BLOCK, str(options["compression"]), False), limits)
        files = Files(meta, blocks)
        directory, _ = await meta.mkdir(SUPERUSER, ROOT, b"dir", 0o755)
        one, two = await new_file(meta, b"one", parent=directory), await new_file(meta, b"two")
        ids = {"one": await files.write(one, 0, 2 * BLOCK + 7), "two": await files.write(two, 0, 100)}
        yield made, files, ids


async def listed(files: Files, *, young_from: float | None = None) -> tuple[Expectation, Listing]:
    facts, _ = await examine(files.meta.store)
    expectation = Expectation(facts)
    edge = time.time() + 60 if young_from is None else young_from
    return expectation, await compare(files.blocks.storage, expectation, young_from=edge)


async def test_all_blocks_are_valid(tmp_path: Path) -> None:
    async with filled(tmp_path) as (_, files, _):
        expectation, listing = await listed(files)
        assert listing.found == listing.valid == (4, 2 * BLOCK + 107)
        assert expectation.used() == (2, 2 * BLOCK + 107)
        assert (listing.absent, listing.wrong_sizes, listing.foreign) == ([], [], [])


async def test_missing_short_leaked_and_young(tmp_path: Path) -> None:
    storage = MemoryStorage()
    async with filled(tmp_path, storage) as (_, files, ids):
        one, two = ids["one"], ids["two"]
        del storage.objects[f"chunks/0/0/{one}_1_{BLOCK}"]
        storage.objects[f"chunks/0/0/{two}_0_100"] = (b"short", 0.0)
        now = time.time()
        leaked = (
            "chunks/0/0/999_0_5",  # of no slice
            f"chunks/0/0/{two}_1_5",  # a block too many
            f"chunks/0/0/{two}_0_99",  # of another length
            f"chunks/0/1/{two}_0_100",  # in another place
        )
        for key in leaked:
            storage.objects[key] = (b"12345", now - 7200)
        storage.objects["chunks/0/0/998_0_5"] = (b"12345", now)
        storage.objects["chunks/README"] = (b"", now - 7200)
        storage.objects["juicefs_uuid"] = (b"", now)
        _, listing = await listed(files, young_from=now - 3600)
        assert (listing.leaked, listing.skipped, listing.foreign) == ((4, 20), (1, 5), ["chunks/README"])
        assert [block.key for block in listing.absent] == [f"chunks/0/0/{one}_1_{BLOCK}"]
        assert [(block.key, size) for block, size in listing.wrong_sizes] == [(f"chunks/0/0/{two}_0_100", 5)]
        (lost,) = [one async for one in confirm(storage, files.meta.store, listing.absent)]
        assert [await files.meta.path_of(ino) for ino in lost.inodes] == [[b"/dir/one"]]


async def test_what_came_or_went_meanwhile_is_not_lost(tmp_path: Path) -> None:
    storage = MemoryStorage()
    async with filled(tmp_path, storage) as (_, files, ids):
        missing = {key: storage.objects.pop(key) for key in list(storage.objects) if f"/{ids['one']}_" in key}
        _, listing = await listed(files)
        assert len(listing.absent) == 3
        storage.objects |= missing
        assert not [one async for one in confirm(storage, files.meta.store, listing.absent)]
        storage.objects.clear()
        await files.meta.unlink(SUPERUSER, (await files.meta.lookup(SUPERUSER, ROOT, b"dir"))[0], b"one")
        await files.meta._deletion.drain(10)
        assert not [one async for one in confirm(storage, files.meta.store, listing.absent)]


async def test_delayed_and_pending_slices(tmp_path: Path) -> None:
    async with filled(tmp_path, trash_days=1) as (_, files, _):
        meta = files.meta
        ino, _ = await meta.lookup(SUPERUSER, ROOT, b"two")
        await files.write(ino, 50, 100)
        meta._copy_slice = SliceCopier(files.blocks).copy
        assert await meta.compaction().compact(ino, 0)

        async def unuse(tx: Any) -> None:
            tx.put(SliceRefKey(500, 10), 0)

        await meta.store.run(unuse)
        await files.blocks.put_block(500, 0, b"0123456789")
        _, listing = await listed(files)
        assert (listing.compacted, listing.pending) == ((2, 200), (1, 10))
        assert (listing.valid.number, listing.leaked.number) == (4, 0)
        assert await check(meta.store) == []


async def test_blocks_of_some_files_are_asked_for_by_name(tmp_path: Path) -> None:
    storage = MemoryStorage()
    async with filled(tmp_path, storage) as (_, files, ids):
        store = files.meta.store
        facts, _ = await examine(store)
        expectation = Expectation(facts)
        directory, _ = await files.meta.lookup(SUPERUSER, ROOT, b"dir")
        assert not in_scope(facts, directory, recursive=False)(facts.nodes.__iter__().__next__())
        del storage.objects[f"chunks/0/0/{ids['one']}_2_7"]
        storage.objects[f"chunks/0/0/{ids['one']}_0_{BLOCK}"] = (b"", 0.0)
        blocks, owners = await find_blocks(store, expectation, in_scope(facts, directory, recursive=True))
        assert {block.slice_id for block in blocks} == {ids["one"]}
        lost, wrong, size = await look_at(storage, expectation, blocks, owners, at_once=2)
        assert [one.block.indx for one in lost] == [2]
        assert [(block.indx, got) for block, got in wrong] == [(0, 0)]
        assert size == BLOCK


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_content_that_cannot_be_decoded_is_found(tmp_path: Path, compression: str) -> None:
    storage = MemoryStorage()
    async with filled(tmp_path, storage, compression=compression) as (_, files, ids):
        key = f"chunks/0/0/{ids['two']}_0_100"
        content, mtime = storage.objects[key]
        storage.objects[key] = (content[:-3] if compression == "none" else b"\xff" * len(content), mtime)
        content_check = ContentCheck(files.blocks, 2)
        for id, size in ((ids["one"], 2 * BLOCK + 7), (ids["two"], 100)):
            for indx in range(-(-size // BLOCK)):
                await content_check.add(Block(id, size, indx, f"{id}_{indx}"))
        await content_check.finish()
        assert [block.slice_id for block, _ in content_check.bad] == [ids["two"]]


# -- the commands -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def on_disk(folder: Path, **setting: Any) -> AsyncIterator[tuple[str, Files, dict[str, int]]]:
    """A closed volume in files; its URL."""
    objects = folder / "objects"
    storage = FileStorage(f"{objects}/demo-volume/")
    await storage.create_bucket()
    async with filled(folder, storage, bucket=f"{objects}/", **setting) as (_, files, ids):
        await files.meta.close_session()
        yield f"sqlite3://{folder}/meta.db", files, ids


async def run_fsck(url: str, *words: str) -> int:
    options = {"url": url, "path": "", "recursive": False, "repair": False, "sync_dir_stat": False, "content": False}
    options |= dict(zip(words[::2], words[1::2], strict=True))
    return await fsck._run(argparse.Namespace(**options), 0o755, "", "")


async def run_gc(url: str, *, compact: bool = False, delete: bool = False, skipped: int = 0) -> int:
    return await gc._run(argparse.Namespace(url=url, compact=compact, delete=delete, threads=4), skipped, "", "")


async def test_fsck_tells_and_repairs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with on_disk(tmp_path) as (url, files, ids):
        assert await run_fsck(url) == 0
        assert "Found 4 blocks (131179 bytes)" in caplog.text
        assert "Used by 2 slices (131179 bytes)" in caplog.text
        store = files.meta.store
        directory, attr = await files.meta.lookup(SUPERUSER, ROOT, b"dir")

        async def damage(tx: Any) -> None:
            from jfs.meta.model.keys import NodeKey

            tx.put(NodeKey(directory), attr._replace(nlink=9))

        await store.run(damage)
        assert await run_fsck(url) == 1
        assert "nlink of /dir should be 2, but got 9" in caplog.text
        assert "'--path /dir --repair'" in caplog.text
        assert await run_fsck(url, "path", "/two") == 0
        assert await run_fsck(url, "path", "/", "recursive", "yes") == 1
        assert await run_fsck(url, "path", "/dir", "repair", "yes") == 0
        assert await run_fsck(url) == 0
        (tmp_path / f"objects/demo-volume/chunks/0/0/{ids['one']}_0_{BLOCK}").unlink()
        caplog.clear()
        assert await run_fsck(url, "repair", "yes") == 1
        assert f"can't find block 0/0/{ids['one']}_0_{BLOCK} for file /dir/one" in caplog.text
        assert "1 objects are lost (65536 bytes), 1 broken files:" in caplog.text
        assert await run_fsck(url, "path", "/two", "content", "yes") == 0
        assert await run_fsck(url, "path", "/dir/one") == 1
        (tmp_path / f"objects/demo-volume/chunks/0/0/{ids['two']}_0_100").write_bytes(b"short")
        caplog.clear()
        assert await run_fsck(url, "path", "/two") == 1
        assert "of file /two has 5 bytes where 100 are expected" in caplog.text


async def test_gc_counts_and_deletes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with on_disk(tmp_path) as (url, files, _):
        chunks = tmp_path / "objects/demo-volume/chunks/0/0"
        assert await run_gc(url) == 0
        assert (
            "scanned 4 objects, 4 valid, 0 pending delete (0 bytes), 0 compacted (0 bytes), 0 leaked (0 bytes)"
            in caplog.text
        )
        (chunks / "999_0_5").write_bytes(b"12345")
        assert await run_gc(url, skipped=3600) == 0
        assert "1 skipped (5 bytes)" in caplog.text
        assert await run_gc(url) == 1
        assert "1 leaked (5 bytes)" in caplog.text
        assert (chunks / "999_0_5").exists()
        assert await run_gc(url, delete=True) == 0
        assert not (chunks / "999_0_5").exists()
        assert await run_gc(url) == 0

        # A file whose client died before it deleted the data, and one whose record is gone.
        meta = await Meta.load(await connect(url), files.meta.options, delete_objects=files.blocks.delete_slice)
        meta._deletion._closed = True
        await meta.unlink(SUPERUSER, (await meta.lookup(SUPERUSER, ROOT, b"dir"))[0], b"one")
        ino, _ = await meta.lookup(SUPERUSER, ROOT, b"two")

        async def lose(tx: Any) -> None:
            from jfs.meta.model.keys import CounterKey, DirStat, DirStatKey, EdgeKey, NodeKey

            tx.delete(NodeKey(ino))
            tx.delete(EdgeKey(ROOT, b"two"))
            tx.add(CounterKey("usedSpace"), -4096)
            tx.add(CounterKey("totalInodes"), -1)
            tx.add_stat(DirStatKey(ROOT), DirStat(-100, -4096, -1))

        await meta.store.run(lose)
        await meta.close()
        caplog.clear()
        assert await run_gc(url) == 1
        assert f"found leaked chunk c{ino}_0" in caplog.text
        assert "1 delfiles" in caplog.text
        assert await run_gc(url, delete=True) == 0
        assert not list(chunks.glob("*_*"))
        assert await run_gc(url) == 0
        assert await run_fsck(url) == 0


@pytest.mark.parametrize("trash_days", [0, 1])
async def test_gc_compacts(tmp_path: Path, caplog: pytest.LogCaptureFixture, trash_days: int) -> None:
    caplog.set_level("INFO")
    async with on_disk(tmp_path, trash_days=trash_days) as (url, files, _):
        meta = files.meta
        ino, _ = await meta.lookup(SUPERUSER, ROOT, b"two")
        for at in itertools.islice(itertools.count(50, 90), 30):
            await files.write(ino, at, 100)
        assert await run_gc(url, compact=True) == 0
        assert "Compacted 1 chunks (31 slices, 2760 bytes)." in caplog.text
        assert len(await meta.read_slices(ino, 0, fresh=True)) == 1
        assert await run_gc(url) == 0
        assert await run_fsck(url, "content", "yes") == 0
        await audit(meta.store)


async def test_gc_deletes_nothing_that_a_torn_list_may_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with on_disk(tmp_path) as (url, files, ids):
        ino, _ = await files.meta.lookup(SUPERUSER, ROOT, b"two")

        async def tear(tx: Any) -> None:
            (raw,) = await tx.get(ChunkKey(ino, 0))
            tx.put(ChunkKey(ino, 0), raw + b"torn")

        async def mend(tx: Any) -> None:
            tx.put(ChunkKey(ino, 0), Slice(0, ids["two"], 100, 0, 100).pack())

        await files.meta.store.run(tear)
        assert await run_gc(url, delete=True) == 1
        assert "leaked objects are not deleted" in caplog.text
        await files.meta.store.run(mend)
        assert await run_fsck(url) == 0


async def test_gc_deletes_nothing_of_another_volume(tmp_path: Path) -> None:
    async with on_disk(tmp_path) as (url, files, _):
        await files.blocks.storage.put("juicefs_uuid", b"4f3b0f5e-0000-4000-8000-000000000000")
        assert await run_gc(url) == 0
        with pytest.raises(VolumeError, match="nothing was deleted"):
            await run_gc(url, delete=True)
