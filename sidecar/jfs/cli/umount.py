"""`jfs umount [-f] MOUNTPOINT`: detaches a mount, also one that hangs or whose process is dead; never stats it.

Without --force a busy mount is refused. With it the mountpoint is detached at once, and the connection of one that does not
answer is aborted, so that whoever waits for it gets an error. With --flush it first waits until nothing is staged (writeback).
"""

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time

from jfs.errors import ConfigError, JfsError

_AGAIN = 0.5  # seconds; the files of another process tell nobody when they go


def main(arguments: list[str]) -> int:
    """Entry of `jfs umount`."""
    parser = argparse.ArgumentParser(prog="jfs umount", description="Unmount a volume.")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("-f", "--force", action="store_true", help="detach even when busy, hung or dead")
    parser.add_argument("--flush", action="store_true", help="wait until staged blocks are uploaded (writeback)")
    options = parser.parse_args(arguments)
    try:
        if options.flush:
            wait_for_staged(options.mountpoint)
        unmount(options.mountpoint, force=options.force)
    except JfsError as error:
        print(f"jfs: {error}", file=sys.stderr)
        return 1
    return 0


def wait_for_staged(path: str) -> None:
    """Returns when the mount at *path* has nothing staged that is not uploaded. ConfigError when no JuiceFS is mounted there."""
    for name in (".config", ".jfs.config"):
        with contextlib.suppress(FileNotFoundError), open(os.path.join(path, name), encoding="utf-8") as file:
            chunk = json.load(file)["Chunk"]
            break
    else:
        raise ConfigError(f"no JuiceFS is mounted on {path}")
    directories = chunk["CacheDir"].split(":") if chunk["Writeback"] else []
    while left := sum(_staged(f"{directory}/rawstaging") for directory in directories):
        print(f"{left} staged blocks are left to upload", file=sys.stderr)
        time.sleep(_AGAIN)


def _staged(directory: str) -> int:
    """Files below *directory*."""
    return sum(len(files) for _, _, files in os.walk(directory))


def unmount(path: str, *, force: bool) -> None:
    """Detach *path*; ConfigError when no JuiceFS is mounted there, MountError when it is busy."""
    from jfs.fuse import mounting
    from jfs.mount import mountpoint

    if not mountpoint.is_ours(path):
        raise ConfigError(f"no JuiceFS is mounted on {path}")
    if force and not asyncio.run(mountpoint.answers(path, patience=3.0)):
        mounting.abort(path)
    mounting.detach(path, lazy=force, force=force)
