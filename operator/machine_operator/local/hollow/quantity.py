"""Kubernetes quantities such as `512Mi`, `1.5G` or `250m`."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["parse_quantity"]

_PATTERN = re.compile(r"^([+-]?[0-9.]+)([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$")

_FACTORS: dict[str, Decimal] = {
    "n": Decimal(10) ** -9,
    "u": Decimal(10) ** -6,
    "m": Decimal(10) ** -3,
    "k": Decimal(10) ** 3,
    **{letter: Decimal(10) ** (3 * power) for power, letter in enumerate("MGTPE", start=2)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}


def parse_quantity(text: str) -> Decimal:
    """The number that a quantity stands for.

    Raises:
        ValueError: it is none.
    """
    match = _PATTERN.match(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a quantity")
    number, suffix = Decimal(match[1]), match[2] or ""
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        return number.scaleb(int(suffix[1:]))
    return number * _FACTORS.get(suffix, Decimal(1))
