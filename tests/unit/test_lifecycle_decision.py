"""`decide` in named situations: making, changing, ending, pausing. Properties over any observation are elsewhere."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from machine_operator.api.names import PAUSED_ANNOTATION
from machine_operator.api.phases import Phase, Reason
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.decision import decide
from machine_operator.lifecycle.observation import (
    InstancePhase,
    Observation,
    Question,
    RunStrategy,
    Trouble,
)
from tests.support.decisions import conditions, decided, settled, status_in
from tests.support.machines import (
    LIMITS,
    NOW,
    WANTED,
    a_claim,
    a_machine,
    a_seed,
    a_vm,
    an_instance,
    an_observation,
)

THEN = "2026-03-01T10:00:00Z"
NOTHING: dict[str, Any] = {"virtual_machine": None, "instance": None, "home": None, "seed": None}
ON, OFF = RunStrategy.ON, RunStrategy.OFF
HOME = WANTED.home_name


def kinds(seen: Observation) -> list[type]:
    return [type(action) for action in decided(seen).actions]


# ---- making


def test_a_new_machine_is_made_whole_and_the_finalizer_comes_first() -> None:
    decision = decided(an_observation(a_machine(finalizers=[]), **NOTHING))
    assert decision.actions == (
        do.AddFinalizer(),
        do.ApplyHome(HOME),
        do.ApplySeed(),
        do.ApplyVirtualMachine(ON),
    )
    assert decision.status is not None
    assert decision.status.phase is Phase.ACCEPTED


def test_a_machine_that_is_to_sleep_is_made_asleep() -> None:
    seen = an_observation(a_machine(spec={"desired_state": "sleeping"}), **NOTHING)
    assert do.ApplyVirtualMachine(OFF) in decided(seen).actions


def test_the_steady_state_does_nothing() -> None:
    seen = settled(an_observation(a_machine(spec={"autosleep": "never"})))
    decision = decided(seen, now=NOW + timedelta(days=1))
    assert (decision.actions, decision.requeue_after) == ((), None)
    assert decision.status == seen.machine.status


def test_each_child_that_differs_is_applied_and_no_other() -> None:
    assert kinds(an_observation(home=a_claim(applied="old"))) == [do.ApplyHome]
    assert kinds(an_observation(seed=a_seed(applied="old"))) == [do.ApplySeed]
    assert kinds(an_observation(virtual_machine=a_vm(applied="old"))) == [do.ApplyVirtualMachine]
    assert kinds(an_observation(virtual_machine=a_vm(run_strategy="Manual"))) == [
        do.ApplyVirtualMachine
    ]


def test_labels_that_somebody_took_off_the_disk_are_put_back() -> None:
    known = settled(an_observation())
    bare = replace(known, home=a_claim(machine="", machine_uid="", owned=False))
    assert decided(bare).actions == (do.ApplyHome(HOME),)


def test_children_on_their_way_out_are_left_alone() -> None:
    leaving = an_observation(
        virtual_machine=a_vm(deleting=True, applied="old"),
        home=a_claim(deleting=True, applied="old"),
    )
    assert kinds(leaving) == []


# ---- a template that changed


@pytest.mark.parametrize("change", [{"started_from": "old"}, {"memory_mib": 256}])
def test_a_boot_that_waits_with_the_old_template_is_switched_off_and_on(
    change: dict[str, Any],
) -> None:
    stuck = an_instance(InstancePhase.PENDING, **change)
    assert decided(an_observation(instance=stuck)).actions == (do.ApplyVirtualMachine(OFF),)
    halted = a_vm(run_strategy=OFF)
    assert kinds(an_observation(virtual_machine=halted, instance=stuck)) == []
    unnoticed = a_vm(run_strategy=OFF, halting=True)
    assert kinds(an_observation(virtual_machine=unnoticed, instance=None)) == []
    assert decided(an_observation(virtual_machine=halted, instance=None)).actions == (
        do.ApplyVirtualMachine(ON),
    )


RESTARTS = [
    ({}, {}, None),
    ({"started_from": "old"}, {}, "a change of the image or of the VM's settings"),
    ({"started_from": "old"}, {"vcpu": 2}, "2 vCPU instead of 0.25"),
    ({}, {"memory_mib": 1024}, "1024 MiB of memory instead of 512"),
    (
        {"started_from": "old"},
        {"vcpu": 1.5, "memory_mib": 1024},
        "1.5 vCPU instead of 0.25, 1024 MiB of memory instead of 512",
    ),
]


@pytest.mark.parametrize(("boot", "spec", "waits"), RESTARTS)
def test_a_running_boot_says_what_waits_for_a_restart(
    boot: dict[str, Any], spec: dict[str, Any], waits: str | None
) -> None:
    seen = an_observation(a_machine(spec=spec), instance=an_instance(**boot))
    assert decided(seen).actions == ()
    pending = next(c for c in status_in(seen).conditions if c.type == "RestartPending")
    expected = f"Wait for the next start: {waits}." if waits else "No change waits for a restart."
    assert (pending.status, pending.message) == ("True" if waits else "False", expected)
    assert pending.reason == ("SizesDiffer" if waits else "SizesApplied")


@pytest.mark.parametrize("phase", [p for p in InstancePhase if p is not InstancePhase.RUNNING])
def test_only_what_runs_can_wait_for_a_restart(phase: InstancePhase) -> None:
    seen = an_observation(instance=an_instance(phase, started_from="old"))
    assert conditions(status_in(seen))["RestartPending"] == ("False", "SizesApplied")


@pytest.mark.parametrize("strategy", [ON, "Always"])
@pytest.mark.parametrize("planned", [True, False])
def test_a_planned_start_is_taken_back_before_the_vm_is_switched_off(
    strategy: str, planned: bool
) -> None:
    vm = a_vm(run_strategy=strategy, start_requested=planned)
    machine = a_machine(spec={"desired_state": "sleeping"})
    seen = an_observation(machine, virtual_machine=vm, instance=None)
    assert decided(seen).actions == (do.ApplyVirtualMachine(OFF, drop_start=planned),)


def test_a_planned_start_is_welcome_where_the_machine_is_to_run() -> None:
    restarting = a_vm(start_requested=True, applied="old")
    seen = an_observation(virtual_machine=restarting, instance=None)
    assert decided(seen).actions == (do.ApplyVirtualMachine(ON),)


# ---- an instance whose VM is gone


ORPHAN = an_observation(virtual_machine=None)


def test_an_orphan_is_asked_about_before_it_is_removed() -> None:
    decision = decide(ORPHAN, now=NOW, limits=LIMITS)
    assert (decision.actions, decision.status) == ((), None)
    assert decision.questions == {Question.VIRTUAL_MACHINE}
    assert decided(ORPHAN).actions == (do.DeleteInstance("vmi-uid"),)
    found = replace(ORPHAN, virtual_machine=a_vm())
    assert decided(found).actions == (), "the cache of VMs was behind"


def test_no_vm_is_made_before_the_orphan_is_gone() -> None:
    leaving = replace(ORPHAN, instance=an_instance(deleting_since=NOW))
    assert decide(leaving, now=NOW, limits=LIMITS).questions == frozenset()
    assert kinds(leaving) == []
    assert kinds(replace(ORPHAN, instance=None)) == [do.ApplyVirtualMachine]


# ---- the end


def test_the_end_goes_step_by_step() -> None:
    machine = a_machine(deletionTimestamp=THEN)
    first = an_observation(machine)
    assert decided(first).actions == (do.DeleteVirtualMachine("vm-uid"),)
    waiting = an_observation(machine, virtual_machine=a_vm(deleting=True))
    assert kinds(waiting) == []
    still_on = an_observation(machine, virtual_machine=None)
    assert decided(still_on).actions == (do.DeleteInstance("vmi-uid"),)
    off = an_observation(machine, virtual_machine=None, instance=None)
    assert decided(off).actions == (do.DeleteHome(HOME, "home-uid"), do.DeleteSeed("seed-uid"))
    disk = an_observation(
        machine, virtual_machine=None, instance=None, seed=None, home=a_claim(deleting=True)
    )
    assert kinds(disk) == []
    last = decided(an_observation(machine, **NOTHING))
    assert (last.actions, last.status) == ((do.RemoveFinalizer(),), None)


def test_a_retained_disk_is_released_once() -> None:
    machine = a_machine(deletionTimestamp=THEN, spec={"reclaim_policy": "Retain"})
    off = an_observation(machine, virtual_machine=None, instance=None, seed=None)
    assert decided(off).actions == (do.ReleaseHome(HOME, "home-uid"),)
    free = a_claim(owned=False, applied="")
    released = an_observation(machine, virtual_machine=None, instance=None, seed=None, home=free)
    assert kinds(released) == [do.RemoveFinalizer]


def test_somebody_elses_disk_is_left_alone_at_the_end() -> None:
    other = a_claim(machine="other", machine_uid="another-uid")
    seen = an_observation(a_machine(deletionTimestamp=THEN), **NOTHING | {"home": other})
    assert kinds(seen) == [do.RemoveFinalizer]


def test_a_destroyed_machine_stays_as_a_record() -> None:
    seen = an_observation(a_machine(spec={"desired_state": "destroyed"}), **NOTHING)
    status = status_in(seen)
    assert kinds(seen) == []
    assert (status.phase, status.vm) == (Phase.DESTROYED, None)
    assert conditions(status)["Ready"][0] == "False"


def test_with_somebody_elses_finalizer_nothing_is_left_to_us() -> None:
    machine = a_machine(deletionTimestamp=THEN, finalizers=["other/one"])
    decision = decided(an_observation(machine, **NOTHING))
    assert (decision.actions, decision.status) == ((), None)


@pytest.mark.parametrize(
    ("machine", "phase"),
    [
        (a_machine(deletionTimestamp=THEN), Phase.DESTROYING),
        (a_machine(spec={"desired_state": "sleeping"}), Phase.STOPPING),
    ],
)
def test_a_stop_that_takes_too_long_is_told_with_its_node(machine: Any, phase: Phase) -> None:
    leaving = an_instance(deleting_since=NOW)
    seen = settled(
        an_observation(machine, virtual_machine=a_vm(run_strategy=OFF), instance=leaving)
    )
    first = decided(seen)
    assert (first.status and first.status.phase, first.requeue_after) == (phase, 90.0)
    late = decided(seen, now=NOW + timedelta(seconds=90)).status
    assert late is not None
    assert (late.phase, late.reason, late.retryable) == (phase, "StopTimeout", True)
    assert late.last_error == (
        "The VM on node node-1 was told to stop and is still there after 90 s."
    )


# ---- a spec that cannot be read


FAULT = "machine ns/box cannot be read: spec.vcpu: vcpu 0.3 is not a multiple of 0.25"


def test_nothing_is_touched_while_the_spec_cannot_be_read() -> None:
    machine = a_machine(spec={"desired_state": "sleeping"}, finalizers=[])
    seen = an_observation(machine, fault=FAULT, home=None, virtual_machine=a_vm(applied="x"))
    decision = decide(seen, now=NOW, limits=LIMITS)
    assert (decision.actions, decision.questions) == ((), frozenset())
    assert decision.status is not None
    assert (decision.status.phase, decision.status.reason) == (Phase.FAILED, "SpecInvalid")
    assert (decision.status.last_error, decision.status.retryable) == (FAULT, False)
    assert decision.status.next_sleep_at is None


def test_a_machine_that_cannot_be_read_can_be_deleted_and_keeps_its_disk() -> None:
    stand_in = {"desired_state": "sleeping", "reclaim_policy": "Retain"}
    machine = a_machine(deletionTimestamp=THEN, spec=stand_in)
    assert kinds(an_observation(machine, fault=FAULT)) == [do.DeleteVirtualMachine]
    off = an_observation(machine, fault=FAULT, virtual_machine=None, instance=None)
    assert kinds(off) == [do.ReleaseHome, do.DeleteSeed]
    free = a_claim(owned=False)
    assert kinds(an_observation(machine, fault=FAULT, **NOTHING | {"home": free})) == [
        do.RemoveFinalizer
    ]


# ---- paused


def paused(**parts: Any) -> Observation:
    return an_observation(
        a_machine(annotations={PAUSED_ANNOTATION: "true"}, finalizers=[], **parts), **NOTHING
    )


@pytest.mark.parametrize(
    "parts", [{}, {"deletionTimestamp": THEN}, {"spec": {"desired_state": "sleeping"}}]
)
def test_a_paused_machine_is_looked_at_and_left_alone(parts: dict[str, Any]) -> None:
    decision = decided(paused(**parts))
    assert decision.actions == ()
    assert decision.status is not None
    found = {c.type: c for c in decision.status.conditions}["Reconciling"]
    assert (found.status, found.reason) == ("False", "Paused")
    assert found.message.endswith("Remove the annotation.")


def test_what_is_said_of_a_paused_machine_is_asked_for_first() -> None:
    """A disk whose labels were taken off is not in the caches, and not lost."""
    known = settled(an_observation())
    status = known.machine.status.to_dict()
    machine = a_machine(annotations={PAUSED_ANNOTATION: "true"}, status=status)
    seen = replace(known, machine=machine, home=None, answered=frozenset())
    assert decide(seen, now=NOW, limits=LIMITS).questions == {Question.HOME}


def test_only_the_word_true_pauses() -> None:
    awake = a_machine(annotations={PAUSED_ANNOTATION: "false"}, finalizers=[])
    assert decided(an_observation(awake, **NOTHING)).actions != ()


# ---- a status of somebody's making


GARBAGE = {
    "phase": "running",
    "reason": "Whatever",
    "transitions": 7,
    "last_transition_at": "9999-12-31T23:59:59Z",
    "last_progress_at": "0001-01-01T00:00:00Z",
    "node": "nowhere",
    "addresses": ["1.2.3.4"],
    "backoff": {"failures": 10**12, "next_retry_at": "9999-12-31T23:59:59Z"},
    "activity": {
        "holds": [{"id": "e", "kind": "x", "since": THEN, "expires_at": "9999-12-31T23:59:59Z"}]
    },
    "conditions": [
        {
            "type": "Stalled",
            "status": "False",
            "reason": "X",
            "message": "",
            "lastTransitionTime": "yesterday",
        }
    ],
}


@pytest.mark.parametrize("phase", Phase)
def test_a_garbage_status_is_repaired(phase: Phase) -> None:
    seen = an_observation(a_machine(status=GARBAGE | {"phase": phase}), instance=an_instance())
    status = status_in(seen)
    assert (status.phase, status.reason) == (Phase.RUNNING, "DesiredStateReached")
    assert (status.node, status.addresses) == ("node-1", ())
    assert status.vm is not None
    down = decided(replace(seen, instance=None)).status
    assert down is not None


def test_a_phase_that_was_made_up_does_not_stop_a_machine_from_being_made() -> None:
    seen = an_observation(a_machine(status={"phase": "sleeping"}), **NOTHING)
    assert kinds(seen) == [do.ApplyHome, do.ApplySeed, do.ApplyVirtualMachine]


# ---- what is waited for is told


def test_a_refused_vm_waits_for_somebody() -> None:
    refused = a_vm(trouble=Trouble(Reason.QUOTA_EXCEEDED, "exceeded quota: team"))
    status = status_in(an_observation(virtual_machine=refused, instance=None))
    assert (status.phase, status.reason) == (Phase.FAILED, "QuotaExceeded")
    assert status.last_error == "exceeded quota: team"
