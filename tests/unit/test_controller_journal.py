"""What is told of a change: Events for what nobody asked for, and how long the ways took."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from machine_operator.api.machine import Backoff, MachineStatus, PowerRequest
from machine_operator.api.phases import DesiredState, Phase, Power, Reason
from machine_operator.controller.journal import Journal
from machine_operator.kube.events import ObjectRef
from tests.support.machines import NOW, UID, a_machine

OK = Reason.DESIRED_STATE_REACHED
BORN = "2026-03-01T09:59:50Z"


class Recorder:
    """Stands for the EventRecorder."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str, str]] = []

    def note(
        self, regarding: ObjectRef, *, type: str, reason: str, message: str, action: str
    ) -> None:
        assert regarding.uid == UID
        self.notes.append((type, reason, message))


class Measures:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []

    def time_to_running(self, seconds: float, *, since: str) -> None:
        self.told.append((since, seconds))

    def time_to_sleep(self, seconds: float) -> None:
        self.told.append(("sleep", seconds))

    def trouble_told(self, reason: str) -> None:
        self.told.append((reason, 0.0))


def told(before: dict[str, Any], after: MachineStatus, **more: Any) -> tuple[Recorder, Measures]:
    recorder, measures = Recorder(), Measures()
    journal = Journal(events=recorder, measures=measures, now=lambda: NOW)  # type: ignore[arg-type]
    journal.reported(a_machine(status=before, creationTimestamp=BORN), after, **more)
    return recorder, measures


def status(phase: Phase, reason: Reason = OK, **more: Any) -> MachineStatus:
    return MachineStatus(phase=phase, reason=reason, **more)


def test_what_was_asked_for_is_no_event() -> None:
    for before, after in (
        ({}, status(Phase.RUNNING)),
        ({"phase": "running", "reason": OK}, status(Phase.STOPPING, Reason.STOPPING)),
        ({"phase": "stopping", "reason": "Stopping"}, status(Phase.SLEEPING)),
    ):
        assert told(before, after)[0].notes == []


def test_trouble_is_told_once_for_each_message_and_its_end_too() -> None:
    quota = status(Phase.FAILED, Reason.QUOTA_EXCEEDED, last_error="exceeded quota: team-a")
    recorder, measures = told({"phase": "accepted", "reason": "Accepted"}, quota)
    assert recorder.notes == [("Warning", "QuotaExceeded", "exceeded quota: team-a")]
    assert ("QuotaExceeded", 0.0) in measures.told
    same = {"phase": "failed", "reason": "QuotaExceeded", "last_error": "exceeded quota: team-a"}
    assert told(same, quota)[0].notes == []
    [(kind, reason, message)] = told(same, status(Phase.RUNNING))[0].notes
    assert (kind, reason) == ("Normal", "Recovered")
    assert "QuotaExceeded" in message


def test_a_crash_is_counted_in_its_event() -> None:
    running = {"phase": "running", "reason": OK}
    after = status(Phase.STARTING, Reason.STARTING, backoff=Backoff(failures=2))
    [(kind, reason, message)] = told(running | {"backoff": {"failures": 1}}, after)[0].notes
    assert (kind, reason) == ("Warning", "GuestCrashed")
    assert "second" in message
    assert told(running | {"backoff": {"failures": 2}}, after)[0].notes == []


@pytest.mark.parametrize(
    ("by", "state", "reason"),
    [
        ("autosleep", Power.SLEEPING, "Autosleep"),
        ("guest", Power.SLEEPING, "GuestPoweredOff"),
        ("activity", Power.RUNNING, "WokenByUse"),
    ],
)
def test_what_the_operator_asks_for_by_itself_is_an_event(
    by: str, state: Power, reason: str
) -> None:
    recorder = Recorder()
    journal = Journal(events=recorder, measures=Measures(), now=lambda: NOW)  # type: ignore[arg-type]
    request = PowerRequest(
        state=state,
        by=by,
        reason="because",
        at=NOW,
        sequence=1,
        spec_desired_state=DesiredState.RUNNING,
    )
    journal.requested(a_machine(), request)
    assert [(kind, why) for kind, why, _ in recorder.notes] == [("Normal", reason)]


STARTING = {"phase": "starting", "reason": "Starting", "last_transition_at": "2026-03-01T09:59:57Z"}


@pytest.mark.parametrize(
    ("before", "after", "since", "expected"),
    [
        ({}, Phase.RUNNING, None, ("create", 10.0)),
        (STARTING | {"transitions": 2}, Phase.RUNNING, None, ("create", 10.0)),
        (STARTING | {"transitions": 4}, Phase.RUNNING, None, ("wake", 3.0)),
        (STARTING | {"transitions": 2, "wake_count": 1}, Phase.RUNNING, None, ("wake", 3.0)),
        (STARTING | {"backoff": {"failures": 1}}, Phase.RUNNING, None, ("wake", 3.0)),
        ({"phase": "sleeping"}, Phase.RUNNING, 0.4, ("wake", 0.4)),
        ({"phase": "running"}, Phase.SLEEPING, 0.2, ("sleep", 0.2)),
        (STARTING | {"phase": "stopping"}, Phase.SLEEPING, None, ("sleep", 3.0)),
        ({"phase": "failed"}, Phase.RUNNING, None, None),
        ({}, Phase.SLEEPING, None, None),
    ],
)
def test_how_long_it_took(
    before: dict[str, Any], after: Phase, since: float | None, expected: tuple[str, float] | None
) -> None:
    begun = None if since is None else NOW - timedelta(seconds=since)
    measured = told(before, status(after), since=begun)[1].told
    assert [(name, round(seconds, 2)) for name, seconds in measured] == (
        [expected] if expected else []
    )
