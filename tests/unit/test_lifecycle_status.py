"""The status in words, stamps and counters."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from machine_operator.api.conditions import ConditionType
from machine_operator.api.machine import MachineStatus
from machine_operator.api.phases import REASONS, Phase, Reason
from machine_operator.lifecycle.goal import goal_of
from machine_operator.lifecycle.observation import (
    InstancePhase,
    Observation,
    RunStrategy,
    Trouble,
)
from machine_operator.lifecycle.situation import Situation
from machine_operator.lifecycle.status import status_of, with_trouble
from tests.support.decisions import answered, conditions
from tests.support.machines import (
    LIMITS,
    NOW,
    a_claim,
    a_machine,
    a_vm,
    an_instance,
    an_observation,
)

LATER = NOW + timedelta(minutes=1)
NOTHING: dict[str, Any] = {"virtual_machine": None, "instance": None, "home": None, "seed": None}
HALTED = a_vm(run_strategy=RunStrategy.OFF)
FULL = Trouble(Reason.UNSCHEDULABLE, "0/3 nodes are available")


def status(seen: Observation, now: Any = NOW) -> MachineStatus:
    return status_of(situation(seen, now))


def situation(seen: Observation, now: Any = NOW) -> Situation:
    return Situation(answered(seen), goal_of(seen.machine, now=now), now, LIMITS)


def with_status(seen: Observation, before: MachineStatus) -> Observation:
    return replace(seen, machine=seen.machine.model_copy(update={"status": before}))


def sleeping(**parts: Any) -> Observation:
    machine = a_machine(spec={"desired_state": "sleeping"})
    return an_observation(machine, **({"virtual_machine": HALTED, "instance": None} | parts))


@pytest.mark.parametrize(
    "seen",
    [an_observation(), an_observation(**NOTHING), sleeping(), an_observation(home=None)],
    ids=["running", "new", "sleeping", "no disk"],
)
def test_all_conditions_are_there_in_order(seen: Observation) -> None:
    found = status(seen)
    assert [c.type for c in found.conditions] == [str(kind) for kind in ConditionType]
    for condition in found.conditions:
        assert condition.message
        assert condition.observedGeneration == seen.machine.metadata.generation
        assert condition.lastTransitionTime == "2026-03-01T10:00:00Z", "metav1.Time has no fraction"


def test_a_running_machine() -> None:
    found = status(an_observation())
    assert conditions(found) == {
        "Ready": ("True", "DesiredStateReached"),
        "Reconciling": ("False", "DesiredStateReached"),
        "Stalled": ("False", "DesiredStateReached"),
        "Awake": ("True", "Awake"),
        "Scheduled": ("True", "NodeAssigned"),
        "StorageReady": ("True", "StorageBound"),
        "GuestReachable": ("True", "GuestAnswers"),
        "RestartPending": ("False", "SizesApplied"),
    }
    assert found.last_error is None
    assert found.node == "node-1"
    assert found.effective is not None
    assert found.effective.storage_gib == 10


def test_a_sleeping_machine_is_ready_too() -> None:
    found = conditions(status(sleeping()))
    assert found["Ready"] == ("True", "DesiredStateReached")
    assert found["Awake"] == found["Scheduled"] == found["GuestReachable"] == ("False", "Asleep")


def test_a_starting_machine_is_reconciling() -> None:
    seen = an_observation(instance=an_instance(InstancePhase.SCHEDULED, ready=False))
    found = conditions(status(seen))
    assert found["Ready"][0] == "False"
    assert found["Reconciling"] == ("True", "Starting")
    assert found["Stalled"][0] == "False"


def test_a_machine_without_a_node_is_stalled_and_says_why() -> None:
    found = status(an_observation(instance=an_instance(InstancePhase.PENDING, trouble=FULL)))
    assert found.last_error == FULL.message
    assert conditions(found)["Stalled"] == ("True", "Unschedulable")
    assert conditions(found)["Scheduled"] == ("False", "Unschedulable")
    assert conditions(found)["Reconciling"][0] == "False"
    stalled = next(c for c in found.conditions if c.type == "Stalled")
    assert FULL.message in stalled.message
    assert REASONS[Reason.UNSCHEDULABLE].unblocks in stalled.message


@pytest.mark.parametrize("reason", [Reason.STORAGE_LOST, Reason.GUEST_NOT_REACHABLE])
def test_what_to_do_is_said_once(reason: Reason) -> None:
    known = status(an_observation())
    seen = with_status(an_observation(), known)
    if reason is Reason.STORAGE_LOST:
        seen = replace(seen, home=None)
    else:
        seen = replace(seen, instance=an_instance(ready=False))
    found = status(seen)
    assert found.reason == reason
    stalled = next(c for c in found.conditions if c.type == "Stalled")
    assert stalled.message.count(REASONS[reason].unblocks) == 1


# ---- stamps and counters


def test_stamps_move_with_the_phase_only() -> None:
    first = status(an_observation(**NOTHING), NOW)
    assert (first.phase, first.transitions, first.last_transition_at) == (Phase.ACCEPTED, 1, NOW)
    same = status(with_status(an_observation(**NOTHING), first), LATER)
    assert same == first
    up = status(with_status(an_observation(), first), LATER)
    assert (up.phase, up.transitions, up.last_transition_at) == (Phase.RUNNING, 2, LATER)
    assert up.last_progress_at == LATER


def test_progress_is_more_than_a_phase() -> None:
    waiting = an_observation(instance=an_instance(InstancePhase.PENDING, trouble=FULL))
    first = status(with_status(waiting, status(waiting)))
    room = replace(waiting, instance=an_instance(InstancePhase.PENDING))
    second = status(with_status(room, first), LATER)
    assert second.phase is first.phase
    assert (second.last_transition_at, second.last_progress_at) == (first.last_transition_at, LATER)


def test_a_condition_keeps_its_stamp_while_its_status_stays() -> None:
    waiting = an_observation(instance=an_instance(InstancePhase.PENDING, trouble=FULL))
    first = status(waiting)
    second = status(with_status(an_observation(), first), LATER)
    stamps = {c.type: c.lastTransitionTime for c in second.conditions}
    assert stamps["Ready"] == stamps["Awake"] == "2026-03-01T10:01:00Z"
    assert stamps["StorageReady"] == stamps["RestartPending"] == "2026-03-01T10:00:00Z"


def test_the_revision_is_the_sum_of_what_only_grows() -> None:
    request = {
        "state": "running",
        "by": "ada",
        "at": "2026-03-01T10:00:00Z",
        "sequence": 5,
        "spec_desired_state": "running",
    }
    machine = a_machine(
        generation=3, status={"phase": "running", "transitions": 4, "power_request": request}
    )
    assert status(an_observation(machine)).revision == "12"
    moved = status(
        an_observation(machine, virtual_machine=a_vm(start_requested=True), instance=None)
    )
    assert (moved.transitions, moved.revision) == (5, "13")


@pytest.mark.parametrize(
    ("before", "seen", "wakes"),
    [
        ("sleeping", an_observation(instance=None), 1),
        ("sleeping", an_observation(), 1),
        ("stopping", an_observation(instance=None), 0),
        ("starting", an_observation(), 0),
        ("failed", an_observation(), 0),
        (None, an_observation(**NOTHING), 0),
    ],
)
def test_a_wake_is_counted_where_sleep_ends(before: Any, seen: Observation, wakes: int) -> None:
    old = MachineStatus(phase=before, wake_count=7)
    assert status(with_status(seen, old)).wake_count == 7 + wakes


def test_a_machine_destroyed_in_its_sleep_did_not_wake() -> None:
    machine = a_machine(spec={"desired_state": "destroyed"})
    seen = with_status(an_observation(machine), MachineStatus(phase=Phase.SLEEPING, wake_count=7))
    assert status(seen).wake_count == 7


# ---- what the gateways own


def test_fields_of_the_gateways_are_never_ours() -> None:
    request = {
        "state": "sleeping",
        "by": "ada",
        "at": "2026-03-01T10:00:00Z",
        "sequence": 1,
        "spec_desired_state": "running",
    }
    activity = {"last_touch_at": "2026-03-01T10:00:00Z", "holds": []}
    machine = a_machine(status={"power_request": request, "activity": activity})
    found = status(an_observation(machine))
    assert (found.power_request, found.activity) == (None, None)


# ---- after a failed action


def test_trouble_with_an_action_keeps_the_phase_that_is_seen() -> None:
    trouble = Trouble(Reason.QUOTA_EXCEEDED, "exceeded quota: team")
    seen = an_observation(**NOTHING)
    found = with_trouble(situation(seen), trouble)
    assert (found.phase, found.reason, found.retryable) == (Phase.ACCEPTED, "QuotaExceeded", True)
    assert found.last_error == "exceeded quota: team"
    assert conditions(found)["Ready"] == ("False", "QuotaExceeded")
    assert conditions(found)["Stalled"] == ("True", "QuotaExceeded")


def test_trouble_that_is_said_again_is_the_same_status() -> None:
    trouble = Trouble(Reason.STORAGE_NOT_RESIZABLE, "cannot grow")
    seen = an_observation()
    first = with_trouble(situation(seen), trouble)
    again = with_status(seen, first)
    assert with_trouble(situation(again, LATER), trouble) == first


# ---- other aspects


def test_a_disk_that_grows_is_not_ready_yet() -> None:
    seen = an_observation(a_machine(spec={"storage_gib": 20}))
    storage = next(c for c in status(seen).conditions if c.type == "StorageReady")
    assert (storage.status, storage.message) == (
        "False",
        "The home disk grows from 10 to 20 GiB.",
    )


def test_a_disk_that_waits_for_a_volume() -> None:
    seen = an_observation(home=a_claim(bound=False, capacity_gib=0))
    assert conditions(status(seen))["StorageReady"] == ("False", "StoragePending")


def test_the_status_names_the_vm_and_its_boot() -> None:
    found = status(an_observation()).vm
    assert found is not None
    assert (found.uid, found.instance_uid, found.home_claim) == (
        "vm-uid",
        "vmi-uid",
        "m-7f3a9c215b1e-home",
    )


def test_a_message_of_any_length_fits_the_schema() -> None:
    trouble = Trouble(Reason.VIRTUAL_MACHINE_REFUSED, "x" * 100_000)
    seen = an_observation(instance=None, virtual_machine=a_vm(trouble=trouble))
    found = status(seen)
    assert len(found.last_error or "") == 2048
    stalled = next(c for c in found.conditions if c.type == "Stalled")
    assert stalled.message.endswith(REASONS[trouble.reason].unblocks), "cut off what to do"
    assert all(len(c.message) <= 4096 for c in found.conditions)


def test_a_guest_with_many_networks_fits_the_schema() -> None:
    many = tuple(f"10.0.{n}.1" for n in range(200))
    found = status(an_observation(instance=an_instance(addresses=many)))
    assert found.addresses == many[:64]


def test_a_trouble_is_something_that_somebody_has_to_end() -> None:
    with pytest.raises(ValueError, match="DesiredStateReached is no trouble"):
        Trouble(Reason.DESIRED_STATE_REACHED, "all is well")
