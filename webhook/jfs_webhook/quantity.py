"""Sums of Kubernetes quantities, written as the API server would write them; reading them is `jfs_api.quantity`. Pure."""

from collections.abc import Sequence
from fractions import Fraction

from jfs_api.quantity import parse_quantity

_BINARY = {suffix: 1024**power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), start=1)}
# Longer texts are nobody's honest quantity and would only cost time.
_LONGEST = 40


def parse(text: str) -> Fraction:
    """Value of a quantity in its base unit (bytes, cores). Raises ValueError with one sentence."""
    if len(text) > _LONGEST:
        raise ValueError(f"{text[:_LONGEST]!r}… is not a quantity like 500m or 10Gi")
    return Fraction(parse_quantity(text))


def add(quantities: Sequence[str]) -> str:
    """Sum of the quantities, written with the first one's kind of suffix; one alone is returned as it is."""
    if len(quantities) == 1:
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
