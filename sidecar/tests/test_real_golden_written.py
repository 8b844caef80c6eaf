"""Volumes written by the real client (the golden set) are written to by ours, in every way a volume can be changed, and afterwards
satisfy the real client's checks and ours; both show the same tree, contents, extended attributes and usage.

Volumes with known oddities of the real client (README of the golden set) are repaired by our fsck first.
"""

import contextlib
import datetime
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mount_parts import JFS, REAL, Volume, check_by_real, mounted, really_mounted, run, tree
from test_real_golden import GOLDEN, restored

pytestmark = [pytest.mark.real, pytest.mark.timeout(120)]

NAMES = [
    *("redis-acl", "redis-chacha-lz4", "redis-changelog", "redis-clone", "redis-hash", "redis-live", "redis-plain"),
    *("redis-quota", "redis-tier", "redis-trash-lz4", "redis-upgraded"),
    *("sqlite-acl-quota", "sqlite-aes", "sqlite-live", "sqlite-plain", "sqlite-zstd"),
]
OLD = "sqlite-old"  # which the real client 1.4 cannot open at all
PASSPHRASE = {"JFS_RSA_PASSPHRASE": "golden-pass"}


@contextlib.contextmanager
def owned(name: str, directory: Path) -> Iterator[Volume]:
    """A golden volume with objects of its own, and the setting pointing there."""
    with restored(name, directory) as volume:
        volume.bucket = directory / "objects"
        shutil.copytree(GOLDEN / name / "objects", volume.bucket)
        run(*JFS, "config", volume.url, "--bucket", f"{volume.bucket}/", "--force")
        yield volume


def change(top: Path, olds: list[Path]) -> None:
    """Every kind of change, in a new directory and to *olds*, files that the real client wrote."""
    new = top / "ours"
    (new / "sub" / "deep").mkdir(parents=True)
    for number in range(4):
        (new / f"f{number}").write_bytes(os.urandom(50_000 * number + 7))
    with open(new / "f3", "r+b") as file:
        file.seek(70_000)
        file.write(b"overwritten" * 3000)
        file.flush()
        os.fsync(file.fileno())
        file.truncate(100_000)
        file.truncate(300_000)
    os.link(new / "f1", new / "sub" / "linked")
    os.symlink("f1", new / "symlink")
    os.rename(new / "f0", new / "sub" / "moved")
    os.rename(new / "f2", new / "sub" / "linked2")
    (new / "target").write_bytes(b"replaced")
    os.rename(new / "f1", new / "target")
    os.setxattr(new / "target", "user.one", b"\0value")
    os.mkfifo(new / "fifo")
    (new / "gone").write_bytes(b"gone" * 1000)
    (new / "gone").unlink()
    run(*JFS, "clone", str(new / "sub"), str(new / "clone"))
    run(REAL, "clone", str(new / "target"), str(top / "clone of a file"))
    for number, old in enumerate(olds):
        os.setxattr(old, "user.ours", b"set")
        with open(old, "r+b") as file:
            file.seek(3)
            file.write(b"by us")
        if number == 0:
            os.truncate(old, 4)
            os.truncate(old, 70_000)
        elif number == 1:
            os.rename(old, new / "from the old")
        elif number == 2:
            os.link(old, new / "link to an old one")
            old.unlink()
        elif number == 3:
            old.unlink()
        elif number == 4:
            run(*JFS, "clone", str(old), str(new / "clone of an old one"))
            with open(old, "wb") as file:
                file.write(b"anew")


def candidates(top: Path) -> list[Path]:
    """Files below *top* that anybody may change, spread over the tree; never from the trash."""
    found = []
    for directory, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if name != ".trash")
        paths = [Path(directory) / name for name in sorted(files) if not name.startswith(".")]
        found += [path for path in paths if path.is_file() and not path.is_symlink()]
    return found[:: max(len(found) // 5, 1)][:5]


def attributes(top: Path) -> dict[str, dict[str, bytes]]:
    """Extended attributes by path."""
    found = {}
    for directory, folders, files in os.walk(top):
        if directory == str(top):
            folders[:] = [name for name in folders if name != ".trash"]
            files = [name for name in files if not name.startswith(".")]
        for name in (*folders, *files):
            path = os.path.join(directory, name)
            names = os.listxattr(path, follow_symlinks=False)
            if names:
                found[path.removeprefix(str(top))] = {n: os.getxattr(path, n, follow_symlinks=False) for n in names}
    return found


def seen(top: Path) -> dict[str, Any]:
    """What a mount shows, its usage included."""
    shown = {"tree": tree(top), "xattrs": attributes(top)}
    with contextlib.suppress(FileNotFoundError):
        shown["trash"] = tree(top / ".trash")
    usage = os.statvfs(top)
    return shown | {"used": usage.f_blocks - usage.f_bfree, "inodes": usage.f_files - usage.f_ffree}


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What two mounts show differently, a line each."""
    found = []
    for what in ours.keys() | theirs.keys():
        mine, other = ours.get(what), theirs.get(what)
        if isinstance(mine, dict) and isinstance(other, dict):
            paths = [path for path in mine.keys() | other.keys() if mine.get(path) != other.get(path)]
            found += [f"{what} of {path}: {mine.get(path)}, the real client shows {other.get(path)}" for path in paths]
        elif mine != other:
            found.append(f"{what}: {mine}, the real client shows {other}")
    return found


def summary(top: Path, *options: str) -> list[str]:
    """What the real command counts below *top*, in any order."""
    return sorted(run(REAL, "summary", "--csv", "--entries", "1000", *options, str(top)).stdout.splitlines())


def restore(top: Path, volume: Volume) -> None:
    """Something goes to the trash and comes back."""
    name = top / "ours" / "restored"
    name.write_bytes(b"restored" * 999)
    name.unlink()
    hour = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d-%H}"
    ended = run(*JFS, "restore", "--put-back", volume.url, hour, check=False)
    assert name.read_bytes() == b"restored" * 999, ended.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_volume_stays_sound_when_ours_writes_to_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in PASSPHRASE.items():
        monkeypatch.setenv(variable, value)
    # A cache of its own: the volumes of all runs have the same identity.
    host = ("--enable-xattr", "--heartbeat", "1s", "--skip-dir-mtime", "0s", "--cache-dir", str(tmp_path / "blocks"))
    with owned(name, tmp_path) as volume:
        if name in ("redis-changelog", "redis-clone", "redis-upgraded"):
            run(*JFS, "fsck", volume.url, "--repair", check=False)
        volume.examined = (
            False  # a quota that is set while it is mounted is known there a moment later, and corrected below
        )
        run(*JFS, "quota", "set", volume.url, "--uid", "12345", "--inodes", "7")
        with mounted(volume, tmp_path / "ours", *host) as where:
            change(where, candidates(where))
            run(*JFS, "quota", "set", volume.url, "--path", "/ours", "--inodes", "1000", "--capacity", "1")
            if '"TrashDays": 0' not in (where / ".config").read_text():
                restore(where, volume)
            shutil.rmtree(where / "ours" / "sub")
            strict = summary(where, "--strict")
            if name != "redis-upgraded":  # which keeps no usage of directories
                assert summary(where) == strict
            ours = seen(where)
        run(*JFS, "quota", "check", volume.url, "--path", "/ours", "--strict", "--repair", check=False)
        check_by_real(volume)
        run(REAL, "quota", "check", volume.url, "--path", "/ours", "--strict")
        with really_mounted(volume, tmp_path / "real", "--enable-xattr", "--read-only") as where:
            theirs = seen(where)
            assert summary(where, "--strict") == strict
        assert not differences(ours, theirs)


def test_a_volume_of_0_14_stays_sound_when_ours_writes_to_it(tmp_path: Path) -> None:
    with owned(OLD, tmp_path) as volume:
        run(*JFS, "fsck", volume.url, "--repair", check=False)
        left = run(*JFS, "fsck", volume.url, check=False).stderr
        host = ("--enable-xattr", "--skip-dir-mtime", "0s", "--cache-dir", str(tmp_path / "blocks"))
        with mounted(volume, tmp_path / "ours", *host) as where:
            change(where, [])
            written = tree(where / "ours")
        with mounted(volume, tmp_path / "ours", *host) as where:
            assert tree(where / "ours") == written
        after = run(*JFS, "fsck", volume.url, check=False).stderr
        assert [line.partition(">")[2] for line in after.splitlines() if "ours" in line] == []
        assert len(after.splitlines()) <= len(left.splitlines()), after
