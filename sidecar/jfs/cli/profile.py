"""`jfs profile MOUNTPOINT|LOGFILE`: which operations take the time, from a mount's access log (format §8.2), as it happens or out of a
file that was recorded. Prints what the real `juicefs profile` prints, and reads logs of either client."""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterable
from typing import Final, NamedTuple, TextIO

from jfs.cli.mounts import root_of, virtual_file
from jfs.errors import ConfigError

_LINE: Final = re.compile(r"^\S+ \S+ \[uid:(\d+),gid:(\d+),pid:(\d+)\] (\w+)\b.*<(\d+\.\d+)>$")
_LIVE: Final = 2.0


class Filter(NamedTuple):
    """Whose operations are counted; an empty set is everybody."""

    uids: frozenset[str]
    gids: frozenset[str]
    pids: frozenset[str]

    def takes(self, uid: str, gid: str, pid: str) -> bool:
        """Whether an operation of this caller is counted."""
        wanted = ((self.uids, uid), (self.gids, gid), (self.pids, pid))
        return all(not chosen or one in chosen for chosen, one in wanted)


class Profile:
    """Counts and microseconds by operation."""

    def __init__(self, chosen: Filter) -> None:
        self._chosen = chosen
        self._operations: dict[str, list[int]] = {}
        self._started = time.monotonic()

    def take(self, lines: Iterable[str]) -> None:
        """Count lines of a log; others are left out."""
        for line in lines:
            found = _LINE.match(line)
            if found is None or not self._chosen.takes(*found.group(1, 2, 3)):
                continue
            one = self._operations.setdefault(found[4], [0, 0])
            one[0] += 1
            one[1] += round(float(found[5]) * 1_000_000)

    def report(self, title: str, seconds: float) -> str:
        """The table: slowest in sum first, in percent of so many seconds (of all operations when 0)."""
        whole = seconds * 1_000_000 or sum(total for _, total in self._operations.values()) or 1
        lines = [title, f"{'Operation':<18}{'Count':>8}{'Average(us)':>16}{'Total(us)':>19}{'Percent(%)':>15}"]
        for name, (count, total) in sorted(self._operations.items(), key=lambda one: -one[1][1]):
            lines.append(f"{name:<18}{count:>8}{total / count:>16.0f}{total:>19}{total / whole * 100:>15.1f}")
        return "\n".join(lines)

    def clear(self) -> None:
        """Begin anew."""
        self._operations.clear()


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs profile",
        description="Show which operations of a mount take the time.",
        epilog="examples:\n  jfs profile /mnt/jfs\n  timeout 60 cat /mnt/jfs/.accesslog > log; jfs profile log --interval 0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="MOUNTPOINT|LOGFILE")
    for letter, name in (("-u", "--uid"), ("-g", "--gid"), ("-p", "--pid")):
        parser.add_argument(letter, name, default="", metavar="N,N", help=f"only operations of these {name[2:]}s")
    parser.add_argument(
        "--interval",
        type=float,
        default=_LIVE,
        metavar="S",
        help="seconds between two tables (2); 0: one of a file",
    )
    options = parser.parse_args(arguments)
    sets = [frozenset(filter(None, text.split(","))) for text in (options.uid, options.gid, options.pid)]
    if not all(one.isdecimal() for chosen in sets for one in chosen):
        raise ConfigError("--uid, --gid and --pid take numbers, separated by commas")
    profile = Profile(Filter(*sets))
    if os.path.isdir(options.path):
        return _live(root_of(options.path), profile, options.interval or _LIVE)
    try:
        with open(options.path, encoding="utf-8", errors="replace") as file:
            profile.take(file)
    except OSError as error:
        raise ConfigError(f"{options.path} cannot be read: {error.strerror}") from error
    print(profile.report(f"> JuiceFS Profiling: {options.path}", 0))
    return 0


def _live(root: str, profile: Profile, interval: float) -> int:
    path = virtual_file(root, "accesslog")
    if not path:
        raise ConfigError(f"the mount {root} shows no access log; it was mounted with --hide-internal")
    terminal = sys.stdout.isatty()
    try:
        with open(path, encoding="utf-8", errors="replace", buffering=1) as file:
            while True:
                _collect(file, profile, interval)
                if terminal:
                    sys.stdout.write("\x1b[2J\x1b[H")
                when = time.strftime("%Y-%m-%dT%H:%M:%S")
                print(
                    profile.report(
                        f"> JuiceFS Profiling                Refresh: {interval:g} seconds  {when}", interval
                    )
                )
                sys.stdout.flush()
                profile.clear()
    except KeyboardInterrupt:
        return 0
    except OSError as error:
        raise ConfigError(f"{path} cannot be read any more: {error.strerror}; was the volume unmounted?") from error


def _collect(file: TextIO, profile: Profile, interval: float) -> None:
    """Take what is logged within so many seconds. The log is never silent for longer than a second."""
    until = time.monotonic() + interval
    while time.monotonic() < until:
        profile.take([file.readline()])
