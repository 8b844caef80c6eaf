"""What this process last saw of records in a database; it serves nothing but reads of transactions that check them at commit.

A wrong value costs an attempt and is dropped then, so nothing here is ever invalidated by others' changes. Two generations
bound it: when the young one is full it becomes the old one. Used by one task at a time, without a wait inside.
"""

from enum import Enum
from typing import Final, Generic, Literal, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_GENERATION: Final = 16384  # records


class Unknown(Enum):
    """The type of UNKNOWN, so that type checkers tell it from values."""

    UNKNOWN = 0


UNKNOWN: Final = Unknown.UNKNOWN


class Remembered(Generic[K, V]):
    """Values by key, those that stand for missing records included."""

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}

    def get(self, key: K) -> V | Literal[Unknown.UNKNOWN]:
        """The value seen last, or UNKNOWN."""
        value = self._young.get(key, UNKNOWN)
        return self._old.get(key, UNKNOWN) if value is UNKNOWN else value

    def put(self, key: K, value: V) -> None:
        """Remember a value."""
        if len(self._young) >= _GENERATION:
            self._old, self._young = self._young, {}
        self._young[key] = value

    def drop(self, key: K) -> None:
        """Forget a value."""
        self._young.pop(key, None)
        self._old.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self._young.clear()
        self._old.clear()
