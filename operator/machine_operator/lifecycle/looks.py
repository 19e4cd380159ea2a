"""When to look again although nothing changes: the moments at which time alone changes the decision.

And, more rarely, where a question was asked whose answer can change without an event that reaches this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from machine_operator.api.machine import MachineStatus
from machine_operator.api.phases import DesiredState, Phase
from machine_operator.lifecycle.backoff import STABLE, holds_off
from machine_operator.lifecycle.clocks import after, rising_since
from machine_operator.lifecycle.questions import UNBOUND_PATIENCE
from machine_operator.lifecycle.situation import Situation

__all__ = ["next_look"]

_ASK_AGAIN: Final = 30.0
"""Seconds between two questions about the same disk."""


def next_look(at: Situation, status: MachineStatus) -> float | None:
    """Seconds until the next of them; None where there is none."""
    moments = [moment for moment in _moments(at, status) if moment > at.now]
    return (min(moments) - at.now).total_seconds() if moments else None


def _moments(at: Situation, status: MachineStatus) -> Iterator[datetime]:
    if at.goal.state is DesiredState.DESTROYED:
        yield from _stop(at, status)
    elif at.seen.fault is not None:
        return
    elif at.storage_lost or at.home_fault is not None:
        # Caches see a disk only by its labels: without them, nobody tells that it is back.
        if at.seen.home is None or not at.seen.home.labelled:
            yield after(at.now, _ASK_AGAIN)
    elif at.goal.state is DesiredState.SLEEPING:
        yield from _stop(at, status)
    else:
        yield from _start(at, status)
        yield from _running(at, status)
        yield from _disk(at)


def _stop(at: Situation, status: MachineStatus) -> Iterator[datetime]:
    if at.stop_due_at is not None and status.phase in (Phase.STOPPING, Phase.DESTROYING):
        yield at.stop_due_at


def _start(at: Situation, status: MachineStatus) -> Iterator[datetime]:
    since, backoff = rising_since(status), status.backoff
    if since is not None:
        yield after(since, at.limits.start)
    if backoff is None or backoff.next_retry_at is None:
        return
    if holds_off(at, backoff) or at.down or at.stuck:
        yield backoff.next_retry_at


def _running(at: Situation, status: MachineStatus) -> Iterator[datetime]:
    if at.answers and status.backoff is not None and status.last_transition_at is not None:
        yield after(status.last_transition_at, STABLE)
    if at.may_autosleep and status.next_sleep_at is not None:
        yield status.next_sleep_at


def _disk(at: Situation) -> Iterator[datetime]:
    home = at.seen.home
    if home is None or home.bound or home.created_at is None or at.answers:
        return
    first = after(home.created_at, UNBOUND_PATIENCE)
    yield first if first > at.now else after(at.now, _ASK_AGAIN)
