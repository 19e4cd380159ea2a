"""The table of phases: each row has a situation in which it applies, and no other one does."""

from __future__ import annotations

from typing import Any

import pytest

from machine_operator.api.machine import MachineStatus, VirtualMachineRef
from machine_operator.api.phases import REASONS, DesiredState, Phase, Reason
from machine_operator.lifecycle.goal import Goal
from machine_operator.lifecycle.observation import InstancePhase, Observation, Trouble
from machine_operator.lifecycle.table import TABLE, Row, Situation, row_of
from tests.support.machines import a_claim, a_machine, a_vm, an_instance, an_observation

RUN, SLEEP, DESTROY = DesiredState.RUNNING, DesiredState.SLEEPING, DesiredState.DESTROYED
ROWS = {(row.goal, row.when): row for row in TABLE}
KNOWN = VirtualMachineRef(name="m", instance_uid="vmi-uid", home_claim="m-home")
FULL = Trouble(Reason.UNSCHEDULABLE, "0/3 nodes are available: 3 Insufficient memory.")
REFUSED = Trouble(Reason.VIRTUAL_MACHINE_REFUSED, "denied")
PAUSED = Trouble(Reason.GUEST_PAUSED, "PausedIOError: no space left")
PENDING, SCHEDULED = InstancePhase.PENDING, InstancePhase.SCHEDULED
RUNNING, ENDED = InstancePhase.RUNNING, InstancePhase.ENDED


def seen(phase: Phase | None = None, *, known: bool = False, **parts: Any) -> Observation:
    status = MachineStatus(phase=phase, vm=KNOWN if known else None)
    return an_observation(a_machine(status=status), **parts)


NOTHING = {"virtual_machine": None, "instance": None, "home": None, "seed": None}
WAITS = an_instance(PENDING)
HALTED = a_vm(run_strategy="Halted")
CASES: list[tuple[DesiredState, str, Observation]] = [
    (DESTROY, "a VM or VMI is left", seen(instance=None)),
    (DESTROY, "a VM or VMI is left", seen(virtual_machine=None)),
    (DESTROY, "disk or seed are left", seen(virtual_machine=None, instance=None)),
    (DESTROY, "disk or seed are left", seen(virtual_machine=None, instance=None, home=None)),
    (DESTROY, "nothing is left", seen(**NOTHING)),
    (SLEEP, "the home disk vanished", seen(Phase.SLEEPING, known=True, home=None)),
    (SLEEP, "VM halted, no VMI", seen(Phase.STOPPING, virtual_machine=HALTED, instance=None)),
    (SLEEP, "no VM yet", seen(virtual_machine=None, instance=None)),
    (SLEEP, "otherwise", seen(Phase.RUNNING)),
    (SLEEP, "otherwise", seen(Phase.SLEEPING, virtual_machine=None, instance=None)),
    (SLEEP, "otherwise", seen(Phase.RUNNING, virtual_machine=HALTED, instance=an_instance(ENDED))),
    (RUN, "the home disk vanished", seen(Phase.RUNNING, known=True, home=None)),
    (RUN, "no VM yet", seen(Phase.ACCEPTED, **NOTHING)),
    (RUN, "VMI paused", seen(Phase.RUNNING, instance=an_instance(trouble=PAUSED))),
    (RUN, "VMI running and ready", seen(Phase.STARTING)),
    (RUN, "VMI running and ready", seen(Phase.RUNNING, virtual_machine=a_vm(trouble=REFUSED))),
    (RUN, "no node fits", seen(instance=an_instance(PENDING, trouble=FULL))),
    (RUN, "no node fits", seen(Phase.STARTING, instance=an_instance(PENDING, trouble=FULL))),
    (RUN, "KubeVirt reports trouble", seen(instance=None, virtual_machine=a_vm(trouble=REFUSED))),
    (RUN, "KubeVirt reports trouble", seen(instance=an_instance(PENDING, trouble=REFUSED))),
    (
        RUN,
        "VMI was ready and no longer answers",
        seen(Phase.RUNNING, known=True, instance=an_instance(ready=False)),
    ),
    (RUN, "VMI has a node", seen(instance=an_instance(SCHEDULED))),
    (RUN, "VMI has a node", seen(Phase.STARTING, instance=an_instance(ready=False))),
    (RUN, "new, and the home disk has no volume", seen(instance=WAITS, home=a_claim(bound=False))),
    (RUN, "new, without a node", seen(Phase.PLACEMENT_PENDING, instance=WAITS)),
    (RUN, "otherwise (waking, restarting)", seen(Phase.SLEEPING, instance=None)),
    (RUN, "otherwise (waking, restarting)", seen(Phase.RUNNING, instance=an_instance(ENDED))),
    (RUN, "otherwise (waking, restarting)", seen(Phase.STOPPING, instance=WAITS)),
]


@pytest.mark.parametrize(
    ("goal", "when", "observation"),
    CASES,
    ids=[f"{g}: {w} {n}" for n, (g, w, _) in enumerate(CASES)],
)
def test_the_row_that_applies(goal: DesiredState, when: str, observation: Observation) -> None:
    row = row_of(Situation(observation, Goal(goal, "a test")))
    assert (row.goal, row.when) == (goal, when)


def test_every_row_has_a_case() -> None:
    assert {(goal, when) for goal, when, _ in CASES} == set(ROWS)
    assert len(ROWS) == len(TABLE), "two rows of one goal are told in the same words"


EXPECTED = {
    (DESTROY, "a VM or VMI is left"): (Phase.DESTROYING, Reason.DESTROYING),
    (DESTROY, "disk or seed are left"): (Phase.DESTROYING, Reason.DESTROYING),
    (DESTROY, "nothing is left"): (Phase.DESTROYED, Reason.DESIRED_STATE_REACHED),
    (SLEEP, "the home disk vanished"): (Phase.FAILED, Reason.STORAGE_LOST),
    (SLEEP, "VM halted, no VMI"): (Phase.SLEEPING, Reason.DESIRED_STATE_REACHED),
    (SLEEP, "no VM yet"): (Phase.ACCEPTED, Reason.ACCEPTED),
    (SLEEP, "otherwise"): (Phase.STOPPING, Reason.STOPPING),
    (RUN, "the home disk vanished"): (Phase.FAILED, Reason.STORAGE_LOST),
    (RUN, "no VM yet"): (Phase.ACCEPTED, Reason.ACCEPTED),
    (RUN, "VMI paused"): (Phase.RUNNING, Reason.GUEST_PAUSED),
    (RUN, "VMI running and ready"): (Phase.RUNNING, Reason.DESIRED_STATE_REACHED),
    (RUN, "no node fits"): (Phase.PLACEMENT_PENDING, Reason.UNSCHEDULABLE),
    (RUN, "KubeVirt reports trouble"): (Phase.FAILED, None),
    (RUN, "VMI was ready and no longer answers"): (Phase.RUNNING, Reason.GUEST_NOT_REACHABLE),
    (RUN, "VMI has a node"): (Phase.STARTING, Reason.STARTING),
    (RUN, "new, and the home disk has no volume"): (
        Phase.PLACEMENT_PENDING,
        Reason.STORAGE_PENDING,
    ),
    (RUN, "new, without a node"): (Phase.PLACEMENT_PENDING, Reason.SCHEDULING),
    (RUN, "otherwise (waking, restarting)"): (Phase.STARTING, Reason.STARTING),
}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.goal}: {row.when}")
def test_phase_and_reason_of_each_row(row: Row) -> None:
    assert (row.phase, row.reason) == EXPECTED[(row.goal, row.when)]
    assert row.reason is None or row.reason in REASONS


@pytest.mark.parametrize("goal", DesiredState)
def test_the_last_row_of_a_goal_always_holds(goal: DesiredState) -> None:
    last = [row for row in TABLE if row.goal is goal][-1]
    assert last.holds(Situation(seen(**NOTHING), Goal(goal, "a test")))
    assert last.holds(Situation(seen(), Goal(goal, "a test")))


def test_trouble_of_the_instance_comes_before_the_vms() -> None:
    both = seen(virtual_machine=a_vm(trouble=REFUSED), instance=an_instance(PENDING, trouble=FULL))
    assert Situation(both, Goal(RUN, "")).trouble == FULL


def test_trouble_of_a_vanishing_instance_does_not_count() -> None:
    leaving = seen(instance=an_instance(PENDING, trouble=FULL, deleting=True))
    assert Situation(leaving, Goal(RUN, "")).trouble is None


def test_a_new_boot_is_not_the_one_that_answered() -> None:
    other = an_instance(ready=False, uid="another-vmi")
    row = row_of(Situation(seen(Phase.RUNNING, known=True, instance=other), Goal(RUN, "")))
    assert row.phase is Phase.STARTING
