"""What is to be done later, one thing for each key: the supervisor's loop asks for the nearest and runs what is due."""

import time
from collections.abc import Callable


class Timers:
    """See the module; times are monotonic seconds."""

    def __init__(self) -> None:
        self._due: dict[tuple[str, str], tuple[float, Callable[[], None]]] = {}

    def set(self, key: tuple[str, str], seconds: float, do: Callable[[], None]) -> None:
        """Do something after so many seconds, in place of what was to be done for the same key."""
        self._due[key] = time.monotonic() + seconds, do

    def cancel(self, key: tuple[str, str]) -> None:
        self._due.pop(key, None)

    def times(self) -> list[float]:
        return [at for at, _ in self._due.values()]

    def run(self, now: float) -> None:
        """Do what is due."""
        for key in [key for key, (at, _) in self._due.items() if now >= at]:
            _, do = self._due.pop(key)
            do()
