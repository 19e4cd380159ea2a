"""Two sources of power: the spec, and the newest request until the spec changes after it."""

from __future__ import annotations

import pytest

from machine_operator.api.phases import DesiredState
from machine_operator.lifecycle.goal import goal_of
from tests.support.machines import a_machine

THEN = "2026-03-01T10:00:00Z"


def asked(state: str, *, under: str, reason: str | None = None) -> dict[str, object]:
    request = {
        "state": state,
        "by": "autosleep",
        "at": THEN,
        "sequence": 1,
        "spec_desired_state": under,
        "reason": reason,
    }
    return {"power_request": request}


@pytest.mark.parametrize("desired", DesiredState)
def test_without_a_request_the_spec_decides(desired: DesiredState) -> None:
    goal = goal_of(a_machine(spec={"desired_state": desired}))
    assert goal.state is desired
    assert goal.why == f"spec.desired_state is {desired}"


@pytest.mark.parametrize("desired", ["running", "sleeping"])
@pytest.mark.parametrize("state", ["running", "sleeping"])
def test_a_request_under_this_spec_holds(desired: str, state: str) -> None:
    status = asked(state, under=desired, reason="idle for 5m")
    goal = goal_of(a_machine(spec={"desired_state": desired}, status=status))
    assert (goal.state, goal.why) == (state, "requested by autosleep: idle for 5m")


def test_a_request_ends_when_the_spec_changes() -> None:
    status = asked("sleeping", under="sleeping")
    goal = goal_of(a_machine(spec={"desired_state": "running"}, status=status))
    assert goal.state is DesiredState.RUNNING


def test_a_request_without_reason_names_who_asked() -> None:
    goal = goal_of(a_machine(status=asked("sleeping", under="running")))
    assert goal.why == "requested by autosleep"


@pytest.mark.parametrize("under", ["running", "destroyed"])
def test_destroyed_beats_a_request(under: str) -> None:
    status = asked("running", under=under)
    goal = goal_of(a_machine(spec={"desired_state": "destroyed"}, status=status))
    assert goal.state is DesiredState.DESTROYED


def test_deletion_beats_everything() -> None:
    machine = a_machine(deletionTimestamp=THEN, status=asked("running", under="running"))
    assert goal_of(machine).state is DesiredState.DESTROYED
    assert "deleted" in goal_of(machine).why
