"""Volumes written by the real client (the golden set) read back through a mount exactly as it saw them.

The set is found by JFS_GOLDEN or beside the repository; its README describes it.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mount_parts import Volume, mounted, redis_server, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(90)]

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("JFS_GOLDEN") or REPOSITORY.parent / "shared" / "golden")
READABLE = (
    "redis-plain",
    "redis-hash",
    "redis-live",
    "redis-trash-lz4",
    "redis-changelog",
    "redis-clone",
    "redis-quota",
    "redis-upgraded",
    "sqlite-plain",
    "sqlite-live",
    "sqlite-zstd",
    "sqlite-old",
    "redis-chacha-lz4",
    "sqlite-aes",
)
WITH_ACLS = ("redis-acl", "redis-tier", "sqlite-acl-quota")  # only one host can
TYPES = {
    "file": stat.S_ISREG,
    "dir": stat.S_ISDIR,
    "symlink": stat.S_ISLNK,
    "fifo": stat.S_ISFIFO,
    "block": stat.S_ISBLK,
    "blockdev": stat.S_ISBLK,
    "char": stat.S_ISCHR,
    "chardev": stat.S_ISCHR,
    "socket": stat.S_ISSOCK,
}


@contextlib.contextmanager
def restored(name: str, directory: Path) -> Iterator[Volume]:
    """The metadata of a golden volume on an engine of its own; the objects where they lie."""
    assert GOLDEN.is_dir(), f"the golden volumes are not at {GOLDEN}; set JFS_GOLDEN"
    objects = GOLDEN / name / "objects"
    if (GOLDEN / name / "meta.db").exists():
        shutil.copy(GOLDEN / name / "meta.db", directory / "meta.db")
        yield Volume(f"sqlite3://{directory}/meta.db", objects)
        return
    shutil.copy(GOLDEN / name / "dump.rdb", directory / "dump.rdb")
    with redis_server(directory) as url:
        port = url.rpartition(":")[2]
        keyspace = run("redis-cli", "-p", port, "info", "keyspace").stdout
        database = next(line for line in keyspace.splitlines() if line.startswith("db")).partition(":")[0][2:]
        yield Volume(f"{url}/{database}", objects)


def check_entry(path: bytes, wanted: dict[str, Any]) -> list[str]:
    """What differs between an entry and what the real client saw."""
    wrong: list[str] = []
    st = os.lstat(path)

    def differs(what: str, found: Any) -> None:
        if what in wanted and wanted[what] != found:
            wrong.append(f"{os.fsdecode(path)}: {what} is {found!r}, not {wanted[what]!r}")

    assert TYPES[wanted["type"]](st.st_mode), (path, wanted["type"])
    differs("ino", st.st_ino)
    differs("mode", f"{stat.S_IMODE(st.st_mode):o}".zfill(len(wanted["mode"])))
    differs("uid", st.st_uid)
    differs("gid", st.st_gid)
    differs("size", st.st_size)
    differs("nlink", st.st_nlink)
    differs("atime_ns", st.st_atime_ns)
    differs("mtime_ns", st.st_mtime_ns)
    differs("ctime_ns", st.st_ctime_ns)
    if "rdev" in wanted:
        differs("rdev", [os.major(st.st_rdev), os.minor(st.st_rdev)])
    if wanted["type"] == "symlink":
        target = os.readlink(path)
        differs("target_b64" if "target_b64" in wanted else "target", _text(target, "target_b64" in wanted))
    if "sha256" in wanted:
        with open(path, "rb") as file:
            differs("sha256", hashlib.sha256(file.read()).hexdigest())
    if "xattrs" in wanted:
        names = os.listxattr(path, follow_symlinks=False)
        found = {n: base64.b64encode(os.getxattr(path, n, follow_symlinks=False)).decode() for n in names}
        differs("xattrs", found)
    return wrong


def _text(raw: bytes, encoded: bool) -> str:
    return base64.b64encode(raw).decode() if encoded else raw.decode()


def check_below(top: Path, entries: list[dict[str, Any]]) -> None:
    wrong: list[str] = []
    known: set[bytes] = set()
    for wanted in entries:
        raw = base64.b64decode(wanted["path_b64"]) if "path_b64" in wanted else wanted["path"].encode()
        path = os.path.normpath(os.path.join(bytes(top), raw))
        known.add(path)
        wrong += check_entry(path, wanted)
    assert not wrong, "\n".join(wrong)
    virtual = {bytes(top) + b"/" + name for name in (b".accesslog", b".stats", b".config", b".trash")}
    for directory, directories, files in os.walk(bytes(top)):
        directories[:] = [name for name in directories if os.path.join(directory, name) not in virtual]
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            assert path in known or path in virtual, path


@pytest.mark.parametrize(
    ("name", "host"),
    [*((name, host) for name in READABLE for host in ("kernel", "pyfuse3")), *((name, "kernel") for name in WITH_ACLS)],
)
def test_golden_volume_reads_back_as_the_real_client_saw_it(
    name: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in json.loads((GOLDEN / name / "about.json").read_text()).get("env", {}).items():
        monkeypatch.setenv(variable, value)
    expected = json.loads((GOLDEN / name / "expected.json").read_text())
    old = name == "sqlite-old"  # seen by 0.14.2: it showed times before 1970 wrongly, and the volume in other units
    if old:
        for entry in expected["entries"]:
            if entry["mtime_ns"] < 0:
                del entry["atime_ns"], entry["mtime_ns"]
    with (
        restored(name, tmp_path) as volume,
        mounted(
            volume,
            tmp_path / "mnt",
            *("--read-only", "--enable-xattr", "--fuse-host", host, "--bucket", f"{volume.bucket}/"),
        ) as where,
    ):
        check_below(where, expected["entries"])
        if "trash" in expected:
            check_below(where / ".trash", expected["trash"])
        if old:
            return
        st = os.statvfs(where)
        wanted = expected["statvfs"]
        assert (st.f_bsize, st.f_blocks, st.f_bavail) == (wanted["bsize"], wanted["blocks"], wanted["bavail"])
        assert (st.f_files, st.f_ffree, st.f_namemax) == (wanted["files"], wanted["ffree"], wanted["namemax"])
