"""When to look again although nothing changes: the moments at which time alone changes the decision."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from machine_operator.api.machine import MachineStatus
from machine_operator.api.phases import DesiredState, Phase
from machine_operator.lifecycle.backoff import STABLE
from machine_operator.lifecycle.questions import UNBOUND_PATIENCE
from machine_operator.lifecycle.situation import Situation

__all__ = ["next_look"]

_ASK_AGAIN: Final = 30.0
"""Seconds between two questions about the same unbound disk."""


def next_look(at: Situation, status: MachineStatus) -> float | None:
    """Seconds until the next of them; None where there is none."""
    moments = [moment for moment in _moments(at, status) if moment > at.now]
    return (min(moments) - at.now).total_seconds() if moments else None


def _moments(at: Situation, status: MachineStatus) -> Iterator[datetime]:
    if at.stop_due_at is not None:
        yield at.stop_due_at
    if at.goal.state is not DesiredState.RUNNING:
        return
    since, home, backoff = status.last_transition_at, at.seen.home, status.backoff
    if status.phase in (Phase.ACCEPTED, Phase.PLACEMENT_PENDING, Phase.STARTING) and since:
        yield since + timedelta(seconds=at.limits.start)
    if backoff is not None:
        if backoff.next_retry_at is not None:
            yield backoff.next_retry_at
        if status.phase is Phase.RUNNING and since is not None:
            yield since + timedelta(seconds=STABLE)
    if status.next_sleep_at is not None and at.answers:
        yield status.next_sleep_at
    if home is not None and not home.bound and home.created_at is not None and not at.answers:
        first = home.created_at + timedelta(seconds=UNBOUND_PATIENCE)
        yield first if first > at.now else at.now + timedelta(seconds=_ASK_AGAIN)
