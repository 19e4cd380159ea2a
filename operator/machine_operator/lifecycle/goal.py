"""Where a machine is being steered to, and what decided so.

Two sources: `spec.desired_state`, and the newest power request, which holds until `spec.desired_state` changes
after it. Deletion and `destroyed` beat both.

A request that nobody made on purpose (autosleep's, or a guest that powered itself off) is weaker: it ends as soon as
somebody uses the machine. That is told by comparing the touch that it had seen with the one that is there, not by
comparing clocks, so a touch that raced it is never lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from machine_operator.api.machine import Activity, Machine, PowerRequest
from machine_operator.api.phases import DesiredState, Power

__all__ = ["ACTIVITY", "AUTOSLEEP", "GUEST", "Goal", "goal_of", "overtaken"]

AUTOSLEEP: Final = "autosleep"
GUEST: Final = "guest"
ACTIVITY: Final = "activity"
"""The values of `power_request.by` that stand for no person; the last one is a wake by somebody's use."""


@dataclass(frozen=True, slots=True)
class Goal:
    """The state steered to, and a sentence saying why.

    Attributes:
        wakes: a sleep that nobody had asked for was overtaken by somebody's use; it has to become a request to wake,
            or the sleep would count again as soon as the use ends.
    """

    state: DesiredState
    why: str
    wakes: bool = False


def goal_of(machine: Machine, *, now: datetime) -> Goal:
    """What the machine should be now."""
    if machine.metadata.deletionTimestamp is not None:
        return Goal(DesiredState.DESTROYED, "the Machine object was deleted")
    desired = machine.spec.desired_state
    request = machine.status.power_request
    if desired is DesiredState.DESTROYED or request is None:
        return Goal(desired, f"spec.desired_state is {desired}")
    if overtaken(machine) is not None:
        return Goal(desired, f"spec.desired_state is {desired}")
    if _used_since(request, machine.status.activity or Activity(), now=now):
        why = f"used after the request by {request.by} to sleep"
        return Goal(DesiredState.RUNNING, why, wakes=True)
    because = f": {request.reason}" if request.reason else ""
    return Goal(DesiredState(request.state), f"requested by {request.by}{because}")


def overtaken(machine: Machine) -> int | None:
    """Sequence of the power request, if `spec.desired_state` has changed since; also once it is what it was."""
    request, said = machine.status.power_request, machine.status.desired_power
    if request is None:
        return None
    changed = request.spec_desired_state != machine.spec.desired_state
    known = said is not None and said.overtaken == request.sequence
    return request.sequence if changed or known else None


def _used_since(request: PowerRequest, activity: Activity, *, now: datetime) -> bool:
    if request.by not in (AUTOSLEEP, GUEST) or request.state is not Power.SLEEPING:
        return False
    if activity.last_touch_at != request.last_touch_at:
        return True
    # Autosleep never fires while a hold lives, so a live one is new. A guest can be powered off from within a
    # session that holds it: only a hold that began later counts.
    return any(
        hold.expires_at > now and (request.by == AUTOSLEEP or hold.since > request.at)
        for hold in activity.holds
    )
