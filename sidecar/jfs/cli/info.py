"""`jfs info PATH…`: inode, totals, paths and objects of files in a mount, asked of the mount through its `.control` (format §8.3).

Works on mounts of this and of the real client; prints what the real `juicefs info` prints.
"""

import argparse
import json
import os
import struct
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from jfs.errors import ConfigError, JfsError, VolumeError

_INFO_V2 = 1005
_PATIENCE = 600.0
_REQUEST = struct.Struct(">IIQBBB")


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
        try:
            ino = os.lstat(path).st_ino
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        absolute = os.path.abspath(path)
        directory = absolute if os.path.isdir(absolute) else os.path.dirname(absolute)
    answer = ask(directory, ino, recursive=options.recursive, raw=options.raw, strict=options.strict)
    if answer.get("Failed"):
        raise VolumeError(f"{path}: {answer.get('Reason')}")
    return render(path, ino, answer, raw=options.raw)


def ask(directory: str, ino: int, *, recursive: bool, raw: bool, strict: bool) -> dict[str, Any]:
    """The mount's answer about *ino*; `.control` is found in every directory of a mount. ConfigError when it is none."""
    for name in (".control", ".jfs.control"):
        try:
            fd = os.open(os.path.join(directory, name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ConfigError(f"{directory}: the mount's control file cannot be opened: {error.strerror}") from error
        try:
            os.write(fd, _REQUEST.pack(_INFO_V2, 11, ino, recursive, raw, strict))
            return _reply(fd)
        finally:
            os.close(fd)
    raise ConfigError(f"{directory} is not inside a JuiceFS mount")


def _reply(fd: int) -> dict[str, Any]:
    """Read progress marks until the data or the final errno byte comes (format §8.3)."""
    received = bytearray()
    end = time.monotonic() + _PATIENCE

    def need(count: int) -> bytes:
        while len(received) < count:
            piece = os.read(fd, 1 << 16)
            if not piece:  # the real client answers so while it works; there is nothing to wait on
                if time.monotonic() > end:
                    raise VolumeError("the mount did not answer in ten minutes")
                time.sleep(0.01)
            received.extend(piece)
        taken = bytes(received[:count])
        del received[:count]
        return taken

    while True:
        mark = need(1)[0]
        if mark == 0xFE:
            need(16)
        elif mark == 0xFF:
            (size,) = struct.unpack(">I", need(4))
            answer = json.loads(need(size))
            return answer if isinstance(answer, dict) else {}
        else:
            raise VolumeError(f"the mount refused the question: {os.strerror(mark)}")


def _human(number: int) -> str:
    value, units = float(number), ["Bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{number} Bytes" if number < 1024 else f"{value:.2f} {units[0]} ({number} Bytes)"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[str] = ()) -> list[str]:
    """A table as the real client draws it: head centred, numbers and the columns *right* to the right."""
    lines = [list(map(str, row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *lines, strict=True)]
    edge = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def middle(text: str, width: int) -> str:
        left = (width - len(text) + 1) // 2
        return " " * left + text + " " * (width - len(text) - left)

    top = "|" + "|".join(f" {middle(cell, width)} " for cell, width in zip(head, widths, strict=True)) + "|"
    body = [
        "|"
        + "|".join(
            f" {cell:{'>' if name in right or cell.isdecimal() else '<'}{width}} "
            for name, cell, width in zip(head, line, widths, strict=True)
        )
        + "|"
        for line in lines
    ]
    return [edge, top, edge, *body, edge]


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
        lines += [" chunks:", *table(("chunkIndex", "sliceId", "size", "offset", "length"), rows)]
    elif objects:
        rows, ends = [], dict.fromkeys((one["ChunkIndex"] for one in objects), 0)
        for one in objects:  # they follow each other without gaps from the chunk's start
            position = ends[one["ChunkIndex"]]
            ends[one["ChunkIndex"]] += one["Len"]
            rows.append([str(one[name]) for name in ("ChunkIndex", "Key", "Size", "Off", "Len")] + [str(position)])
        lines += [" objects:", *table(("chunkIndex", "objectName", "size", "offset", "length", "pos"), rows)]
    return "\n".join(lines)
