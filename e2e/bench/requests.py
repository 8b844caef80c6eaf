"""What one request costs: CPU of our client for a getattr and a lookup that it answers from its caches, on both FUSE hosts.

The kernel is made to ask each time: a getattr by statx(2) with AT_STATX_FORCE_SYNC, a lookup by dropping the kernel's entries while
the client's, with long time-outs, stay. Four processes ask at once. CPU is that of the client's process over the requests it
counted itself.
"""

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from e2e.bench import clients
from e2e.bench.clients import Mounted
from e2e.bench.servers import Redis

HOSTS = ("kernel", "pyfuse3")
BAR = 15.0  # µs of CPU, for the kernel host
FILES = 5000
GETATTRS = 20_000
ASKERS = 4
_AT_EMPTY_PATH = 0x1000
_AT_STATX_FORCE_SYNC = 0x2000
_STATX_BASIC = 0x7FF
_LONG = ("--attr-cache=600", "--entry-cache=600", "--dir-entry-cache=600")


def _together(work: Callable[[int], None]) -> None:
    children = []
    for number in range(ASKERS):
        pid = os.fork()
        if not pid:
            failed = 1
            try:
                work(number)
                failed = 0
            finally:
                os._exit(failed)
        children.append(pid)
    if any(os.waitpid(pid, 0)[1] for pid in children):
        raise RuntimeError("a process that asks failed")


class _Statx:
    """statx(2) as fast as Python can ask, so that the server rarely sleeps between two requests."""

    def __init__(self) -> None:
        self._call = ctypes.CDLL(None, use_errno=True).statx
        self._buffer = ctypes.create_string_buffer(256)

    def __call__(self, folder: int, name: bytes, flags: int) -> None:
        if self._call(folder, name, flags, _STATX_BASIC, self._buffer):
            raise OSError(ctypes.get_errno(), "statx", name)


def _getattrs(root: Path) -> None:
    def ask(_: int) -> None:
        statx = _Statx()
        file = os.open(root / "small" / "f00001", os.O_PATH)
        for _ in range(GETATTRS // ASKERS):
            statx(file, b"", _AT_EMPTY_PATH | _AT_STATX_FORCE_SYNC)

    _together(ask)


def _lookups(root: Path) -> None:
    def ask(number: int) -> None:
        statx = _Statx()
        folder = os.open(root / "small", os.O_PATH)
        for name in [b"f%05d" % each for each in range(number, FILES, ASKERS)]:
            statx(folder, name, 0)

    _together(ask)


def _drop_entries() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("2")


def _counted(root: Path, method: str) -> int:
    for line in (root / ".stats").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == f"juicefs_fuse_ops_total_{method}":
            return int(float(value))
    raise RuntimeError(f"{root}/.stats has no count of {method}")


def _cost(client: Mounted, method: str, work: Callable[[Path], None]) -> float:
    """µs of the client's CPU a request."""
    count, cpu = _counted(client.root, method), client.cpu_seconds()
    work(client.root)
    cpu = client.cpu_seconds() - cpu
    return cpu / (_counted(client.root, method) - count) * 1e6


def report(scratch: Path, stack: ExitStack, runs: int) -> tuple[str, bool]:
    """A Markdown table of the medians, and whether the kernel host keeps its bar."""
    redis = Redis(scratch)
    stack.callback(redis.stop)
    hosts = [
        clients.ours(scratch, redis.url(number), [f"--fuse-host={host}", *_LONG], volume=host)
        for number, host in enumerate(HOSTS)
    ]
    for host in hosts:
        stack.callback(host.unmount)
    figures: dict[tuple[str, str], list[float]] = {}
    for host in hosts:
        host.mount()
        (host.root / "small").mkdir()
        for number in range(FILES):
            (host.root / "small" / f"f{number:05}").touch()
        os.scandir(host.root / "small").close()
        time.sleep(1)
        _lookups(host.root)
    for _ in range(runs):
        for host in hosts:
            figures.setdefault((host.name, "getattr"), []).append(_cost(host, "getattr", _getattrs))
            _drop_entries()
            time.sleep(0.5)  # what the kernel forgets is told, and is no part of the lookups
            figures.setdefault((host.name, "lookup"), []).append(_cost(host, "lookup", _lookups))
    lines = ["## CPU of one cached request, µs", "", "| | " + " | ".join(HOSTS) + " |", "|---|---|---|"]
    for method in ("getattr", "lookup"):
        cells = [figures[host, method] for host in HOSTS]
        lines.append(
            f"| {method} | "
            + " | ".join(f"{statistics.median(c):.1f} ({min(c):.1f}–{max(c):.1f})" for c in cells)
            + " |"
        )
    kept = all(statistics.median(figures["kernel", method]) <= BAR for method in ("getattr", "lookup"))
    lines += [
        "",
        f"- {ASKERS} processes ask; the kernel host's bar is {BAR:.0f} µs: {'kept' if kept else 'missed'}",
        "",
    ]
    return "\n".join(lines), kept
