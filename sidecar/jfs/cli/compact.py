"""`jfs compact PATH…`: has the mount rewrite the fragmented chunks of files, and of everything below directories, through its `.control`
(format §8.3). Works on mounts of this and of the real client."""

import argparse
import os
import struct
import sys
import time
from typing import Final

from jfs.errors import ConfigError, JfsError, VolumeError

_COMPACT_PATH: Final = 1008
_REQUEST: Final = struct.Struct(">IIQH")
_NAMES: Final = (".control", ".jfs.control")


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
    try:
        ino = os.lstat(path).st_ino
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    absolute = os.path.abspath(path)
    directory = absolute if os.path.isdir(absolute) else os.path.dirname(absolute)
    for name in _NAMES:
        try:
            fd = os.open(os.path.join(directory, name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{directory}: the mount's control file cannot be opened: {error.strerror}") from error
        try:
            os.write(fd, _REQUEST.pack(_COMPACT_PATH, _REQUEST.size - 8, ino, threads))
            return _answer(fd, path)
        finally:
            os.close(fd)
    raise ConfigError(f"{directory} is not inside a JuiceFS mount")


def _answer(fd: int, path: str) -> tuple[int, int]:
    received = bytearray()
    chunks = size = 0
    while True:
        while received and received[0] == 0xFE and len(received) >= 17:
            chunks, size = struct.unpack_from(">QQ", received, 1)
            del received[:17]
        if received and received[0] != 0xFE:
            if received[0]:
                raise VolumeError(f"{path}: the mount could not compact it: {os.strerror(received[0])}")
            return chunks, size
        piece = os.read(fd, 4096)
        if not piece:
            time.sleep(0.05)  # the real client has nothing to read yet, and nothing to wait on
        received += piece
