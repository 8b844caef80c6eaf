"""Quotas: records in each engine, usage kept exactly by every operation, limits, several clients, administration."""

import asyncio
import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from database_servers import KV
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jfs.errors import ConfigError
from jfs.format.constants import DIRECTORY as DIRECTORY_KIND
from jfs.format.constants import FILE, ROOT, TRASH, align4k
from jfs.meta.model.keys import SettingKey
from jfs.meta.model.quota import DIRECTORY, GROUP, USER, Quota, QuotaKey
from jfs.meta.store.base import Store, Tx
from jfs.meta.volume import EXCHANGE, SUPERUSER, AttrChange, Caller, Meta
from jfs.meta.volume.quotas import (
    Limits,
    check_directory,
    check_owners,
    delete_quota,
    find_directory,
    get_quota,
    list_quotas,
    path_of,
    set_quota,
)
from meta_volumes import Volume, audit, entries, errno_of, new_file, volume, write
from store_engines import ALL

ALICE = Caller(1001, 2001, 0)
BLOCK = 4096


async def below(store: Store, ino: int) -> tuple[int, int]:
    """Space and inodes of everything below a directory, from its entries."""
    space = inodes = 0
    for child, attr in (await entries(store, ino)).values():
        assert attr is not None
        space += align4k(attr.length) if attr.kind == FILE else BLOCK
        inodes += 1
        if attr.kind == DIRECTORY_KIND:
            more = await below(store, child)
            space, inodes = space + more[0], inodes + more[1]
    return space, inodes


async def audit_quotas(store: Store) -> None:
    """Every kept usage is what is there."""
    owned: Counter[tuple[int, int]] = Counter()
    async for ino, attr in store.nodes():
        if ino not in (ROOT, TRASH) and attr.parent != TRASH:
            for what, id in ((USER, attr.uid), (GROUP, attr.gid)):
                owned[what, id] += 1
    async for key, quota in store.scan(QuotaKey):
        if key.what == DIRECTORY:
            assert (quota.used_space, quota.used_inodes) == await below(store, key.id), key
        else:
            assert quota.used_inodes == owned.pop((key.what, key.id), 0), key
    (raw,) = await store.get(SettingKey())
    if b"UserGroupQuota" in raw:
        assert not owned
        assert await check_owners(store, repair=False) == []
    await audit(store)


async def limit(made: Volume, key: QuotaKey, space: int | None = None, inodes: int | None = None) -> None:
    """Set a quota as an administrator does; mounted clients learn it."""
    meta = made._clients[0]
    await set_quota(await made.store(), meta.setting, key, Limits(space, inodes), strict=False)
    for client in made._clients:
        await client.heartbeat()


@pytest.mark.parametrize("engine", ALL)
async def test_records(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        store = await made.store()
        keys = [QuotaKey(DIRECTORY, 7), QuotaKey(USER, 7), QuotaKey(GROUP, 4294967295)]

        async def put(tx: Tx) -> None:
            for key in keys:
                tx.put(key, Quota(1 << 40, 5, 10, 1))
                tx.add_quota(key, 5, 1)
            tx.add_quota(QuotaKey(DIRECTORY, 9), 4096, 1)
            tx.add_quota(QuotaKey(USER, 9), 4096, 1)

        await store.run(put)

        async def more(tx: Tx) -> None:
            tx.add_quota(keys[0], -5, -1)
            tx.add_quota(keys[1], -5, 2)
            assert await tx.get(keys[1]) == (Quota(1 << 40, 5, 10, 4),)

        await store.run(more)
        found = {key: quota async for key, quota in store.scan(QuotaKey)}
        assert found.pop(QuotaKey(USER, 9)) == Quota(-1, -1, 4096, 1)
        assert await store.get(QuotaKey(DIRECTORY, 9)) == (None,)
        assert found == {
            keys[0]: Quota(1 << 40, 5, 10, 1),
            keys[1]: Quota(1 << 40, 5, 10, 4),
            keys[2]: Quota(1 << 40, 5, 15, 2),
        }

        async def remove(tx: Tx) -> None:
            for key in keys:
                tx.delete(key)
                tx.add_quota(key, 1, 1)

        await store.run(remove)
        assert await store.get(*keys) == (None, None, None)


@pytest.mark.parametrize("engine", ALL)
async def test_usage_follows_every_operation(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, trash_days=1) as made:
        meta, other = await made.client(), await made.client()
        store = await made.store()
        top, _ = await meta.mkdir(SUPERUSER, ROOT, b"top", 0o777)
        deep, _ = await meta.mkdir(SUPERUSER, top, b"deep", 0o777)
        aside, _ = await meta.mkdir(ALICE, ROOT, b"aside", 0o777)
        await write(meta, await new_file(meta, b"early", parent=deep), 0, 5000)
        await limit(made, QuotaKey(DIRECTORY, top), 1 << 30, 1000)
        await limit(made, QuotaKey(DIRECTORY, deep), None, 500)
        await limit(made, QuotaKey(USER, 1001), None, 500)
        await audit_quotas(store)
        f = await new_file(meta, b"f", parent=deep)
        await write(other, f, 0, 100_000)
        await meta.setattr(SUPERUSER, f, AttrChange(uid=1001, gid=2001))
        await audit_quotas(store)
        await meta.truncate(SUPERUSER, f, 10, opened=True)
        await other.truncate(SUPERUSER, f, 50_000, opened=True)
        await other.symlink(ALICE, top, b"l", b"x" * 100)
        await other.mknod(ALICE, top, b"fifo", 4, 0o600)
        await meta.link(SUPERUSER, f, aside, b"hard")
        await write(meta, f, 200_000, 100)
        await audit_quotas(store)
        await meta.rename(SUPERUSER, top, b"l", aside, b"l")  # out
        await meta.rename(SUPERUSER, top, b"deep", aside, b"deep")  # a whole tree, with its own quota
        await audit_quotas(store)
        await other.heartbeat()
        await write(other, f, 400_000, 100)
        await other.rename(SUPERUSER, aside, b"deep", top, b"deep")
        await audit_quotas(store)
        await meta.mkdir(SUPERUSER, aside, b"a", 0o777)
        await meta.rename(SUPERUSER, top, b"deep", aside, b"a", EXCHANGE)
        await audit_quotas(store)
        await meta.unlink(SUPERUSER, aside, b"hard")  # to the trash: other links stay
        await audit_quotas(store)
        at, _ = await meta.lookup(SUPERUSER, aside, b"a")
        assert at == deep
        for name in (b"f", b"early"):
            await meta.unlink(SUPERUSER, deep, name)
        await meta.rmdir(SUPERUSER, aside, b"a")
        assert await store.get(QuotaKey(DIRECTORY, deep)) == (None,)
        await audit_quotas(store)
        for name in [name async for page in store.list_directory(TRASH, plus=False) for name in page.names]:
            await meta.remove_tree(SUPERUSER, TRASH, name, skip_trash=True)
        await audit_quotas(store)


@pytest.mark.parametrize("engine", ["memory", "sqlite3"])
async def test_open_and_unlinked(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        store = await made.store()
        top, _ = await meta.mkdir(SUPERUSER, ROOT, b"top", 0o777)
        await limit(made, QuotaKey(DIRECTORY, top), None, 10)
        await limit(made, QuotaKey(GROUP, 2001), None, 10)
        ino, _, _ = await meta.create(ALICE, top, b"f", 0o600, os.O_RDWR)
        await meta.unlink(SUPERUSER, top, b"f")
        assert (await store.get(QuotaKey(DIRECTORY, top)))[0].used_inodes == 0
        await write(meta, ino, 0, 9000)
        assert (await store.get(QuotaKey(GROUP, 2001)))[0][2:] == (12288, 1)
        await meta.release(ino)
        assert (await store.get(QuotaKey(GROUP, 2001)))[0][2:] == (0, 0)
        await audit_quotas(store)


@pytest.mark.parametrize("engine", ALL)
async def test_limits_of_directories(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta, other = await made.client(), await made.client()
        store = await made.store()
        top, _ = await meta.mkdir(SUPERUSER, ROOT, b"top", 0o777)
        sub, _ = await meta.mkdir(SUPERUSER, top, b"sub", 0o777)
        await limit(made, QuotaKey(DIRECTORY, top), 10 * BLOCK, 4)
        f = await new_file(meta, b"f", parent=sub)
        g = await new_file(other, b"g", parent=sub)
        last = await new_file(meta, b"h", parent=top)
        for client in (meta, other):
            assert await errno_of(client.mkdir(SUPERUSER, top, b"n", 0o777)) == errno.EDQUOT
            assert await errno_of(client.symlink(SUPERUSER, sub, b"n", b"x")) == errno.EDQUOT
            assert await errno_of(client.link(SUPERUSER, f, sub, b"n")) == errno.EDQUOT
            assert await errno_of(client.mknod(SUPERUSER, sub, b"f", FILE, 0o600)) == errno.EEXIST
        outside = await new_file(meta, b"outside")
        assert await errno_of(other.rename(SUPERUSER, ROOT, b"outside", sub, b"n")) == errno.EDQUOT
        await meta.rename(SUPERUSER, sub, b"g", top, b"g")  # within the quota
        await meta.unlink(SUPERUSER, top, b"h")
        assert last
        await other.rename(SUPERUSER, ROOT, b"outside", sub, b"n")
        # Space: 4 entries of 4 KiB but empty files count 4 KiB each too; 24 KiB are left.
        quota = await get_quota(store, QuotaKey(DIRECTORY, top))
        assert quota is not None
        assert quota[2:] == (4 * BLOCK, 4)
        await write(meta, f, 0, 4 * BLOCK)
        assert await errno_of(write(other, g, 0, 5 * BLOCK)) == errno.EDQUOT
        assert await errno_of(other.truncate(SUPERUSER, outside, 5 * BLOCK, opened=True)) == errno.EDQUOT
        await write(other, g, 0, 4 * BLOCK)
        assert await errno_of(write(meta, outside, 0, BLOCK + 1)) == errno.EDQUOT
        await meta.truncate(SUPERUSER, f, 0, opened=True)
        await write(other, outside, 0, BLOCK + 1)
        await audit_quotas(store)
        # A tree that is too large stays where it is.
        big, _ = await meta.mkdir(SUPERUSER, ROOT, b"big", 0o777)
        await new_file(meta, b"x", parent=big)
        await meta.unlink(SUPERUSER, sub, b"n")
        assert await errno_of(meta.rename(SUPERUSER, ROOT, b"big", top, b"big")) == errno.EDQUOT
        await meta.unlink(SUPERUSER, big, b"x")
        await meta.rename(SUPERUSER, ROOT, b"big", top, b"big")
        await audit_quotas(store)


@pytest.mark.parametrize("engine", ALL)
async def test_limits_of_users_and_groups(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta, other = await made.client(), await made.client()
        await limit(made, QuotaKey(USER, 1001), 6 * BLOCK, 3)
        await limit(made, QuotaKey(GROUP, 2002), None, 1)
        f, _ = await meta.mknod(ALICE, ROOT, b"f", FILE, 0o600)
        await other.mknod(ALICE, ROOT, b"g", FILE, 0o600)
        await write(other, f, 0, 5 * BLOCK)
        assert await errno_of(write(meta, f, 0, 5 * BLOCK + 1)) == errno.EDQUOT
        assert await errno_of(meta.mknod(ALICE, ROOT, b"h", FILE, 0o600)) == errno.EDQUOT
        await meta.mknod(Caller(5, 2002, 0), ROOT, b"i", FILE, 0o600)
        assert await errno_of(other.mknod(Caller(6, 2002, 0), ROOT, b"j", FILE, 0o600)) == errno.EDQUOT
        await other.setattr(SUPERUSER, f, AttrChange(uid=7))
        await meta.mknod(ALICE, ROOT, b"h", FILE, 0o600)
        await audit_quotas(await made.store())


@pytest.mark.parametrize("engine", ALL)
async def test_clients_do_not_pass_a_limit_together(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        clients = [await made.client() for _ in range(4)]
        top, _ = await clients[0].mkdir(SUPERUSER, ROOT, b"top", 0o777)
        await limit(made, QuotaKey(DIRECTORY, top), None, 10)

        async def fill(number: int, meta: Meta) -> int:
            count = 0
            for place in range(8):
                outcome = await errno_of(meta.mknod(SUPERUSER, top, b"%d-%d" % (number, place), FILE, 0o600))
                assert outcome in (0, errno.EDQUOT)
                count += not outcome
            return count

        made_in_all = sum(await asyncio.gather(*(fill(*one) for one in enumerate(clients))))
        # With key-value engines usage follows each commit in a transaction of its own: what the others do meanwhile slips through.
        slips = len(clients) - 1 if engine in KV else 0
        assert 10 <= made_in_all <= 10 + slips
        await audit_quotas(await made.store())


async def test_statfs_shows_the_least_room(tmp_path: Path) -> None:
    async with volume("sqlite3", tmp_path, capacity=100 * BLOCK) as made:
        meta = await made.client()
        top, _ = await meta.mkdir(SUPERUSER, ROOT, b"top", 0o777)
        sub, _ = await meta.mkdir(SUPERUSER, top, b"sub", 0o777)
        f = await new_file(meta, b"f", parent=sub)
        await limit(made, QuotaKey(DIRECTORY, top), 50 * BLOCK, 10)
        await limit(made, QuotaKey(DIRECTORY, sub), None, 20)
        assert await meta.statfs() == (100 * BLOCK, 3 * BLOCK, 3, 10 << 20)
        assert await meta.statfs(top) == (50 * BLOCK, 2 * BLOCK, 2, 8)
        for ino in (sub, f):
            assert await meta.statfs(ino) == (49 * BLOCK, BLOCK, 1, 8)
        below_top = await made.client(subdir="top")
        assert await below_top.statfs() == (50 * BLOCK, 2 * BLOCK, 2, 8)


@pytest.mark.parametrize("engine", ALL)
async def test_administration(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        store = await made.store()
        a, _ = await meta.mkdir(SUPERUSER, ROOT, b"a", 0o777)
        b, _ = await meta.mkdir(SUPERUSER, a, b"b", 0o777)
        await write(meta, await new_file(meta, b"f", parent=b), 0, 10_000)
        assert await find_directory(store, "/a/./b/") == b
        assert await path_of(store, b) == "/a/b"
        assert await path_of(store, ROOT) == "/"
        for path in ("/a/x", "/a/b/f", "/a/b/f/g"):
            with pytest.raises(ConfigError, match="director"):
                await find_directory(store, path)
        key = QuotaKey(DIRECTORY, a)
        for strict in (False, True):
            made_quota = await set_quota(store, meta.setting, key, Limits(1 << 30), strict=strict)
            assert made_quota == Quota(1 << 30, -1, 16384, 2)
            await delete_quota(store, key)
            assert await get_quota(store, key) is None
        await set_quota(store, meta.setting, key, Limits(1 << 30), strict=False)
        assert await set_quota(store, meta.setting, key, Limits(None, 7), strict=False) == Quota(1 << 30, 7, 16384, 2)
        await set_quota(store, meta.setting, QuotaKey(USER, 0), Limits(1 << 40), strict=False)
        await meta.heartbeat()
        assert meta.setting.user_group_quota
        assert await list_quotas(store) == {
            key: Quota(1 << 30, 7, 16384, 2),
            QuotaKey(USER, 0): Quota(1 << 40, -1, 20480, 3),
        }
        await delete_quota(store, QuotaKey(USER, 0))
        assert await get_quota(store, QuotaKey(USER, 0)) is None
        assert await store.get(QuotaKey(USER, 0)) == (Quota(-1, -1, 20480, 3),)

        async def spoil(tx: Tx) -> None:
            tx.put(key, Quota(1 << 30, 7, 1, 1))
            tx.put(QuotaKey(USER, 0), Quota(-1, -1, 5, 5))
            tx.delete(QuotaKey(GROUP, 0))

        await store.run(spoil)
        for repair in (False, True):
            difference = await check_directory(store, meta.setting, a, strict=True, repair=repair)
            assert difference is not None
            assert difference.actual == (16384, 2)
            assert [one.key for one in await check_owners(store, repair=repair)] == [
                QuotaKey(USER, 0),
                QuotaKey(GROUP, 0),
            ]
        assert await check_directory(store, meta.setting, a, strict=False, repair=False) is None
        assert await check_owners(store, repair=False) == []
        await audit_quotas(store)


NAMES = st.sampled_from([b"a", b"b", b"c"])
PLACES = st.integers(0, 3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["mkdir", "file", "write", "link", "unlink", "rmdir", "rename", "exchange", "chown"]),
            PLACES,
            NAMES,
            PLACES,
            NAMES,
            st.integers(0, 30_000),
        ),
        max_size=40,
    )
)
@pytest.mark.parametrize("engine", ["memory"])
def test_any_history_leaves_usage_right(engine: str, tmp_path_factory: Any, steps: list[Any]) -> None:
    async def history() -> None:
        async with volume(engine, tmp_path_factory.mktemp("history"), trash_days=1) as made:
            meta = await made.client()
            made_now = [(await meta.mkdir(SUPERUSER, ROOT, name, 0o777))[0] for name in (b"p", b"q")]
            places = [ROOT, *made_now]
            places.append((await meta.mkdir(SUPERUSER, places[1], b"r", 0o777))[0])
            await limit(made, QuotaKey(DIRECTORY, places[1]), 60 * BLOCK, 12)
            await limit(made, QuotaKey(DIRECTORY, places[3]), None, 5)
            await limit(made, QuotaKey(USER, 1001), 40 * BLOCK, None)
            for step in steps:
                assert await errno_of(_do(meta, places, *step)) != errno.EIO
            store = await made.store()
            await audit_quotas(store)

    asyncio.run(history())


async def _do(meta: Meta, places: list[int], what: str, at: int, name: bytes, to: int, new: bytes, size: int) -> None:
    parent, target = places[at], places[to]
    caller = ALICE if size % 2 else SUPERUSER
    match what:
        case "mkdir":
            await meta.mkdir(caller, parent, name, 0o777)
        case "file":
            await meta.mknod(caller, parent, name, FILE, 0o666)
        case "unlink":
            await meta.unlink(SUPERUSER, parent, name, skip_trash=bool(size % 3))
        case "rmdir":
            await meta.rmdir(SUPERUSER, parent, name, skip_trash=bool(size % 3))
        case "rename":
            await meta.rename(SUPERUSER, parent, name, target, new)
        case "exchange":
            await meta.rename(SUPERUSER, parent, name, target, new, EXCHANGE)
        case _:
            ino, attr = await meta.lookup(SUPERUSER, parent, name)
            if what == "link":
                await meta.link(SUPERUSER, ino, target, new)
            elif what == "chown":
                await meta.setattr(SUPERUSER, ino, AttrChange(uid=size % 3 + 1000, gid=size % 2 + 2000))
            elif attr.kind == FILE and size % 2:
                await meta.truncate(SUPERUSER, ino, size, opened=True)
            elif attr.kind == FILE and size:
                await write(meta, ino, 0, size)
