"""Asking a mount through its `.control` (format §8.3): the way of every command that takes paths of a mount.

Works on mounts of this and of the real client. An answer is read to its end; what is not there yet is waited for.
"""

import os
import struct
import time
from typing import NamedTuple

from jfs.errors import ConfigError, VolumeError

_HEADER = struct.Struct(">II")
_NAMES = (".control", ".jfs.control")


class Answer(NamedTuple):
    """What a mount said: the last progress (two numbers), the JSON text or b"", and the errno (0: success)."""

    progress: tuple[int, int]
    data: bytes
    errno: int


def inode(path: str) -> int:
    """The inode of *path*, links not followed; ConfigError when there is none."""
    try:
        return os.lstat(path).st_ino
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error


def directory_of(path: str) -> str:
    """A directory of the mount that *path* lies in: itself, or the one it is in."""
    absolute = os.path.abspath(path)
    return absolute if os.path.isdir(absolute) and not os.path.islink(absolute) else os.path.dirname(absolute)


def ask(directory: str, command: int, body: bytes) -> Answer:
    """Send a request to the mount that *directory* lies in. ConfigError when it is none."""
    for name in _NAMES:
        try:
            fd = os.open(os.path.join(directory, name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{directory}: the mount's control file cannot be opened: {error.strerror}") from error
        try:
            os.write(fd, _HEADER.pack(command, len(body)) + body)
            return _read(fd)
        except OSError as error:
            raise VolumeError(f"{directory}: the mount did not answer: {error.strerror}") from error
        finally:
            os.close(fd)
    raise ConfigError(f"{directory} is not inside a JuiceFS mount")


def _read(fd: int) -> Answer:
    received = bytearray()
    progress = (0, 0)

    def need(count: int) -> bytes:
        while len(received) < count:
            piece = os.read(fd, 1 << 16)
            if not piece:
                time.sleep(0.05)  # the real client has nothing to read yet, and nothing to wait on
            received.extend(piece)
        taken = bytes(received[:count])
        del received[:count]
        return taken

    while True:
        mark = need(1)[0]
        if mark == 0xFE:
            first, second = struct.unpack(">QQ", need(16))
            progress = (first, second)
        elif mark == 0xFF:
            (size,) = struct.unpack(">I", need(4))
            return Answer(progress, need(size), 0)
        else:
            return Answer(progress, b"", mark)
