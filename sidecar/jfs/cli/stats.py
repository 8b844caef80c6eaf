"""`jfs stats MOUNTPOINT`: what a mount is doing, a line each second, from its `.stats` (format §8.1). Sections and columns are those of
the real `juicefs stats`; it works on mounts of either client."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from jfs.cli.mounts import read_stats, root_of
from jfs.errors import ConfigError

_HEAD_EVERY: Final = 30  # lines

Numbers = Mapping[str, float]


class Column(NamedTuple):
    """A column: its name, and the text for the numbers before and after so many seconds."""

    name: str
    text: Callable[[Numbers, Numbers, float], str]


def short(number: float, unit: str = "") -> str:
    """At most five characters: 12, 3.4K, 812M; with a unit of B counted by 1024."""
    step = 1024 if unit else 1000
    if number < step:
        return f"{number:.0f}{unit if number else ' '}".strip() or "0"
    for letter in "KMGTPE":
        number /= step
        if number < step:
            return f"{number:.1f}{letter}" if number < 10 else f"{number:.0f}{letter}"
    return f"{number:.0f}Z"


def _delta(before: Numbers, now: Numbers, name: str) -> float:
    return max(0.0, now.get(name, 0) - before.get(name, 0))


def _rate(name: str, unit: str = "") -> Callable[[Numbers, Numbers, float], str]:
    return lambda before, now, seconds: short(_delta(before, now, name) / seconds, unit)


def _latency(name: str) -> Callable[[Numbers, Numbers, float], str]:
    """Mean milliseconds of a histogram."""

    def text(before: Numbers, now: Numbers, seconds: float) -> str:
        count = _delta(before, now, f"{name}_total")
        return f"{_delta(before, now, f'{name}_sum') / count * 1000:.2f}" if count else "0"

    return text


def _gauge(name: str) -> Callable[[Numbers, Numbers, float], str]:
    return lambda before, now, seconds: short(now.get(name, 0), "B")


def _cpu(before: Numbers, now: Numbers, seconds: float) -> str:
    return f"{_delta(before, now, 'cpu_usage') / seconds * 100:.1f}%"


_FUSE: Final = "fuse_ops_durations_histogram_seconds"
_META: Final = "meta_ops_durations_histogram_seconds"
_TXN: Final = "transaction_durations_histogram_seconds"
_OBJECT: Final = "object_request_durations_histogram_seconds"
SECTIONS: Final[dict[str, tuple[str, tuple[Column, ...], tuple[Column, ...]]]] = {
    "u": (
        "usage",
        (Column("cpu", _cpu), Column("mem", _gauge("memory")), Column("buf", _gauge("used_buffer_size_bytes"))),
        (),
    ),
    "f": (
        "fuse",
        (
            Column("ops", _rate(f"{_FUSE}_total")),
            Column("lat", _latency(_FUSE)),
            Column("read", _rate("fuse_read_size_bytes_sum", "B")),
            Column("write", _rate("fuse_written_size_bytes_sum", "B")),
        ),
        (),
    ),
    "m": (
        "meta",
        (Column("ops", _rate(f"{_META}_total")), Column("lat", _latency(_META))),
        (
            Column("txn", _rate(f"{_TXN}_total")),
            Column("lat", _latency(_TXN)),
            Column("retry", _rate("transaction_restart")),
        ),
    ),
    "c": (
        "blockcache",
        (Column("read", _rate("blockcache_hit_bytes", "B")), Column("write", _rate("blockcache_write_bytes", "B"))),
        (),
    ),
    "o": (
        "object",
        (
            Column("get", _rate("object_request_data_bytes_GET", "B")),
            Column("put", _rate("object_request_data_bytes_PUT", "B")),
        ),
        (
            Column("get_c", _rate(f"{_OBJECT}_GET_total")),
            Column("lat", _latency(f"{_OBJECT}_GET")),
            Column("put_c", _rate(f"{_OBJECT}_PUT_total")),
            Column("lat", _latency(f"{_OBJECT}_PUT")),
            Column("del_c", _rate(f"{_OBJECT}_DELETE_total")),
        ),
    ),
}
_WIDTH: Final = 5


def head(schema: str, verbosity: int) -> list[str]:
    """The two lines above the numbers."""
    names, columns = [], []
    for letter in schema:
        if letter == "t":
            names.append("-system-".center(14, "-"))
            columns.append("date".center(14))
            continue
        name, basic, more = SECTIONS[letter]
        shown = basic + more * verbosity
        width = (_WIDTH + 1) * len(shown) - 1
        names.append(name.center(width, "-"))
        columns.append(" ".join(column.name.center(_WIDTH) for column in shown))
    return [" ".join(names), "|".join(columns)]


def line(schema: str, verbosity: int, before: Numbers, now: Numbers, seconds: float) -> str:
    """A line of numbers."""
    parts = []
    for letter in schema:
        if letter == "t":
            parts.append(time.strftime("%m-%d %H:%M:%S"))
            continue
        _, basic, more = SECTIONS[letter]
        parts.append(" ".join(one.text(before, now, seconds).rjust(_WIDTH) for one in basic + more * verbosity))
    return "|".join(parts)


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs stats",
        description="Show what a mount is doing, a line each second. Ctrl-C ends it.",
        epilog="examples:\n  jfs stats /mnt/jfs\n  jfs stats /mnt/jfs -l 1 --schema fmo -c 10",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("mountpoint", metavar="MOUNTPOINT")
    parser.add_argument(
        "--schema", default="ufmco", help="sections: t time, u usage, f fuse, m meta, c blockcache, o object (ufmco)"
    )
    parser.add_argument("--interval", type=float, default=1.0, metavar="S", help="seconds between two lines (1)")
    parser.add_argument("-l", "--verbosity", type=int, choices=(0, 1), default=0, help="1 shows more columns")
    parser.add_argument("-c", "--count", type=int, default=0, metavar="N", help="lines after which it ends (never)")
    options = parser.parse_args(arguments)
    unknown = set(options.schema) - {*SECTIONS, "t"}
    if unknown or not options.schema:
        raise ConfigError(
            f"--schema has the unknown section {''.join(sorted(unknown))!r}; use some of t{''.join(SECTIONS)}"
        )
    if options.interval <= 0:
        raise ConfigError("--interval must be more than 0 seconds")
    root = root_of(options.mountpoint)
    before, since = read_stats(root), time.monotonic()
    shown = 0
    try:
        while not options.count or shown < options.count:
            time.sleep(options.interval)
            now, moment = read_stats(root), time.monotonic()
            if shown % _HEAD_EVERY == 0:
                print("\n".join(head(options.schema, options.verbosity)))
            print(line(options.schema, options.verbosity, before, now, moment - since), flush=True)
            before, since = now, moment
            shown += 1
    except KeyboardInterrupt:
        sys.stderr.write("\n")
    return 0
