"""`decide` over any observation: total, never contradictory, always on its way, and still once all is said."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from machine_operator.api.crd import machine_crd
from machine_operator.api.machine import MachineStatus
from machine_operator.api.names import ADOPT_ANNOTATION, FINALIZER, PAUSED_ANNOTATION
from machine_operator.api.phases import REASONS, SETTLED, DesiredState, Phase, Reason, ReclaimPolicy
from machine_operator.kubevirt.names import home_name
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.decision import Decision, decide
from machine_operator.lifecycle.goal import goal_of
from machine_operator.lifecycle.observation import InstancePhase, Observation, Question
from tests.support.decisions import answered, decided, gist, settled
from tests.support.machines import LIMITS
from tests.support.observations import answers, moments, observations
from tests.support.structural import faults_of

MANY = settings(max_examples=100, deadline=None)
TARGET: dict[type, str] = {
    do.AddFinalizer: "finalizer",
    do.RemoveFinalizer: "finalizer",
    do.RequestPower: "power",
    do.ApplyHome: "home",
    do.ReleaseHome: "home",
    do.DeleteHome: "home",
    do.ApplySeed: "seed",
    do.DeleteSeed: "seed",
    do.ApplyVirtualMachine: "vm",
    do.DeleteVirtualMachine: "vm",
    do.DeleteInstance: "vmi",
}
APPLY = (do.ApplyHome, do.ApplySeed, do.ApplyVirtualMachine)
DELETE = (do.DeleteHome, do.DeleteSeed, do.DeleteVirtualMachine, do.ReleaseHome)
STATUS: dict[str, Any] = machine_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"][
    "properties"
]["status"]


def of(decision: Decision, *kinds: type) -> list[do.Action]:
    return [action for action in decision.actions if isinstance(action, kinds)]


def paused(seen: Observation) -> bool:
    return seen.machine.metadata.annotations.get(PAUSED_ANNOTATION) == "true"


# ---- actions


def test_every_action_has_a_target() -> None:
    assert set(TARGET) == set(do.Action.__args__)


@MANY
@given(seen=observations(), now=moments)
def test_actions_never_contradict_each_other(seen: Observation, now: datetime) -> None:
    decision = decide(seen, now=now, limits=LIMITS)
    assert decide(seen, now=now, limits=LIMITS) == decision
    targets = [TARGET[type(action)] for action in decision.actions]
    assert len(targets) == len(set(targets)), "two actions on one object"
    ends = goal_of(seen.machine, now=now).state is DesiredState.DESTROYED
    assert not (ends and of(decision, *APPLY, do.AddFinalizer, do.RequestPower))
    assert not (not ends and of(decision, *DELETE, do.RemoveFinalizer))
    assert not (decision.questions and (decision.actions or decision.status))
    assert not (decision.actions and (paused(seen) or (seen.fault is not None and not ends)))
    if not ends and of(decision, do.DeleteInstance):
        assert seen.virtual_machine is None, "not an orphan"
        assert Question.VIRTUAL_MACHINE in seen.answered


@MANY
@given(seen=observations(), now=moments)
def test_the_finalizer_comes_first_and_goes_last(seen: Observation, now: datetime) -> None:
    decision = decided(seen, now=now)
    held = FINALIZER in seen.machine.metadata.finalizers
    if of(decision, do.AddFinalizer):
        assert not held
        assert isinstance(decision.actions[0], do.AddFinalizer)
    elif not held:
        assert not of(decision, *APPLY), "a child that could be forgotten"
    if of(decision, do.RemoveFinalizer):
        assert decision.actions == (do.RemoveFinalizer(),)
        assert seen.machine.metadata.deletionTimestamp is not None
        assert (seen.virtual_machine, seen.instance, seen.seed) == (None, None, None)
        assert seen.home_is_done


@MANY
@given(seen=observations(), now=moments)
def test_a_disk_is_neither_removed_nor_released_while_something_may_use_it(
    seen: Observation, now: datetime
) -> None:
    decision = decide(seen, now=now, limits=LIMITS)
    for action in of(decision, do.DeleteHome, do.ReleaseHome):
        assert (seen.virtual_machine, seen.instance) == (None, None)
        assert seen.home is not None
        assert isinstance(action, do.DeleteHome | do.ReleaseHome)
        assert (action.name, action.uid) == (seen.home.name, seen.home.uid)
        assert seen.home.machine_uid == seen.machine.metadata.uid, "somebody else's disk"
        deletes = seen.machine.spec.reclaim_policy is ReclaimPolicy.DELETE
        assert isinstance(action, do.DeleteHome) == deletes


@MANY
@given(seen=observations(), now=moments)
def test_there_is_never_a_second_disk_nor_somebody_elses(seen: Observation, now: datetime) -> None:
    name = home_name(seen.machine, found=seen.home.name if seen.home else None)
    seen = replace(seen, wanted=replace(seen.wanted, home_name=name))
    known, home, machine = seen.machine.status.vm, seen.home, seen.machine.metadata
    for action in of(decide(seen, now=now, limits=LIMITS), do.ApplyHome):
        assert isinstance(action, do.ApplyHome)
        if home is None:
            assert known is None or known.home_claim is None, "an empty disk instead of the lost"
            assert ADOPT_ANNOTATION not in machine.annotations, "an empty disk instead of the old"
            continue
        assert action.name == home.name
        if home.machine_uid == machine.uid:
            continue
        had = known is not None and known.home_claim is not None
        assert had or ADOPT_ANNOTATION in machine.annotations, "adopted by accident"
        if home.machine_uid:
            assert (home.machine, home.owned, home.foreign_owner) == (machine.name, False, False)
        else:
            assert had, "a disk that was no machine's"


@MANY
@given(seen=observations(), now=moments)
def test_a_power_request_is_made_alone_and_only_against_the_goal(
    seen: Observation, now: datetime
) -> None:
    decision = decided(seen, now=now)
    for action in of(decision, do.RequestPower):
        assert isinstance(action, do.RequestPower)
        assert {*map(type, decision.actions)} <= {do.AddFinalizer, do.RequestPower}
        goal, request = goal_of(seen.machine, now=now), action.request
        assert goal.state is DesiredState.RUNNING
        assert (request.state == "sleeping") == (request.by in ("autosleep", "guest"))
        assert (request.by == "activity") == goal.wakes
        before = seen.machine.status.power_request
        assert request.sequence == (before.sequence if before else 0) + 1
        made = seen.machine.status.model_copy(update={"power_request": request})
        after = goal_of(seen.machine.model_copy(update={"status": made}), now=now)
        assert str(after.state) == str(request.state), "the request is not the last word"
        assert not after.wakes


# ---- questions


@MANY
@given(data=st.data(), seen=observations(), now=moments)
def test_questions_end(data: st.DataObject, seen: Observation, now: datetime) -> None:
    asked: list[Question] = []
    seen = replace(seen, answered=frozenset())
    while questions := decide(seen, now=now, limits=LIMITS).questions:
        assert not questions & seen.answered, "asked twice"
        asked += questions
        member: dict[str, Any] = dict(data.draw(answers[question]) for question in questions)
        seen = replace(seen, **member, answered=seen.answered | questions)
    assert len(asked) <= len(Question)


# ---- the status


@MANY
@given(seen=observations(), now=moments)
def test_a_status_fits_the_schema_and_stays_small(seen: Observation, now: datetime) -> None:
    status = decided(seen, now=now).status
    assume(status is not None)
    assert status is not None
    found = status.to_dict()
    assert [*faults_of(found, STATUS, path="status")] == []
    assert len(json.dumps(found)) < 65_536
    assert (status.power_request, status.activity) == (None, None), "the gateways' fields"


@MANY
@given(seen=observations(), now=moments)
def test_a_status_names_its_reason_and_counts_on(seen: Observation, now: datetime) -> None:
    status = decided(seen, now=now).status
    if status is None:
        assert seen.machine.metadata.deletionTimestamp is not None
        return
    _reason_named(seen, status, now)
    _counts_on(seen.machine.status, status)
    request = seen.machine.status.power_request
    assert int(status.revision or "") == (
        seen.machine.metadata.generation
        + (status.transitions or 0)
        + (request.sequence if request else 0)
    )


def _reason_named(seen: Observation, status: MachineStatus, now: datetime) -> None:
    reason = Reason(status.reason or "")
    assert status.phase is not None
    assert status.retryable == REASONS[reason].retryable
    found = {c.type: c for c in status.conditions}
    if found["Ready"].status == "True":
        assert reason is Reason.DESIRED_STATE_REACHED
        assert status.phase in (Phase.RUNNING, Phase.SLEEPING)
        assert str(status.phase) == str(goal_of(seen.machine, now=now).state)
    elif status.phase is not Phase.DESTROYED:
        assert reason is not Reason.DESIRED_STATE_REACHED
    stalled = REASONS[reason].is_trouble
    assert (found["Stalled"].status == "True") == stalled == (status.last_error is not None)
    if stalled:
        assert REASONS[reason].unblocks in found["Stalled"].message
    assert not (stalled and found["Reconciling"].status == "True")
    assert status.phase is not Phase.FAILED or stalled


def _counts_on(before: MachineStatus, after: MachineStatus) -> None:
    moved = after.phase != before.phase
    assert (after.transitions or 0) - (before.transitions or 0) == moved
    assert 0 <= (after.wake_count or 0) - (before.wake_count or 0) <= moved
    if not moved and before.last_transition_at is not None:
        assert after.last_transition_at == before.last_transition_at
    assert after.last_transition_at is not None


# ---- progress and rest


EVENTS = {
    Reason.ACCEPTED,
    Reason.SCHEDULING,
    Reason.STARTING,
    Reason.STOPPING,
    Reason.DESTROYING,
}
"""Reasons to wait that end by an object that this machine is told of."""


@MANY
@given(seen=observations(), now=moments)
def test_there_is_always_progress_or_a_named_reason_to_wait(
    seen: Observation, now: datetime
) -> None:
    decision = decided(seen, now=now)
    status = decision.status
    if decision.actions or status is None or paused(seen):
        return
    reason = Reason(status.reason or "")
    if status.phase in SETTLED and reason is Reason.DESIRED_STATE_REACHED:
        return
    assert reason in EVENTS or REASONS[reason].is_trouble, "nobody knows what it waits for"
    looks = decision.requeue_after is not None
    if reason is Reason.STORAGE_LOST:
        assert looks, "nothing tells when the disk is back"
    vm, instance = seen.virtual_machine, seen.instance
    ours = vm is not None and vm.on and vm.trouble is None and vm.start_failures == 0
    if reason is Reason.CRASH_LOOP and ours and instance is None:
        assert looks, "no next try"
    silent = instance is not None and instance.phase is InstancePhase.RUNNING
    if reason is Reason.START_TIMEOUT and not silent:
        planned = settled(seen, now=now).machine.status.backoff
        assert planned is not None
        assert planned.next_retry_at is not None, "no next try"


@MANY
@given(seen=observations(), now=moments)
def test_what_was_said_is_not_said_again(seen: Observation, now: datetime) -> None:
    """Nothing changes but the time: the same actions, and not one byte of status, until the next look."""
    if decided(seen, now=now).status is None:
        return
    rest = settled(answered(seen), now=now)
    first = decided(rest, now=now)
    # A wake that cannot be written down (paused, no spec, no disk) ends with the hold from which it comes.
    assume(of(first, do.RequestPower) or not goal_of(seen.machine, now=now).wakes)
    wait = first.requeue_after
    assert wait is None or wait > 0
    for later in (1.0, 3600.0, 400 * 86_400.0):
        if wait is not None and later >= wait:
            continue
        again = decided(rest, now=now + timedelta(seconds=later))
        assert again.status == first.status
        assert json.dumps(again.status and again.status.to_dict()) == json.dumps(
            first.status and first.status.to_dict()
        )
        assert gist(again) == gist(first)


@MANY
@given(seen=observations(), now=moments)
def test_the_next_look_is_worth_it(seen: Observation, now: datetime) -> None:
    """At that moment, and not before it, something else is decided, or something is asked again."""
    if paused(seen) or decided(seen, now=now).status is None or not _can_be_seen(seen):
        return
    rest = settled(answered(seen), now=now)
    first = decided(rest, now=now)
    if first.requeue_after is None or first.requeue_after > 10 * 365 * 86_400:
        return
    due = now + timedelta(seconds=first.requeue_after)
    again = decided(rest, now=due)
    vm = rest.virtual_machine
    if vm is not None and (vm.deleting or vm.trouble is not None):
        # A pause can end while something else is still in the way: one look in vain.
        assume(first.status and first.status.backoff is None)
    cached = rest.home if rest.home is not None and rest.home.labelled else None
    seen = replace(rest, home=cached, answered=frozenset())
    asks = decide(seen, now=due, limits=LIMITS).questions
    assert asks or (gist(again), again.status) != (gist(first), first.status)


def _can_be_seen(seen: Observation) -> bool:
    """A disk without our labels is looked at only where the machine had one or asks for one."""
    home, known, machine = seen.home, seen.machine.status.vm, seen.machine.metadata
    had = known is not None and known.home_claim is not None
    asks = ADOPT_ANNOTATION in machine.annotations
    ours = home is None or (home.labelled and home.machine_uid == machine.uid)
    return ours or had or asks
