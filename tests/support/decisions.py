"""What tests do with decisions: report a status, let it settle, and compare what is left to be done."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from machine_operator.api.machine import MachineStatus
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.decision import Decision, decide
from machine_operator.lifecycle.observation import Observation, Question
from tests.support.machines import LIMITS, NOW

__all__ = ["answered", "conditions", "decided", "gist", "reported", "settled", "status_in"]


def decided(seen: Observation, *, now: datetime = NOW) -> Decision:
    """What is decided once every question is answered with what is seen already."""
    return decide(answered(seen), now=now, limits=LIMITS)


def answered(seen: Observation) -> Observation:
    """The caches were right."""
    return replace(seen, answered=frozenset(Question))


def status_in(seen: Observation, *, now: datetime = NOW) -> MachineStatus:
    """The status that is reported."""
    status = decided(seen, now=now).status
    assert status is not None
    return status


def reported(seen: Observation, status: MachineStatus) -> Observation:
    """The same observation once the status was written and read again: the gateways' parts stay."""
    before = seen.machine.status
    kept = {"power_request": before.power_request, "activity": before.activity}
    written = MachineStatus.model_validate(status.to_dict()).model_copy(update=kept)
    return replace(seen, machine=seen.machine.model_copy(update={"status": written}))


def settled(seen: Observation, *, now: datetime = NOW) -> Observation:
    """The observation after reports, until they change nothing more: one report can lead to another once or twice."""
    for _ in range(4):
        status = status_in(seen, now=now)
        after = reported(seen, status)
        if after == seen:
            return seen
        seen = after
    raise AssertionError(f"the status does not come to rest: {status}")


def conditions(status: MachineStatus) -> dict[str, tuple[str, str]]:
    """Status and reason of each condition."""
    return {c.type: (c.status, c.reason) for c in status.conditions}


def gist(decision: Decision) -> tuple[object, ...]:
    """The actions without the moment at which a power request was made."""
    return tuple(
        replace(action, request=action.request.model_copy(update={"at": NOW}))
        if isinstance(action, do.RequestPower)
        else action
        for action in decision.actions
    )
