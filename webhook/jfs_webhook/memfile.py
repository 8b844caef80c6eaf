"""Hands bytes to libraries that only read files (OpenSSL's certificate loading) without a file: memfd_create(2).

Invariant: key material never touches a disk, and the descriptor is closed when the block ends.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_file(content: bytes) -> Iterator[str]:
    """A path that reads as `content` while the block runs, in this process only."""
    descriptor = os.memfd_create("jfs-webhook", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
