"""fsck and quotas: usage that is wrong is named and repaired, usage that is right is not."""

from pathlib import Path
from typing import Any

import pytest
from jfs.check import check
from jfs.check.examination import repair
from jfs.meta.model.quota import DIRECTORY, GROUP, USER, Quota, QuotaKey
from jfs.meta.store.base import Tx
from jfs.meta.volume import SUPERUSER, AttrChange
from jfs.meta.volume.quotas import Limits, set_quota
from meta_volumes import new_file, volume, write
from store_engines import ALL


@pytest.mark.parametrize("engine", ALL)
async def test_wrong_usage_is_named_and_repaired(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, trash_days=1) as made:
        meta = await made.client()
        directory, _ = await meta.mkdir(SUPERUSER, 1, b"dir", 0o755)
        sub, _ = await meta.mkdir(SUPERUSER, directory, b"sub", 0o755)
        ino = 0
        for number in range(3):
            ino = await new_file(meta, b"f%d" % number, parent=sub)
            await write(meta, ino, 0, 5000)
            await meta.setattr(SUPERUSER, ino, AttrChange(uid=1000, gid=1000))
        await meta.link(SUPERUSER, ino, directory, b"link")
        await meta.unlink(SUPERUSER, sub, b"f0")
        await meta.close_session()
        store = meta.store
        keys = [QuotaKey(DIRECTORY, directory), QuotaKey(USER, 1000), QuotaKey(GROUP, 1000)]
        for key in keys:
            await set_quota(store, meta.setting, key, Limits(1 << 30, 100), strict=True)
        assert await check(store) == []
        assert (await store.get(keys[0])) == (Quota(1 << 30, 100, 3 * 8192 + 4096, 4),)

        async def damage(tx: Tx) -> None:
            for key in keys:
                tx.add_quota(key, 4096, -1)
            tx.put(QuotaKey(DIRECTORY, 10**6), Quota(1, 1, 0, 0))
            tx.put(QuotaKey(USER, 77), Quota(-1, -1, 4096, 1))

        before: Any = await store.get(*keys)
        await store.run(damage)
        damages = await check(store)
        assert {one.kind for one in damages} == {"quota"}
        assert len(damages) == 5
        assert "{path}: quota(3, 32768 bytes) != summary(4, 28672 bytes)" in [one.text for one in damages]
        assert "uid:1000: usage(2, 28672 bytes) != actual usage(3, 24576 bytes)" in [one.text for one in damages]
        await repair(store)
        assert await check(store) == []
        assert await store.get(*keys) == before


@pytest.mark.parametrize("engine", ALL)
async def test_the_root_belongs_to_nobodys_usage(engine: str, tmp_path: Path) -> None:
    """It is counted nowhere: a chown of it moves nothing from one owner to another."""
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        key = QuotaKey(USER, 7)
        await set_quota(meta.store, meta.setting, key, Limits(1 << 30, 100), strict=True)
        await meta.heartbeat()
        await new_file(meta, b"f")
        await meta.setattr(SUPERUSER, 1, AttrChange(uid=7, gid=7))
        assert await meta.store.get(key, QuotaKey(USER, 0)) == (Quota(1 << 30, 100, 0, 0), Quota(-1, -1, 4096, 1))
        assert await check(meta.store) == []
