"""`jfs warmup PATH…`: has a mount bring files into its local cache, drop them from it, or tell which are there, through its `.control`
(format §8.3). Options and what is printed are the real client's; works on mounts of either."""

import argparse
import json
import os
import struct
import sys
from collections import Counter
from typing import Final, NamedTuple

from jfs.cli.control import ask, directory_of
from jfs.cli.tables import size_text, table
from jfs.errors import ConfigError, VolumeError

_FILL_CACHE: Final = 1004
_WARM, _EVICT, _CHECK = range(3)
_BATCH: Final = 10_240  # paths of one request
_ROOT: Final = 1


class _Total(NamedTuple):
    files: int
    bytes: int
    missing: int


def main(arguments: list[str]) -> int:
    """Entry of the command; 1 when a path is not of the mount."""
    parser = argparse.ArgumentParser(prog="jfs warmup", description="Build cache for files and directories of a mount.")
    parser.add_argument("paths", metavar="PATH", nargs="*")
    parser.add_argument("-f", "--file", metavar="LIST", help="file with a path in each line")
    parser.add_argument("-p", "--threads", type=int, default=50, metavar="N", help="blocks at once (50)")
    parser.add_argument("-b", "--background", action="store_true", help="do not wait for the end")
    parser.add_argument("--evict", action="store_true", help="drop from the cache what PATH has there")
    parser.add_argument("--check", action="store_true", help="tell how much of it is in the cache")
    options = parser.parse_args(arguments)
    if options.evict and options.check:
        raise ConfigError("--evict and --check exclude each other")
    if not 1 <= options.threads <= 65535:
        raise ConfigError("--threads must be a number from 1 to 65535")
    paths = [*options.paths, *(_listed(options.file) if options.file else ())]
    if not paths:
        print("no path")
        return 0
    point = _mountpoint(paths[0])
    inside = []
    for path in paths:
        relative = os.path.relpath(os.path.abspath(path), point)
        if relative == ".." or relative.startswith("../"):
            print(f"jfs: {path} is not below the mountpoint {point}", file=sys.stderr)
        elif "\n" in relative:
            print(f"jfs: {path!r}: a name with a newline cannot be asked for", file=sys.stderr)
        else:
            inside.append("/" + relative if relative != "." else "/")
    action = _EVICT if options.evict else _CHECK if options.check else _WARM
    _ask_all(point, inside, action, options.threads, background=options.background)
    return 0 if len(inside) == len(paths) else 1


def _listed(name: str) -> list[str]:
    try:
        with open(name, encoding="utf-8", errors="surrogateescape") as file:
            return [line.strip() for line in file if line.strip()]
    except OSError as error:
        raise ConfigError(f"the list {name} cannot be read: {error.strerror}") from error


def _mountpoint(path: str) -> str:
    """The root of the mount that *path* lies in. ConfigError when it does not exist, or lies in no mount."""
    if not os.path.lexists(path):
        raise ConfigError(f"{path}: No such file or directory")
    at = directory_of(path)
    while at != "/" and os.stat(at).st_ino != _ROOT:
        at = os.path.dirname(at)
    if os.stat(at).st_ino != _ROOT or not any(os.path.lexists(f"{at}/{name}") for name in (".control", ".jfs.control")):
        raise ConfigError(f"{path} is not inside a JuiceFS mount")
    return at


def _ask_all(point: str, paths: list[str], action: int, threads: int, *, background: bool) -> None:
    total = _Total(0, 0, 0)
    places: Counter[str] = Counter()
    for start in range(0, len(paths), _BATCH):
        text = "\n".join(paths[start : start + _BATCH]).encode(errors="surrogateescape")
        answer = ask(
            point, _FILL_CACHE, struct.pack(">I", len(text)) + text + struct.pack(">HBB", threads, background, action)
        )
        if answer.errno:
            raise VolumeError(f"{point}: the mount could not do it: {os.strerror(answer.errno)}")
        if not background:
            found = json.loads(answer.data)
            total = _Total(
                total.files + found["FileCount"],
                total.bytes + found["TotalBytes"],
                total.missing + found.get("MissBytes", 0),
            )
            places.update(found.get("Locations") or {})
    if background:
        doing = ("warmup", "evict", "check")[action]
        print(f"{doing} cache for {len(paths)} paths in background")
    elif action == _CHECK:
        _print_check(total, places)
    else:
        print(f"{('warmup', 'evict')[action]} cache: {total.files} files ({size_text(total.bytes)} bytes)")


def _print_check(total: _Total, places: Counter[str]) -> None:
    def part(count: int) -> str:
        return f"{count / total.bytes * 100 if total.bytes else 0:.1f}%"

    if places:
        rows = [(place, size_text(count), part(count)) for place, count in sorted(places.items())]
        print(table(("Location", "Size", "Percentage"), rows, "<>>"))
    cached = total.bytes - total.missing
    print(
        f"check cache: {total.files} files checked, {size_text(cached)} of {size_text(total.bytes)} ({part(cached)}) cached"
    )
