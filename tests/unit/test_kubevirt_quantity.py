"""Quantities: the same numbers as the official client reads, and errors for everything else."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity as official

from machine_operator.kubevirt.quantity import parse_quantity

SUFFIXES = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
NUMBERS = st.decimals(-(10**9), 10**9, places=3, allow_nan=False, allow_infinity=False)


@given(number=NUMBERS, suffix=st.sampled_from(SUFFIXES))
def test_numbers_with_a_unit(number: Decimal, suffix: str) -> None:
    text = f"{number:f}{suffix}"
    assert parse_quantity(text) == official(text)


@given(number=st.integers(-999, 999), exponent=st.integers(-9, 18), letter=st.sampled_from("eE"))
def test_numbers_with_an_exponent(number: int, exponent: int, letter: str) -> None:
    assert parse_quantity(f"{number}{letter}{exponent}") == number * Decimal(10) ** exponent


@given(number=st.integers(0, 10**12) | st.floats(0, 10**12))
def test_plain_numbers_of_json(number: float) -> None:
    assert float(parse_quantity(number)) == pytest.approx(float(number))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("250m", "0.25"),
        ("512Mi", str(512 * 2**20)),
        ("1e3", "1000"),
        ("1E", "1000000000000000000"),
        ("1Ei", str(2**60)),
        ("1.5Gi", str(3 * 2**29)),
        (".5", "0.5"),
        ("5.", "5"),
        ("+1k", "1000"),
        ("-1", "-1"),
    ],
)
def test_examples(text: str, value: str) -> None:
    assert parse_quantity(text) == Decimal(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "+",
        "m",
        "1.2.3",
        "1..",
        "1K",
        "1mi",
        "1e",
        "1kk",
        "0x10",
        "1 Mi",
        "1\n",
        "\u0661",
        "1Mi\n",
    ],
)
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|unit"):
        parse_quantity(text)


@given(text=st.text(alphabet="0123456789.eE+-KMGTPinumk \n", max_size=8))
def test_any_text_is_a_number_or_a_value_error(text: str) -> None:
    try:
        value = parse_quantity(text)
    except ValueError:
        return
    assert value.is_finite()
