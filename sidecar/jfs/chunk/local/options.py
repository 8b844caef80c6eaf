"""What a mount may choose about its cache (format §10.1): a plain record, and how `--cache-dir` becomes directories. No other I/O."""

import glob
import os
from dataclasses import dataclass
from typing import Final, Literal, get_args

Checksum = Literal["none", "full", "shrink", "extend"]
Eviction = Literal["2-random", "lru", "none"]
CHECKSUMS: Final = get_args(Checksum)
EVICTIONS: Final = get_args(Eviction)
MEMORY: Final = "memory"  # in place of a directory: blocks stay in RAM


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Sizes in bytes and times in seconds; 0 means no limit, except *size* 0: no cache. Limits are for all directories together."""

    directories: tuple[str, ...]
    size: int = 100 << 30
    items: int = 0
    free_ratio: float = 0.1
    mode: int = 0o600
    checksum: Checksum = "extend"
    eviction: Eviction = "2-random"
    scan_interval: float = 3600.0
    expire: float = 0.0
    partial_only: bool = False
    large_write: bool = False
    eager: bool = True  # make the directories at once, not with the first block


def default_directory() -> str:
    """Where the real client keeps its cache when it is not told."""
    return "/var/jfsCache" if os.geteuid() == 0 else os.path.expanduser("~/.juicefs/cache")


def directories(text: str) -> tuple[str, ...]:
    """The directories of a `--cache-dir` list: separated by colons, wildcards expanded to what exists; `memory` stays as it is."""
    found: dict[str, None] = {}
    for part in text.split(":"):
        path = part.strip()
        if not path:
            continue
        if path == MEMORY:
            return (MEMORY,)
        path = os.path.abspath(path)
        for each in sorted(glob.glob(path)) if glob.has_magic(path) else (path,):
            found[each] = None
    return tuple(found)
