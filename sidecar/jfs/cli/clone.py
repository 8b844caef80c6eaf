"""`jfs clone SRC DST`: copies a file or a tree of a mount without copying data, through the mount's `.control` (format §8.3, §10)."""

import argparse
import os
import struct
import sys
from typing import Final

from jfs.cli.control import ask, inode
from jfs.errors import ConfigError, VolumeError

_CLONE: Final = 1006
_PRESERVE: Final = 2


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs clone", description="Copy a file or a tree of a mount without copying data."
    )
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    parser.add_argument("-p", "--preserve", action="store_true", help="keep owner, mode and times")
    parser.add_argument("--threads", type=int, default=4, metavar="N", help="directories at once (4)")
    options = parser.parse_args(arguments)
    if not 1 <= options.threads <= 255:
        raise ConfigError("--threads must be a number from 1 to 255")
    source, target = os.path.abspath(options.source), os.path.abspath(options.target)
    if options.target.endswith("/") or os.path.isdir(target):
        target = os.path.join(target, os.path.basename(source))
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists already")
    parent, name = os.path.split(target)
    try:
        if os.lstat(source).st_dev != os.stat(parent).st_dev:
            raise ConfigError(f"{source} and {parent} are not in the same mount")
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from error
    umask = os.umask(0)
    os.umask(umask)
    raw = os.fsencode(name)
    body = struct.pack(">QQQB", inode(source), inode(os.path.dirname(source)), os.stat(parent).st_ino, len(raw)) + raw
    body += struct.pack(">HBB", umask, _PRESERVE if options.preserve else 0, options.threads)
    answer = ask(parent, _CLONE, body)
    if answer.errno:
        raise VolumeError(f"{source} cannot be cloned to {target}: {os.strerror(answer.errno)}")
    print(f"jfs: {source} is cloned to {target}: {answer.progress[0]} inodes", file=sys.stderr)
    return 0
