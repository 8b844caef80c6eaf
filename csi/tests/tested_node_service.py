"""`jfs-csi` for tests: with an API server of the test's choice (JFS_TEST_API), and with kills between any two steps.

JFS_TEST_FAULT names a file. While it exists and begins with a number N, the process is killed *before* the N-th change of
what outlives it – a directory, a name, a mount, a descriptor given to the holder. A dot is added to the file for each change
that was let through, so that the test sees how many there are.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jfs_csi import mounts
from jfs_csi.api import ApiClient
from jfs_csi.fuse import mounting
from jfs_csi.fuse.keeper import Keeper
from jfs_csi.main import parse, serve

FAULT = Path(os.environ.get("JFS_TEST_FAULT", "/nonexistent"))
CHANGES: list[tuple[Any, tuple[str, ...]]] = [
    (os, ("mkdir", "chmod", "rename", "rmdir", "unlink")),
    (mounts, ("_call",)),
    (mounts._libc, ("umount2",)),
    (mounts.FuseConnection, ("abort",)),
    (mounting._libc, ("mount",)),
    (mounting, ("_wait",)),  # between mount(2) and the answer to INIT
    (Keeper, ("keep", "sent", "release")),
]
_one_at_a_time = threading.Lock()


def step() -> None:
    """Before a change: count it, or end here."""
    with _one_at_a_time:
        try:
            text = FAULT.read_text()
        except FileNotFoundError:
            return
        if text.count(".") + 1 == int(text.rstrip(".")):
            os.kill(os.getpid(), signal.SIGKILL)
        FAULT.write_text(f"{text}.")


def counted(original: Callable[..., Any]) -> Callable[..., Any]:
    def change(*arguments: Any, **options: Any) -> Any:
        step()
        return original(*arguments, **options)

    return change


if __name__ == "__main__":
    for holder, names in CHANGES:
        for name in names:
            setattr(holder, name, counted(getattr(holder, name)))
    url = os.environ.get("JFS_TEST_API")
    asyncio.run(serve(parse(sys.argv[1:]), ApiClient(url) if url else None))
