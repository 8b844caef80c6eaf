"""Kubernetes quantities ("500m", "1.5Gi", "2e3"): read, add, write. Pure, exact (fractions, no floats).

The grammar is the one of k8s.io/apimachinery/pkg/api/resource: a signed decimal number and one suffix, binary (Ki…Ei),
decimal (n, u, m, none, k…E) or an exponent.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

_BINARY = {suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
_DECIMAL = {
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    "": Fraction(1),
    "k": Fraction(10**3),
    "M": Fraction(10**6),
    "G": Fraction(10**9),
    "T": Fraction(10**12),
    "P": Fraction(10**15),
    "E": Fraction(10**18),
}
# The digits are bounded: "1e999999999" must not become a number of a gigabyte.
_GRAMMAR = re.compile(r"([+-]?(?:\d{1,30}(?:\.\d{0,30})?|\.\d{1,30}))(?:([eE][+-]?\d{1,2})|([KMGTPE]i|[numkMGTPE]?))")


class BadQuantity(ValueError):
    """The text is no Kubernetes quantity; the message names it."""


def parse(text: str) -> Fraction:
    """Value of a quantity in its base unit (bytes, cores). Raises BadQuantity."""
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise BadQuantity(f"{text[:40]!r} is not a quantity such as 500m or 1Gi")
    number, exponent, suffix = match.groups()
    if exponent is not None:
        return Fraction(number) * Fraction(10) ** int(exponent[1:])
    return Fraction(number) * (_BINARY[suffix] if suffix in _BINARY else _DECIMAL[suffix])


def add(quantities: Sequence[str]) -> str:
    """Sum of the quantities, written with the first one's kind of suffix; one alone is returned as it is."""
    if len(quantities) == 1:
        parse(quantities[0])
        return quantities[0]
    total = sum((parse(each) for each in quantities), Fraction(0))
    if quantities[0].endswith("i"):
        for suffix, factor in reversed(_BINARY.items()):
            if total % factor == 0 and total != 0:
                return f"{total // factor}{suffix}"
    if total.denominator == 1:
        return str(total.numerator)
    # Rounded up to thousandths, as the API server does with anything finer than it can hold.
    return f"{-(-total * 1000 // 1)}m"
