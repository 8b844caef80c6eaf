"""Which errno wins when several would apply (format §5.2, §5.3), for every operation on names and inodes."""

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from jfs.check.examination import repair
from jfs.format.constants import APPEND, FIFO, FILE, IMMUTABLE, TRASH
from jfs.meta.model.attr import Attr
from jfs.meta.model.keys import NodeKey
from jfs.meta.store.base import Tx
from jfs.meta.volume import EXCHANGE, NOREPLACE, SUPERUSER, AttrChange, Caller, Meta
from meta_volumes import errno_of, new_file, volume

USER = Caller(1000, 1000, 0)
OTHER = Caller(2000, 2000, 0)
LONG = b"x" * 256

Case = Callable[[Meta], Awaitable[object]]


@pytest.fixture(params=["memory"])  # semantics are the same code on every engine; other files run on all
async def meta(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Meta]:
    """Root: file f (3), dir d (2) with file d/f (4) and dir d/sub (5), empty dir e (6), symlink s (7)."""
    async with volume(request.param, tmp_path, trash_days=1) as made:
        meta = await made.client(check_access=True)
        assert (await meta.mkdir(SUPERUSER, 1, b"d", 0o755))[0] == 2
        assert await new_file(meta, b"f") == 3
        assert await new_file(meta, b"f", parent=2) == 4
        await meta.mkdir(SUPERUSER, 2, b"sub", 0o755)
        await meta.mkdir(SUPERUSER, 1, b"e", 0o755)
        await meta.symlink(SUPERUSER, 1, b"s", b"f")
        yield meta


CASES: list[tuple[str, Case, int]] = [
    ("lookup missing", lambda m: m.lookup(SUPERUSER, 1, b"nope"), errno.ENOENT),
    ("lookup long", lambda m: m.lookup(SUPERUSER, 1, LONG), errno.ENAMETOOLONG),
    ("lookup below file", lambda m: m.lookup(SUPERUSER, 3, b"x"), errno.ENOTDIR),
    ("getattr missing", lambda m: m.getattr(999), errno.ENOENT),
    ("mknod of no type", lambda m: m.mknod(SUPERUSER, 1, b"f", 9, 0o644), errno.EINVAL),
    ("create dot", lambda m: m.create(SUPERUSER, 1, b".", 0o644, os.O_EXCL), errno.EEXIST),
    ("create dotdot", lambda m: m.mkdir(SUPERUSER, 1, b"..", 0o644), errno.EEXIST),
    ("create empty name", lambda m: m.mkdir(SUPERUSER, 1, b"", 0o644), errno.EINVAL),
    ("create slash", lambda m: m.mkdir(SUPERUSER, 1, b"a/b", 0o644), errno.EINVAL),
    ("create NUL", lambda m: m.mkdir(SUPERUSER, 1, b"a\0b", 0o644), errno.EINVAL),
    ("create long", lambda m: m.mkdir(SUPERUSER, 1, LONG, 0o644), errno.ENAMETOOLONG),
    ("create the trash", lambda m: m.mkdir(SUPERUSER, 1, b".trash", 0o644), errno.EPERM),
    (".trash elsewhere", lambda m: m.mkdir(SUPERUSER, 2, b".trash", 0o644), 0),
    ("create in trash", lambda m: m.mkdir(SUPERUSER, TRASH, b"x", 0o644), errno.EPERM),
    ("create below nothing", lambda m: m.mkdir(SUPERUSER, 999, b"x", 0o644), errno.ENOENT),
    ("create below file", lambda m: m.mkdir(SUPERUSER, 3, b"x", 0o644), errno.ENOTDIR),
    ("create without permission", lambda m: m.mkdir(USER, 2, b"f", 0o644), errno.EACCES),
    ("create existing", lambda m: m.mknod(SUPERUSER, 1, b"f", FILE, 0o644), errno.EEXIST),
    ("create existing exclusively", lambda m: m.create(SUPERUSER, 1, b"f", 0o644, os.O_EXCL), errno.EEXIST),
    ("create existing", lambda m: m.create(SUPERUSER, 1, b"f", 0o644, os.O_RDWR), 0),
    ("create over directory", lambda m: m.create(SUPERUSER, 1, b"d", 0o644, os.O_RDWR), errno.EEXIST),
    ("create over symlink", lambda m: m.create(SUPERUSER, 1, b"s", 0o644, os.O_RDWR), errno.EEXIST),
    ("open existing unreadable", lambda m: m.create(USER, 1, b"f", 0o644, os.O_RDWR), errno.EACCES),
    ("symlink to nothing", lambda m: m.symlink(SUPERUSER, 1, b"x", b""), errno.EINVAL),
    ("symlink too long", lambda m: m.symlink(SUPERUSER, 1, b"x", b"t" * 4097), errno.EINVAL),
    ("symlink with NUL", lambda m: m.symlink(SUPERUSER, 1, b"x", b"a\0"), errno.EINVAL),
    ("readlink of file", lambda m: m.readlink(3), errno.EINVAL),
    ("readlink of nothing", lambda m: m.readlink(999), errno.ENOENT),
    ("link directory", lambda m: m.link(SUPERUSER, 2, 1, b"x"), errno.EPERM),
    ("link nothing", lambda m: m.link(SUPERUSER, 999, 1, b"x"), errno.ENOENT),
    ("link over existing", lambda m: m.link(SUPERUSER, 3, 1, b"e"), errno.EEXIST),
    ("link directory over existing", lambda m: m.link(SUPERUSER, 2, 1, b"e"), errno.EPERM),
    ("link to dot", lambda m: m.link(SUPERUSER, 3, 1, b"."), errno.EEXIST),
    ("link below file", lambda m: m.link(SUPERUSER, 3, 4, b"x"), errno.ENOTDIR),
    ("link without permission", lambda m: m.link(USER, 3, 2, b"x"), errno.EACCES),
    ("unlink missing", lambda m: m.unlink(SUPERUSER, 1, b"nope"), errno.ENOENT),
    ("unlink directory", lambda m: m.unlink(SUPERUSER, 1, b"d"), errno.EPERM),
    ("unlink without permission", lambda m: m.unlink(USER, 2, b"f"), errno.EACCES),
    ("unlink missing without permission", lambda m: m.unlink(USER, 2, b"nope"), errno.ENOENT),
    ("unlink the trash", lambda m: m.unlink(SUPERUSER, 1, b".trash"), errno.EPERM),
    ("unlink in the trash as user", lambda m: m.unlink(USER, TRASH, b"x"), errno.EPERM),
    ("rmdir dot", lambda m: m.rmdir(SUPERUSER, 1, b"."), errno.EINVAL),
    ("rmdir dotdot", lambda m: m.rmdir(SUPERUSER, 1, b".."), errno.ENOTEMPTY),
    ("rmdir missing", lambda m: m.rmdir(SUPERUSER, 1, b"nope"), errno.ENOENT),
    ("rmdir file", lambda m: m.rmdir(SUPERUSER, 1, b"f"), errno.ENOTDIR),
    ("rmdir full", lambda m: m.rmdir(SUPERUSER, 1, b"d"), errno.ENOTEMPTY),
    ("rmdir without permission", lambda m: m.rmdir(USER, 2, b"sub"), errno.EACCES),
    ("rmdir the trash", lambda m: m.rmdir(SUPERUSER, 1, b".trash"), errno.EPERM),
    ("rename missing", lambda m: m.rename(SUPERUSER, 1, b"nope", 1, b"x"), errno.ENOENT),
    ("rename missing to itself", lambda m: m.rename(SUPERUSER, 1, b"nope", 1, b"nope"), errno.ENOENT),
    ("rename to itself", lambda m: m.rename(SUPERUSER, 1, b"f", 1, b"f", NOREPLACE), 0),
    ("rename onto existing", lambda m: m.rename(SUPERUSER, 1, b"f", 2, b"f", NOREPLACE), errno.EEXIST),
    ("rename dir onto file", lambda m: m.rename(SUPERUSER, 1, b"e", 1, b"f"), errno.ENOTDIR),
    ("rename file onto dir", lambda m: m.rename(SUPERUSER, 1, b"f", 1, b"e"), errno.EISDIR),
    ("rename onto full dir", lambda m: m.rename(SUPERUSER, 1, b"e", 1, b"d"), errno.ENOTEMPTY),
    ("rename below file", lambda m: m.rename(SUPERUSER, 1, b"f", 4, b"x"), errno.ENOTDIR),
    ("rename below nothing", lambda m: m.rename(SUPERUSER, 1, b"f", 999, b"x"), errno.ENOENT),
    ("rename into itself", lambda m: m.rename(SUPERUSER, 1, b"d", 2, b"x"), errno.EPERM),
    ("rename into its child", lambda m: m.rename(SUPERUSER, 1, b"d", 5, b"x"), errno.EPERM),
    ("rename without permission", lambda m: m.rename(USER, 2, b"f", 1, b"x"), errno.EACCES),
    ("exchange with nothing", lambda m: m.rename(SUPERUSER, 1, b"f", 1, b"x", EXCHANGE), errno.ENOENT),
    ("exchange file and directory", lambda m: m.rename(SUPERUSER, 1, b"f", 1, b"d", EXCHANGE), 0),
    ("whiteout", lambda m: m.rename(SUPERUSER, 1, b"f", 1, b"x", 4), 0),
    ("whiteout and noreplace", lambda m: m.rename(SUPERUSER, 1, b"f", 1, b"d", 5), errno.EEXIST),
    ("whiteout and exchange", lambda m: m.rename(SUPERUSER, 1, b"f", 1, b"d", 6), errno.EINVAL),
    ("exchange and noreplace", lambda m: m.rename(SUPERUSER, 1, b"f", 1, b"e", 3), errno.EINVAL),
    ("rename the trash", lambda m: m.rename(SUPERUSER, 1, b".trash", 1, b"x"), errno.EPERM),
    ("rename into the trash", lambda m: m.rename(SUPERUSER, 1, b"f", TRASH, b"x"), errno.EPERM),
    ("rename to long", lambda m: m.rename(SUPERUSER, 1, b"f", 1, LONG), errno.ENAMETOOLONG),
    ("setattr of nothing", lambda m: m.setattr(SUPERUSER, 999, AttrChange(mode=0)), errno.ENOENT),
    ("chmod of others' file", lambda m: m.setattr(USER, 3, AttrChange(mode=0o600)), errno.EPERM),
    ("chown by user", lambda m: m.setattr(USER, 3, AttrChange(uid=1000)), errno.EPERM),
    ("chgrp by user", lambda m: m.setattr(USER, 3, AttrChange(gid=1000)), errno.EPERM),
    ("utimens of root's file", lambda m: m.setattr(USER, 3, AttrChange(mtime=5)), errno.EPERM),
    ("flags by user", lambda m: m.setattr(USER, 3, AttrChange(flags=1)), errno.EPERM),
    ("setattr of the trash", lambda m: m.setattr(SUPERUSER, TRASH, AttrChange(mode=0)), errno.EPERM),
    ("truncate nothing", lambda m: m.truncate(SUPERUSER, 999, 1, opened=False), errno.ENOENT),
    ("truncate directory", lambda m: m.truncate(SUPERUSER, 2, 1, opened=False), errno.EPERM),
    ("truncate negative", lambda m: m.truncate(SUPERUSER, 3, -1, opened=False), errno.EINVAL),
    ("truncate too far", lambda m: m.truncate(SUPERUSER, 3, 1 << 57, opened=False), errno.EFBIG),
    ("truncate without permission", lambda m: m.truncate(USER, 3, 1, opened=False), errno.EACCES),
    ("truncate by handle", lambda m: m.truncate(USER, 3, 1, opened=True), 0),
    ("open nothing", lambda m: m.open(SUPERUSER, 999, os.O_RDONLY), errno.ENOENT),
    ("open directory", lambda m: m.open(SUPERUSER, 2, os.O_RDONLY), errno.EISDIR),
    ("open for writing", lambda m: m.open(USER, 3, os.O_WRONLY), errno.EACCES),
    ("access", lambda m: m.access(USER, 3, 2), errno.EACCES),
    ("access granted", lambda m: m.access(USER, 3, 4), 0),
    ("read slices of nothing", lambda m: m.read_slices(999, 0), errno.ENOENT),
    ("read slices of directory", lambda m: m.read_slices(2, 0), errno.EPERM),
    ("xattr too large", lambda m: m.setxattr(SUPERUSER, 3, b"user.a", b"x" * 65537), errno.ERANGE),
    ("xattr name too long", lambda m: m.setxattr(SUPERUSER, 3, b"user." + LONG, b""), errno.ERANGE),
    ("xattr without name", lambda m: m.setxattr(SUPERUSER, 3, b"", b""), errno.EINVAL),
    ("xattr flags", lambda m: m.setxattr(SUPERUSER, 3, b"user.a", b"", 4), errno.EINVAL),
    ("xattr replace", lambda m: m.setxattr(SUPERUSER, 3, b"user.a", b"", 2), errno.ENODATA),
    ("ACL", lambda m: m.setxattr(SUPERUSER, 3, b"system.posix_acl_access", b"x"), errno.ENOTSUP),
    ("get ACL", lambda m: m.getxattr(3, b"system.posix_acl_access"), errno.ENODATA),
    ("xattr of nothing", lambda m: m.setxattr(SUPERUSER, 999, b"user.a", b""), errno.ENOENT),
    ("getxattr missing", lambda m: m.getxattr(3, b"user.a"), errno.ENODATA),
    ("removexattr missing", lambda m: m.removexattr(SUPERUSER, 3, b"user.a"), errno.ENODATA),
]


@pytest.mark.parametrize(("case", "wanted"), [pytest.param(c, e, id=n) for n, c, e in CASES])
async def test_errno(meta: Meta, case: Case, wanted: int) -> None:
    assert errno.errorcode.get(await errno_of(case(meta))) == errno.errorcode.get(wanted)


MUTATIONS: list[tuple[str, Case]] = [
    ("mkdir", lambda m: m.mkdir(SUPERUSER, 1, b"x", 0o755)),
    ("mkdir existing", lambda m: m.mkdir(SUPERUSER, 1, b"d", 0o755)),
    ("create", lambda m: m.create(SUPERUSER, 1, b"x", 0o644, os.O_RDWR)),
    ("mknod", lambda m: m.mknod(SUPERUSER, 1, b"x", FIFO, 0o644)),
    ("symlink", lambda m: m.symlink(SUPERUSER, 1, b"x", b"y")),
    ("link", lambda m: m.link(SUPERUSER, 3, 1, b"x")),
    ("unlink", lambda m: m.unlink(SUPERUSER, 1, b"f")),
    ("rmdir", lambda m: m.rmdir(SUPERUSER, 1, b"e")),
    ("rename", lambda m: m.rename(SUPERUSER, 1, b"f", 1, b"x")),
    ("setattr", lambda m: m.setattr(SUPERUSER, 3, AttrChange(mode=0))),
    ("truncate", lambda m: m.truncate(SUPERUSER, 3, 1, opened=False)),
    ("open for writing", lambda m: m.open(SUPERUSER, 3, os.O_RDWR)),
    ("setxattr", lambda m: m.setxattr(SUPERUSER, 3, b"user.a", b"")),
    ("removexattr", lambda m: m.removexattr(SUPERUSER, 3, b"user.a")),
]


async def test_read_only_mount_changes_nothing(tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        writer = await made.client()
        await writer.mkdir(SUPERUSER, 1, b"d", 0o755)
        await new_file(writer, b"f")
        reader = await made.client(read_only=True)
        assert reader.sid == 0
        for name, mutation in MUTATIONS:
            assert await errno_of(mutation(reader)) == errno.EROFS, name
        await reader.open(SUPERUSER, 3, os.O_RDONLY)
        assert [sid async for sid, _ in reader.store.sessions()] == [writer.sid]


async def change_node(meta: Meta, ino: int, **fields: int) -> None:
    """Set fields that no operation sets this way."""

    async def operation(tx: Tx) -> None:
        (attr,) = await tx.get(NodeKey(ino))
        assert attr is not None
        tx.put(NodeKey(ino), attr._replace(**fields))

    await meta.store.run(operation)


FLAGGED: list[tuple[str, int, int, Case, int]] = [
    ("create in immutable", 2, IMMUTABLE, lambda m: m.mkdir(SUPERUSER, 2, b"x", 0o755), errno.EPERM),
    ("create existing in immutable", 2, IMMUTABLE, lambda m: m.mkdir(SUPERUSER, 2, b"f", 0o755), errno.EEXIST),
    ("create in append-only", 2, APPEND, lambda m: m.mkdir(SUPERUSER, 2, b"x", 0o755), 0),
    ("link into immutable", 2, IMMUTABLE, lambda m: m.link(SUPERUSER, 3, 2, b"x"), errno.EPERM),
    ("link immutable", 3, IMMUTABLE, lambda m: m.link(SUPERUSER, 3, 2, b"x"), errno.EPERM),
    ("link append-only over existing", 3, APPEND, lambda m: m.link(SUPERUSER, 3, 2, b"f"), errno.EPERM),
    ("unlink in append-only", 2, APPEND, lambda m: m.unlink(SUPERUSER, 2, b"f"), errno.EPERM),
    ("unlink append-only", 3, APPEND, lambda m: m.unlink(SUPERUSER, 1, b"f"), errno.EPERM),
    ("rmdir in immutable", 2, IMMUTABLE, lambda m: m.rmdir(SUPERUSER, 2, b"sub"), errno.EPERM),
    ("rename out of append-only", 2, APPEND, lambda m: m.rename(SUPERUSER, 2, b"f", 1, b"x"), errno.EPERM),
    ("rename into append-only", 2, APPEND, lambda m: m.rename(SUPERUSER, 1, b"f", 2, b"x"), 0),
    ("rename into immutable", 2, IMMUTABLE, lambda m: m.rename(SUPERUSER, 1, b"f", 2, b"x"), errno.EPERM),
    ("rename over append-only", 4, APPEND, lambda m: m.rename(SUPERUSER, 1, b"f", 2, b"f"), errno.EPERM),
    ("truncate append-only", 3, APPEND, lambda m: m.truncate(SUPERUSER, 3, 5, opened=True), errno.EPERM),
    ("open immutable to write", 3, IMMUTABLE, lambda m: m.open(SUPERUSER, 3, os.O_WRONLY), errno.EPERM),
    ("open append-only to write", 3, APPEND, lambda m: m.open(SUPERUSER, 3, os.O_WRONLY), errno.EPERM),
    ("open append-only to append", 3, APPEND, lambda m: m.open(SUPERUSER, 3, os.O_WRONLY | os.O_APPEND), 0),
    (
        "open append-only to append anew",
        3,
        APPEND,
        lambda m: m.open(SUPERUSER, 3, os.O_WRONLY | os.O_APPEND | os.O_TRUNC),
        errno.EPERM,
    ),
]


@pytest.mark.parametrize(
    ("ino", "flag", "case", "wanted"), [pytest.param(i, f, c, e, id=n) for n, i, f, c, e in FLAGGED]
)
async def test_flagged_inodes(meta: Meta, ino: int, flag: int, case: Case, wanted: int) -> None:
    await change_node(meta, ino, flags=flag)
    assert await errno_of(case(meta)) == wanted


async def test_sticky_directory_protects_from_those_who_own_neither(meta: Meta) -> None:
    t, _ = await meta.mkdir(SUPERUSER, 1, b"tmp", 0o1777)
    u, _ = await meta.mkdir(SUPERUSER, 1, b"open", 0o777)
    mine, _ = await meta.mknod(USER, t, b"mine", FILE, 0o666)
    await meta.mkdir(USER, t, b"dir", 0o777)
    assert await errno_of(meta.unlink(OTHER, t, b"mine")) == errno.EACCES
    assert await errno_of(meta.rmdir(OTHER, t, b"dir")) == errno.EACCES
    assert await errno_of(meta.rename(OTHER, t, b"mine", t, b"x")) == errno.EACCES
    assert await errno_of(meta.rename(OTHER, t, b"mine", u, b"x")) == errno.EACCES
    await meta.mknod(OTHER, u, b"over", FILE, 0o666)
    assert await errno_of(meta.rename(OTHER, u, b"over", t, b"mine")) == errno.EACCES
    await change_node(meta, t, uid=OTHER.uid)
    # The owner of the directory may move others' files out, but not their directories.
    assert await errno_of(meta.rename(OTHER, t, b"dir", u, b"dir")) == errno.EACCES
    assert await errno_of(meta.rename(OTHER, t, b"mine", u, b"mine")) == 0
    assert (await meta.lookup(SUPERUSER, u, b"mine"))[0] == mine


async def test_moving_a_directory_below_itself_is_found_at_any_depth(meta: Meta) -> None:
    at = 5
    for name in (b"a", b"b", b"c"):
        at, _ = await meta.mkdir(SUPERUSER, at, name, 0o755)
    assert await errno_of(meta.rename(SUPERUSER, 1, b"d", at, b"x")) == errno.EINVAL
    assert await errno_of(meta.rename(SUPERUSER, at, b"x", 1, b"d", EXCHANGE)) == errno.ENOENT
    await new_file(meta, b"x", parent=at)
    assert await errno_of(meta.rename(SUPERUSER, at, b"x", 1, b"d", EXCHANGE)) == errno.EINVAL


async def test_attributes_of_new_inodes(meta: Meta) -> None:
    d, _ = await meta.mkdir(SUPERUSER, 1, b"group", 0o2775)
    await change_node(meta, d, gid=77, uid=1000, flags=32, tier=2)
    caller = Caller(1000, 1000, 0, umask=0o027)
    _, sub = await meta.mkdir(caller, d, b"sub", 0o777)
    assert (sub.mode, sub.uid, sub.gid, sub.nlink, sub.length) == (0o2750, 1000, 77, 2, 4096)
    assert (sub.flags, sub.tier) == (32, 2)
    _, plain = await meta.mknod(caller, d, b"plain", FILE, 0o2777)
    assert (plain.mode, plain.gid) == (0o750 & ~0o2000, 77)
    _, device = await meta.mknod(SUPERUSER, d, b"dev", 6, 0o600, 0x501)
    assert (device.rdev, device.length, device.kind) == (0x501, 0, 6)
    _, link = await meta.symlink(caller, 1, b"l", b"target")
    assert (link.mode, link.length, link.gid) == (0o777, 6, 1000)
    assert (await meta.getattr(1)).nlink == 2 + 3


CHMODS: list[tuple[str, int, Caller, AttrChange, int | None]] = [
    ("owner", 0o644, USER, AttrChange(mode=0o4755), 0o4755),
    ("owner outside the group loses sgid", 0o644, Caller(1000, 5, 0), AttrChange(mode=0o2755), 0o755),
    ("stranger drops suid", 0o4755, OTHER, AttrChange(mode=0o755), 0o755),
    ("stranger drops suid and more", 0o4755, OTHER, AttrChange(mode=0o700), None),
    ("root chown clears suid of a program", 0o6755, SUPERUSER, AttrChange(uid=5), 0o755),
    ("root chown clears only suid of data", 0o6745, SUPERUSER, AttrChange(uid=5), 0o2745),
    ("user chgrp clears both", 0o6745, USER, AttrChange(gid=1000), 0o745),
    ("a mode that comes with a chown does not keep them", 0o6755, SUPERUSER, AttrChange(uid=5, mode=0o6755), 0o755),
]


@pytest.mark.parametrize(("mode", "caller", "change", "wanted"), [pytest.param(*c[1:], id=c[0]) for c in CHMODS])
async def test_mode_rules(meta: Meta, mode: int, caller: Caller, change: AttrChange, wanted: int | None) -> None:
    await change_node(meta, 3, uid=1000, gid=1000, kind_mode=FILE << 12 | mode)
    if wanted is None:
        assert await errno_of(meta.setattr(caller, 3, change)) == errno.EPERM
    else:
        assert (await meta.setattr(caller, 3, change)).mode == wanted


async def test_setattr_without_effect_moves_ctime_alone(meta: Meta) -> None:
    before = await meta.getattr(3)
    after = await meta.setattr(SUPERUSER, 3, AttrChange(mode=before.mode, uid=0))
    assert (after.ctime, after.ctimensec) > (before.ctime, before.ctimensec)
    assert after._replace(ctime=before.ctime, ctimensec=before.ctimensec) == before
    before = after
    after = await meta.setattr(SUPERUSER, 3, AttrChange(mtime=-1))
    assert (after.mtime, after.mtimensec) == (-1, 999_999_999)
    assert (after.ctime, after.ctimensec) > (before.ctime, before.ctimensec)


async def test_entry_without_inode_can_be_seen_and_removed(meta: Meta) -> None:
    async def lose(tx: Tx) -> None:
        tx.delete(NodeKey(3))

    await meta.store.run(lose)
    ino, attr = await meta.lookup(SUPERUSER, 1, b"f")
    assert (ino, attr.kind) == (3, FILE)
    await meta.unlink(SUPERUSER, 1, b"f")
    assert await errno_of(meta.lookup(SUPERUSER, 1, b"f")) == errno.ENOENT
    await repair(meta.store)


async def test_the_root_is_shown_even_without_its_record(meta: Meta) -> None:
    async def lose(tx: Tx) -> None:
        tx.delete(NodeKey(1))

    await meta.store.run(lose)
    attr: Attr = await meta.getattr(1)
    assert (attr.kind, attr.mode, attr.nlink, attr.length) == (2, 0o777, 2, 4096)
    await repair(meta.store)
