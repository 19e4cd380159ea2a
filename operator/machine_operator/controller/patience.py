"""How long a report can wait: pure, from the status that is there and the one that could be written.

A write of the status is among the dearest things that the operator does, and mostly the next change is near. So a
phase that is only passed through is worth a write when it has lasted a second, and details when nothing else came in
three. What went wrong, what is reached, and a machine that was up and breaks are written at once.
"""

from __future__ import annotations

from typing import Final

from machine_operator.api.conditions import ConditionType
from machine_operator.api.machine import MachineStatus
from machine_operator.api.phases import REASONS, Phase, Reason

__all__ = ["patience_for"]

_PASSING: Final = 1.0
_DETAILS: Final = 3.0


def patience_for(before: MachineStatus, after: MachineStatus) -> float:
    """Seconds that the difference can wait before it is written."""
    if _gist(before) == _gist(after) or after.reason == Reason.GUEST_NOT_REACHABLE:
        return _DETAILS  # a guest that ends, or is busy for a moment, does not answer either
    if after.phase not in _PASSED_THROUGH or REASONS[Reason(after.reason or "")].is_trouble:
        return 0.0
    # Nobody asked a machine that was up to go through that: it broke, and whoever uses it has to know.
    broke = before.phase is Phase.RUNNING and before.desired_power == after.desired_power
    return 0.0 if broke else _PASSING


_PASSED_THROUGH: Final = frozenset(
    {Phase.ACCEPTED, Phase.PLACEMENT_PENDING, Phase.STARTING, Phase.STOPPING}
)


def _gist(status: MachineStatus) -> tuple[object, ...]:
    """What people and programs wait for; the rest are details."""
    return (
        status.phase,
        status.reason,
        status.last_error,
        status.observedGeneration,
        status.desired_power,
        status.backoff,
        [(c.status, c.reason) for c in status.conditions if c.type in _TELLING],
        len(status.conditions),
    )


_TELLING: Final = frozenset(
    {
        ConditionType.READY,
        ConditionType.STALLED,
        ConditionType.RECONCILING,
        ConditionType.RESTART_PENDING,
    }
)
