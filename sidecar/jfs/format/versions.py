"""Comparison of client versions (format §2.6): which clients a volume's bounds let in. Pure."""

from typing import NamedTuple


class Version(NamedTuple):
    """Sortable form of `major.minor.patch[-pre][+build]`; a version without pre-release sorts above all its pre-releases."""

    numbers: tuple[int, int, int]
    released: bool
    pre: bytes


def parse_version(text: str) -> Version | None:
    """The sortable form of *text*, None when it is no version."""
    body = text.strip().removeprefix("v").partition("+")[0]
    numbers, _, pre = body.partition("-")
    parts = numbers.split(".")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    major, minor, patch = ([int(part) for part in parts] + [0, 0])[:3]
    return Version((major, minor, patch), not pre, pre.encode())


def is_older(left: str, right: str) -> bool:
    """Whether version *left* is below *right*; a text that is no version is never below nor above."""
    a, b = parse_version(left), parse_version(right)
    return a is not None and b is not None and a < b
