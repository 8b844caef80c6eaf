"""`jfs mount --update-fstab`: what is written to fstab, and that mount(8) mounts the volume by it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jfs.errors import ConfigError
from jfs.mount import config, fstab
from mount_parts import JFS, Volume

OLD = "# a comment\nUUID=1 / ext4 defaults 0 1\nsqlite3:///a.db /mnt juicefs _netdev 0 0\nnone /tmp tmpfs\n"


def line(*options: tuple[str, str | None], url: str = "redis://h/1", where: str = "/mnt") -> str:
    return fstab.line(url, where, config.expand(options))


def test_the_line_of_the_documented_example() -> None:
    options = [("update-fstab", None), ("max-uploads", "50"), ("writeback", None), ("o", "max_read=99,ro"), ("d", None)]
    options[-1] = ("background", None)
    assert line(*options) == "redis://h/1 /mnt juicefs _netdev,max-uploads=50,writeback,max_read=99,ro 0 0"
    assert line(("cache-size", "1"), ("o", "_netdev,cache-size=2")).split()[3] == "_netdev,cache-size=2"
    assert line(where="/a b\\c").split()[1] == r"/a\040b\134c"
    with pytest.raises(ConfigError, match="network-interfaces: its value has a comma"):
        line(("network-interfaces", "a,b"))


def test_a_line_is_added_or_renewed_and_others_stay() -> None:
    new = line(url="sqlite3:///a.db")
    assert fstab.with_line("", new) == new + "\n"
    wanted = line(("writeback", None), url="sqlite3:///a.db")
    assert fstab.with_line(OLD, wanted) == OLD.replace("sqlite3:///a.db /mnt juicefs _netdev 0 0", wanted)
    other = line(url="sqlite3:///a.db", where="/mnt2")
    assert fstab.with_line(OLD, other) == OLD + other + "\n"
    with pytest.raises(ConfigError, match=re.escape("something else at /mnt (line 3)")):
        fstab.with_line(OLD, line())


def test_the_file_is_replaced_whole(tmp_path: Path) -> None:
    file, helper = tmp_path / "fstab", tmp_path / "mount.juicefs"
    file.write_text(OLD)
    file.chmod(0o640)
    fstab.update(line(where="/new"), path=str(file), helper=str(helper))
    assert file.read_text() == OLD + line(where="/new") + "\n"
    assert file.stat().st_mode & 0o777 == 0o640
    before = file.stat()
    fstab.update(line(where="/new"), path=str(file), helper=str(helper))
    assert file.stat().st_ino == before.st_ino  # nothing to change
    assert [path.name for path in tmp_path.iterdir() if path != helper] == ["fstab"]
    with pytest.raises(ConfigError, match="the volume stays mounted"):
        fstab.update(line(), path=str(tmp_path / "none" / "fstab"), helper=str(helper))


def test_what_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "fstab")
    with pytest.raises(ConfigError, match="password in the metadata address"):
        fstab.plan("redis://:secret@h/1", "/mnt", [], path=path)
    assert fstab.plan("redis://user@h/1", "/mnt", [], path=path)
    with pytest.raises(ConfigError, match="leave it out"):
        config.from_list(["update-fstab"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="only root"):
        fstab.plan("redis://h/1", "/mnt", [], path=path)


# In a mount namespace with an /etc and an /sbin of its own.
SCRIPT = """
set -e
cp -a /etc "$1/etc"; mkdir "$1/sbin"
mount --bind "$1/etc" /etc
mount --bind "$1/sbin" "$(readlink -f /sbin)"
shift
"$@"
where=${@: -1}
grep juicefs /etc/fstab
umount "$where"
mount "$where"
stat -c %i "$where"
ls -l /sbin/mount.juicefs
umount "$where"
"""


@pytest.mark.real
def test_mount_by_the_line(tmp_path: Path) -> None:
    volume = Volume(f"sqlite3://{tmp_path}/meta.db", tmp_path / "bucket").format()
    where = tmp_path / "mnt"
    where.mkdir()
    options = ["-d", "--update-fstab", "--enable-xattr", "--metrics", "", "-o", f"log={tmp_path}/log"]
    command = [
        "unshare",
        "--mount",
        "bash",
        "-c",
        SCRIPT,
        "-",
        str(tmp_path),
        *JFS,
        "mount",
        *options,
        volume.url,
        str(where),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert shown.returncode == 0, shown.stderr
    written, root, helper = shown.stdout.splitlines()
    assert written == f"{volume.url} {where} juicefs _netdev,enable-xattr,metrics=,log={tmp_path}/log 0 0"
    assert root == "1"
    assert helper.endswith(f"/sbin/mount.juicefs -> {Path(sys.executable).with_name('mount.juicefs')}")
