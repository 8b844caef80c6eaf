"""`jfs umount [-f] MOUNTPOINT`: detaches a mount, also one that hangs or whose process is dead; never stats it.

Without --force a busy mount is refused. With it the mountpoint is detached at once, and the connection of one that does not
answer is aborted, so that whoever waits for it gets an error.
"""

import argparse
import asyncio
import sys

from jfs.errors import ConfigError, JfsError


def main(arguments: list[str]) -> int:
    """Entry of `jfs umount`."""
    parser = argparse.ArgumentParser(prog="jfs umount", description="Unmount a volume.")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument("-f", "--force", action="store_true", help="detach even when busy, hung or dead")
    parser.add_argument("--flush", action="store_true", help="wait for everything written (a mount always does)")
    options = parser.parse_args(arguments)
    try:
        unmount(options.mountpoint, force=options.force)
    except JfsError as error:
        print(f"jfs: {error}", file=sys.stderr)
        return 1
    return 0


def unmount(path: str, *, force: bool) -> None:
    """Detach *path*; ConfigError when no JuiceFS is mounted there, MountError when it is busy."""
    from jfs.fuse import mounting
    from jfs.mount import mountpoint

    if not mountpoint.is_ours(path):
        raise ConfigError(f"no JuiceFS is mounted on {path}")
    if force and not asyncio.run(mountpoint.answers(path, patience=3.0)):
        mounting.abort(path)
    mounting.detach(path, lazy=force, force=force)
