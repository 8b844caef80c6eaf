"""Whether a path can be a mountpoint, and whether what is on it is a served mount of ours. Never hangs on a dead mount."""

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from typing import Final

from jfs.errors import ConfigError
from jfs.fuse import mountinfo
from jfs.fuse.mounting import SUBTYPE

PATIENCE: Final = 10.0


def check(path: str, *, force: bool = False) -> str:
    """The absolute mountpoint; ConfigError when it is missing, no directory, or mounted already – with *force* a JuiceFS may be
    there, and the new mount covers it."""
    absolute = mountinfo.real(path)
    mounted = mountinfo.find(absolute)
    if mounted is not None and not (force and mounted.kind == f"fuse.{SUBTYPE}"):
        raise ConfigError(
            f"mountpoint {path} is in use by {mounted.source} ({mounted.kind}): unmount it first with `jfs umount {path}`"
        )
    try:
        is_directory = os.path.isdir(os.path.realpath(absolute)) if os.lstat(absolute) else False
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise ConfigError(f"mountpoint {path} holds a dead mount: remove it with `jfs umount -f {path}`") from error
        raise ConfigError(f"mountpoint {path} does not exist: create the directory first") from error
    if not is_directory:
        raise ConfigError(f"mountpoint {path} is not a directory")
    resolved = os.path.realpath(absolute)
    if resolved != absolute:
        return check(resolved, force=force)
    return absolute


def is_ours(path: str) -> bool:
    """Whether a JuiceFS mount (of this or the real client) lies on *path*, by the mount table."""
    mounted = mountinfo.find(path)
    return mounted is not None and mounted.kind == f"fuse.{SUBTYPE}"


async def answers(path: str, patience: float = PATIENCE) -> bool:
    """Whether a stat through the mount gives inode 1 within *patience* seconds. A process of its own asks: a stat that hangs
    on a dead mount cannot be taken back, and must not hold this one."""
    probe = await asyncio.create_subprocess_exec(
        sys.executable,
        "-S",
        "-c",
        "import os, sys; sys.exit(os.stat(sys.argv[1]).st_ino != 1)",
        path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(patience):
            return await probe.wait() == 0
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            probe.kill()
        return False
