"""Moments that follow from stamps. A stamp can be anything that somebody wrote, the end of the calendar included."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from machine_operator.api.conditions import ConditionType
from machine_operator.api.machine import MachineStatus
from machine_operator.api.phases import Phase
from machine_operator.api.timestamps import parse_timestamp

__all__ = ["after", "rising_since"]

_RISING: Final = frozenset({Phase.ACCEPTED, Phase.PLACEMENT_PENDING, Phase.STARTING})
_END: Final = datetime.max.replace(tzinfo=UTC)


def after(moment: datetime, seconds: float) -> datetime:
    """So many seconds later, or the end of the calendar."""
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return _END


def rising_since(status: MachineStatus) -> datetime | None:
    """Since when the machine of this status has been on its way up with nothing in the way; None where it is not.

    Time that it spent waiting for somebody (a node, a quota) does not count: who is let go on gets all the time.
    """
    since = status.last_transition_at
    if status.phase not in _RISING or since is None:
        return None
    stalled = next((c for c in status.conditions if c.type == ConditionType.STALLED), None)
    if stalled is None:
        return since
    if stalled.status == "True":
        return None
    try:
        return max(since, parse_timestamp(stalled.lastTransitionTime or ""))
    except (ValueError, OverflowError):
        return since
