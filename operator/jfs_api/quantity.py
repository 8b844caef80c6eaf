"""Kubernetes quantities (`10Gi`, `1500m`, `1e3`): their value, so that two spellings of one size compare equal.

Source: k8s.io/apimachinery, pkg/api/resource. Pure functions.
"""

import re
from decimal import Decimal
from typing import Final

_PATTERN: Final = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d{1,2})?")
_SUFFIXES: Final = {
    **{letter + "i": Decimal(1024) ** (power + 1) for power, letter in enumerate("KMGTPE")},
    **{letter: Decimal(1000) ** (power + 1) for power, letter in enumerate("kMGTPE")},
    "m": Decimal("1e-3"),
    "u": Decimal("1e-6"),
    "n": Decimal("1e-9"),
}


def parse_quantity(text: str | int) -> Decimal:
    """The number that a quantity stands for. Raises ValueError with one sentence."""
    match = _PATTERN.fullmatch(str(text))
    if match is None:
        raise ValueError(f"{text!r} is not a quantity like 10Gi")
    number, suffix = match.groups()
    if suffix is None:
        return Decimal(number)
    if suffix in _SUFFIXES:
        return Decimal(number) * _SUFFIXES[suffix]
    return Decimal(number).scaleb(int(suffix[1:]))
