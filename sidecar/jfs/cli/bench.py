"""`jfs bench PATH`: how fast a directory is with big and with small files, in the real client's table; in a mount also what its requests
cost inside. Any directory will do, so that a mount can be compared with the disk."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from jfs.cli.mounts import read_stats, root_of
from jfs.cli.tables import size_text, table
from jfs.errors import ConfigError, JfsError
from jfs.mount import units

_MIB: Final = 1 << 20
_DROP: Final = "/proc/sys/vm/drop_caches"


class Plan(NamedTuple):
    """Sizes in bytes, and how many."""

    block: int
    big: int
    small: int
    smalls: int
    threads: int


def main(arguments: list[str]) -> int:
    """Entry of the command."""
    parser = argparse.ArgumentParser(
        prog="jfs bench",
        description="Measure a directory with big and small files; what is made there is removed again.",
        epilog="examples:\n  jfs bench /mnt/jfs -p 4\n  jfs bench /mnt/jfs --big-file-size 0\n"
        "Run it as root: only then are the kernel's caches dropped before reading.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH")
    parser.add_argument(
        "--block-size", default="1M", metavar="SIZE", help="of each read and write, in MiB without a unit (1M)"
    )
    parser.add_argument(
        "--big-file-size", default="1G", metavar="SIZE", help="of a big file, in MiB without a unit (1G); 0: none"
    )
    parser.add_argument(
        "--small-file-size", default="128K", metavar="SIZE", help="of a small file, in KiB without a unit (128K)"
    )
    parser.add_argument(
        "--small-file-count", type=int, default=100, metavar="N", help="small files of each thread (100)"
    )
    parser.add_argument("-p", "--threads", type=int, default=1, metavar="N", help="how many work at once (1)")
    options = parser.parse_args(arguments)
    plan = Plan(
        units.size("--block-size", options.block_size, "M"),
        units.size("--big-file-size", options.big_file_size, "M"),
        units.size("--small-file-size", options.small_file_size, "K"),
        options.small_file_count,
        options.threads,
    )
    if plan.block <= 0 or plan.threads < 1 or plan.smalls < 0:
        raise ConfigError("--block-size and --threads must be more than 0, --small-file-count not less than 0")
    return run(options.path, plan)


def run(path: str, plan: Plan) -> int:
    """Measure and print."""
    try:
        root = root_of(path)
    except JfsError:
        root = ""
    folder = os.path.join(path, f"__juicefs_benchmark_{time.time_ns()}__")
    try:
        os.makedirs(folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
    before, started = read_stats(root) if root else {}, time.monotonic()
    try:
        rows = _measure(folder, plan)
    except OSError as error:
        raise ConfigError(f"the benchmark in {path} failed: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - started
    after = read_stats(root) if root else {}
    print("Benchmark finished!")
    print(
        f"BlockSize: {size_text(plan.block)}, BigFileSize: {size_text(plan.big)}, SmallFileSize: {size_text(plan.small)}, "
        f"SmallFileCount: {plan.smalls}, NumThreads: {plan.threads}"
    )
    if root:
        cpu = (after.get("cpu_usage", 0) - before.get("cpu_usage", 0)) / seconds * 100
        print(f"Time used: {seconds:.1f} s, CPU: {cpu:.1f}%, Memory: {after.get('memory', 0) / _MIB:.1f} MiB")
        rows += _inside(before, after)
    print(table(("ITEM", "VALUE", "COST"), rows, ">>>"))
    return 0


def _measure(folder: str, plan: Plan) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    content = os.urandom(plan.block)
    cold = os.geteuid() == 0 and os.access(_DROP, os.W_OK)
    if not cold:
        sys.stderr.write("the kernel's caches cannot be dropped (no root): reads may come from memory\n")

    def timed(work: Callable[[int], None]) -> float:
        started = time.monotonic()
        with ThreadPoolExecutor(plan.threads) as pool:
            list(pool.map(work, range(plan.threads)))
        return max(time.monotonic() - started, 1e-9)

    def forget() -> None:
        if cold:
            os.sync()
            with open(_DROP, "w", encoding="ascii") as file:
                file.write("3")

    def big(thread: int) -> str:
        return os.path.join(folder, f"bigfile.{thread}")

    def small(thread: int, number: int) -> str:
        return os.path.join(folder, f"smallfile.{thread}.{number}")

    def write_small(thread: int) -> None:
        for number in range(plan.smalls):
            _write(small(thread, number), plan.small, content)

    def read_small(thread: int) -> None:
        for number in range(plan.smalls):
            _read(small(thread, number), plan.block)

    def stat_small(thread: int) -> None:
        for number in range(plan.smalls):
            os.stat(small(thread, number))

    if plan.big:
        for name, work in (
            ("Write big file", lambda thread: _write(big(thread), plan.big, content)),
            ("Read big file", lambda thread: _read(big(thread), plan.block)),
        ):
            if name.startswith("Read"):
                forget()
            seconds = timed(work)
            rate = plan.big * plan.threads / _MIB / seconds
            rows.append((name, f"{rate:.2f} MiB/s", f"{seconds:.2f} s/file"))
    if plan.small and plan.smalls:
        for name, task in (
            ("Write small file", write_small),
            ("Read small file", read_small),
            ("Stat file", stat_small),
        ):
            if not name.startswith("Write"):
                forget()
            seconds = timed(task)
            rate = plan.smalls * plan.threads / seconds
            rows.append((name, f"{rate:.1f} files/s", f"{seconds / plan.smalls * 1000:.2f} ms/file"))
    return rows


def _write(path: str, size: int, content: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        left = size
        while left:
            left -= file.write(content[: min(left, len(content))])


def _read(path: str, block: int) -> None:
    buffer = bytearray(block)
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _inside(before: dict[str, float], after: dict[str, float]) -> list[tuple[str, str, str]]:
    """What the mount's own requests took."""
    rows = []
    for name, histogram in (
        ("FUSE operation", "fuse_ops_durations_histogram_seconds"),
        ("Update meta", "transaction_durations_histogram_seconds"),
        ("Put object", "object_request_durations_histogram_seconds_PUT"),
        ("Get object", "object_request_durations_histogram_seconds_GET"),
        ("Delete object", "object_request_durations_histogram_seconds_DELETE"),
        ("Write into cache", "blockcache_write_hist_seconds"),
        ("Read from cache", "blockcache_read_hist_seconds"),
    ):
        count = after.get(f"{histogram}_total", 0) - before.get(f"{histogram}_total", 0)
        seconds = after.get(f"{histogram}_sum", 0) - before.get(f"{histogram}_sum", 0)
        rows.append((name, f"{count:.0f} operations", f"{seconds / count * 1000 if count else 0:.2f} ms/op"))
    return rows
