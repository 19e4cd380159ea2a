"""Moments as Kubernetes writes them: RFC 3339 in UTC with a `Z`.

Whole seconds are written without a fraction (metav1.Time), others with six digits
(metav1.MicroTime), so nothing is lost on the way and equal moments are equal texts: an unchanged
status stays unchanged.
"""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AwareDatetime, PlainSerializer

__all__ = ["Timestamp", "format_timestamp", "parse_timestamp"]


def format_timestamp(moment: datetime) -> str:
    """`moment`, which must know its time zone, as RFC 3339 text in UTC.

    Raises:
        ValueError: `moment` has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment.isoformat()} has no time zone; use datetime.now(UTC)")
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def parse_timestamp(text: str) -> datetime:
    """The moment which the RFC 3339 `text` names, in UTC; finer than a microsecond is cut off.

    Raises:
        ValueError: `text` is not RFC 3339 with a time zone.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; RFC 3339 needs one, such as Z")
    return moment.astimezone(UTC)


Timestamp = Annotated[
    AwareDatetime, PlainSerializer(format_timestamp, return_type=str, when_used="json")
]
