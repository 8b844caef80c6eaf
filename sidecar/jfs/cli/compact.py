"""`jfs compact PATH…`: has the mount rewrite the fragmented chunks of files, and of everything below directories, through its `.control`
(format §8.3). Works on mounts of this and of the real client."""

import argparse
import os
import struct
import sys
from typing import Final

from jfs.cli.control import ask, directory_of, inode
from jfs.errors import ConfigError, JfsError, VolumeError

_COMPACT_PATH: Final = 1008


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(prog="jfs compact", description="Rewrite fragmented files of a mount.")
    parser.add_argument("paths", metavar="PATH", nargs="+")
    parser.add_argument("-p", "--threads", type=int, default=10, metavar="N", help="files at once (10)")
    options = parser.parse_args(arguments)
    if not 1 <= options.threads <= 65535:
        raise ConfigError("--threads must be a number from 1 to 65535")
    failed = 0
    for path in options.paths:
        try:
            chunks, size = compact(path, options.threads)
        except JfsError as error:
            print(f"jfs: {error}", file=sys.stderr)
            failed = 1
        else:
            print(f"{path}: compacted {chunks} chunks ({size} bytes)")
    return failed


def compact(path: str, threads: int) -> tuple[int, int]:
    """Ask the mount that *path* lies in; the chunks it looked at and their bytes. ConfigError when there is no mount, VolumeError when
    it could not do it."""
    answer = ask(directory_of(path), _COMPACT_PATH, struct.pack(">QH", inode(path), threads))
    if answer.errno:
        raise VolumeError(f"{path}: the mount could not compact it: {os.strerror(answer.errno)}")
    return answer.progress
