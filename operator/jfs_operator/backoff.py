"""How long to leave a failing object alone, whoever asks: timer, event and retry all share one count per object.

The last bad answer of the `jfs` command is held until its time has come, so that a flood of events cannot hammer a database
that is down; other credentials than those that failed are tried at once. Used by the event loop's thread alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import random
from typing import Final

from jfs_operator.steps import Verdict

FIRST: Final = 1.0  # seconds
LONGEST: Final = 120.0  # seconds


@dataclass(slots=True)
class _Failing:
    fingerprint: str
    count: int
    until: float
    verdict: Verdict | None


class Backoff:
    """Exponential, with up to a quarter of jitter; `clock` in seconds."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float] = random) -> None:
        self._clock = clock
        self._jitter = jitter
        self._failing: dict[object, _Failing] = {}

    def held(self, key: object, fingerprint: str) -> Verdict | None:
        """The answer that still counts, or None when `jfs` may be asked (again)."""
        failing = self._failing.get(key)
        if failing is None or failing.fingerprint != fingerprint or self._clock() >= failing.until:
            return None
        return failing.verdict

    def failed(self, key: object, fingerprint: str, verdict: Verdict | None) -> float:
        """Count a failure, unless its answer was only held; returns the seconds to wait."""
        failing = self._failing.get(key)
        if failing is None or failing.fingerprint != fingerprint:
            failing = self._failing[key] = _Failing(fingerprint, 0, 0.0, None)
        now = self._clock()
        if now >= failing.until:
            delay = min(LONGEST, FIRST * 2**failing.count) * (1 + self._jitter() / 4)
            failing.count = min(failing.count + 1, 30)
            failing.until = now + delay
        failing.verdict = verdict
        return failing.until - now

    def succeeded(self, key: object) -> None:
        self._failing.pop(key, None)
