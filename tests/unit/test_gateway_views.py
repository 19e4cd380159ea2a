"""What a machine looks like over REST: never settled before it is, and a revision that never goes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.api.phases import DesiredState, Phase, Power
from machine_operator.gateway.dcs.models import LifecycleResponse
from machine_operator.gateway.upkeep import forgettable
from machine_operator.gateway.views import MachineView
from tests.support.machines import NOW, UID, a_machine

Object = dict[str, Any]
SETTLED_AS = {"running": "running", "sleeping": "sleeping", "destroyed": "destroyed"}


def a_view(
    *, status: Object | None = None, spec: Object | None = None, gone: bool = False, **metadata: Any
) -> MachineView:
    metadata.setdefault("creationTimestamp", "2026-03-01T09:00:00Z")
    return MachineView(a_machine(status=status, spec=spec, **metadata), 7, gone)


def a_request(state: str, sequence: int = 1, spec: str = "running") -> Object:
    return {
        "state": state,
        "by": "api-key:x",
        "at": NOW,
        "sequence": sequence,
        "spec_desired_state": spec,
    }


@st.composite
def views(draw: st.DrawFn) -> MachineView:
    desired = draw(st.sampled_from([str(state) for state in DesiredState]))
    status: Object = {
        "phase": draw(st.sampled_from([None, *(str(phase) for phase in Phase)])),
        "reason": draw(st.sampled_from([None, "DesiredStateReached", "Starting", "CrashLoop"])),
        "retryable": draw(st.sampled_from([None, True, False])),
        "transitions": draw(st.integers(0, 50)),
        "observedGeneration": draw(st.integers(0, 3)),
        "last_error": draw(st.sampled_from([None, "", "it broke"])),
        "last_transition_at": draw(st.sampled_from([None, NOW])),
    }
    if draw(st.booleans()):
        state = draw(st.sampled_from([str(power) for power in Power]))
        status["power_request"] = a_request(state, draw(st.integers(1, 9)), desired)
    spec = {"desired_state": desired, "autosleep": draw(st.sampled_from(["never", "5m", "1w"]))}
    metadata: Object = {"generation": draw(st.integers(1, 3))}
    if draw(st.booleans()):
        metadata["deletionTimestamp"] = "2026-03-01T09:30:00Z"
    present = {name: value for name, value in status.items() if value is not None}
    return a_view(status=present, spec=spec, gone=draw(st.booleans()), **metadata)


@given(view=views(), short=st.booleans())
def test_whatever_is_stored_is_shown_as_the_contract_says(view: MachineView, short: bool) -> None:
    raw = view.as_json(short=short)
    shown = LifecycleResponse.model_validate_json(raw)
    body = orjson.loads(raw)
    assert shown.machine_id == (UID if short else f"dm-{UID}")
    assert body["phase"] == body["status"]["phase"]
    assert None not in body.values()
    assert None not in body["status"].values()
    assert view.etag == f'"{body["status"]["revision"]}"'
    assert body["status"]["revision"].isdecimal()


@given(views())
def test_settled_is_what_is_what_was_asked_for_and_nothing_else(view: MachineView) -> None:
    body = view.body
    settled = SETTLED_AS.get(body["phase"]) == body["desired_state"]
    assert (body["status"]["reason"] == "DesiredStateReached") <= settled
    if view.converged:
        assert settled
        assert view.final
    if view.gone:
        assert (body["phase"], body["desired_state"]) == ("destroyed", "destroyed")
        assert body["status"]["reason"] == "DesiredStateReached"
        assert "last_error" not in body["status"]
        assert view.converged


@given(views())
def test_the_deletion_of_the_object_moves_the_revision(view: MachineView) -> None:
    before = MachineView(view.machine, view.version)
    after = MachineView(view.machine, view.version + 1, gone=True)
    assert int(after.revision) > int(before.revision)


@pytest.mark.parametrize(
    ("phase", "spec", "request_", "desired", "converged"),
    [
        ("running", "running", None, "running", True),
        ("running", "running", "sleeping", "sleeping", False),
        ("sleeping", "running", "sleeping", "sleeping", True),
        ("sleeping", "running", "running", "running", False),
        ("stopping", "running", "sleeping", "sleeping", False),
        ("sleeping", "sleeping", None, "sleeping", True),
        ("running", "destroyed", "running", "destroyed", False),
        ("destroyed", "destroyed", "running", "destroyed", True),
        ("failed", "running", None, "running", False),
        (None, "running", None, "running", False),
    ],
)
def test_what_counts_is_the_newest_intent(
    phase: str | None, spec: str, request_: str | None, desired: str, converged: bool
) -> None:
    status: Object = {"observedGeneration": 1}
    if phase is not None:
        status["phase"] = phase
    if request_ is not None:
        status["power_request"] = a_request(request_, spec=spec)
    view = a_view(status=status, spec={"desired_state": spec})
    assert (view.desired_state, view.converged) == (desired, converged)


def test_a_change_that_the_controller_has_not_seen_is_not_converged() -> None:
    status = {"phase": "running", "observedGeneration": 1}
    assert a_view(status=status, generation=1).converged
    assert not a_view(status=status, generation=2).converged


@pytest.mark.parametrize(
    ("phase", "retryable", "final"),
    [
        ("failed", False, True),
        ("failed", True, False),
        ("failed", None, True),
        ("starting", None, False),
    ],
)
def test_only_a_failure_for_good_is_final(phase: str, retryable: bool | None, final: bool) -> None:
    status = {"phase": phase, "observedGeneration": 1}
    if retryable is not None:
        status["retryable"] = retryable
    assert a_view(status=status).final is final


def test_a_revision_counts_changes_requests_and_phases() -> None:
    assert a_view().revision == "1"
    status = {"transitions": 3, "power_request": a_request("sleeping", 4)}
    assert a_view(status=status, generation=2).revision == "9"


def test_an_object_that_is_being_deleted_is_on_its_way_out() -> None:
    deleted = "2026-03-01T09:30:00Z"
    view = a_view(status={"phase": "running"}, deletionTimestamp=deleted)
    assert (view.phase, view.desired_state) == (Phase.DESTROYING, DesiredState.DESTROYED)
    assert a_view(status={"phase": "destroyed"}, deletionTimestamp=deleted).phase == "destroyed"


def test_moments_are_whole_seconds_of_utc() -> None:
    status = {"phase": "running", "last_transition_at": "2026-03-01T11:00:00.999999+02:00"}
    shown = a_view(status=status).body
    assert shown["status"]["last_transition_at"] == "2026-03-01T09:00:00Z"
    assert shown["created_at"] == "2026-03-01T09:00:00Z"
    assert shown["status"]["last_progress_at"] == shown["created_at"], "never absent"


@pytest.mark.parametrize(
    ("age", "phase", "name", "metadata", "due"),
    [
        (600, "destroyed", f"dm-{UID}", {}, True),
        (599, "destroyed", f"dm-{UID}", {}, False),
        (600, "destroying", f"dm-{UID}", {}, False),
        (600, "sleeping", f"dm-{UID}", {}, False),
        (600, "destroyed", "box", {}, False),
        (600, "destroyed", f"dm-{UID}", {"deletionTimestamp": "2026-03-01T09:30:00Z"}, False),
    ],
)
def test_what_is_forgotten(age: int, phase: str, name: str, metadata: Object, due: bool) -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    since = now - timedelta(seconds=age)
    status = {"phase": phase, "last_transition_at": since}
    view = a_view(status=status, name=name, **metadata)
    assert forgettable(view, now=now, keep=timedelta(minutes=10)) is due


def test_an_end_of_unknown_time_is_kept() -> None:
    view = a_view(status={"phase": "destroyed"}, name=f"dm-{UID}")
    assert not forgettable(view, now=NOW, keep=timedelta(0))
