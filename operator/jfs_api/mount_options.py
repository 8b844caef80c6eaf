"""Mount options of a volume: the long flag names of `juicefs mount` (format §10.1) and the usual FUSE options.

They come from a PersistentVolume's `mountOptions`, its `volumeAttributes.mountOptions` and a JuiceFSVolume's spec, and reach the
sidecar as they are. Checked here so that a typing error is a sentence on the object, not a pod that never starts. Pure functions.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from jfs_api.options import Kind, Option, OptionError, parse

_OFF_BY_DEFAULT: Final = (
    "enable-xattr enable-cap enable-selinux enable-ioctl prefix-internal hide-internal non-default-permission "
    "disable-transparent-hugepage backup-skip-trash read-only no-bgjob sort-dir fast-statfs readdir-cache check-storage "
    "writeback cache-partial-only cache-large-write no-usage-report"
)
_DURATIONS: Final = (
    "backup-meta heartbeat skip-dir-mtime attr-cache entry-cache dir-entry-cache negative-entry-cache open-cache "
    "get-timeout put-timeout upload-delay cache-scan-interval cache-expire"
)
_COUNTS: Final = (
    "skip-dir-nlink open-cache-limit io-retries max-uploads max-downloads max-stage-write max-deletes upload-limit "
    "download-limit prefetch cache-items"
)
_SIZES: Final = "max-fuse-io buffer-size max-readahead writeback-threshold-size cache-size"
_TEXTS: Final = "subdir network-interfaces storage bucket storage-class tag cache-dir metrics custom-labels consul"
# Options of mount(8) that mean something for a volume of a pod.
_FUSE: Final = "ro rw suid nosuid dev nodev exec noexec atime noatime diratime nodiratime relatime allow_other default_permissions _netdev"

KNOWN: Final[Mapping[str, Kind | frozenset[str]]] = {
    **dict.fromkeys(_OFF_BY_DEFAULT.split(), Kind.FLAG),
    **dict.fromkeys(_DURATIONS.split(), Kind.DURATION),
    **dict.fromkeys(_COUNTS.split(), Kind.COUNT),
    **dict.fromkeys(_SIZES.split(), Kind.SIZE),
    **dict.fromkeys(_TEXTS.split(), Kind.TEXT),
    **dict.fromkeys(_FUSE.split(), Kind.FLAG),
    "root-squash": Kind.IDENTITY,
    "all-squash": Kind.IDENTITY,
    "umask": Kind.OCTAL,
    "cache-mode": Kind.OCTAL,
    "free-space-ratio": Kind.RATIO,
    "upload-hours": Kind.HOURS,
    "atime-mode": frozenset({"noatime", "relatime", "strictatime"}),
    "verify-cache-checksum": frozenset({"none", "full", "shrink", "extend"}),
    "fuse-resend": frozenset({"on", "off"}),
    "cache-eviction": frozenset({"none", "2-random", "lru"}),
}

# Known to `juicefs mount`, but in a pod the sidecar decides them.
_SIDECAR_DECIDES: Final = frozenset(
    ["background", "d", "foreground", "f", "log", "no-syslog", "force", "update-fstab", "o"]
)


def _refuse(name: str) -> str | None:
    return "in a pod the sidecar decides this, leave it out" if name in _SIDECAR_DECIDES else None


def parse_mount_options(texts: Iterable[str]) -> list[Option]:
    """The options of a `mountOptions` list, in order. Raises OptionError with one sentence."""
    options = parse(texts, KNOWN, what="mount option", refuse=_refuse)
    names = {option.name for option in options}
    if "rw" in names and names & {"ro", "read-only"}:
        raise OptionError("mount options 'rw' and 'ro' contradict each other")
    return options


def split_mount_options(text: str) -> list[str]:
    """The items of a `volumeAttributes.mountOptions` text as JuiceFS CSI's users write it: separated by commas or blanks."""
    return [item for item in text.replace(",", " ").split() if item]


def subdirectory(options: Iterable[Option]) -> str | None:
    """The value of `subdir`, normalized to begin with `/` and not to end with one; None when it is not given."""
    for option in options:
        if option.name == "subdir" and option.value:
            return normalize_path(option.value)
    return None


def normalize_path(path: str) -> str:
    """A path of the file system with one leading slash and no empty parts. Raises OptionError for `.` and `..`."""
    parts = [part for part in path.split("/") if part]
    if any(part in {".", ".."} for part in parts):
        raise OptionError(f"the path {path!r} contains '.' or '..'")
    return "/" + "/".join(parts)
