"""Who may do what to which inode, and when reading writes atime (format §5.2, §5.4)."""

import errno
import os
from pathlib import Path

import pytest
from jfs.errors import FsError
from jfs.format.constants import DIRECTORY, FILE
from jfs.meta.operations import access
from jfs.meta.operations.access import SUPERUSER, Caller, check_access, granted
from jfs.meta.operations.attributes import wants_atime
from jfs.meta.operations.rules import new_attr
from jfs.meta.operations.xattrs import check_permission
from meta_volumes import new_file, volume

DAY = 86_400 * 10**9


@pytest.mark.parametrize(
    ("caller", "kind", "mode", "wanted"),
    [
        (Caller(1000, 5, 0), FILE, 0o754, 7),
        (Caller(1, 1000, 0), FILE, 0o754, 5),
        (Caller(1, 1, 0), FILE, 0o754, 4),
        (Caller(1000, 1000, 0), FILE, 0o077, 0),
        (SUPERUSER, FILE, 0o000, 6),
        (SUPERUSER, FILE, 0o001, 7),
        (SUPERUSER, DIRECTORY, 0o000, 7),
    ],
)
def test_permission_bits(caller: Caller, kind: int, mode: int, wanted: int) -> None:
    attr = new_attr(kind, mode, 1000, 1000, 0, 1)
    assert granted(caller, attr) == wanted
    if caller.uid:
        for mask in range(8):
            if mask & ~wanted:
                with pytest.raises(FsError) as caught:
                    check_access(caller, attr, mask)
                assert caught.value.errno == errno.EACCES
            else:
                check_access(caller, attr, mask)


def test_groups_come_from_the_process_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_groups", {})
    assert Caller(1, 7, 0).groups() == (7,)
    assert Caller(1, 7, 2**30).groups() == (7,), "a process that cannot be seen"
    assert Caller(1, 7, os.getpid()).groups() == (7, *os.getgroups())
    monkeypatch.setattr(access, "_read_groups", lambda pid: (8, 9))
    assert Caller(1, 7, os.getpid()).groups() == (7, *os.getgroups()), "kept for a second"
    assert Caller(2, 7, os.getpid()).groups() == (7, 8, 9), "the process has become another user since"
    attr = new_attr(FILE, 0o040, 1000, 9, 0, 1)
    assert granted(Caller(1, 7, 123), attr) == 4


@pytest.mark.parametrize(
    ("mode", "since", "changed", "wanted"),
    [
        ("noatime", 10 * DAY, True, False),
        ("relatime", 0, True, True),
        ("relatime", 10, False, False),
        ("relatime", DAY + 1, False, True),
        ("strictatime", 10, False, False),
        ("strictatime", 2 * 10**9, False, True),
        ("strictatime", 0, True, True),
    ],
)
def test_when_reading_writes_atime(mode: str, since: int, changed: bool, wanted: bool) -> None:
    attr = new_attr(FILE, 0o644, 0, 0, 100 * DAY, 1)
    if changed:
        attr = attr._replace(mtimensec=attr.mtimensec + 1)
    assert wants_atime(attr, mode, 100 * DAY + since) is wanted


async def test_only_atime_moves(tmp_path: Path) -> None:
    async with volume("memory", tmp_path) as made:
        meta = await made.client(atime_mode="relatime")
        ino = await new_file(meta, b"f")
        before = await meta.getattr(ino)
        made.clock.advance(90_000)
        await meta.open(SUPERUSER, ino, os.O_WRONLY)
        assert await meta.getattr(ino) == before
        await meta.open(SUPERUSER, ino, os.O_RDONLY)
        after = await meta.getattr(ino)
        assert after.atime >= before.atime + 90_000
        assert after == before._replace(atime=after.atime, atimensec=after.atimensec)
        reader = await made.client(atime_mode="strictatime", read_only=True)
        made.clock.advance(90_000)
        await reader.open(SUPERUSER, ino, os.O_RDONLY)
        assert await meta.getattr(ino) == after


@pytest.mark.parametrize(
    ("caller", "kind_mode", "name", "read", "write"),
    [
        (Caller(1, 1, 0), FILE << 12 | 0o644, b"user.a", 0, errno.EACCES),
        (Caller(1, 1, 0), FILE << 12 | 0o600, b"user.a", errno.EACCES, errno.EACCES),
        (Caller(1, 1, 0), FILE << 12 | 0o646, b"user.a", 0, 0),
        (Caller(1000, 1, 0), FILE << 12 | 0o400, b"user.a", 0, errno.EACCES),
        (Caller(1, 1, 0), DIRECTORY << 12 | 0o1777, b"user.a", 0, errno.EPERM),
        (Caller(1000, 1, 0), DIRECTORY << 12 | 0o1777, b"user.a", 0, 0),
        (Caller(1000, 1, 0), FILE << 12 | 0o600, b"trusted.a", errno.ENODATA, errno.EPERM),
        (Caller(1000, 1, 0), FILE << 12 | 0o000, b"security.a", 0, errno.EPERM),
        (Caller(1, 1, 0), FILE << 12 | 0o000, b"system.posix_acl_access", 0, 0),
        (SUPERUSER, FILE << 12 | 0o000, b"trusted.a", 0, 0),
    ],
)
def test_who_may_read_and_write_extended_attributes(
    caller: Caller, kind_mode: int, name: bytes, read: int, write: int
) -> None:
    attr = new_attr(FILE, 0, 1000, 1000, 0, 1)._replace(kind_mode=kind_mode)
    for wanted, writing in ((read, False), (write, True)):
        seen = 0
        try:
            check_permission(caller, attr, name, write=writing, rule=None)
        except FsError as error:
            seen = error.errno
        assert seen == wanted
