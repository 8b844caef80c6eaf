"""Options of a mount: the table, units, what is refused and how (format §10.1)."""

from pathlib import Path

import pytest
from jfs.errors import ConfigError
from jfs.mount import units
from jfs.mount.config import OPTIONS, REFUSED, WITHOUT_EFFECT, MountConfig, from_list, parse


def test_defaults_are_the_real_clients() -> None:
    config = parse([])
    assert config == MountConfig()
    assert (config.attr_cache, config.entry_cache, config.dir_entry_cache, config.negative_entry_cache) == (1, 1, 1, 0)
    assert config.buffer_size == 300 << 20
    assert config.heartbeat == 12
    assert config.metrics == "127.0.0.1:9567"


def test_long_flags_and_o_lists_mean_the_same() -> None:
    flags = parse([("attr-cache", "5s"), ("subdir", "/a/b/"), ("read-only", None), ("buffer-size", "64")])
    listed = parse([("o", "attr-cache=5,subdir=a/b,ro,buffer-size=64M")])
    assert flags == listed
    assert flags.subdir == "a/b"
    assert flags.buffer_size == 64 << 20
    assert flags.mount_flags == ("ro",)


def test_options_of_volumes_as_the_operator_gives_them() -> None:
    config = from_list(["cache-size=1", "skip-dir-nlink=3", "subdir=x", "attr-cache=1", "ro", "enable-xattr"])
    assert config.subdir == "x"
    assert config.read_only
    assert config.enable_xattr
    assert config.cache_size == 1 << 20
    assert config.without_effect == ("skip-dir-nlink",)


def test_options_of_fstab_are_not_for_us() -> None:
    assert parse([("o", "defaults,_netdev,nofail,x-systemd.automount,noauto")]) == MountConfig()


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_options_of_features_to_come_are_accepted(name: str) -> None:
    config = parse([(name, "1" if WITHOUT_EFFECT[name] else None)])
    assert config == MountConfig()


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_options_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is not supported yet"):
        parse([(name, None)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([("no-such-option", None)], "unknown mount option 'no-such-option'"),
        ([("o", "allow_othr")], "unknown mount option 'allow_othr'"),
        ([("attr-cache", None)], "attr-cache needs a value"),
        ([("attr-cache", "soon")], "attr-cache: 'soon' is not a duration"),
        ([("buffer-size", "big")], "buffer-size: 'big' is not a size"),
        ([("io-retries", "-1")], "io-retries: '-1' is not a whole number"),
        ([("max-uploads", "0")], "max-uploads must be at least 1"),
        ([("heartbeat", "0")], "heartbeat must be at least 1s"),
        ([("get-timeout", "10ms")], "get-timeout must be at least 1s"),
        ([("atime-mode", "always")], "atime-mode: 'always' is none of noatime"),
        ([("enable-xattr", "maybe")], "enable-xattr takes no value"),
        ([("subdir", "a/../b")], "subdir"),
        ([("max-fuse-io", "1G")], "max-fuse-io: '1G' must lie between"),
        ([("custom-labels", "nope")], "custom-labels: 'nope' is not of the form"),
        ([("readdir-cache", None), ("fuse-host", "pyfuse3")], "readdir-cache needs --fuse-host kernel"),
        ([("umask", "999")], "umask: '999' is not an octal mask"),
        ([("root-squash", "root:root")], "root-squash: 'root:root' is not of the form UID:GID"),
        ([("all-squash", "-1:3")], "all-squash: '-1:3' is not of the form UID:GID"),
        ([("all-squash", "1:2"), ("fuse-host", "pyfuse3")], "all-squash needs --fuse-host kernel"),
        ([("cache-size", None)], "cache-size needs a value"),
        ([("cache-dir", " : ")], "cache-dir names no directory"),
        ([("cache-mode", "0177")], "cache-mode: '0177' is not an octal mode"),
        ([("free-space-ratio", "2")], "free-space-ratio: '2' is not a part"),
        ([("upload-hours", "25,3")], "upload-hours: '25,3' is not of the form FROM,TO"),
        ([("verify-cache-checksum", "some")], "verify-cache-checksum: 'some' is none of none, full, shrink, extend"),
        ([("cache-eviction", "mru")], "cache-eviction: 'mru' is none of 2-random, lru, none"),
        ([("max-stage-write", "0")], "max-stage-write must be at least 1"),
    ],
)
def test_bad_values_name_the_option(options: list[tuple[str, str | None]], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(options)
    assert said in str(caught.value)


def test_every_used_option_changes_its_member() -> None:
    values = {
        "fuse-host": "pyfuse3",
        "atime-mode": "relatime",
        "max-fuse-io": "256K",
        "custom-labels": "a:b",
        "subdir": "s",
        "prefetch": "3",
        "fuse-resend": "off",
        "cache-mode": "0644",
        "free-space-ratio": "0.5",
        "verify-cache-checksum": "full",
        "cache-eviction": "lru",
        "upload-hours": "22-6",
        "backup-meta": "10m",
        "root-squash": "5:6",
        "all-squash": "5:6",
    }
    for name, option in OPTIONS.items():
        config = parse([(name, None if option.is_flag else values.get(name, "7"))])
        assert getattr(config, option.member) != getattr(MountConfig(), option.member), name


def test_cache_directories_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse([("cache-dir", "a:/b/../c*: memory")]).cache_dir == f"{tmp_path}/a:/c*:memory"


def test_units() -> None:
    assert units.size("x", "300M") == 300 << 20
    assert units.size("x", "1.5G") == 3 << 29
    assert units.size("x", "2", "M") == 2 << 20
    assert units.size("x", "1GiB") == 1 << 30
    assert units.duration("x", "1h30m") == 5400
    assert units.duration("x", "100ms") == pytest.approx(0.1)
    assert units.duration("x", "2.5") == 2.5
    with pytest.raises(ConfigError):
        units.duration("x", "10 parsecs")
