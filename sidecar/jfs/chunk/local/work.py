"""What the disk cache does in its threads: writes, removals, advice. No function here touches the cache's own state."""

import contextlib
import os
import time

from jfs.chunk.local.directory import CacheDirectory
from jfs.object.base import Data


def write_blocks(batch: list[tuple[int, CacheDirectory, str, Data]]) -> list[OSError | float]:
    """Write blocks and see how much room is left; what went wrong with each, or how many seconds it took."""
    outcomes: list[OSError | float] = []
    for _, directory, key, data in batch:
        began = time.perf_counter()
        try:
            directory.write(key, data)
        except OSError as error:
            outcomes.append(error)
        else:
            outcomes.append(time.perf_counter() - began)
    for directory in {each[1] for each in batch}:
        _measure(directory)
    return outcomes


def will_need(fd: int) -> None:
    """Have the kernel read a file into its page cache."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)


def unlink(doomed: list[tuple[CacheDirectory, str]]) -> None:
    """Remove deleted blocks."""
    for directory, key in doomed:
        directory.remove(key)


def evict(directory: CacheDirectory, keys: list[str]) -> None:
    """Unlink blocks, and see how much room there is now."""
    for key in keys:
        directory.remove(key)
    _measure(directory)


def _measure(directory: CacheDirectory) -> None:
    with contextlib.suppress(OSError):  # the next look tells
        directory.measure()
