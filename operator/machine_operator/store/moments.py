"""Moments as the store keeps them: whole milliseconds since 1970 in UTC, the same integer in every database.

What is finer than a millisecond is cut off, so that lengths of time add up exactly.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

__all__ = ["from_milliseconds", "milliseconds", "utc_now"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def utc_now() -> datetime:
    """The default of what is injected as `clock`."""
    return datetime.now(UTC)


def milliseconds(moment: datetime) -> int:
    """`moment`, which must know its time zone, in whole milliseconds since 1970.

    Raises:
        ValueError: `moment` has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; use datetime.now(UTC)")
    return (moment - _EPOCH) // _MILLISECOND


def from_milliseconds(count: int) -> datetime:
    """The moment, in UTC, so many milliseconds after the beginning of 1970."""
    return _EPOCH + count * _MILLISECOND
