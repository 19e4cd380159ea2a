"""`decide` over any observation: total, never contradictory, still once all is said."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import given, settings

from machine_operator.api.machine import MachineStatus
from machine_operator.api.names import FINALIZER
from machine_operator.api.phases import REASONS, DesiredState, Phase, Reason, ReclaimPolicy
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.decision import Decision, decide
from machine_operator.lifecycle.goal import goal_of
from machine_operator.lifecycle.observation import InstancePhase, Observation
from tests.support.machines import (
    NOW,
    a_claim,
    a_machine,
    a_seed,
    a_vm,
    an_instance,
    an_observation,
)
from tests.support.observations import moments, observations

THEN = "2026-03-01T10:00:00Z"
MANY = settings(max_examples=100, deadline=None)
TARGET: dict[type, str] = {
    do.AddFinalizer: "finalizer",
    do.RemoveFinalizer: "finalizer",
    do.ApplyHome: "home",
    do.ReleaseHome: "home",
    do.DeleteHome: "home",
    do.ApplySeed: "seed",
    do.DeleteSeed: "seed",
    do.ApplyVirtualMachine: "vm",
    do.DeleteVirtualMachine: "vm",
}
APPLY = (do.ApplyHome, do.ApplySeed, do.ApplyVirtualMachine)
DELETE = (do.DeleteHome, do.DeleteSeed, do.DeleteVirtualMachine, do.ReleaseHome)


def reported(seen: Observation, status: MachineStatus) -> Observation:
    """The same observation once the status was written: the gateways' parts stay."""
    before = seen.machine.status
    kept = {"power_request": before.power_request, "activity": before.activity}
    written = MachineStatus.model_validate(status.to_dict()).model_copy(update=kept)
    return replace(seen, machine=seen.machine.model_copy(update={"status": written}))


# ---- any observation


@MANY
@given(seen=observations(), now=moments)
def test_actions_never_contradict_each_other(seen: Observation, now: datetime) -> None:
    decision = decide(seen, now=now)
    assert decide(seen, now=now) == decision
    targets = [TARGET[type(action)] for action in decision.actions]
    assert len(targets) == len(set(targets)), "two actions on one object"
    building = any(isinstance(action, APPLY) for action in decision.actions)
    ending = any(isinstance(action, DELETE) for action in decision.actions)
    ends = goal_of(seen.machine).state is DesiredState.DESTROYED
    assert not (building and ends)
    assert not (ending and not ends)
    _finalizer_first(seen, decision)
    _finalizer_last(seen, decision)
    _disk_unused(seen, decision)


def _finalizer_first(seen: Observation, decision: Decision) -> None:
    held = FINALIZER in seen.machine.metadata.finalizers
    if not held:
        assert not any(isinstance(action, APPLY) for action in decision.actions)
    if do.AddFinalizer() in decision.actions:
        assert decision.actions == (do.AddFinalizer(),)
        assert not held


def _finalizer_last(seen: Observation, decision: Decision) -> None:
    if do.RemoveFinalizer() in decision.actions:
        assert decision.actions == (do.RemoveFinalizer(),)
        assert seen.machine.metadata.deletionTimestamp is not None
        assert (seen.virtual_machine, seen.instance, seen.seed) == (None, None, None)
        assert seen.home_is_done


def _disk_unused(seen: Observation, decision: Decision) -> None:
    """A disk is neither deleted nor released while something may write to it."""
    if any(isinstance(action, do.DeleteHome | do.ReleaseHome) for action in decision.actions):
        assert seen.virtual_machine is None
        assert seen.instance is None
    if any(isinstance(action, do.DeleteHome) for action in decision.actions):
        assert seen.machine.spec.reclaim_policy is ReclaimPolicy.DELETE


@MANY
@given(seen=observations(), first=moments, second=moments)
def test_a_reported_status_stays_as_it_is(
    seen: Observation, first: datetime, second: datetime
) -> None:
    """Nothing changed but the time: the same actions, and not one byte of status."""
    decision = decide(seen, now=first)
    if decision.status is None:
        return
    again = decide(reported(seen, decision.status), now=second)
    # A changed phase can change the row once (a new machine is new only once); then it is still.
    assert again.status is not None
    settled = reported(seen, again.status)
    third = decide(settled, now=second + timedelta(days=400))
    assert third.status is not None
    assert third.status == settled.machine.status.model_copy(
        update={"power_request": None, "activity": None}
    )
    assert third.actions == again.actions


@MANY
@given(seen=observations(), now=moments)
def test_a_status_names_its_reason_and_counts_on(seen: Observation, now: datetime) -> None:
    status = decide(seen, now=now).status
    if status is None:
        assert seen.machine.metadata.deletionTimestamp is not None
        return
    _reason_named(seen, status)
    _counts_on(seen.machine.status, status)
    sequence = (
        seen.machine.status.power_request.sequence if seen.machine.status.power_request else 0
    )
    assert int(status.revision or "") == (
        seen.machine.metadata.generation + (status.transitions or 0) + sequence
    )


def _reason_named(seen: Observation, status: MachineStatus) -> None:
    """A machine that is not where it should be says what it does or waits for."""
    reason = Reason(status.reason or "")
    assert status.phase is not None
    assert status.retryable == REASONS[reason].retryable
    ready = next(c for c in status.conditions if c.type == "Ready")
    if ready.status == "True":
        assert reason is Reason.DESIRED_STATE_REACHED
        assert status.phase in (Phase.RUNNING, Phase.SLEEPING)
        assert status.phase == goal_of(seen.machine).state
    elif status.phase is not Phase.DESTROYED:
        assert reason is not Reason.DESIRED_STATE_REACHED
    if status.phase is Phase.FAILED:
        assert status.last_error is not None or REASONS[reason].unblocks == "Nothing to do."


def _counts_on(before: MachineStatus, after: MachineStatus) -> None:
    moved = after.phase != before.phase
    assert (after.transitions or 0) - (before.transitions or 0) == moved
    assert 0 <= (after.wake_count or 0) - (before.wake_count or 0) <= moved
    if not moved:
        assert after.last_transition_at == before.last_transition_at


# ---- named situations


def kinds(seen: Observation) -> list[type]:
    return [type(action) for action in decide(seen, now=NOW).actions]


def settled(seen: Observation) -> Observation:
    status = decide(seen, now=NOW).status
    assert status is not None
    return reported(seen, status)


NOTHING = {"virtual_machine": None, "instance": None, "home": None, "seed": None}


def test_a_new_machine_gets_its_finalizer_alone() -> None:
    decision = decide(an_observation(a_machine(finalizers=[]), **NOTHING), now=NOW)
    assert decision.actions == (do.AddFinalizer(),)
    assert decision.status is not None
    assert decision.status.phase is Phase.ACCEPTED


def test_then_the_disk_the_seed_and_the_vm_which_uses_both() -> None:
    assert decide(an_observation(**NOTHING), now=NOW).actions == (
        do.ApplyHome(),
        do.ApplySeed(),
        do.ApplyVirtualMachine("Always"),
    )


def test_a_machine_that_is_to_sleep_is_made_asleep() -> None:
    seen = an_observation(a_machine(spec={"desired_state": "sleeping"}), **NOTHING)
    assert do.ApplyVirtualMachine("Halted") in decide(seen, now=NOW).actions


def test_the_steady_state_does_nothing() -> None:
    seen = settled(settled(an_observation()))
    decision = decide(seen, now=NOW + timedelta(days=1))
    assert decision.actions == ()
    assert decision.status == seen.machine.status


def test_each_child_that_differs_is_applied_and_no_other() -> None:
    assert kinds(an_observation(home=a_claim(applied="old"))) == [do.ApplyHome]
    assert kinds(an_observation(seed=a_seed(applied="old"))) == [do.ApplySeed]
    assert kinds(an_observation(virtual_machine=a_vm(applied="old"))) == [do.ApplyVirtualMachine]
    assert kinds(an_observation(virtual_machine=a_vm(run_strategy="Manual"))) == [
        do.ApplyVirtualMachine
    ]


def test_children_on_their_way_out_are_left_alone() -> None:
    leaving = an_observation(
        virtual_machine=a_vm(deleting=True, applied="old"),
        home=a_claim(deleting=True, applied="old"),
    )
    assert kinds(leaving) == []


def test_a_boot_that_waits_with_the_old_template_is_switched_off_and_on() -> None:
    stuck = an_instance(InstancePhase.PENDING, applied="old")
    assert decide(an_observation(instance=stuck), now=NOW).actions == (
        do.ApplyVirtualMachine("Halted"),
    )
    halted = a_vm(run_strategy="Halted")
    assert kinds(an_observation(virtual_machine=halted, instance=stuck)) == []
    assert decide(an_observation(virtual_machine=halted, instance=None), now=NOW).actions == (
        do.ApplyVirtualMachine("Always"),
    )


def test_a_running_boot_with_the_old_template_waits_for_a_restart() -> None:
    seen = an_observation(instance=an_instance(applied="old"))
    decision = decide(seen, now=NOW)
    assert decision.actions == ()
    assert decision.status is not None
    pending = {c.type: c for c in decision.status.conditions}["RestartPending"]
    assert (pending.status, pending.reason) == ("True", "SizesDiffer")


# ---- the end


def test_the_end_goes_step_by_step() -> None:
    machine = a_machine(deletionTimestamp=THEN)
    first = an_observation(machine)
    assert decide(first, now=NOW).actions == (do.DeleteVirtualMachine("vm-uid"),)
    waiting = an_observation(machine, virtual_machine=a_vm(deleting=True))
    assert kinds(waiting) == []
    still_on = an_observation(machine, virtual_machine=None)
    assert not {do.DeleteHome, do.DeleteSeed} & set(kinds(still_on))
    off = an_observation(machine, virtual_machine=None, instance=None)
    assert decide(off, now=NOW).actions == (do.DeleteHome("home-uid"), do.DeleteSeed("seed-uid"))
    disk = an_observation(
        machine, virtual_machine=None, instance=None, seed=None, home=a_claim(deleting=True)
    )
    assert kinds(disk) == []
    last = an_observation(machine, **NOTHING)
    decision = decide(last, now=NOW)
    assert (decision.actions, decision.status) == ((do.RemoveFinalizer(),), None)


def test_a_retained_disk_is_released_once() -> None:
    machine = a_machine(deletionTimestamp=THEN, spec={"reclaim_policy": "Retain"})
    off = an_observation(machine, virtual_machine=None, instance=None, seed=None)
    assert decide(off, now=NOW).actions == (do.ReleaseHome("home-uid"),)
    free = a_claim(owned=False, applied="")
    released = an_observation(machine, virtual_machine=None, instance=None, seed=None, home=free)
    assert kinds(released) == [do.RemoveFinalizer]


def test_a_destroyed_machine_stays_as_a_record() -> None:
    seen = an_observation(a_machine(spec={"desired_state": "destroyed"}), **NOTHING)
    decision = decide(seen, now=NOW)
    assert decision.actions == ()
    assert decision.status is not None
    assert (decision.status.phase, decision.status.vm) == (Phase.DESTROYED, None)


def test_with_somebody_elses_finalizer_nothing_is_left_to_us() -> None:
    machine = a_machine(deletionTimestamp=THEN, finalizers=["other/one"])
    decision = decide(an_observation(machine, **NOTHING), now=NOW)
    assert (decision.actions, decision.status) == ((), None)


# ---- the lost disk


def test_a_lost_disk_is_never_replaced() -> None:
    seen = settled(an_observation())
    lost = replace(seen, home=None)
    decision = decide(lost, now=NOW)
    assert decision.actions == ()
    assert decision.status is not None
    assert (decision.status.phase, decision.status.reason) == (Phase.FAILED, "StorageLost")
    storage = {c.type: c for c in decision.status.conditions}["StorageReady"]
    assert (storage.status, storage.reason) == ("False", "StorageLost")
    again = decide(reported(lost, decision.status), now=NOW)
    assert again.actions == (), "forgotten after the first look"


def test_a_lost_disk_is_remembered_when_the_vm_goes_as_well() -> None:
    seen = settled(an_observation())
    gone = replace(seen, virtual_machine=None, instance=None)
    after = settled(gone)
    assert decide(replace(after, home=None), now=NOW).actions == ()


def test_a_disk_that_never_had_a_volume_is_made_again() -> None:
    seen = settled(an_observation(home=a_claim(bound=False, capacity_gib=0), instance=None))
    assert kinds(replace(seen, home=None)) == [do.ApplyHome]


def test_a_disk_that_comes_back_ends_it() -> None:
    lost = settled(replace(settled(an_observation()), home=None))
    decision = decide(replace(lost, home=a_claim()), now=NOW)
    assert decision.status is not None
    assert decision.status.phase is Phase.RUNNING


def test_a_machine_whose_disk_is_lost_can_be_destroyed() -> None:
    lost = settled(replace(settled(an_observation()), home=None))
    machine = lost.machine.model_copy(
        update={"metadata": lost.machine.metadata.model_copy(update={"deletionTimestamp": NOW})}
    )
    assert kinds(replace(lost, machine=machine)) == [do.DeleteVirtualMachine]
