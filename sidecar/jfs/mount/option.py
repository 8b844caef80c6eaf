"""A row of the table of mount options, and the parsers that most rows use. A leaf of `mount`: no I/O.

A parser takes the option's name, for its message, and the text; it raises ConfigError, one sentence.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jfs.errors import ConfigError
from jfs.mount.units import duration, size


@dataclass(frozen=True, slots=True)
class Option:
    """One row of the table: how *text* becomes the value of *member*; flags take no value. *help* is shown by `--help`."""

    name: str
    member: str
    parse: Callable[[str, str], Any] | None  # None: a flag
    help: str = ""

    @property
    def is_flag(self) -> bool:
        return self.parse is None


def text(option: str, given: str) -> str:
    """As it is."""
    return given


def whole(option: str, text: str) -> int:
    """A whole number from 0. ConfigError."""
    try:
        number = int(text)
    except ValueError:
        number = -1
    if number < 0:
        raise ConfigError(f"option {option}: {text!r} is not a whole number")
    return number


def at_least_one(option: str, text: str) -> int:
    """A whole number from 1. ConfigError."""
    number = whole(option, text)
    if number < 1:
        raise ConfigError(f"option {option} must be at least 1")
    return number


def second_or_more(option: str, text: str) -> float:
    """Seconds of a duration of at least one. ConfigError."""
    seconds = duration(option, text)
    if seconds < 1:
        raise ConfigError(f"option {option} must be at least 1s")
    return seconds


def choice(*allowed: str) -> Callable[[str, str], str]:
    """One of the words *allowed*."""

    def parse(option: str, text: str) -> str:
        if text not in allowed:
            raise ConfigError(f"option {option}: {text!r} is none of {', '.join(allowed)}")
        return text

    return parse


def mebibytes(option: str, text: str) -> int:
    """Bytes of a size; a plain number counts in MiB. ConfigError."""
    return size(option, text, "M")
