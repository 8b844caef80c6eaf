"""`jfs summary PATH`: how much lies below a directory of a mount, as a tree of its largest entries, asked of the mount through its
`.control` (format §8.3). Prints what the real `juicefs summary` prints."""

import argparse
import csv
import json
import os
import struct
import sys
from collections.abc import Iterator
from typing import Any, Final

from jfs.cli.control import ask, directory_of
from jfs.cli.tables import table
from jfs.errors import ConfigError, VolumeError

_SUMMARY: Final = 1007
_MAX_DEPTH: Final = 10
_MAX_ENTRIES: Final = 100
_HEAD: Final = ("PATH", "SIZE", "DIRS", "FILES")
_DIRECTORY: Final = 2


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(prog="jfs summary", description="Show what lies below a directory of a mount.")
    parser.add_argument("path", metavar="PATH")
    parser.add_argument("-d", "--depth", type=int, default=2, help="levels below PATH to show (2)")
    parser.add_argument(
        "-e", "--entries", type=int, default=10, metavar="N", help="entries of a directory to show (10)"
    )
    parser.add_argument("--strict", action="store_true", help="count every inode, in place of the usage that is kept")
    parser.add_argument("--csv", action="store_true", help="print comma-separated values, sizes in bytes")
    options = parser.parse_args(arguments)
    if not 0 <= options.depth <= _MAX_DEPTH or not 0 <= options.entries <= _MAX_ENTRIES:
        raise ConfigError(f"--depth must be 0 to {_MAX_DEPTH}, --entries 0 to {_MAX_ENTRIES}")
    try:
        ino = os.stat(options.path).st_ino
    except OSError as error:
        raise ConfigError(f"{options.path}: {error.strerror}") from error
    answer = ask(
        directory_of(os.path.realpath(options.path)),
        _SUMMARY,
        struct.pack(">QBBB", ino, options.depth, options.entries, options.strict),
    )
    found: dict[str, Any] = json.loads(answer.data) if answer.data else {}
    failed = answer.errno or found["Errno"]
    if failed:
        raise VolumeError(f"{options.path} cannot be summed up: {os.strerror(failed)}")
    rows = list(_rows(found["Tree"]))
    if options.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(_HEAD)
        writer.writerows(rows)
        return 0
    cells = [[path, _human(size), str(dirs), str(files)] for path, size, dirs, files in rows]
    print(table(_HEAD, cells, "#>##"))
    return 0


def _rows(tree: dict[str, Any]) -> Iterator[tuple[str, int, int, int]]:
    path = tree["Path"] + ("/" if tree["Type"] == _DIRECTORY else "")
    yield path, tree["Size"], tree["Dirs"], tree["Files"]
    for child in tree.get("Children") or ():
        yield from _rows(child)


def _human(size: int) -> str:
    """As the real client has it: `8.0 KiB`, `72 KiB`."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    if units[0] == "B":
        return f"{size} B"
    return f"{value:.1f} {units[0]}" if value < 10 else f"{value:.0f} {units[0]}"
