"""Two sources of power: the spec, and the newest request until the spec changes after it, or somebody comes."""

from __future__ import annotations

from typing import Any

import pytest

from machine_operator.api.machine import Machine
from machine_operator.api.phases import DesiredState
from machine_operator.lifecycle.goal import goal_of
from tests.support.machines import NOW, a_machine

THEN = "2026-03-01T09:00:00Z"
LATER = "2026-03-01T09:30:00Z"
AHEAD = "2026-03-01T11:00:00Z"


def asked(state: str, *, under: str, by: str = "autosleep", **more: Any) -> dict[str, Any]:
    request = {"state": state, "by": by, "at": THEN, "sequence": 1, "spec_desired_state": under}
    return {"power_request": request | more}


def goal(**parts: Any) -> DesiredState:
    return goal_of(a_machine(**parts), now=NOW).state


@pytest.mark.parametrize("desired", DesiredState)
def test_without_a_request_the_spec_decides(desired: DesiredState) -> None:
    found = goal_of(a_machine(spec={"desired_state": desired}), now=NOW)
    assert found.state is desired
    assert found.why == f"spec.desired_state is {desired}"


@pytest.mark.parametrize("desired", ["running", "sleeping"])
@pytest.mark.parametrize("state", ["running", "sleeping"])
def test_a_request_under_this_spec_holds(desired: str, state: str) -> None:
    status = asked(state, under=desired, reason="idle for 5m")
    found = goal_of(a_machine(spec={"desired_state": desired}, status=status), now=NOW)
    assert (found.state, found.why) == (state, "requested by autosleep: idle for 5m")


def test_a_request_ends_when_the_spec_changes() -> None:
    status = asked("sleeping", under="sleeping")
    assert goal(spec={"desired_state": "running"}, status=status) == "running"


def test_a_request_without_reason_names_who_asked() -> None:
    found = goal_of(a_machine(status=asked("sleeping", under="running")), now=NOW)
    assert found.why == "requested by autosleep"


@pytest.mark.parametrize("under", ["running", "destroyed"])
def test_destroyed_beats_a_request(under: str) -> None:
    status = asked("running", under=under)
    assert goal(spec={"desired_state": "destroyed"}, status=status) == "destroyed"


def test_deletion_beats_everything() -> None:
    machine = a_machine(deletionTimestamp=THEN, status=asked("running", under="running"))
    assert goal_of(machine, now=NOW).state is DesiredState.DESTROYED
    assert "deleted" in goal_of(machine, now=NOW).why


# ---- a sleep that nobody asked for ends by use


def slept(by: str, *, activity: dict[str, Any], saw: str | None = THEN) -> Machine:
    request = asked("sleeping", under="running", by=by, last_touch_at=saw)
    return a_machine(status=request | {"activity": activity})


def hold(*, since: str, until: str) -> dict[str, Any]:
    return {"id": "e", "kind": "execution", "since": since, "expires_at": until}


@pytest.mark.parametrize("by", ["autosleep", "guest"])
@pytest.mark.parametrize(
    ("saw", "touch", "wakes"),
    [
        (THEN, THEN, False),
        (THEN, LATER, True),
        (None, None, False),
        (None, LATER, True),
        # The clock of whoever touched it runs behind: no clocks are compared, so it counts.
        (LATER, THEN, True),
    ],
)
def test_a_touch_that_the_request_had_not_seen(
    by: str, saw: str | None, touch: str | None, wakes: bool
) -> None:
    found = goal_of(slept(by, saw=saw, activity={"last_touch_at": touch}), now=NOW)
    assert found.wakes == wakes
    assert found.state == ("running" if wakes else "sleeping")


@pytest.mark.parametrize(
    ("by", "since", "until", "wakes"),
    [
        ("autosleep", LATER, AHEAD, True),
        ("autosleep", LATER, LATER, False),
        # Renewed after it had run out: autosleep never fires while a hold lives, so this life is new.
        ("autosleep", "2026-03-01T08:00:00Z", AHEAD, True),
        # `poweroff` typed in a session: the session's own hold must not wake the machine again.
        ("guest", "2026-03-01T08:00:00Z", AHEAD, False),
        ("guest", THEN, AHEAD, False),
        ("guest", LATER, AHEAD, True),
        ("guest", LATER, LATER, False),
    ],
)
def test_a_hold_that_began_after_the_request(by: str, since: str, until: str, wakes: bool) -> None:
    activity = {"last_touch_at": THEN, "holds": [hold(since=since, until=until)]}
    assert goal_of(slept(by, activity=activity), now=NOW).wakes == wakes


@pytest.mark.parametrize("by", ["ada", "activity"])
def test_a_sleep_that_somebody_asked_for_holds(by: str) -> None:
    activity = {"last_touch_at": LATER, "holds": [hold(since=LATER, until=AHEAD)]}
    assert goal_of(slept(by, activity=activity), now=NOW).state == "sleeping"


def test_use_does_not_wake_what_the_spec_puts_to_sleep() -> None:
    machine = slept("autosleep", activity={"last_touch_at": LATER})
    other = machine.spec.model_copy(update={"desired_state": DesiredState.SLEEPING})
    found = goal_of(machine.model_copy(update={"spec": other}), now=NOW)
    assert (found.state, found.wakes) == ("sleeping", False)
