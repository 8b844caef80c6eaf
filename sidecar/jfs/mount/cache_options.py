"""Options of the local cache, of writeback and of prefetching: their rows in the table (format §10.1). A leaf of `mount`: no I/O."""

import os
import re
from typing import Final

from jfs.chunk.local.options import CHECKSUMS, EVICTIONS, MEMORY
from jfs.errors import ConfigError
from jfs.mount.option import Option, at_least_one, choice, mebibytes, whole
from jfs.mount.units import duration, size

_HOURS: Final = re.compile(r"(\d{1,2})[,-](\d{1,2})")


def _mode(option: str, given: str) -> int:
    try:
        mode = int(given, 8)
    except ValueError:
        mode = -1
    if not 0o400 <= mode <= 0o777 or mode & 0o600 != 0o600:
        raise ConfigError(
            f"option {option}: {given!r} is not an octal mode that its owner can read and write, like 0600"
        )
    return mode


def _ratio(option: str, given: str) -> float:
    try:
        ratio = float(given)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio < 1:
        raise ConfigError(f"option {option}: {given!r} is not a part of the disk from 0 to below 1, like 0.1")
    return ratio


def _hours(option: str, given: str) -> tuple[int, int]:
    match = _HOURS.fullmatch(given.strip())
    hours = tuple(map(int, match.groups())) if match else ()
    if len(hours) != 2 or max(hours) > 24:
        raise ConfigError(f"option {option}: {given!r} is not of the form FROM,TO in hours from 0 to 24, like 1,6")
    return hours[0] % 24, hours[1] % 24


def _directories(option: str, given: str) -> str:
    """Absolute, for a background mount leaves the present directory; wildcards stay."""
    parts = [part.strip() for part in given.split(":")]
    found = [part if part == MEMORY else os.path.abspath(part) for part in parts if part]
    if not found:
        raise ConfigError(f"option {option} names no directory")
    return ":".join(found)


def _bytes(option: str, given: str) -> int:
    return size(option, given, "B")


CACHE_TABLE: Final = (
    Option("prefetch", "prefetch", whole, "whole blocks fetched at a time behind random reads [1]"),
    Option("cache-dir", "cache_dir", _directories, "directories of the local cache, A:B, or memory [/var/jfsCache]"),
    Option("cache-size", "cache_size", mebibytes, "most bytes of cached blocks, 0 for no cache [100G]"),
    Option("cache-items", "cache_items", whole, "most cached blocks, 0 for any number [0]"),
    Option("cache-mode", "cache_mode", _mode, "octal mode of cached files [0600]"),
    Option("free-space-ratio", "free_space_ratio", _ratio, "part of the cache's disk that stays free [0.1]"),
    Option("cache-partial-only", "cache_partial_only", None, "keep only blocks smaller than the block size"),
    Option("cache-large-write", "cache_large_write", None, "keep full blocks that were written, too"),
    Option("verify-cache-checksum", "verify_cache_checksum", choice(*CHECKSUMS), "which reads are checked [extend]"),
    Option(
        "cache-eviction", "cache_eviction", choice(*EVICTIONS), "which blocks go when there are too many [2-random]"
    ),
    Option("cache-scan-interval", "cache_scan_interval", duration, "how often the cache is scanned, 0 for once [1h]"),
    Option("cache-expire", "cache_expire", duration, "blocks not read for so long go, 0 for never [0]"),
    Option("writeback", "writeback", None, "writes are done when they lie in the cache; upload later"),
    Option(
        "writeback-threshold-size", "writeback_threshold_size", _bytes, "only smaller blocks are staged, 0 for all [0]"
    ),
    Option("upload-delay", "upload_delay", duration, "staged blocks wait so long for their upload [0]"),
    Option("upload-hours", "upload_hours", _hours, "hours FROM,TO of the day in which staged blocks are uploaded"),
    Option("max-stage-write", "max_stage_write", at_least_one, "blocks being staged at a time [1000]"),
)
