"""Decides how far to read ahead of a handle's reads (format §6.5): pure bookkeeping, no I/O.

A handle has two streams, so that a program that reads at two places of a file, or now and then looks elsewhere, keeps its
window. A window begins with one block when a read starts at the beginning or continues another, doubles while the program
keeps up and halves when memory is short. Reads that go on by the same step (a column of a table) are found by `Stride`.
"""

from dataclasses import dataclass
from typing import Final

_ADVISED: Final = 256  # blocks remembered
_AGAIN: Final = 10.0  # seconds after which the page cache may have lost a block that a disk was told of


@dataclass(slots=True)
class Stream:
    """Bytes read in sequence up to *last*, *total* of them; *window* bytes are to be read ahead of it."""

    last: int = 0
    total: int = 0
    window: int = 0
    used: int = 0  # order of use


class Stride:
    """Reads at a constant distance from each other, in either direction."""

    __slots__ = ("_last", "_repeats", "_step")

    def __init__(self) -> None:
        self._last = 0
        self._step = 0
        self._repeats = 0

    def note(self, offset: int) -> int:
        """The step by which the next reads will go on, 0 when none shows; one shows when it was made three times."""
        step = offset - self._last
        self._last = offset
        self._repeats = self._repeats + 1 if step == self._step else 0
        self._step = step
        return step if self._repeats >= 2 else 0


class Advised:
    """Blocks that a disk was told of lately."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, int], float] = {}

    def is_news(self, name: tuple[int, int], now: float) -> bool:
        """Whether the disk is to be told of the block at *now*, in seconds; it counts as told then."""
        told = self._told
        before = told.pop(name, None)
        if before is not None and before + _AGAIN > now:
            told[name] = before
            return False
        told[name] = now
        if len(told) > _ADVISED:
            del told[next(iter(told))]
        return True


class Streams:
    """The streams of one handle. *block_size* and *maximum* window in bytes."""

    def __init__(self, block_size: int, maximum: int) -> None:
        self._block_size = block_size
        self._maximum = maximum
        self._streams = (Stream(), Stream())
        self._clock = 0

    def note(self, offset: int, size: int, room: int) -> Stream:
        """Note a read of [offset, offset+size) and return its stream with the window adapted; *room* is what the budget leaves for
        read-ahead. A window of 0 means that the reads look random."""
        stream = self._choose(offset)
        self._clock += 1
        if stream is None:
            stream = min(self._streams, key=lambda each: each.used)
            stream.last, stream.total, stream.window = offset, 0, 0
        stream.used = self._clock
        end = offset + size
        stream.total += max(end - stream.last, 0)
        stream.last = max(stream.last, end)
        if not stream.window:
            if offset == 0 or stream.total > size:
                stream.window = min(self._block_size, self._maximum)
        elif stream.total >= stream.window and room > 4 * stream.window:
            stream.window = min(stream.window * 2, self._maximum)
        elif room < stream.window // 2 or stream.total < stream.window // 4:
            stream.window //= 2
        return stream

    def _choose(self, offset: int) -> Stream | None:
        block_size = self._block_size
        best: Stream | None = None
        for stream in self._streams:
            if not stream.used:
                continue
            if stream.last <= offset <= stream.last + stream.window + block_size and (
                best is None or stream.last > best.last
            ):
                best = stream
        if best is not None:
            return best
        for stream in self._streams:
            if stream.used and stream.last - max(stream.window // 8, block_size) <= offset < stream.last:
                return stream
        return None
