"""`jfs info PATH…`: inode, totals, paths and objects of files in a mount, asked of the mount through its `.control` (format §8.3).

Works on mounts of this and of the real client; prints what the real `juicefs info` prints.
"""

import argparse
import json
import os
import struct
import sys
from typing import Any

from jfs.cli import control
from jfs.cli.tables import table
from jfs.errors import ConfigError, JfsError, VolumeError

_INFO_V2 = 1005


def main(arguments: list[str]) -> int:
    """Entry of `jfs info`."""
    parser = argparse.ArgumentParser(prog="jfs info", description="Show inode, totals and objects of paths in a mount.")
    parser.add_argument("paths", metavar="PATH", nargs="+")
    parser.add_argument("-i", "--inode", action="store_true", help="PATHs are inode numbers of the mount here")
    parser.add_argument("-r", "--recursive", action="store_true", help="totals of everything below")
    parser.add_argument("--strict", action="store_true", help="count exactly (always so here)")
    parser.add_argument("--raw", action="store_true", help="show slices in place of objects")
    options = parser.parse_args(arguments)
    failed = 0
    for path in options.paths:
        try:
            print(_describe(path, options))
        except JfsError as error:
            print(f"jfs: {error}", file=sys.stderr)
            failed = 1
    return failed


def _describe(path: str, options: argparse.Namespace) -> str:
    if options.inode:
        if not path.isdecimal():
            raise ConfigError(f"{path!r} is not an inode number")
        ino, directory = int(path), os.getcwd()
    else:
        ino, directory = control.inode(path), control.directory_of(path)
    answer = ask(directory, ino, recursive=options.recursive, raw=options.raw, strict=options.strict)
    if answer.get("Failed"):
        raise VolumeError(f"{path}: {answer.get('Reason')}")
    return render(path, ino, answer, raw=options.raw)


def ask(directory: str, ino: int, *, recursive: bool, raw: bool, strict: bool) -> dict[str, Any]:
    """The mount's answer about *ino*; `.control` is found in every directory of a mount. ConfigError when it is none."""
    answer = control.ask(directory, _INFO_V2, struct.pack(">QBBB", ino, recursive, raw, strict))
    if answer.errno:
        raise VolumeError(f"the mount refused the question: {os.strerror(answer.errno)}")
    found = json.loads(answer.data)
    return found if isinstance(found, dict) else {}


def _human(number: int) -> str:
    value, units = float(number), ["Bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{number} Bytes" if number < 1024 else f"{value:.2f} {units[0]} ({number} Bytes)"


def render(path: str, ino: int, answer: dict[str, Any], *, raw: bool) -> str:
    """The text for people."""
    summary = answer["Summary"]
    lines = [
        f"{path} :",
        f"  inode: {ino}",
        f"  files: {summary['Files']}",
        f"   dirs: {summary['Dirs']}",
        f" length: {_human(summary['Length'])}",
        f"   size: {_human(summary['Size'])}",
    ]
    paths = answer.get("Paths") or []
    if len(paths) == 1:
        lines.append(f"   path: {paths[0]}")
    elif paths:
        lines += ["  paths:", *(f"\t{one}" for one in paths)]
    chunks, objects = answer.get("Chunks") or [], answer.get("Objects") or []
    if raw and chunks:
        rows = [[str(one[name]) for name in ("ChunkIndex", "Id", "Size", "Off", "Len")] for one in chunks]
        lines += [" chunks:", table(("chunkIndex", "sliceId", "size", "offset", "length"), rows, "#####")]
    elif objects:
        rows, ends = [], dict.fromkeys((one["ChunkIndex"] for one in objects), 0)
        for one in objects:  # they follow each other without gaps from the chunk's start
            position = ends[one["ChunkIndex"]]
            ends[one["ChunkIndex"]] += one["Len"]
            rows.append([str(one[name]) for name in ("ChunkIndex", "Key", "Size", "Off", "Len")] + [str(position)])
        lines += [" objects:", table(("chunkIndex", "objectName", "size", "offset", "length", "pos"), rows, "######")]
    return "\n".join(lines)
