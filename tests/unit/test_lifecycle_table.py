"""The table of phases: each row has an example in which it is the first that applies, and no row is without one."""

from __future__ import annotations

from typing import Any

import pytest

from machine_operator.api.machine import VirtualMachineRef
from machine_operator.api.names import ADOPT_ANNOTATION
from machine_operator.api.phases import REASONS, DesiredState, Phase, Reason
from machine_operator.lifecycle.goal import goal_of
from machine_operator.lifecycle.observation import (
    InstancePhase,
    NodeView,
    Observation,
    RunStrategy,
    Trouble,
)
from machine_operator.lifecycle.situation import Situation
from machine_operator.lifecycle.table import TABLE, Row, row_of
from tests.support.decisions import answered, status_in
from tests.support.machines import (
    LIMITS,
    NOW,
    a_claim,
    a_machine,
    a_vm,
    an_instance,
    an_observation,
)

RUN, SLEEP, DESTROY = DesiredState.RUNNING, DesiredState.SLEEPING, DesiredState.DESTROYED
KNOWN = VirtualMachineRef(name="m", instance_uid="vmi-uid", home_claim="m-home").to_dict()
LONG_AGO = "2026-03-01T09:00:00Z"
FULL = Trouble(Reason.UNSCHEDULABLE, "0/3 nodes are available: 3 Insufficient memory.")
REFUSED = Trouble(Reason.VIRTUAL_MACHINE_REFUSED, "denied")
PAUSED = Trouble(Reason.GUEST_PAUSED, "PausedIOError: no space left")
PENDING, SCHEDULED = InstancePhase.PENDING, InstancePhase.SCHEDULED
RUNNING, FAILED = InstancePhase.RUNNING, InstancePhase.FAILED
SUCCEEDED = InstancePhase.SUCCEEDED

NOTHING: dict[str, Any] = {"virtual_machine": None, "instance": None, "home": None, "seed": None}
HALTED = a_vm(run_strategy=RunStrategy.OFF)
WAITS = an_instance(PENDING)
SILENT = an_instance(ready=False)
OVERSTAYS = an_instance(deleting_since=NOW.replace(hour=9))
LOST = NodeView(name="node-1", ready=False, schedulable=True, message="no word")
TWICE = {"failures": 2, "instance_uid": "an-older-vmi"}
TAKEN = a_claim(machine="other", machine_uid="another-uid")


def seen(
    goal: DesiredState = RUN,
    phase: Phase | None = None,
    *,
    status: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    **parts: Any,
) -> Observation:
    """A machine that shall be so and was in this phase; all questions are answered."""
    before = {"phase": phase} | (status or {})
    machine = a_machine(spec={"desired_state": goal}, status=before, annotations=annotations or {})
    return answered(an_observation(machine, **parts))


def unreadable(asked: str | None = None) -> Observation:
    """The stand-in for a spec asks for sleep, but a request counts all the same."""
    request = {"state": asked, "by": "ada", "at": LONG_AGO, "sequence": 1}
    status = {"power_request": request | {"spec_desired_state": "sleeping"}} if asked else {}
    return seen(SLEEP, Phase.RUNNING, status=status, fault="spec.vcpu: too much")


EXAMPLES: list[tuple[DesiredState, str, Observation]] = [
    (DESTROY, "the VMI outlives its grace period", seen(DESTROY, instance=OVERSTAYS)),
    (DESTROY, "a VM or VMI is left", seen(DESTROY, instance=None)),
    (DESTROY, "a VM or VMI is left", seen(DESTROY, virtual_machine=None)),
    (DESTROY, "disk or seed are left", seen(DESTROY, virtual_machine=None, instance=None)),
    (DESTROY, "disk or seed are left", seen(DESTROY, **NOTHING | {"home": a_claim()})),
    (DESTROY, "nothing is left", seen(DESTROY, **NOTHING)),
    (SLEEP, "the spec cannot be read", unreadable()),
    (SLEEP, "the home disk vanished", seen(SLEEP, Phase.SLEEPING, status={"vm": KNOWN}, home=None)),
    (
        SLEEP,
        "the disk to adopt is missing or another's",
        seen(SLEEP, annotations={ADOPT_ANNOTATION: "old"}, **NOTHING),
    ),
    (SLEEP, "VM halted, no VMI", seen(SLEEP, virtual_machine=HALTED, instance=None)),
    (SLEEP, "no VM yet", seen(SLEEP, virtual_machine=None, instance=None)),
    (SLEEP, "the VMI outlives its grace period", seen(SLEEP, Phase.STOPPING, instance=OVERSTAYS)),
    (SLEEP, "otherwise", seen(SLEEP, Phase.RUNNING)),
    (SLEEP, "otherwise", seen(SLEEP, Phase.SLEEPING, virtual_machine=None, instance=None)),
    (SLEEP, "otherwise", seen(SLEEP, virtual_machine=HALTED, instance=an_instance(SUCCEEDED))),
    (RUN, "the spec cannot be read", unreadable("running")),
    (RUN, "the home disk vanished", seen(RUN, Phase.RUNNING, status={"vm": KNOWN}, home=None)),
    (
        RUN,
        "the disk to adopt is missing or another's",
        seen(RUN, annotations={ADOPT_ANNOTATION: "old"}, **NOTHING | {"home": TAKEN}),
    ),
    (RUN, "VMI paused", seen(RUN, Phase.RUNNING, instance=an_instance(trouble=PAUSED))),
    (RUN, "VMI running and ready", seen(RUN, Phase.STARTING)),
    (RUN, "VMI running and ready", seen(RUN, virtual_machine=a_vm(trouble=REFUSED))),
    (
        RUN,
        "the guest died too often, and the next try is not due",
        seen(RUN, Phase.STARTING, status={"backoff": TWICE}, instance=an_instance(FAILED)),
    ),
    (RUN, "no node fits", seen(RUN, instance=an_instance(PENDING, trouble=FULL))),
    (RUN, "no node fits", seen(RUN, Phase.STARTING, instance=an_instance(PENDING, trouble=FULL))),
    (
        RUN,
        "VMI was ready, and its node no longer reports",
        seen(RUN, Phase.RUNNING, instance=SILENT, node=LOST),
    ),
    (RUN, "KubeVirt reports trouble", seen(virtual_machine=a_vm(trouble=REFUSED), instance=None)),
    (RUN, "KubeVirt reports trouble", seen(instance=an_instance(PENDING, trouble=REFUSED))),
    (
        RUN,
        "VM switched on, and KubeVirt rests with nothing running",
        seen(RUN, Phase.STARTING, virtual_machine=a_vm(rests=True), instance=None),
    ),
    (
        RUN,
        "the home disk cannot be provided",
        seen(
            instance=WAITS, home=a_claim(bound=False), unbound_because='storageclass "x" not found'
        ),
    ),
    (
        RUN,
        "the start takes too long",
        seen(RUN, Phase.STARTING, status={"last_transition_at": LONG_AGO}, instance=WAITS),
    ),
    (
        RUN,
        "VMI was ready and no longer answers",
        seen(RUN, Phase.RUNNING, status={"vm": KNOWN}, instance=SILENT),
    ),
    (RUN, "VMI has a node", seen(instance=an_instance(SCHEDULED))),
    (RUN, "VMI has a node", seen(RUN, Phase.STARTING, instance=SILENT)),
    (RUN, "no VM yet", seen(RUN, Phase.ACCEPTED, **NOTHING)),
    (RUN, "new, without a node", seen(RUN, Phase.PLACEMENT_PENDING, instance=WAITS)),
    (RUN, "otherwise (waking, restarting)", seen(RUN, Phase.SLEEPING, instance=None)),
    (RUN, "otherwise (waking, restarting)", seen(RUN, Phase.RUNNING, instance=an_instance(FAILED))),
    (RUN, "otherwise (waking, restarting)", seen(RUN, Phase.STOPPING, instance=WAITS)),
]


def situation(observation: Observation) -> Situation:
    return Situation(observation, goal_of(observation.machine, now=NOW), NOW, LIMITS)


def index_of(goal: DesiredState, when: str) -> int:
    return next(n for n, row in enumerate(TABLE) if (row.goal, row.when) == (goal, when))


@pytest.mark.parametrize(
    ("goal", "when", "observation"),
    EXAMPLES,
    ids=[f"row {index_of(g, w)}, {g}: {w}" for g, w, _ in EXAMPLES],
)
def test_the_first_row_that_holds(goal: DesiredState, when: str, observation: Observation) -> None:
    at = situation(observation)
    row = row_of(at)
    assert (row.goal, row.when) == (goal, when)
    earlier = [r.when for r in TABLE[: TABLE.index(row)] if r.goal is goal and r.holds(at)]
    assert earlier == []
    status = status_in(observation)
    assert status.phase is row.phase
    assert status.reason == (row.reason or (at.trouble and at.trouble.reason))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.goal}: {row.when}")
def test_every_row_has_an_example(row: Row) -> None:
    """So none is dead: whoever adds a row shows a machine to which it applies before all others."""
    assert any((goal, when) == (row.goal, row.when) for goal, when, _ in EXAMPLES)


def test_no_two_rows_of_a_goal_are_told_in_the_same_words() -> None:
    assert len({(row.goal, row.when) for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.goal}: {row.when}")
def test_phase_and_reason_of_a_row_fit(row: Row) -> None:
    """`failed` is somebody's trouble, and a reached goal is none."""
    if row.reason is None:
        assert row.phase is Phase.FAILED
        return
    trouble = REASONS[row.reason].is_trouble
    assert trouble or row.phase is not Phase.FAILED
    assert (row.reason is Reason.DESIRED_STATE_REACHED) == (
        not trouble and str(row.phase) == str(row.goal)
    )


@pytest.mark.parametrize("goal", DesiredState)
def test_the_last_row_of_a_goal_always_holds(goal: DesiredState) -> None:
    last = [row for row in TABLE if row.goal is goal][-1]
    assert all(last.holds(situation(observation)) for _, _, observation in EXAMPLES)


# ---- the order is the argument


def test_trouble_of_the_instance_comes_before_the_vms() -> None:
    both = seen(virtual_machine=a_vm(trouble=REFUSED), instance=an_instance(PENDING, trouble=FULL))
    assert situation(both).trouble == FULL


def test_trouble_of_a_vanishing_instance_does_not_count() -> None:
    leaving = seen(instance=an_instance(PENDING, trouble=FULL, deleting_since=NOW))
    assert situation(leaving).trouble is None


def test_a_new_boot_is_not_the_one_that_answered() -> None:
    other = an_instance(ready=False, uid="another-vmi")
    row = row_of(situation(seen(RUN, Phase.RUNNING, status={"vm": KNOWN}, instance=other)))
    assert row.phase is Phase.STARTING


def test_a_machine_that_answers_is_running_whatever_else_is_said() -> None:
    status = {"backoff": {"failures": 9, "next_retry_at": "2026-03-01T11:00:00Z"}}
    assert row_of(situation(seen(RUN, Phase.FAILED, status=status))).phase is Phase.RUNNING
