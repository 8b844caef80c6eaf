"""POSIX ACLs in the metadata: arithmetic and forms of rules, inheritance, chmod, access, sharing of rules among clients."""

import errno
import itertools
import os
from pathlib import Path

import pytest
from jfs.errors import ConfigError, CorruptRecord, FsError, VolumeError
from jfs.format.changes import acl_members
from jfs.format.constants import FILE, ROOT
from jfs.format.setting import new_setting
from jfs.meta.model.acl import (
    ABSENT,
    ACCESS,
    DEFAULT,
    AclKey,
    Rule,
    from_xattr,
    to_xattr,
    unpack_rule,
)
from jfs.meta.model.keys import CounterKey, SettingKey
from jfs.meta.operations.access import SUPERUSER, Caller, check_access, granted
from jfs.meta.operations.rules import new_attr
from jfs.meta.volume import NOW, AttrChange
from meta_volumes import UUID, errno_of, node, volume
from store_engines import ALL

NAMED = Rule(6, 5, 4, 0, ((1001, 6), (1002, 0)), ((2001, 5),))
ALICE, BOB = Caller(1001, 1001, 0, 0o077), Caller(1002, 1002, 0)


def test_stored_form_is_the_real_clients() -> None:
    # Golden volume redis-acl, rules 1 and 11.
    raw = bytes.fromhex("000600040006000000000002000003e90006000003ea000400000001000007d00005")
    rule = Rule(6, 4, 6, 0, ((1001, 6), (1002, 4)), ((2000, 5),))
    assert unpack_rule(raw) == rule
    assert rule.pack() == raw
    minimal = Rule(7, 0, ABSENT, 0)
    assert minimal.pack() == bytes.fromhex("00070000ffff00000000000000000000")
    assert unpack_rule(minimal.pack()) == minimal
    for bad in (raw[:-1], raw + b"\0", b"", raw[:10]):
        with pytest.raises(CorruptRecord):
            unpack_rule(bad)


def test_attribute_form_is_linuxs() -> None:
    value = to_xattr(NAMED)
    assert value[:12] == bytes.fromhex("0200000001000600ffffffff")
    assert from_xattr(value) == NAMED
    assert from_xattr(to_xattr(Rule(7, 5, ABSENT, 4))) == Rule(7, 5, ABSENT, 4)
    assert from_xattr(b"").is_empty
    entry = value[4:12]
    for bad, number in (
        (value[:-1], errno.EINVAL),
        (b"\3\0\0\0", errno.ENOTSUP),
        (value[:4] + entry, errno.EINVAL),  # no group, no others
        (value + entry, errno.EINVAL),  # the owner twice
        (value[:4] + bytes.fromhex("0300") + value[6:], errno.EINVAL),
        (value[:6] + bytes.fromhex("0800") + value[8:], errno.EINVAL),
    ):
        with pytest.raises(FsError) as raised:
            from_xattr(bad)
        assert raised.value.errno == number


def test_arithmetic_of_modes() -> None:
    assert NAMED.mode == 0o640
    assert NAMED.with_mode(0o751) == NAMED._replace(owner=7, mask=5, other=1)
    assert Rule(6, 4, ABSENT, 0).with_mode(0o751) == Rule(7, 5, ABSENT, 1)
    assert NAMED.for_child(0o777) == NAMED
    assert NAMED.for_child(0o624) == NAMED._replace(owner=6, mask=0, other=0)
    assert Rule(mask=7, users=((1, 7),)).completed(0o754) == Rule(7, 5, 7, 4, ((1, 7),))


def test_access_follows_the_order_of_posix() -> None:
    attr = new_attr(FILE, NAMED.mode, 1000, 1000, 0, 1)
    assert granted(Caller(1000, 5, 0), attr, NAMED) == 6
    assert granted(ALICE, attr, NAMED) == 4  # masked
    assert granted(BOB, attr, NAMED) == 0  # named with nothing, though others of the group may read
    assert granted(Caller(5, 1000, 0), attr, NAMED) == 4
    assert granted(Caller(5, 2001, 0), attr, NAMED) == 4
    assert granted(Caller(5, 5, 0), attr, NAMED) == 0
    assert granted(Caller(0, 5, 0), attr, NAMED) == 6
    two = Rule(7, 4, 7, 7, (), ((2001, 2),))
    member = Caller(5, 1000, os.getpid())
    attr = new_attr(FILE, two.mode, 1000, 1000, 0, 1)
    check_access(member, attr, 4, two)
    for mask in (2, 6, 1):  # neither group grants it, and others do not count then
        with pytest.raises(FsError):
            check_access(member, attr, mask, two)


@pytest.mark.parametrize("engine", ALL)
async def test_set_show_and_remove(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, enable_acl=True) as made:
        meta, other = await made.client(), await made.client()
        ino, attr = await meta.mknod(SUPERUSER, ROOT, b"f", FILE, 0o4644)
        assert await errno_of(meta.getxattr(ino, ACCESS)) == errno.ENODATA
        await meta.setxattr(SUPERUSER, ino, ACCESS, to_xattr(NAMED))
        changed = await meta.getattr(ino)
        assert (changed.mode, changed.access_acl) == (0o4640, 1)
        assert changed[8:10] > attr[8:10]  # ctime
        for client in (meta, other):
            assert from_xattr(await client.getxattr(ino, ACCESS)) == NAMED
            assert await client.listxattr(ino) == [ACCESS]
        second, _ = await other.mknod(SUPERUSER, ROOT, b"g", FILE, 0o600)
        await other.setxattr(SUPERUSER, second, ACCESS, to_xattr(NAMED))
        assert (await other.getattr(second)).access_acl == 1  # equal rules are stored once
        # A rule that a mode can say is no ACL.
        await meta.setxattr(SUPERUSER, ino, ACCESS, to_xattr(Rule(7, 1, ABSENT, 2)))
        assert ((await meta.getattr(ino)).mode, (await meta.getattr(ino)).access_acl) == (0o4712, 0)
        await other.removexattr(SUPERUSER, second, ACCESS)
        assert ((await other.getattr(second)).mode, (await other.getattr(second)).access_acl) == (0o640, 0)
        await other.removexattr(SUPERUSER, second, ACCESS)  # nothing to remove is fine
        assert await other.listxattr(second) == []
        assert await errno_of(meta.setxattr(ALICE, ino, ACCESS, to_xattr(NAMED))) == errno.EPERM
        assert await errno_of(meta.setxattr(SUPERUSER, ino, DEFAULT, to_xattr(NAMED))) == errno.EACCES
        assert await errno_of(meta.setxattr(SUPERUSER, ino, DEFAULT, b"")) == 0
        assert await errno_of(meta.setxattr(SUPERUSER, 99, ACCESS, to_xattr(NAMED))) == errno.ENOENT


@pytest.mark.parametrize("engine", ALL)
async def test_inheritance(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, enable_acl=True) as made:
        meta = await made.client()
        top, _ = await meta.mkdir(SUPERUSER, ROOT, b"d", 0o755)
        default = Rule(7, 5, 7, 1, ((1001, 7),))
        await meta.setxattr(SUPERUSER, top, DEFAULT, to_xattr(default))
        assert (await meta.getattr(top)).mode == 0o755  # a default ACL does not change its own directory's mode
        masked = Caller(0, 0, 0, 0o077)
        ino, attr = await meta.mknod(masked, top, b"f", FILE, 0o664)  # no umask
        assert attr.mode == 0o660
        assert from_xattr(await meta.getxattr(ino, ACCESS)) == Rule(6, 5, 6, 0, ((1001, 7),))
        again, attr_again = await meta.mknod(masked, top, b"g", FILE, 0o664)
        assert attr_again.access_acl == attr.access_acl
        below, attr = await meta.mkdir(masked, top, b"sub", 0o777)
        assert attr.mode == 0o771
        assert from_xattr(await meta.getxattr(below, DEFAULT)) == default
        assert attr.default_acl == (await meta.getattr(top)).default_acl
        _, attr = await meta.symlink(masked, top, b"l", b"x")
        assert (attr.mode, attr.access_acl, attr.default_acl) == (0o777, 0, 0)
        await meta.setxattr(SUPERUSER, top, DEFAULT, to_xattr(Rule(7, 1, ABSENT, 0)))
        _, attr = await meta.mknod(masked, top, b"h", FILE, 0o6666)
        assert (attr.mode, attr.access_acl) == (0o6600, 0)
        await meta.removexattr(SUPERUSER, top, DEFAULT)
        _, attr = await meta.mknod(masked, top, b"i", FILE, 0o666)
        assert (attr.mode, attr.access_acl) == (0o600, 0)
        assert again


@pytest.mark.parametrize("engine", ALL)
async def test_chmod_goes_to_the_mask(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, enable_acl=True) as made:
        meta = await made.client()
        ino, _ = await meta.mknod(SUPERUSER, ROOT, b"f", FILE, 0o644)
        await meta.setxattr(SUPERUSER, ino, ACCESS, to_xattr(NAMED))
        attr = await meta.setattr(SUPERUSER, ino, AttrChange(mode=0o2604))
        assert attr.mode == 0o2604
        assert from_xattr(await meta.getxattr(ino, ACCESS)) == NAMED._replace(mask=0, other=4)
        before = attr
        attr = await meta.setattr(SUPERUSER, ino, AttrChange(mode=0o2604))
        assert attr._replace(ctime=before.ctime, ctimensec=before.ctimensec) == before
        attr = await meta.setattr(SUPERUSER, ino, AttrChange(mode=0o640))
        assert attr.access_acl == 1  # the first rule again
        # A named user with write permission may set the present time, another may not.
        await meta.setxattr(SUPERUSER, ino, ACCESS, to_xattr(NAMED._replace(mask=6)))
        assert await errno_of(meta.setattr(ALICE, ino, AttrChange(mtime=NOW))) == 0
        assert await errno_of(meta.setattr(BOB, ino, AttrChange(mtime=NOW))) == errno.EACCES


@pytest.mark.parametrize("engine", ALL)
async def test_own_checks_use_the_rule(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, enable_acl=True) as made:
        setter = await made.client()
        meta = await made.client(check_access=True)  # knows no rule yet
        top, _ = await setter.mkdir(SUPERUSER, ROOT, b"d", 0o700)
        await setter.setxattr(SUPERUSER, top, ACCESS, to_xattr(Rule(7, 0, 7, 0, ((1001, 7), (1002, 1)))))
        ino, _ = await meta.mknod(ALICE, top, b"f", FILE, 0o666)
        assert await errno_of(meta.mknod(BOB, top, b"g", FILE, 0o666)) == errno.EACCES
        assert await errno_of(meta.lookup(BOB, top, b"f")) == 0
        assert await errno_of(meta.access(BOB, top, 4)) == errno.EACCES
        assert await errno_of(meta.open(BOB, ino, os.O_RDONLY)) == errno.EACCES
        assert await errno_of(meta.truncate(BOB, ino, 5, opened=False)) == errno.EACCES
        await meta.setxattr(ALICE, ino, ACCESS, to_xattr(Rule(6, 0, 6, 0, ((1002, 6),))))
        assert await errno_of(meta.truncate(BOB, ino, 5, opened=False)) == 0
        await meta.open(BOB, ino, os.O_RDWR)
        await meta.release(ino)
        assert await errno_of(meta.unlink(BOB, top, b"f")) == errno.EACCES


@pytest.mark.parametrize("engine", ALL)
async def test_two_clients_never_share_a_number(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path, enable_acl=True) as made:
        clients = [await made.client(), await made.client()]
        wanted: dict[int, Rule] = {}
        for place, (meta, permission) in enumerate(itertools.product(clients, range(8))):
            ino, _ = await meta.mknod(SUPERUSER, ROOT, b"%d" % place, FILE, 0o600)
            rule = Rule(6, permission, 7, 0, ((place % 5, 7),))
            await meta.setxattr(SUPERUSER, ino, ACCESS, to_xattr(rule))
            wanted[ino] = rule
        store = await made.store()
        numbers = set()
        for ino, rule in wanted.items():
            attr = await node(store, ino)
            assert attr is not None
            numbers.add(attr.access_acl)
            assert await store.get(AclKey(attr.access_acl)) == (rule,)
        scanned = {key.id: rule async for key, rule in store.scan(AclKey)}
        assert numbers == set(scanned)
        assert await store.get(CounterKey("aclMaxId")) == (max(numbers),)


@pytest.mark.parametrize("engine", ["memory", "sqlite3"])
async def test_volumes_without_acls(engine: str, tmp_path: Path) -> None:
    async with volume(engine, tmp_path) as made:
        meta = await made.client()
        ino, _ = await meta.mkdir(SUPERUSER, ROOT, b"d", 0o755)
        assert await errno_of(meta.setxattr(SUPERUSER, ino, ACCESS, to_xattr(NAMED))) == errno.ENOTSUP
        assert await errno_of(meta.getxattr(ino, DEFAULT)) == errno.ENODATA
        # Turned on meanwhile: only a new mount can serve them.
        store = await made.store()
        setting = meta.setting.replaced(**acl_members(meta.setting, True))

        async def write(tx: object) -> None:
            tx.put(SettingKey(), setting.encode())  # type: ignore[attr-defined]

        await store.run(write)
        with pytest.raises(VolumeError, match="mount it again"):
            await meta.heartbeat()


def test_the_setting_demands_a_newer_client() -> None:
    made = new_setting("demo-volume", UUID, enable_acl=True)
    assert (made.enable_acl, made.min_client_version) == (True, "1.2.0-A")
    plain = new_setting("demo-volume", UUID)
    assert plain.replaced(**acl_members(plain, True)).min_client_version == "1.2.0-A"
    newer = plain.replaced(MinClientVersion="1.3.0")
    assert newer.replaced(**acl_members(newer, True)).min_client_version == "1.3.0"
    assert acl_members(plain, False) == {"EnableACL": False}
    with pytest.raises(ConfigError, match="cannot be turned off"):
        acl_members(made, False)
