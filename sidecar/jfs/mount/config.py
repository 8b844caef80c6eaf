"""The options of a mount: the real client's long flag names with its defaults (format §10.1), in one table.

The same table serves the command line (`--cache-size 1G`), `-o cache-size=1G` of fstab, and the option lists of the
operator. An option is used, or accepted with one log line because its feature does not exist yet (backups …:
a mount of an existing volume must not fail over them), or refused by name; none is parsed and silently ignored.
A leaf of `mount`: no I/O.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from jfs.chunk.local.options import Checksum, Eviction
from jfs.errors import ConfigError
from jfs.fuse.mounting import FLAGS
from jfs.fuse.squash import Owner
from jfs.mount.cache_options import CACHE_TABLE
from jfs.mount.option import Option, at_least_one, choice, mebibytes, second_or_more, text, whole
from jfs.mount.units import duration, megabits, size

LEAST_BUFFER: Final = 32 << 20  # bytes; as the real client has it
HOSTS: Final = ("kernel", "pyfuse3")
AtimeMode = Literal["noatime", "relatime", "strictatime"]
_NOBODY: Final = 65534  # the group where a squash option names only the user
ATIME_MODES: Final = get_args(AtimeMode)


@dataclass(frozen=True, slots=True)
class MountConfig:
    """What a mount was asked to be. Times in seconds, sizes in bytes."""

    # FUSE
    fuse_host: str = "kernel"
    enable_xattr: bool = False
    enable_cap: bool = False
    enable_selinux: bool = False
    enable_ioctl: bool = False
    root_squash: Owner | None = None
    all_squash: Owner | None = None
    umask: int | None = None  # None: only the caller's
    prefix_internal: bool = False
    hide_internal: bool = False
    non_default_permission: bool = False
    max_fuse_io: int = 1 << 20
    allow_other: bool | None = None  # None: when root
    writeback_cache: bool = False  # the kernel keeps what is written for a while
    fuse_resend: bool = True
    mount_flags: tuple[str, ...] = ()
    # metadata
    subdir: str = ""
    heartbeat: float = 12.0
    read_only: bool = False
    no_bgjob: bool = False
    backup_meta: float = 3600.0
    backup_skip_trash: bool = False
    atime_mode: AtimeMode = "noatime"
    skip_dir_mtime: float = 0.1
    sort_dir: bool = False
    network_interfaces: tuple[str, ...] = ()  # empty: all
    attr_cache: float = 1.0
    entry_cache: float = 1.0
    dir_entry_cache: float = 1.0
    negative_entry_cache: float = 0.0
    readdir_cache: bool = False
    open_cache: float = 0.0
    open_cache_limit: int = 10_000  # 0: any number
    # storage
    storage: str = ""
    bucket: str = ""
    storage_class: str = ""
    get_timeout: float = 60.0
    put_timeout: float = 60.0
    io_retries: int = 10
    max_uploads: int = 20
    max_downloads: int = 200
    upload_limit: float = 0.0  # Mbit/s; 0: the setting's
    download_limit: float = 0.0
    max_deletes: int = 10
    check_storage: bool = False
    # data
    buffer_size: int = 300 << 20
    max_readahead: int = 0  # 0: eight blocks, within the buffer
    prefetch: int = 1
    cache_dir: str = ""  # "": the default one
    cache_size: int = 100 << 30
    cache_items: int = 0
    cache_mode: int = 0o600
    free_space_ratio: float = 0.1
    cache_partial_only: bool = False
    cache_large_write: bool = False
    verify_cache_checksum: Checksum = "extend"
    cache_eviction: Eviction = "2-random"
    cache_scan_interval: float = 3600.0
    cache_expire: float = 0.0
    writeback: bool = False
    writeback_threshold_size: int = 0
    upload_delay: float = 0.0
    upload_hours: tuple[int, int] | None = None
    max_stage_write: int = 1000
    # metrics
    metrics: str = "127.0.0.1:9567"
    custom_labels: tuple[tuple[str, str], ...] = ()
    # process
    background: bool = False
    foreground: bool = False
    supervised: bool = False
    force: bool = False
    update_fstab: bool = False
    disable_transparent_hugepage: bool = False
    log: str = ""
    without_effect: tuple[str, ...] = field(default=(), compare=False)

    @property
    def security_xattrs(self) -> frozenset[bytes]:
        """The names that are served only when asked for (format §5.3 xattr), if extended attributes are served at all."""
        names = ((b"security.capability", self.enable_cap), (b"security.selinux", self.enable_selinux))
        return frozenset(name for name, wanted in names if wanted)


_LEAST_BACKUP: Final = 300.0  # seconds; the real client refuses less, too


def _switch(option: str, text: str) -> bool:
    return choice("on", "off")(option, text) == "on"


def _fuse_io(option: str, text: str) -> int:
    number = size(option, text, "B")
    if not 128 << 10 <= number <= 1 << 20 or number & 4095:
        raise ConfigError(f"option {option}: {text!r} must lie between 128K and 1M, in steps of 4K")
    return number


def _names(option: str, text: str) -> tuple[str, ...]:
    return tuple(name for word in text.split(",") if (name := word.strip()))


def _labels(option: str, text: str) -> tuple[tuple[str, str], ...]:
    pairs = []
    for pair in text.split(";"):
        name, separator, value = pair.partition(":")
        if not separator or not name.isidentifier():
            raise ConfigError(f"option {option}: {pair!r} is not of the form name:value")
        pairs.append((name, value))
    return tuple(pairs)


def _owner(option: str, text: str) -> Owner:
    uid, _, gid = text.partition(":")
    try:
        owner = Owner(int(uid), int(gid) if gid else _NOBODY)
    except ValueError:
        owner = Owner(-1, -1)
    if not (0 <= owner.uid < 1 << 32 and 0 <= owner.gid < 1 << 32):
        raise ConfigError(f"option {option}: {text!r} is not of the form UID:GID, in numbers")
    return owner


def _umask(option: str, text: str) -> int:
    try:
        mask = int(text, 8)
    except ValueError:
        mask = -1
    if not 0 <= mask <= 0o7777:
        raise ConfigError(f"option {option}: {text!r} is not an octal mask like 022")
    return mask


def _backup(option: str, text: str) -> float:
    interval = duration(option, text)
    if 0 < interval < _LEAST_BACKUP:
        raise ConfigError(f"option {option}: {text!r} must be 5m or more, or 0 for no backups")
    return interval


def _subdir(option: str, text: str) -> str:
    parts = [part for part in text.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise ConfigError(f"option {option}: {text!r} must be a path below the volume's root without . and ..")
    return "/".join(parts)


_TABLE: Final = (
    Option("fuse-host", "fuse_host", choice(*HOSTS), "who speaks FUSE: kernel (own protocol) or pyfuse3"),
    Option("enable-xattr", "enable_xattr", None, "serve extended attributes"),
    Option("enable-cap", "enable_cap", None, "with enable-xattr: serve security.capability too"),
    Option("enable-selinux", "enable_selinux", None, "with enable-xattr: serve security.selinux too"),
    Option("enable-ioctl", "enable_ioctl", None, "serve the inode flags of chattr(1) (fuse-host kernel)"),
    Option("prefix-internal", "prefix_internal", None, "name the virtual files .jfs.stats …"),
    Option("hide-internal", "hide_internal", None, "leave the virtual files out of listings"),
    Option("non-default-permission", "non_default_permission", None, "check permissions here, not in the kernel"),
    Option("root-squash", "root_squash", _owner, "root counts as the user UID:GID (fuse-host kernel)"),
    Option("all-squash", "all_squash", _owner, "everybody counts as the user UID:GID (fuse-host kernel)"),
    Option("umask", "umask", _umask, "octal umask of what is made, besides the caller's"),
    Option("max-fuse-io", "max_fuse_io", _fuse_io, "largest FUSE request [1M]"),
    Option(
        "writeback_cache", "writeback_cache", None, "let the kernel keep what is written: for volumes with one writer"
    ),
    Option("fuse-resend", "fuse_resend", _switch, "off: serve as on kernels before Linux 6.9 [on]"),
    Option("subdir", "subdir", _subdir, "show this directory of the volume as the root"),
    Option("heartbeat", "heartbeat", second_or_more, "interval of the session's heartbeat [12s]"),
    Option("read-only", "read_only", None, "refuse every change"),
    Option("no-bgjob", "no_bgjob", None, "leave background jobs to other clients"),
    Option(
        "backup-meta",
        "backup_meta",
        _backup,
        "interval of metadata backups into the bucket, 0 for none [1h; in pods 0]",
    ),
    Option("backup-skip-trash", "backup_skip_trash", None, "leave what is in the trash out of backups"),
    Option("atime-mode", "atime_mode", choice(*ATIME_MODES), "when atime is written [noatime]"),
    Option("skip-dir-mtime", "skip_dir_mtime", duration, "younger times of a directory are not written again [100ms]"),
    Option("sort-dir", "sort_dir", None, "list directories by name"),
    Option("network-interfaces", "network_interfaces", _names, "interfaces whose addresses `status` shows, a,b [all]"),
    Option("attr-cache", "attr_cache", duration, "attributes are believed for [1s]"),
    Option("entry-cache", "entry_cache", duration, "entries of files are believed for [1s]"),
    Option("dir-entry-cache", "dir_entry_cache", duration, "entries of directories are believed for [1s]"),
    Option("negative-entry-cache", "negative_entry_cache", duration, "missing names are believed missing for [0]"),
    Option("readdir-cache", "readdir_cache", None, "let the kernel cache listings (fuse-host kernel)"),
    Option("open-cache", "open_cache", duration, "files seen so recently are opened without asking the database [0]"),
    Option("open-cache-limit", "open_cache_limit", whole, "closed files remembered for that, 0 for all [10000]"),
    Option("storage", "storage", text, "object storage in place of the volume's setting"),
    Option("bucket", "bucket", text, "bucket in place of the volume's setting"),
    Option(
        "storage-class", "storage_class", text, "storage class of what is written, in place of the volume's setting"
    ),
    Option("get-timeout", "get_timeout", second_or_more, "longest GET [60s]"),
    Option("put-timeout", "put_timeout", second_or_more, "longest PUT [60s]"),
    Option("io-retries", "io_retries", whole, "tries after a failed one [10]"),
    Option("max-uploads", "max_uploads", at_least_one, "uploads at a time [20]"),
    Option("max-downloads", "max_downloads", at_least_one, "downloads at a time [200]"),
    Option("upload-limit", "upload_limit", megabits, "most Mbit/s of uploads, in place of the volume's setting"),
    Option("download-limit", "download_limit", megabits, "most Mbit/s of downloads, in place of the volume's setting"),
    Option("max-deletes", "max_deletes", whole, "deletions at a time, 0 for none [10]"),
    Option("check-storage", "check_storage", None, "put, get and delete a test object before mounting"),
    Option("buffer-size", "buffer_size", mebibytes, "memory for data on the way [300M]"),
    Option("max-readahead", "max_readahead", mebibytes, "largest read-ahead of a stream [8 blocks]"),
    *CACHE_TABLE,
    Option("metrics", "metrics", text, "address of the metrics, empty for none [127.0.0.1:9567]"),
    Option("custom-labels", "custom_labels", _labels, "labels of all metrics, name:value;…"),
    Option("background", "background", None, "return when mounted"),
    Option("foreground", "foreground", None, "stay until unmounted"),
    Option("supervised", "supervised", None, "with background: another client follows one that is killed (Linux 6.9)"),
    Option("force", "force", None, "mount over a JuiceFS that is mounted there"),
    Option(
        "update-fstab", "update_fstab", None, "once mounted, add or renew the line of /etc/fstab that mounts it at boot"
    ),
    Option("disable-transparent-hugepage", "disable_transparent_hugepage", None, "small pages only for this process"),
    Option("log", "log", text, "file for the log of a background mount"),
)
OPTIONS: Final = {option.name: option for option in _TABLE}

# Features that do not exist yet and whose lack costs no correctness, with whether they take a value.
WITHOUT_EFFECT: Final = {
    **dict.fromkeys(
        ("skip-dir-nlink", "log-id"),
        True,
    ),
    **dict.fromkeys(
        (*("fast-statfs", "no-syslog", "no-usage-report", "no-agent", "no-color"),),
        False,
    ),
}
# What these ask for is so anyway: not worth a log line.
_GRANTED: Final = ("no-syslog", "no-usage-report", "no-agent", "no-color", "log-id")
REFUSED: Final = ("tag", "consul", "pyroscope")
# Words of fstab and of mount(8) that are not for the file system.
_FSTAB: Final = (
    *("defaults", "auto", "noauto", "user", "users", "nouser", "owner", "group", "_netdev", "nofail", "relatime"),
    *("norelatime", "strictatime", "lazytime", "nonempty", "bg", "fg"),
)


def parse(options: Iterable[tuple[str, str | None]]) -> MountConfig:
    """The configuration that *options* (name without dashes in front, value or None) describe; later ones win. `o` holds a
    comma-separated list. ConfigError, one sentence that names the option."""
    members: dict[str, Any] = {}
    flags: list[str] = []
    unused: list[str] = []
    for name, value in expand(options):
        option = OPTIONS.get(name)
        if option is not None:
            members[option.member] = _value(option, value)
        elif name in FLAGS:
            flags.append(name)
            if name in ("ro", "rw"):
                members["read_only"] = name == "ro"
        elif name == "allow_other":
            members["allow_other"] = True
        elif name == "default_permissions":
            members["non_default_permission"] = False
        elif name in WITHOUT_EFFECT:
            if WITHOUT_EFFECT[name] and value is None:
                raise ConfigError(f"option {name} needs a value")
            if name not in _GRANTED:
                unused.append(name)
        elif name in REFUSED:
            raise refuse(name)
        elif name in _FSTAB or name.startswith(("x-", "comment=")) or name == "comment":
            continue
        else:
            raise ConfigError(f"unknown mount option {name!r}; `jfs mount --help` lists them")
    if members.get("read_only") and "ro" not in flags:
        flags.append("ro")
    members["mount_flags"] = tuple(flag for flag in flags if flag != "rw")
    config = MountConfig(**members, without_effect=tuple(dict.fromkeys(unused)))
    needing_kernel = (
        ("readdir-cache", config.readdir_cache),
        ("enable-ioctl", config.enable_ioctl),
        ("supervised", config.supervised),
        ("root-squash", config.root_squash is not None),  # pyfuse3 does not tell who reads and writes
        ("all-squash", config.all_squash is not None),
    )
    for name, wanted in needing_kernel:
        if wanted and config.fuse_host != "kernel":
            raise ConfigError(f"option {name} needs --fuse-host kernel")
    if config.all_squash is not None:  # the kernel would check what the real user may
        config = with_changes(config, non_default_permission=True)
    if config.writeback_cache and (config.non_default_permission or config.root_squash is not None):
        raise ConfigError(
            "option writeback_cache cannot be had with non-default-permission, root-squash or all-squash: the kernel writes later, and"
            " not as who wrote"
        )
    return config


def refuse(name: str) -> ConfigError:
    """What is said to option *name* of a feature that this client does not have."""
    return ConfigError(f"mount option {name} is not supported yet; leave it out")


def expand(options: Iterable[tuple[str, str | None]]) -> Iterable[tuple[str, str | None]]:
    """The options with those of each `o` in its place."""
    for name, value in options:
        if name != "o":
            yield name, value
            continue
        for word in (value or "").split(","):
            key, separator, inner = word.strip().partition("=")
            if key:
                yield key, inner if separator else None


def _value(option: Option, value: str | None) -> Any:
    if option.parse is None:
        if value is None or value.lower() in ("true", "1", ""):
            return True
        if value.lower() in ("false", "0"):
            return False
        raise ConfigError(f"option {option.name} takes no value")
    if value is None:
        raise ConfigError(f"option {option.name} needs a value")
    return option.parse(option.name, value)


def from_list(options: Iterable[str]) -> MountConfig:
    """From `k=v` and `flag` words, as PersistentVolumes and the operator have them. Backups are made only when asked for: a dump takes
    memory that pods are not given."""
    pairs: list[tuple[str, str | None]] = [("backup-meta", "0")]
    for word in options:
        name, separator, value = word.strip().lstrip("-").partition("=")
        pairs.append((name, value if separator else None))
    config = parse(pairs)
    if config.update_fstab:
        raise ConfigError("mount option update-fstab is for `jfs mount` on a machine of its own; leave it out")
    return config


def with_changes(config: MountConfig, **members: Any) -> MountConfig:
    """The same with other members."""
    return dataclasses.replace(config, **members)
