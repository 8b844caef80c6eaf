"""Small parts of a mount: the mount table, `.config`, the worker's document, what `info` prints."""

import json
from pathlib import Path

import pytest
from jfs.cli import info
from jfs.cli.mount import split
from jfs.errors import (
    ConfigError,
    CredentialsRefused,
    JfsError,
    ObjectForbidden,
    ObjectUnavailable,
    StoreUnavailable,
    VolumeError,
)
from jfs.fuse import mountinfo
from jfs.fuse.mounting import MountError
from jfs.mount import config_file, memory, mountpoint, worker
from jfs.mount.config import MountConfig, parse

TABLE = r"""22 28 0:20 / /sys rw,nosuid - sysfs sysfs rw
40 28 0:45 / /mnt/a\040b rw,nosuid - fuse.juicefs JuiceFS:v1 rw,user_id=0
41 40 0:46 / /mnt/a\040b rw,nosuid shared:5 - fuse.juicefs JuiceFS:v2 rw,user_id=0
rubbish
"""


def test_mount_table() -> None:
    mounts = mountinfo.parse(TABLE)
    assert [mount.mountpoint for mount in mounts] == ["/sys", "/mnt/a b", "/mnt/a b"]
    assert mounts[2] == mountinfo.Mounted(41, "0:46", "/mnt/a b", "fuse.juicefs", "JuiceFS:v2")


def test_topmost_mount_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountinfo, "mounts", lambda: mountinfo.parse(TABLE))
    found = mountinfo.find("/mnt/a b/")
    assert found is not None
    assert found.source == "JuiceFS:v2"
    assert mountpoint.is_ours("/mnt/a b")
    assert not mountpoint.is_ours("/sys")
    assert mountinfo.find("/mnt") is None


def test_mountpoint_must_be_a_free_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    assert mountpoint.check(str(tmp_path / "directory")) == str(tmp_path / "directory")
    assert mountpoint.check(str(tmp_path / "link")) == str(tmp_path / "directory")
    with pytest.raises(ConfigError, match="is not a directory"):
        mountpoint.check(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="does not exist"):
        mountpoint.check(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match="is in use by proc"):
        mountpoint.check("/proc")


def test_force_mounts_over_a_juicefs_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = "40 28 0:45 / {} rw - fuse.{} source rw\n"
    monkeypatch.setattr(mountinfo, "mounts", lambda: mountinfo.parse(table.format(tmp_path, "juicefs")))
    with pytest.raises(ConfigError, match="is in use by source"):
        mountpoint.check(str(tmp_path))
    assert mountpoint.check(str(tmp_path), force=True) == str(tmp_path)
    monkeypatch.setattr(mountinfo, "mounts", lambda: mountinfo.parse(table.format(tmp_path, "other")))
    with pytest.raises(ConfigError, match="is in use by source"):
        mountpoint.check(str(tmp_path), force=True)


def test_config_file_has_what_tools_read() -> None:
    setting = {"Name": "v", "SecretKey": "removed", "Compression": "lz4"}
    text = config_file.text(
        MountConfig(), setting, mountpoint="/m", sid=7, block_size=4 << 20, allow_other=True, metrics="127.0.0.1:9567"
    )
    document = json.loads(text)
    assert document["Meta"]["Sid"] == 7
    assert document["Meta"]["MountPoint"] == "/m"
    assert document["Format"] == setting
    assert document["Pid"] > 0
    assert document["AttrTimeout"] == 1_000_000_000
    assert document["Chunk"]["BlockSize"] == 4 << 20
    assert document["FuseOpts"]["FsName"] == "JuiceFS:v"
    assert text.startswith('{\n "Meta": {\n  "Retries": 10,')


def test_worker_document() -> None:
    request, envs = worker.parse(
        json.dumps(
            {
                "meta_url": "redis://h/1",
                "mountpoint": "/m",
                "read_only": True,
                "options": ["subdir=a", "cache-size=1"],
                "storage": {"storage": "s3", "bucket": "http://b", "access_key": "a", "secret_key": "s"},
                "envs": {"META_PASSWORD": "word", "AWS_REGION": "x"},
                "name": "v",
                "metrics": None,
            }
        )
    )
    assert request.meta_url == "redis://h/1"
    assert request.password == "word"
    assert request.config.read_only
    assert request.config.mount_flags == ("ro",)
    assert request.config.metrics == ""
    assert request.config.subdir == "a"
    assert request.config.cache_size == 0  # no directory was named: the container's own is not used
    assert request.drain
    assert request.keys.secret_key == "s"
    assert request.keys.session_token == ""
    assert request.name == "v"
    assert envs == {"AWS_REGION": "x"}
    for secret in ("word", "redis://", "'s'"):
        assert secret not in repr(request)


@pytest.mark.parametrize(
    "line", ["", "[]", "{}", '{"meta_url": "x"}', '{"meta_url": "x", "mountpoint": "/", "envs": 5}']
)
def test_worker_refuses_other_documents(line: str) -> None:
    with pytest.raises(ConfigError, match="worker's document"):
        worker.parse(line)


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (CredentialsRefused("x"), "WrongCredentials", False),
        (StoreUnavailable("x"), "MetadataUnreachable", True),
        (VolumeError("x"), "NotFormatted", False),
        (ObjectForbidden("x"), "WrongCredentials", False),
        (ObjectUnavailable("x"), "StorageUnreachable", True),
        (ConfigError("x"), "BadOption", False),
        (MountError("x"), "MountFailed", True),
    ],
)
def test_worker_codes(error: JfsError, code: str, retryable: bool) -> None:
    assert worker.describe(error) == {"event": "error", "code": code, "message": "x", "retryable": retryable}


def test_command_line_of_mount() -> None:
    words, options, level = split(
        ["-d", "--attr-cache", "3", "--cache-size=5", "-o", "ro,subdir=x", "-v", "redis://h", "/m"]
    )
    assert words == ["redis://h", "/m"]
    assert level == 10
    config = parse(options)
    assert config.background
    assert config.attr_cache == 3
    assert config.read_only
    assert config.subdir == "x"
    assert config.cache_size == 5 << 20
    with pytest.raises(ConfigError, match="--subdir needs a value"):
        split(["redis://h", "/m", "--subdir"])


def test_info_is_printed_as_the_real_client_does() -> None:
    answer = {
        "Summary": {"Length": 67112864, "Size": 67112960, "Files": 1, "Dirs": 0},
        "Paths": ["/slices/two-chunks"],
        "Objects": [
            {"ChunkIndex": 0, "Key": "", "Size": 17, "Off": 0, "Len": 17},
            {"ChunkIndex": 0, "Key": "v/chunks/0/0/54_0_4000", "Size": 4000, "Off": 0, "Len": 4000},
        ],
    }
    assert info.render("/m/f", 66, answer, raw=False) == (
        "/m/f :\n"
        "  inode: 66\n"
        "  files: 1\n"
        "   dirs: 0\n"
        " length: 64.00 MiB (67112864 Bytes)\n"
        "   size: 64.00 MiB (67112960 Bytes)\n"
        "   path: /slices/two-chunks\n"
        " objects:\n"
        "+------------+------------------------+------+--------+--------+-----+\n"
        "| chunkIndex |       objectName       | size | offset | length | pos |\n"
        "+------------+------------------------+------+--------+--------+-----+\n"
        "|          0 |                        |   17 |      0 |     17 |   0 |\n"
        "|          0 | v/chunks/0/0/54_0_4000 | 4000 |      0 |   4000 |  17 |\n"
        "+------------+------------------------+------+--------+--------+-----+"
    )
    chunks = {
        "Summary": {"Length": 42, "Size": 4096, "Files": 1, "Dirs": 0},
        "Paths": ["/a", "/b"],
        "Chunks": [{"ChunkIndex": 0, "Id": 8, "Size": 42, "Off": 0, "Len": 42}],
    }
    text = info.render("f", 22, chunks, raw=True)
    assert "\n length: 42 Bytes\n" in text
    assert "\n  paths:\n\t/a\n\t/b\n chunks:\n" in text
    assert "\n|          0 |       8 |   42 |      0 |     42 |\n" in text


async def test_memory_is_given_back_once_after_each_burst(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []

    class Library:
        def __init__(self, name: None) -> None:
            self.malloc_trim = trims.append

    monkeypatch.setattr("ctypes.CDLL", Library)
    moved = iter([0, 0, 0, 0, 5, 9, 9, 9, 9, 9, 12, 12, 12, 12])
    counts: list[int] = []

    def work() -> float:
        counts.append(len(trims))
        return next(moved)

    with pytest.raises(RuntimeError, match="StopIteration"):
        await memory.trim_when_idle(work, 0)
    assert trims == [0, 0]
    assert counts[7] == 0  # the second quiet look is this one
    assert counts[8] == 1
