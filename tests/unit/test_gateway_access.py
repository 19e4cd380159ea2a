"""What a look at a machine tells somebody who wants to get in."""

from __future__ import annotations

from typing import Any

import pytest

from machine_operator.gateway.access import Readiness, _readiness, _target
from machine_operator.gateway.activity.holds import asleep, cleared, decision_to_sleep, fresh, stale
from machine_operator.gateway.views import MachineView
from tests.support.machines import NOW, a_machine

UP = {"name": "m-1", "instance_uid": "i1"}


def view(
    phase: str | None, *, desired: str = "running", gone: bool = False, **status: Any
) -> MachineView:
    told: dict[str, Any] = {"vm": UP, **status}
    if phase is not None:
        told["phase"] = phase
    return MachineView(a_machine(spec={"desired_state": desired}, status=told), 7, gone=gone)


def request(by: str = "autosleep", state: str = "sleeping", **more: Any) -> dict[str, Any]:
    return {
        "state": state,
        "by": by,
        "at": "2026-03-01T10:00:00Z",
        "sequence": 1,
        "spec_desired_state": "running",
        **more,
    }


@pytest.mark.parametrize(
    ("seen", "readiness"),
    [
        (view("running"), Readiness.READY),
        (view("running", vm={"name": "m-1"}), Readiness.WAKING),
        (view("running", vm=None), Readiness.WAKING),
        (view("running", desired="sleeping"), Readiness.WAKING),
        (view("running", power_request=request()), Readiness.WAKING),
        (view("running", power_request=request(state="running", by="ada")), Readiness.READY),
        (view(None), Readiness.WAKING),
        (view("accepted"), Readiness.WAKING),
        (view("placement_pending"), Readiness.WAKING),
        (view("starting"), Readiness.WAKING),
        (view("stopping"), Readiness.WAKING),
        (view("sleeping", desired="sleeping"), Readiness.WAKING),
        (view("sleeping"), Readiness.WAKING),
        (view("failed", retryable=False), Readiness.FAILED),
        (view("failed", retryable=True), Readiness.WAKING),
        (view("failed", retryable=True, desired="sleeping"), Readiness.FAILED),
        (view("running", desired="destroyed"), Readiness.GONE),
        (view("destroying"), Readiness.GONE),
        (view("destroyed"), Readiness.GONE),
        (view("running", gone=True), Readiness.GONE),
    ],
)
def test_readiness(seen: MachineView, readiness: Readiness) -> None:
    assert _readiness(seen) is readiness


def test_only_what_runs_and_is_to_run_has_a_guest() -> None:
    target = _target(view("running", addresses=["10.0.0.1"]))
    assert target is not None
    assert (target.org, target.vm, target.instance_uid) == ("ns", "m-1", "i1")
    assert target.addresses == ("10.0.0.1",)
    assert _target(view("running", desired="sleeping")) is None
    assert _target(view("running", desired="sleeping"), going=True) == _target(view("running"))
    assert _target(view("stopping", desired="sleeping"), going=True) is None


# ---- the decision to sleep


@pytest.mark.parametrize(
    ("seen", "by_itself"),
    [
        (view("running"), False),
        (view("running", power_request=request()), True),
        (view("sleeping", power_request=request("guest")), True),
        (view("sleeping", power_request=request("ada")), False),
        (view("running", power_request=request("ada", "running")), False),
        (view("sleeping", desired="sleeping", power_request=request()), False),
        (view("sleeping", desired="sleeping"), False),
    ],
)
def test_who_decided(seen: MachineView, by_itself: bool) -> None:
    assert (decision_to_sleep(seen) is not None) is by_itself


def test_only_a_use_that_the_decision_has_not_seen_undoes_it() -> None:
    slept = decision_to_sleep(view("running", power_request=request()))
    off = decision_to_sleep(view("running", power_request=request("guest")))
    assert slept is not None
    assert off is not None
    before, after = slept.at.replace(year=2025), slept.at.replace(year=2027)
    assert fresh(slept, begun=before, unheard=True)
    assert not fresh(slept, begun=after, unheard=False)
    assert fresh(off, begun=after, unheard=True)
    assert not fresh(off, begun=before, unheard=True)
    assert not fresh(None, begun=after, unheard=True)


def test_what_still_runs_is_not_asleep_yet() -> None:
    assert not asleep(view("running", desired="sleeping"))
    assert asleep(view("stopping", desired="sleeping"))
    assert not asleep(view("sleeping"))


# ---- what dead replicas left


def hold(replica: str, kind: str, minute: int) -> dict[str, Any]:
    return {
        "id": f"{replica}.{kind}",
        "kind": kind,
        "since": "2026-03-01T09:00:00Z",
        "expires_at": f"2026-03-01T09:{minute:02}:00Z",
    }


def test_a_replica_is_gone_when_its_last_hold_is_long_over() -> None:
    activity = {
        "last_touch_at": "2026-03-01T09:30:00Z",
        "holds": [
            hold("gw-1.a", "ssh", 40),
            hold("gw-1.a", "execution", 58),
            hold("gw-2", "ssh", 40),
            hold("gw-3", "ssh", 59),
            {**hold("gw-4", "ssh", 1), "kind": "vpn"},
            {**hold("gw-4", "vpn", 1)},
            {**hold("x", "ssh", 1), "id": "ssh"},
        ],
    }
    seen = view("running", activity=activity)
    minutes = NOW.replace(minute=0) - NOW.replace(hour=9, minute=58, second=0, microsecond=0)
    assert stale(seen, now=NOW, grace=minutes) == ["gw-1.a", "gw-2"]
    body = cleared(seen, "gw-2")
    assert body["status"] == {"activity": {"last_touch_at": "2026-03-01T09:40:00Z"}}
    assert body["metadata"] == {"uid": seen.machine.metadata.uid, "resourceVersion": "7"}
    sleeping = view("sleeping", desired="sleeping", activity=activity)
    kept = {"activity": {"last_touch_at": "2026-03-01T09:30:00Z"}}
    assert cleared(sleeping, "gw-2")["status"] == kept
    assert stale(view("running"), now=NOW, grace=minutes) == []
