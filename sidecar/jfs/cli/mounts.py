"""A mount as commands look at it from outside: its root and its virtual files (format §8.1)."""

import os
from typing import Final

from jfs.errors import ConfigError

_ROOT: Final = 1


def root_of(path: str) -> str:
    """The mount that *path* is in. ConfigError when it is in none."""
    where = os.path.realpath(path)
    while True:
        try:
            if os.stat(where).st_ino == _ROOT and virtual_file(where, "stats"):
                return where
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        if where == "/":
            raise ConfigError(f"{path} is not in a mounted JuiceFS volume")
        where = os.path.dirname(where)


def virtual_file(root: str, name: str) -> str:
    """The path of `.stats`, `.accesslog` … below a mount's root, with or without a prefix; "" when it has none."""
    for shown in (f".{name}", f".jfs.{name}"):
        path = os.path.join(root, shown)
        if os.path.exists(path):
            return path
    return ""


def read_stats(root: str) -> dict[str, float]:
    """The numbers of `.stats` without their prefix; empty when there is no such file."""
    path = virtual_file(root, "stats")
    if not path:
        return {}
    found = {}
    with open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            name, _, value = line.strip().rpartition(" ")
            try:
                found[name.removeprefix("juicefs_")] = float(value)
            except ValueError:
                continue
    return found
