"""A volume as a whole: format, format again, status, destroy, removal of trees, subdirectories (format §2.3, §10)."""

import errno
import os
from pathlib import Path

import pytest
from jfs.errors import ConfigError, CorruptRecord, VolumeError
from jfs.format.constants import ROOT, TRASH
from jfs.format.setting import Setting, new_setting
from jfs.meta.model.keys import DeletedFileKey, NodeKey, SettingKey
from jfs.meta.model.locks import READ, WRITE, Range
from jfs.meta.store.base import Tx
from jfs.meta.volume import (
    SUPERUSER,
    destroy,
    existing_setting,
    format_volume,
    load_setting,
    status,
)
from jfs.meta.volume.inspection import session_detail, waiting
from meta_volumes import START, UUID, audit, entries, errno_of, new_file, node, volume, write
from store_engines import ALL, database, directory

OTHER = UUID[::-1]


@pytest.mark.parametrize("engine", ALL)
async def test_format_makes_the_roots_once(engine: str, tmp_path: Path) -> None:
    async with database(engine, tmp_path) as open_store:
        store = await open_store()
        assert await existing_setting(store) is None
        with pytest.raises(VolumeError, match="not formatted"):
            await load_setting(store)
        setting = new_setting("demo", UUID)
        made = await format_volume(store, setting, force=False, no_update=False, now=START)
        assert made.created
        assert (await load_setting(store)).encode() == setting.encode()
        root, trash = await node(store, ROOT), await node(store, TRASH)
        assert root is not None
        assert trash is not None
        assert (root.mode, root.nlink, root.length, root.parent, root.uid) == (0o777, 2, 4096, 1, 0)
        assert (trash.mode, trash.nlink, trash.length, trash.parent, trash.uid) == (0o555, 2, 4096, 1, 0)
        await audit(store)


async def test_format_again_keeps_identity_and_unknown_members(tmp_path: Path) -> None:
    async with database("memory", tmp_path) as open_store:
        store = await open_store()
        first = new_setting("demo", UUID, secret_key="s", trash_days=0).replaced(Future=[1])
        first = first.with_sealed_secrets(lambda count: bytes(count))
        await format_volume(store, first, force=False, no_update=False, now=START)
        second = new_setting("demo", OTHER, bucket="elsewhere", capacity=5, trash_days=3)
        again = await format_volume(store, second, force=False, no_update=False, now=START)
        assert not again.created
        assert (again.setting.uuid, again.setting.bucket, again.setting.capacity) == (UUID, "elsewhere", 5)
        assert again.setting.members["Future"] == [1]
        assert "SecretKey" not in again.setting.members
        assert "KeyEncrypted" not in again.setting.members
        assert await node(store, TRASH) is not None
        kept = await format_volume(store, new_setting("other", OTHER), force=False, no_update=True, now=START)
        assert kept.setting.name == "demo"
        with pytest.raises(ConfigError, match="differs in Name, BlockSize"):
            await format_volume(
                store, new_setting("other", OTHER, block_size=65536), force=False, no_update=False, now=0
            )
        forced = new_setting("other", OTHER, block_size=65536)
        result = await format_volume(store, forced, force=True, no_update=False, now=START)
        assert (result.setting.name, result.setting.block_size, result.setting.uuid) == ("other", 65536, UUID)
        sealed = new_setting("other", OTHER, secret_key="x").with_sealed_secrets(lambda count: bytes(count))
        with pytest.raises(ConfigError, match="sealed for another UUID"):
            await format_volume(store, sealed, force=True, no_update=False, now=START)


async def test_format_again_never_touches_an_encryption_key(tmp_path: Path) -> None:
    async with database("memory", tmp_path) as open_store:
        store = await open_store()
        old = new_setting("demo", UUID).replaced(EncryptKey="pem").with_sealed_secrets(lambda count: bytes(count))
        await format_volume(store, old, force=False, no_update=False, now=START)
        await format_volume(store, new_setting("demo", UUID, trash_days=3), force=True, no_update=False, now=START)
        kept = await load_setting(store)
        assert kept.encode() == old.replaced(TrashDays=3).encode()
        assert kept.encrypt_key == "pem"
        plain = new_setting("demo", UUID, secret_key="x")
        with pytest.raises(ConfigError, match="sealed as its encryption key is"):
            await format_volume(store, plain, force=True, no_update=False, now=START)
        for other in (new_setting("demo", UUID, encrypt_key="other"), old.replaced(EncryptAlgo="chacha20-rsa")):
            with pytest.raises(ConfigError, match="differs in Encrypt"):
                await format_volume(store, other, force=False, no_update=False, now=START)


async def test_format_over_what_is_no_volume(tmp_path: Path) -> None:
    async with database("memory", tmp_path) as open_store:
        store = await open_store()

        async def put_root(tx: Tx) -> None:
            tx.put(NodeKey(1), directory())

        await store.run(put_root)
        with pytest.raises(VolumeError, match="no setting record"):
            await format_volume(store, new_setting("demo", UUID), force=True, no_update=False, now=START)

        async def put_rubbish(tx: Tx) -> None:
            tx.put(SettingKey(), b"rubbish")

        await store.run(put_rubbish)
        with pytest.raises(CorruptRecord):
            await format_volume(store, new_setting("demo", UUID), force=True, no_update=False, now=START)


@pytest.mark.parametrize("engine", ALL)
async def test_status_shows_what_the_real_client_shows(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, secret_key="very-secret") as made:
        meta = await made.client()
        await write(meta, await new_file(meta, b"f"), 0, 5000)
        shown = await status(meta.store)
        assert list(shown) == ["Setting", "Sessions", "Stat"]
        assert shown["Setting"]["SecretKey"] == "removed"
        (session,) = shown["Sessions"]
        assert list(session) == ["Sid", "Expire", "Version", "HostName", "MountPoint", "MountTime", "ProcessID"]
        assert session["Expire"] == "2023-11-14T22:14:20Z"
        assert shown["Stat"] == {
            "UsedSpace": 8192,
            "AvailableSpace": (1 << 50) - 8192,
            "UsedInodes": 1,
            "AvailableInodes": 10 << 20,
        }


@pytest.mark.parametrize("engine", ALL)
async def test_status_counts_what_waits_to_be_deleted(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, trash_days=1) as made:
        meta = await made.client(session=False)
        assert await waiting(meta.store) == {}
        await write(meta, await new_file(meta, b"f"), 0, 5000)
        await meta.mkdir(SUPERUSER, ROOT, b"d", 0o755)
        await meta.unlink(SUPERUSER, ROOT, b"f")
        await meta.rmdir(SUPERUSER, ROOT, b"d")

        async def queue(tx: Tx) -> None:
            tx.put(DeletedFileKey(77, 1234), 5)

        await meta.store.run(queue)
        assert await waiting(meta.store) == {
            "TrashFileCount": 2,
            "TrashFileSize": 5000,
            "PendingDeletedFileCount": 1,
            "PendingDeletedFileSize": 1234,
        }

        async def unqueue(tx: Tx) -> None:
            tx.delete(DeletedFileKey(77, 1234))

        await meta.store.run(unqueue)


@pytest.mark.parametrize("engine", ALL)
async def test_status_of_a_session_tells_of_its_open_removed_files_and_locks(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, trash_days=0) as made:
        meta, other = await made.client(), await made.client()
        opened, locked = await new_file(meta, b"f"), await new_file(meta, b"g")
        await meta.open(SUPERUSER, opened, os.O_RDWR)
        await meta.unlink(SUPERUSER, ROOT, b"f")
        await meta.locks.flock(locked, 7, WRITE, wait=False)
        await meta.locks.setlk(locked, 8, Range(READ, 99, 5, 14), wait=False)
        assert await session_detail(meta.store, meta.sid) == {
            "Sustained": [opened],
            "Flocks": [{"Inode": locked, "Owner": 7, "Ltype": "W"}],
            "Plocks": [{"Inode": locked, "Owner": 8, "Records": [{"Type": 0, "Pid": 99, "Start": 5, "End": 14}]}],
        }
        assert await session_detail(meta.store, other.sid) == {}
        await meta.locks.release(locked, 7)
        await meta.locks.release_ranges(locked, 8)
        await meta.release(opened)


@pytest.mark.parametrize("engine", ALL)
async def test_destroy(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        await new_file(meta, b"f")
        removed: list[str] = []

        async def delete_objects(setting: Setting) -> None:
            removed.append(setting.name)

        store = await made.store()
        with pytest.raises(VolumeError, match="nothing was removed"):
            await destroy(store, OTHER, force=True, now=made.clock(), delete_objects=delete_objects)
        with pytest.raises(VolumeError, match="mounted by session 1"):
            await destroy(store, UUID, force=False, now=made.clock(), delete_objects=delete_objects)
        assert removed == []
        await meta.close_session()
        await destroy(store, UUID, force=False, now=made.clock(), delete_objects=delete_objects)
        assert removed == ["demo-volume"]
        assert await store.is_blank()


@pytest.mark.parametrize("engine", ALL)
@pytest.mark.parametrize("trash_days", [0, 1])
async def test_removing_a_tree(engine: str, trash_days: int, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, trash_days=trash_days) as made:
        meta = await made.client()
        top, _ = await meta.mkdir(SUPERUSER, 1, b"top", 0o755)
        count = 1
        for d in range(3):
            at, _ = await meta.mkdir(SUPERUSER, top, b"d%d" % d, 0o755)
            count += 1
            for depth in range(2):
                at, _ = await meta.mkdir(SUPERUSER, at, b"deep%d" % depth, 0o755)
                count += 1
                inodes = [await new_file(meta, b"f%d" % f, parent=at) for f in range(5)]
                count += len(inodes)
                await meta.link(SUPERUSER, inodes[-1], at, b"link")
                count += 1
        await meta.symlink(SUPERUSER, top, b"s", b"x")
        assert await meta.remove_tree(SUPERUSER, 1, b"top", workers=2) == count + 1
        assert await entries(meta.store, 1) == {}
        if not trash_days:
            assert [ino async for ino, _ in meta.store.nodes()] == [1]
        await audit(meta.store)
        await new_file(meta, b"single")
        assert await meta.remove_tree(SUPERUSER, 1, b"single", skip_trash=True) == 1
        assert await errno_of(meta.remove_tree(SUPERUSER, 1, b"single")) == errno.ENOENT
        await audit(meta.store)


async def test_a_subdirectory_is_the_root_of_its_mount(tmp_path: Path) -> None:
    async with volume("memory", tmp_path, trash_days=1) as made:
        with pytest.raises(VolumeError, match="does not exist"):
            await made.client(read_only=True, subdir="/a/b")
        meta = await made.client(subdir="/a/b")
        whole = await made.client()
        a, _ = await whole.lookup(SUPERUSER, 1, b"a")
        b, attr = await whole.lookup(SUPERUSER, a, b"b")
        assert meta.root == b
        assert (await meta.getattr(1)) == attr
        f = await new_file(meta, b"f")
        d, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
        assert (await whole.lookup(SUPERUSER, b, b"f"))[0] == f
        assert (await meta.lookup(SUPERUSER, d, b".."))[0] == 1
        assert (await meta.lookup(SUPERUSER, 1, b".."))[0] == 1
        assert (await meta.lookup(SUPERUSER, 1, b"."))[0] == 1
        assert (await meta.lookup(SUPERUSER, d, b"."))[0] == d
        assert (await meta.lookup(SUPERUSER, f, b"."))[0] == f
        assert await errno_of(meta.lookup(SUPERUSER, f, b"..")) == errno.ENOTDIR
        assert await errno_of(meta.lookup(SUPERUSER, 1, b".trash")) == errno.ENOENT
        await meta.rename(SUPERUSER, 1, b"f", d, b"g")
        await meta.unlink(SUPERUSER, d, b"g")
        await meta.rmdir(SUPERUSER, 1, b"d")
        assert await whole.path_of(b) == [b"/a/b"]
        again = await made.client(subdir="a/b/", read_only=True)
        assert again.root == b
        await new_file(whole, b"file")
        with pytest.raises(VolumeError, match="no directory"):
            await made.client(subdir="file")


async def test_paths(tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client()
        d, _ = await meta.mkdir(SUPERUSER, 1, b"d", 0o755)
        f = await new_file(meta, b"f", parent=d)
        assert await meta.path_of(1) == [b"/"]
        assert await meta.path_of(f) == [b"/d/f"]
        await meta.link(SUPERUSER, f, 1, b"g")
        await meta.link(SUPERUSER, f, d, b"h")
        assert sorted(await meta.path_of(f)) == [b"/d/f", b"/d/h", b"/g"]
        ino, _, _ = await meta.create(SUPERUSER, 1, b"gone", 0o644, os.O_RDWR)
        await meta.unlink(SUPERUSER, 1, b"gone")
        assert await meta.path_of(ino) == []
        await meta.release(ino)
