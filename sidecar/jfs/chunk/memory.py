"""Gives memory that was freed back to the system when the mount falls idle.

glibc keeps freed blocks of 4 MiB in its heap once it has seen a few (its mmap threshold grows), so that a client that was busy
once would hold hundreds of MiB for ever. Trimming takes some milliseconds, hence only when nothing is going on.
"""

import ctypes
from collections.abc import Callable


def _find() -> Callable[[int], int] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, which has its own ways
        return None
    trim.argtypes = [ctypes.c_size_t]
    trim.restype = ctypes.c_int
    return trim


_trim = _find()


def give_back() -> None:
    """Return free pages of the heap to the system; does nothing where the C library cannot."""
    if _trim is not None:
        _trim(0)
