"""Wipes secrets from where the kernel shows a process's beginning: `/proc/<pid>/cmdline`, which every user may read, and
`/proc/<pid>/environ`. A mount lives long, and its address or environment may hold a password.

Both are the process's own memory, whose bounds the kernel tells in `/proc/self/stat`; the bytes are overwritten in place and
their number is kept. Must run in a process of its own program (`jfs mount`), before threads exist.
"""

import ctypes
import re
from collections.abc import Collection
from typing import Final

# Fields of /proc/self/stat (proc(5)), counted from the one after the command's name: arg_start, arg_end, env_start, env_end.
_BOUNDS: Final = slice(45, 49)
_URL_PASSWORD: Final = re.compile(rb"(?<=://)[^/@\0]*:([^@\0]+)(?=@)")


def wipe(variables: Collection[str]) -> None:
    """Overwrite the passwords of URLs in the arguments, and the values of *variables* in the environment, with `*`."""
    arg_start, arg_end, env_start, env_end = _bounds()
    _overwrite(arg_start, arg_end, _URL_PASSWORD)
    if variables:
        names = b"|".join(re.escape(name.encode()) for name in variables)
        _overwrite(env_start, env_end, re.compile(rb"(?:\A|(?<=\0))(?:" + names + rb")=([^\0]+)"))


def has_password(url: str) -> bool:
    """Whether a metadata address holds a password."""
    return _URL_PASSWORD.search(url.encode(errors="surrogateescape")) is not None


def call_last_argument(name: bytes) -> None:
    """Show *name* as the last argument of this process, in place of one of the same length: what a fork of it has become."""
    start, end, _, _ = _bounds()
    at = end - len(name) - 1
    if start and at > start and ctypes.string_at(at - 1, 1) == b"\0":
        ctypes.memmove(at, name, len(name))


def _bounds() -> tuple[int, int, int, int]:
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as stat:
        fields = stat.read().rpartition(")")[2].split()
    arg_start, arg_end, env_start, env_end = map(int, fields[_BOUNDS])
    return arg_start, arg_end, env_start, env_end


def _overwrite(start: int, end: int, secret: re.Pattern[bytes]) -> None:
    if not start or end <= start:
        return
    for found in secret.finditer(ctypes.string_at(start, end - start)):
        ctypes.memset(start + found.start(1), ord("*"), found.end(1) - found.start(1))
