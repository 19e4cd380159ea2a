"""The home disk: never lost without a word, never replaced by an empty one, adopted on purpose only."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from machine_operator.api.names import ADOPT_ANNOTATION
from machine_operator.api.phases import Phase, Reason
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.decision import decide
from machine_operator.lifecycle.observation import Observation, Question
from machine_operator.lifecycle.questions import UNBOUND_PATIENCE
from tests.support.decisions import conditions, decided, settled, status_in
from tests.support.machines import LIMITS, NOW, WANTED, a_claim, a_machine, a_vm, an_observation

NOTHING: dict[str, Any] = {"virtual_machine": None, "instance": None, "home": None, "seed": None}
HOME = WANTED.home_name
BARE = {"machine": "", "machine_uid": "", "owned": False}


def kinds(seen: Observation) -> list[type]:
    return [type(action) for action in decided(seen).actions]


# ---- the lost disk


def test_a_lost_disk_is_never_replaced() -> None:
    lost = replace(settled(an_observation()), home=None)
    assert decide(lost, now=NOW, limits=LIMITS).questions == {Question.HOME}
    decision = decided(lost)
    assert decision.actions == ()
    assert decision.status is not None
    assert (decision.status.phase, decision.status.reason) == (Phase.FAILED, "StorageLost")
    assert conditions(decision.status)["StorageReady"] == ("False", "StorageLost")
    again = settled(lost)
    assert decided(again).actions == (), "forgotten after the first look"
    assert decided(again).requeue_after == 30.0, "nothing else tells when it is back"


def test_a_lost_disk_is_remembered_when_the_vm_goes_as_well() -> None:
    gone = settled(replace(settled(an_observation()), virtual_machine=None, instance=None))
    assert decided(replace(gone, home=None)).actions == ()


def test_a_disk_that_never_had_a_volume_is_made_again() -> None:
    seen = settled(an_observation(home=a_claim(bound=False, capacity_gib=0), instance=None))
    assert kinds(replace(seen, home=None)) == [do.ApplyHome]


@pytest.mark.parametrize("back", [a_claim(), a_claim(**BARE)], ids=["ours", "without labels"])
def test_a_disk_that_comes_back_ends_it(back: Any) -> None:
    lost = settled(replace(settled(an_observation()), home=None))
    assert status_in(replace(lost, home=back)).phase is Phase.RUNNING


def test_a_disk_that_became_somebody_elses_is_not_taken_back() -> None:
    known = settled(an_observation())
    taken = replace(known, home=a_claim(machine="other", machine_uid="another-uid"))
    assert kinds(taken) == []
    assert status_in(taken).reason == Reason.VIRTUAL_MACHINE_FOREIGN


def test_a_machine_whose_disk_is_lost_can_be_destroyed() -> None:
    lost = settled(replace(settled(an_observation()), home=None))
    meta = lost.machine.metadata.model_copy(update={"deletionTimestamp": NOW})
    machine = lost.machine.model_copy(update={"metadata": meta})
    assert kinds(replace(lost, machine=machine)) == [do.DeleteVirtualMachine]


# ---- the disk without a volume


def test_a_disk_that_waits_long_is_asked_why() -> None:
    claim = a_claim(bound=False, capacity_gib=0, created_at=NOW)
    seen = an_observation(instance=None, home=claim)
    first = decide(seen, now=NOW, limits=LIMITS)
    assert (first.questions, first.requeue_after) == (frozenset(), UNBOUND_PATIENCE)
    late = NOW + timedelta(seconds=UNBOUND_PATIENCE)
    assert decide(seen, now=late, limits=LIMITS).questions == {Question.WHY_UNBOUND}
    silent = decided(seen, now=late)
    assert silent.status is not None
    assert (silent.status.phase, silent.requeue_after) == (Phase.PLACEMENT_PENDING, 30.0)
    told = status_in(replace(seen, unbound_because='storageclass "x" not found'), now=late)
    assert (told.phase, told.reason) == (Phase.FAILED, "StorageNotAvailable")
    assert told.last_error == 'storageclass "x" not found'


# ---- adoption


def newcomer(named: str | None = "old-home", **home: Any) -> Observation:
    """A new machine `box` that asks for this disk, and the disk as it was found."""
    machine = a_machine(annotations={ADOPT_ANNOTATION: named} if named else {})
    wanted = replace(WANTED, home_name=named or HOME)
    retained = {"name": "old-home", "applied": "", "owned": False, "machine_uid": "an-older-uid"}
    found = a_claim(**retained | home)
    return an_observation(machine, wanted=wanted, **NOTHING | {"home": found})


def test_a_retained_disk_is_adopted_under_its_name() -> None:
    assert decided(newcomer()).actions[0] == do.ApplyHome("old-home")
    assert status_in(newcomer()).phase is Phase.ACCEPTED


def test_not_without_being_asked_to() -> None:
    assert kinds(newcomer(None, name=HOME)) == []


def test_a_disk_that_is_missing_is_waited_for_and_not_made() -> None:
    missing = replace(newcomer(), home=None)
    assert decide(missing, now=NOW, limits=LIMITS).questions == {Question.HOME}
    decision = decided(missing)
    assert (decision.actions, decision.requeue_after) == ((), 30.0)
    assert decision.status is not None
    assert (decision.status.phase, decision.status.reason) == (Phase.FAILED, "StorageNotAvailable")
    assert "There is no PersistentVolumeClaim old-home" in (decision.status.last_error or "")


@pytest.mark.parametrize(
    ("home", "whose"),
    [
        ({"machine": "other"}, "of the machine 'other'"),
        ({"owned": True}, "still in use"),
        ({"foreign_owner": True}, "still in use"),
        (BARE, "not a machine's disk"),
        ({"machine_uid": ""}, "of the machine 'box'"),
        ({"machine": ""}, "not a machine's disk"),
    ],
)
def test_somebody_elses_disk_is_not_adopted(home: dict[str, Any], whose: str) -> None:
    seen = newcomer(**home)
    assert kinds(seen) == []
    status = status_in(seen)
    assert (status.phase, status.reason) == (Phase.FAILED, "VirtualMachineForeign")
    assert status.last_error == (
        f"The PersistentVolumeClaim old-home is {whose} and cannot be adopted."
    )


def test_the_annotation_counts_no_more_once_the_machine_has_a_disk() -> None:
    seen = settled(an_observation(virtual_machine=a_vm()))
    meta = seen.machine.metadata.model_copy(update={"annotations": {ADOPT_ANNOTATION: "other"}})
    late = replace(seen, machine=seen.machine.model_copy(update={"metadata": meta}))
    assert kinds(late) == []
    assert status_in(late).phase is Phase.RUNNING
    assert status_in(replace(late, home=None)).reason == Reason.STORAGE_LOST
