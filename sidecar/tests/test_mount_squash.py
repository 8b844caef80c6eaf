"""Options that change who a request counts as and how entries are made, listed and marked: alone, and through mounts beside the
real client's."""

import json
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
from jfs.errors import VolumeError
from jfs.format.constants import DIRECTORY, FILE
from jfs.format.setting import Setting, new_setting
from jfs.format.usable import check_versions
from jfs.fuse.squash import Owner, callers
from jfs.meta.model.attr import Entry
from jfs.meta.store.base import DirectoryPage
from jfs.meta.volume import Caller
from jfs.mount.config import parse
from jfs.vfs.directories import Directories, Item
from mount_parts import JFS, Volume, mounted, really_mounted, run


def test_root_squash_maps_root_only() -> None:
    make = callers(Owner(65534, 65533), None)
    assert make(0, 0, 9) == Caller(65534, 65533, 9, checked=True)
    assert make(1000, 1000, 9) == Caller(1000, 1000, 9)


def test_all_squash_maps_everybody_and_goes_first() -> None:
    make = callers(Owner(1, 2), Owner(3, 4))
    assert make(0, 0, 9) == make(1000, 1000, 9) == Caller(3, 4, 9, checked=True)
    assert callers(None, None) is Caller


def test_values_of_the_options() -> None:
    config = parse([("root-squash", "1"), ("all-squash", "7:8"), ("umask", "027"), ("enable-cap", None)])
    assert config.root_squash == (1, 65534)
    assert config.all_squash == (7, 8)
    assert config.non_default_permission  # the kernel would check the real user
    assert config.umask == 0o27
    assert config.security_xattrs == {b"security.capability"}


@pytest.mark.parametrize("member", [{"MinClientVersion": "9.0.0"}, {"MaxClientVersion": "1.0.0"}, {"MetaVersion": 2}])
def test_versions_that_exclude_us(member: dict[str, object]) -> None:
    setting = new_setting("vol", storage="file", bucket="/b/", uuid="u")
    check_versions(setting)
    with pytest.raises(VolumeError, match="volume vol"):
        check_versions(Setting.parse(json.dumps({**setting.members, **member}).encode()))


class Page(NamedTuple):
    names: list[bytes]
    entries: list[Entry]
    attrs: None = None
    raw_entries: None = None
    raw_attrs: None = None


async def test_sorted_listing_goes_across_pages() -> None:
    async def pages() -> AsyncIterator[DirectoryPage]:
        for names in ([b"m", b"Z"], [b"a", b"m1"]):
            yield Page(names, [Entry(FILE, 7)] * 2)

    for sort, wanted in ((True, [b".", b"Z", b"a", b"m", b"m1"]), (False, [b".", b"m", b"Z", b"a", b"m1"])):
        directories = Directories(sort=sort)
        handle = directories.open(1, 1, lambda: [Item(b".", 1, DIRECTORY, None)])
        await handle.start(pages())
        for cookie in (1, 2, 3, 4, 5):
            await handle.fill(cookie, 1)
        assert handle.window(0, 9, freshness=1).names == wanted
        await handle.close()


SQUASH = """\
touch made; stat -c %u:%g made
cat secret
chown 1000 secret
mkdir secrets/x
ls secrets
setpriv --reuid 1001 --regid 1001 --clear-groups touch other; stat -c %u:%g other
"""
MASK = (
    "umask 077; touch f; mkdir d; ln -s x l; umask 0; touch f0; mkdir d0; mkfifo p0; stat -c '%n %a' f d l f0 d0 p0\n"
)
MARKS = "\n".join(
    f"touch m; setfattr -n {name} -v 0x01000002000400000000000000000000 m; getfattr -e hex -n {name} m; setfattr -x {name} m"
    for name in ("security.capability", "security.selinux", "user.x")
)
LIST = "mkdir s; cd s; touch b a .c Z m10 m2 1 x y; mkdir dir; ls -Ua; cd ..\n"


def answers(where: Path, script: str) -> list[tuple[int, str]]:
    found = []
    for line in script.splitlines():
        ended = subprocess.run(["bash", "-c", line], cwd=where, capture_output=True, text=True, check=False, timeout=30)
        found.append((ended.returncode, (ended.stdout + ended.stderr).replace(str(where), "")))
    return found


@pytest.mark.real
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("options", "script"),
    [
        (("--root-squash", "65534:65533"), SQUASH),
        (("--all-squash", "2000:2001"), SQUASH),
        (("--umask", "027"), MASK),
        (("--sort-dir",), LIST),
        (("--enable-xattr", "--enable-cap"), MARKS),
        (("--enable-xattr", "--enable-selinux"), MARKS),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_as_the_real_client(tmp_path: Path, options: tuple[str, ...], script: str) -> None:
    seen = []
    for by_real, name in ((False, "ours"), (True, "real")):
        volume = Volume(f"sqlite3://{tmp_path}/{name}.db", tmp_path / f"bucket-{name}").format("--trash-days", "0")
        mount = really_mounted if by_real else mounted
        with mounted(volume, tmp_path / name) as where:
            os.chmod(where, 0o777)
            (where / "secret").write_text("x")
            os.chmod(where / "secret", 0o600)
            (where / "secrets").mkdir(mode=0o700)
        with mount(volume, tmp_path / name, *options) as where:
            seen.append(answers(where, script))
    assert seen[0] == seen[1]


@pytest.mark.real
@pytest.mark.parametrize("options", [("--non-default-permission",), ("--root-squash", "65534:65533")])
def test_extended_attributes_are_checked_where_the_kernel_does_not(tmp_path: Path, options: tuple[str, ...]) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format("--trash-days", "0")
    with mounted(volume, tmp_path / "mnt", "--enable-xattr") as where:
        where.chmod(0o1777)
        (where / "theirs").write_text("x")
        os.setxattr(where / "theirs", b"user.a", b"1")
        (where / "secret").write_text("x")
        os.setxattr(where / "secret", b"user.a", b"1")
        os.chmod(where / "secret", 0o600)
    tmp_path.parent.parent.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    script = """\
setfattr -n user.a -v 2 theirs
setfattr -x user.a theirs
setfattr -n user.a -v 2 .
getfattr -n user.a secret
getfattr -n user.a theirs
"""
    as_user = "" if options[0] == "--root-squash" else "setpriv --reuid 1001 --regid 1001 --clear-groups "
    with mounted(volume, tmp_path / "mnt", "--enable-xattr", *options) as where:
        found = answers(where, "".join(as_user + line + "\n" for line in script.splitlines()))
        assert [code for code, _ in found] == [1, 1, 1, 1, 0], found
        removed = answers(where, "mkdir gone; cd gone; rmdir ../gone; ls\n")
        assert removed == [(0, "")], "a removed directory can still be listed"


@pytest.mark.real
def test_status_refuses_what_a_newer_client_is_needed_for(tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format()
    database = sqlite3.connect(tmp_path / "meta.db")
    with database:
        (text,) = database.execute("select value from jfs_setting").fetchone()
        changed = json.dumps({**json.loads(text), "MinClientVersion": "9.0.0"})
        database.execute("update jfs_setting set value = ?", (changed,))
    database.close()
    ended = run(*JFS, "status", volume.url, check=False)
    assert ended.returncode == 1
    assert "9.0.0" in ended.stderr
    assert not ended.stdout
