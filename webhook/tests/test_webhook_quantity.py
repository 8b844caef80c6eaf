"""Quantities are read exactly and summed in their own kind of unit."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jfs_webhook.quantity import add, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("100m", Fraction(1, 10)),
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("1.5Gi", 3 * 2**29),
        ("128Mi", 2**27),
        ("2k", 2000),
        ("2e3", 2000),
        ("1E2", 100),
        ("1E", 10**18),
        ("-1", -1),
        ("5n", Fraction(5, 10**9)),
    ],
)
def test_values(text: str, value: Fraction | int) -> None:
    assert parse(text) == value


@pytest.mark.parametrize("text", ["", "x", "1 Gi", "1KI", "1e999999999", "0x10", "1\n", "1" * 1000, "NaN"])
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse(text)


@pytest.mark.parametrize(
    ("quantities", "total"),
    [
        (["1024Mi"], "1024Mi"),
        (["512Mi", "512Mi"], "1Gi"),
        (["512Mi", "1"], "536870913"),
        (["100m", "150m"], "250m"),
        (["500m", "500m"], "1"),
        (["1n", "1n"], "1m"),
        (["0Mi", "0"], "0"),
    ],
)
def test_sums(quantities: list[str], total: str) -> None:
    assert add(quantities) == total


@settings(deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from(["m", "", "k", "Ki", "Gi", "e3"])), min_size=2, max_size=4
    )
)
def test_sum_is_exact(parts: list[tuple[int, str]]) -> None:
    quantities = [f"{number}{suffix}" for number, suffix in parts]
    assert parse(add(quantities)) == sum(map(parse, quantities))
