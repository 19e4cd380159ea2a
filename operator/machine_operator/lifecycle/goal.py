"""Where a machine is being steered to, and what decided so.

Two sources: `spec.desired_state`, and the newest power request, which holds until `spec.desired_state` changes
after it. Deletion and `destroyed` beat both.
"""

from __future__ import annotations

from dataclasses import dataclass

from machine_operator.api.machine import Machine
from machine_operator.api.phases import DesiredState

__all__ = ["Goal", "goal_of"]


@dataclass(frozen=True, slots=True)
class Goal:
    """The state steered to, and a sentence saying why."""

    state: DesiredState
    why: str


def goal_of(machine: Machine) -> Goal:
    """What the machine should be now."""
    if machine.metadata.deletionTimestamp is not None:
        return Goal(DesiredState.DESTROYED, "the Machine object was deleted")
    desired = machine.spec.desired_state
    request = machine.status.power_request
    holds = request is not None and request.spec_desired_state == desired
    if desired is not DesiredState.DESTROYED and request is not None and holds:
        because = f": {request.reason}" if request.reason else ""
        return Goal(DesiredState(request.state), f"requested by {request.by}{because}")
    return Goal(desired, f"spec.desired_state is {desired}")
