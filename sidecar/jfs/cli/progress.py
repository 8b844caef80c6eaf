"""A line that tells how far long work has come, on a terminal only: on anything else nothing is written."""

import sys
import time
from types import TracebackType
from typing import Final, Self

_EVERY: Final = 0.2  # seconds


class Progress:
    """Counts *what* and shows the count and the rate while it is open."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0
        self._started = self._shown = time.monotonic()
        self._visible = sys.stderr.isatty()

    def advance(self, count: int) -> None:
        """So many more."""
        self._count += count
        if self._visible and count and time.monotonic() - self._shown > _EVERY:
            self._show("")

    def _show(self, end: str) -> None:
        self._shown = time.monotonic()
        rate = self._count / max(self._shown - self._started, 1e-9)
        sys.stderr.write(f"\r{self._count:,} {self._what}, {rate:,.0f} a second\x1b[K{end}")
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._visible:
            self._show("\n")
