"""The period of a usage query: RFC 3339 moments from the query, and what is meant where they are left out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.datastructures import QueryParams

from machine_operator.gateway.failures import unprocessable
from machine_operator.gateway.problems import Fault

__all__ = ["Period", "read_period"]

_RFC_3339: Final = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(\.\d{1,9})?([Zz]|[+-]\d{2}:\d{2})", re.ASCII
)
_LONGEST: Final = timedelta(days=400)
_A_MOMENT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Period:
    """From `begin` to `end`, which does not belong to it; both in UTC."""

    begin: datetime
    end: datetime


def read_period(query: QueryParams, *, now: datetime, until_now: bool = False) -> Period:
    """What `period_start` and `period_end` say.

    The default of the end is now, that of the beginning is the start of the UTC month which ends the period.

    Args:
        query: of the request.
        now: the time.
        until_now: whether the operation has no `period_end`.

    Raises:
        Problem: 422, with the location of what is wrong.
    """
    named_end = None if until_now else _moment(query, "period_end")
    named_begin = _moment(query, "period_start")
    end = named_end or now.astimezone(UTC)
    begin = named_begin or _month(end)
    name = "period_start" if named_end is None else "period_end"
    if end <= begin:
        bound = "be in the past" if named_end is None else "be later than period_start"
        raise unprocessable(Fault(f"query.{name}", f"must {bound}", query.get(name)))
    if end - begin > _LONGEST:
        message = f"a period is at most {_LONGEST.days} days long"
        raise unprocessable(Fault(f"query.{name}", message, query.get(name)))
    return Period(begin, end)


def _month(end: datetime) -> datetime:
    try:
        last = end - _A_MOMENT
    except OverflowError:
        last = end
    return last.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _moment(query: QueryParams, name: str) -> datetime | None:
    text = query.get(name)
    if not text:
        return None
    if _RFC_3339.fullmatch(text):
        try:
            return datetime.fromisoformat(text.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            pass  # such as the 30th of February
    message = "use a moment as in RFC 3339, with a zone, such as 2026-05-01T00:00:00Z"
    raise unprocessable(Fault(f"query.{name}", message, text))
