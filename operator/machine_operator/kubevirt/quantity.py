"""Kubernetes quantities ("250m", "512Mi", "1e3") as exact numbers."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["parse_quantity"]

_FORM = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))([eE][+-]?[0-9]+|[A-Za-z]{0,2})")
_FACTORS: dict[str, Decimal] = {
    f"{letter}i": Decimal(2) ** (10 * power) for power, letter in enumerate("KMGTPE", start=1)
} | {
    suffix: Decimal(10) ** exponent
    for suffix, exponent in {
        "n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18,
    }.items()
}  # fmt: skip


def parse_quantity(text: str | float) -> Decimal:
    """The number that a quantity means.

    Raises:
        ValueError: it is not a quantity.
    """
    found = _FORM.fullmatch(str(text))
    if found is None:
        raise ValueError(f"{text!r} is not a Kubernetes quantity")
    number, suffix = found.groups()
    if suffix[-1:].isdigit():  # an exponent, and not the "Ei" of exbibytes
        return Decimal(number + suffix)
    factor = _FACTORS.get(suffix)
    if factor is None:
        raise ValueError(f"{text!r} has the unknown unit {suffix!r}")
    return Decimal(number) * factor
