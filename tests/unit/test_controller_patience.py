"""Which reports wait, and for how long."""

from __future__ import annotations

from typing import Any

import pytest

from machine_operator.api.machine import DesiredPower, MachineStatus
from machine_operator.api.phases import DesiredState, Phase, Reason
from machine_operator.controller.patience import patience_for

RUN = DesiredPower(state=DesiredState.RUNNING, why="spec.desired_state is running")
SLEEP = DesiredPower(state=DesiredState.SLEEPING, why="requested by ada")
OK = Reason.DESIRED_STATE_REACHED


def status(phase: Phase | None, reason: Reason = OK, **more: Any) -> MachineStatus:
    fields = {"desired_power": RUN, "observedGeneration": 1} | more
    return MachineStatus(phase=phase, reason=reason, **fields)


RUNNING, SLEEPING = status(Phase.RUNNING), status(Phase.SLEEPING, desired_power=SLEEP)
STARTING = status(Phase.STARTING, Reason.STARTING)
STOPPING = status(Phase.STOPPING, Reason.STOPPING, desired_power=SLEEP)


@pytest.mark.parametrize(
    ("before", "after", "seconds"),
    [
        (MachineStatus(), status(Phase.PLACEMENT_PENDING, Reason.SCHEDULING), 1.0),
        (MachineStatus(), RUNNING, 0.0),
        (MachineStatus(), status(Phase.FAILED, Reason.QUOTA_EXCEEDED), 0.0),
        (MachineStatus(), status(Phase.PLACEMENT_PENDING, Reason.UNSCHEDULABLE), 0.0),
        (status(Phase.PLACEMENT_PENDING, Reason.SCHEDULING), STARTING, 1.0),
        (STARTING, RUNNING, 0.0),
        (RUNNING, STOPPING, 1.0),
        (STOPPING, SLEEPING, 0.0),
        (SLEEPING, STARTING, 1.0),
        (RUNNING, STARTING, 0.0),
        (RUNNING, status(Phase.RUNNING, Reason.GUEST_NOT_REACHABLE), 3.0),
        (RUNNING, status(Phase.RUNNING, Reason.GUEST_PAUSED), 0.0),
        (RUNNING, status(Phase.RUNNING, addresses=("10.0.0.7",)), 3.0),
        (RUNNING, status(Phase.RUNNING, observedGeneration=2), 0.0),
        (RUNNING, status(Phase.DESTROYING, Reason.DESTROYING), 0.0),
        (RUNNING, status(Phase.FAILED, Reason.CRASH_LOOP), 0.0),
    ],
)
def test_what_can_wait(before: MachineStatus, after: MachineStatus, seconds: float) -> None:
    assert patience_for(before, after) == seconds
