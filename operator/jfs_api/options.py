"""Options of the client in the form `name` or `name=value`: what a value of each kind looks like, and one clear sentence when not.

The tables of names are in `mount_options` and `format_options`; this is the grammar under both. Pure functions.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from enum import Enum
from typing import NamedTuple


class OptionError(ValueError):
    """An option that the client would refuse; its text is the one sentence a user sees."""


class Kind(Enum):
    """What follows the `=`, with the sentence that describes it (format §10: sizes in powers of 1024, durations)."""

    FLAG = "true or false, or nothing"
    COUNT = "a whole number"
    SIZE = "a size like 512, 300M or 100G"
    DURATION = "a duration like 10s, 1h30m or a number of seconds"
    RATIO = "a number between 0 and 1"
    OCTAL = "an octal number"
    IDENTITY = "<uid>:<gid>"
    HOURS = "two hours of the day, like 0-6"
    TEXT = "a text"


_PATTERNS: Mapping[Kind, re.Pattern[str]] = {
    Kind.FLAG: re.compile(r"true|false", re.IGNORECASE),
    Kind.COUNT: re.compile(r"\d{1,18}"),
    Kind.SIZE: re.compile(r"\d{1,15}(\.\d+)?([KMGTPE](i?B)?)?", re.IGNORECASE),
    Kind.DURATION: re.compile(r"\d+(\.\d+)?|(\d+(\.\d+)?(ns|us|µs|ms|s|m|h|d))+"),
    Kind.RATIO: re.compile(r"0|1|[01]?\.\d+|1\.0+"),
    Kind.OCTAL: re.compile(r"[0-7]{1,4}"),
    Kind.IDENTITY: re.compile(r"\d{1,10}:\d{1,10}"),
    Kind.HOURS: re.compile(r"\d{1,2}[-,]\d{1,2}"),
    Kind.TEXT: re.compile(r".+", re.DOTALL),
}


class Option(NamedTuple):
    """One option as given; `value` is None when there was no `=`."""

    name: str
    value: str | None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value}"


def parse(
    texts: Iterable[str], known: Mapping[str, Kind | frozenset[str]], *, what: str, refuse: Callable[[str], str | None]
) -> list[Option]:
    """The options of `texts`, each checked against `known` (a kind, or the set of allowed words).

    `refuse` returns the reason why a known option cannot be used here, or None. Raises OptionError for the first bad one,
    also for a name that comes twice with different values.
    """
    options: dict[str, Option] = {}
    for text in texts:
        name, equals, value = text.strip().partition("=")
        name = name.strip()
        if name.startswith("-"):
            raise OptionError(f"{what} {name!r}: write the long name without dashes")
        if reason := refuse(name):
            raise OptionError(f"{what} {name!r}: {reason}")
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise OptionError(f"unknown {what} {name!r}" + (f"; is {near[0]!r} meant?" if near else ""))
        option = Option(name, value.strip() if equals else None)
        _check(option, known[name], what)
        if options.setdefault(name, option) != option:
            raise OptionError(f"{what} {name!r} is given twice with different values")
    return list(options.values())


def _check(option: Option, kind: Kind | frozenset[str], what: str) -> None:
    if isinstance(kind, frozenset):
        if option.value not in kind:
            raise OptionError(f"{what} {option.name!r} must be one of {', '.join(sorted(kind))}")
        return
    if option.value is None:
        if kind is not Kind.FLAG:
            raise OptionError(f"{what} {option.name!r} needs a value: {option.name}=… ({kind.value})")
        return
    if not _PATTERNS[kind].fullmatch(option.value):
        raise OptionError(f"{what} {option.name!r} must be {kind.value}")
