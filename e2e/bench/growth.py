"""Whether what an operation costs grows with the size of what is worked on: one curve each for files in a directory, bytes of a sparse
file, slices of a file, and open files. Our client beside the real one, each on its own volume of the same Redis.

Every point is the mean of a sample of operations: microseconds of waiting and, behind the stroke, of the client's CPU. Sizes grow
tenfold; a directory and a list of slices grow, so that a point costs only what it has more than the one before.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from e2e.bench import clients
from e2e.bench.clients import Mounted
from e2e.bench.run import drop_caches
from e2e.bench.servers import Redis

_SAMPLE = 300
_PIECE = 4096
_CHUNK = 64 << 20


class Cost(NamedTuple):
    """Of one operation, in microseconds."""

    waiting: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.waiting:.0f} / {self.cpu:.0f}"


class _Meter:
    """Collects the costs of named operations of one client at one size."""

    def __init__(self, client: Mounted) -> None:
        self._client = client
        self.costs: dict[str, Cost] = {}

    @contextmanager
    def each(self, name: str, count: int) -> Iterator[None]:
        """What runs inside is *count* operations."""
        cpu, began = self._client.cpu_seconds(), perf_counter()
        yield
        waited, used = perf_counter() - began, self._client.cpu_seconds() - cpu
        self.costs[name] = Cost(waited / count * 1e6, used / count * 1e6)


def _directory(root: Path, size: int, meter: _Meter, chance: random.Random) -> None:
    """Files in one directory."""
    where = root / "directory"
    where.mkdir(exist_ok=True)
    have = len(os.listdir(where))
    for number in range(have, size - _SAMPLE):
        os.mknod(where / f"file{number}")
    with meter.each("create", _SAMPLE):
        for number in range(size - _SAMPLE, size):
            os.mknod(where / f"file{number}")
    drop_caches()
    with meter.each("stat, cold", _SAMPLE):
        for number in chance.sample(range(size), _SAMPLE):
            os.stat(where / f"file{number}")
    drop_caches()
    with meter.each("list, cold, a name", size):
        assert sum(1 for _ in os.scandir(where)) == size
    with meter.each("unlink", _SAMPLE):
        for number in range(size - _SAMPLE, size):
            os.unlink(where / f"file{number}")


def _sparse(root: Path, size: int, meter: _Meter, chance: random.Random) -> None:
    """Bytes of a sparse file."""
    path = root / f"sparse{size}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(descriptor, size)
        places = [chance.randrange(size // _PIECE) * _PIECE for _ in range(_SAMPLE)]
        with meter.each("write 4 KiB, stored", _SAMPLE):
            for place in places:
                os.pwrite(descriptor, b"\1" * _PIECE, place)
            os.fsync(descriptor)
        drop_caches()
        with meter.each("read 4 KiB, cold", _SAMPLE):
            for place in places:
                assert os.pread(descriptor, 1, place) == b"\1"
        with meter.each("read 4 KiB of a hole", _SAMPLE):
            for _ in range(_SAMPLE):
                os.pread(descriptor, 1, chance.randrange(size))
    finally:
        os.close(descriptor)


def _slices(root: Path, size: int, meter: _Meter, chance: random.Random) -> None:
    """Slices of a file, all in one chunk and as compaction in the background leaves them."""
    descriptor = os.open(root / "slices", os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(descriptor, _CHUNK)
        with meter.each("overwrite 4 KiB, fsync", size):
            for _ in range(size):
                os.pwrite(descriptor, b"\2" * _PIECE, chance.randrange(_CHUNK // _PIECE) * _PIECE)
                os.fsync(descriptor)
        drop_caches()
        with meter.each("read 4 KiB, cold", _SAMPLE):
            for _ in range(_SAMPLE):
                os.pread(descriptor, 1, chance.randrange(_CHUNK))
    finally:
        os.close(descriptor)


def _open(root: Path, size: int, meter: _Meter, chance: random.Random) -> None:
    """Open files."""
    where = root / f"open{size}"
    where.mkdir()
    files = [os.open(where / str(number), os.O_RDWR | os.O_CREAT) for number in range(size)]
    try:
        with meter.each("append 4 KiB", 1000):
            for number in range(1000):
                os.write(files[number % size], b"\3" * _PIECE)
        with meter.each("fsync", size):
            for descriptor in files:
                os.fsync(descriptor)
    finally:
        for descriptor in files:
            os.close(descriptor)


_Work = Callable[[Path, int, _Meter, random.Random], None]
CURVES: tuple[tuple[_Work, Sequence[int], Callable[[int], str]], ...] = (
    (_directory, (1_000, 10_000, 100_000), lambda size: f"{size:,}"),
    (_sparse, (1 << 30, 10 << 30, 100 << 30), lambda size: f"{size >> 30} GiB"),
    (_slices, (100, 1_000, 10_000), lambda size: f"{size:,}"),
    (_open, (1, 10, 200), str),
)


def report(scratch: Path, stack: ExitStack, say: Callable[[str], None]) -> str:
    """The curves as Markdown."""
    redis = Redis(scratch)
    stack.callback(redis.stop)
    contestants = [clients.ours(scratch, redis.url(0), []), clients.juicefs(scratch, redis.url(1))]
    for contestant in contestants:
        stack.callback(contestant.unmount)
        contestant.mount()
    sections = ["# What an operation costs as the work grows, µs waited / µs of the client's CPU", ""]
    for work, sizes, shown in CURVES:
        title = (work.__doc__ or "").rstrip(".")
        rows: list[str] = []
        names: list[str] = []
        for size in sizes:
            for contestant in contestants:
                meter = _Meter(contestant)
                work(contestant.root, size, meter, random.Random(size))
                names = list(meter.costs)
                rows.append(f"| {shown(size)} | {contestant.name} | {' | '.join(map(str, meter.costs.values()))} |")
                say(f"{title}: {rows[-1]}")
        sections += [f"| {title} | client | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|", *rows, ""]
    return "\n".join(sections)
