"""Starts that go wrong: how they are counted, how long the next one is held back, and when the clock starts."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from machine_operator.api.phases import Phase, Reason
from machine_operator.api.timestamps import format_timestamp
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.backoff import STABLE, pause_after
from machine_operator.lifecycle.observation import (
    InstancePhase,
    Observation,
    RunStrategy,
    Trouble,
)
from tests.support.decisions import decided, settled, status_in
from tests.support.machines import LIMITS, NOW, a_machine, a_vm, an_instance, an_observation

ON, OFF = do.ApplyVirtualMachine(RunStrategy.ON), do.ApplyVirtualMachine(RunStrategy.OFF)
HALTED = a_vm(run_strategy=RunStrategy.OFF)
WAITS = an_instance(InstancePhase.PENDING)
FULL = Trouble(Reason.UNSCHEDULABLE, "0/3 nodes are available")
START = timedelta(seconds=LIMITS.start)
SECOND = timedelta(seconds=1)


def crashed(uid: str) -> Any:
    return an_instance(InstancePhase.FAILED, uid=uid)


def started(phase: Phase = Phase.STARTING, **parts: Any) -> Observation:
    """A machine that has been in this phase since NOW."""
    status = {"phase": phase, "last_transition_at": format_timestamp(NOW)}
    return an_observation(a_machine(spec={"autosleep": "never"}, status=status), **parts)


def backoff(seen: Observation, now: datetime = NOW) -> tuple[int, datetime | None] | None:
    found = status_in(seen, now=now).backoff
    return (found.failures, found.next_retry_at) if found else None


@pytest.mark.parametrize(
    ("failures", "seconds"),
    [(0, 10), (1, 10), (3, 10), (4, 20), (5, 40), (6, 80), (7, 160), (8, 300), (10**9, 300)],
)
def test_pauses_double_up_to_five_minutes(failures: int, seconds: float) -> None:
    assert pause_after(failures) == timedelta(seconds=seconds)


# ---- crashes


def test_two_crashes_are_free_and_the_third_is_held_back() -> None:
    seen = started(instance=crashed("one"))
    assert backoff(seen) == (1, None)
    assert decided(seen).actions == (), "KubeVirt starts it again"
    seen = replace(settled(seen), instance=crashed("two"))
    assert backoff(seen) == (2, None)
    seen = replace(settled(seen), instance=crashed("three"))
    due = NOW + timedelta(seconds=10)
    assert backoff(seen) == (3, due)
    assert decided(seen).actions == (OFF,)
    status = status_in(seen)
    assert (status.phase, status.reason) == (Phase.FAILED, "CrashLoop")
    assert status.last_error == (
        "The VM ended 3 times in a row without being told to. The next try is at "
        "2026-03-01T10:00:10Z."
    )
    off = replace(settled(seen), instance=None, virtual_machine=HALTED)
    held = decided(off, now=due - SECOND)
    assert (held.actions, held.requeue_after) == ((), 1.0)
    assert decided(off, now=due).actions == (ON,)


def test_the_same_crash_is_counted_once() -> None:
    seen = settled(started(instance=crashed("one")))
    assert backoff(seen, NOW + SECOND) == (1, None)
    assert decided(seen, now=NOW + SECOND).status == decided(seen).status


def test_a_crash_that_was_over_before_anybody_looked_is_counted_once() -> None:
    seen = settled(started(instance=an_instance(uid="one")))
    replaced = replace(seen, instance=replace(WAITS, uid="two"), failed_instance="one")
    assert backoff(replaced) == (1, None)
    assert backoff(settled(replaced)) == (1, None)
    older = replace(seen, failed_instance="zero")
    assert backoff(older) is None, "of an earlier time"


def test_a_machine_that_stays_up_starts_from_zero() -> None:
    seen = replace(settled(started(instance=crashed("one"))), instance=an_instance(uid="two"))
    seen = settled(seen)
    assert (backoff(seen), decided(seen).requeue_after) == ((1, None), STABLE)
    assert backoff(seen, NOW + timedelta(seconds=STABLE)) is None


def test_a_guest_that_comes_up_in_its_pause_is_left_to_run() -> None:
    seen = settled(started(instance=crashed("one")))
    for uid in ("two", "three"):
        seen = settled(replace(seen, instance=crashed(uid)))
    up = replace(seen, instance=an_instance(uid="four"))
    assert decided(up).actions == ()
    assert status_in(up).phase is Phase.RUNNING


def test_what_is_asleep_has_no_failures() -> None:
    machine = a_machine(spec={"desired_state": "sleeping"}, status={"backoff": {"failures": 5}})
    assert backoff(an_observation(machine, instance=crashed("one"))) is None


def test_a_crash_while_the_vm_is_told_to_be_off_does_not_count() -> None:
    assert backoff(started(virtual_machine=HALTED, instance=crashed("one"))) is None


def test_what_kubevirt_counts_is_shown_and_left_to_kubevirt() -> None:
    due = NOW + timedelta(minutes=2)
    loop = Trouble(Reason.CRASH_LOOP, "The VM ended 3 times before it was up.")
    vm = a_vm(start_failures=3, retry_at=due, start_requested=True, trouble=loop)
    seen = started(virtual_machine=vm, instance=None)
    assert backoff(seen) == (3, due)
    assert decided(seen).actions == ()
    assert (status_in(seen).phase, status_in(seen).last_error) == (Phase.FAILED, loop.message)


# ---- a start that does not end


def test_a_start_that_takes_too_long_is_switched_off_and_on() -> None:
    seen = settled(started(instance=WAITS))
    assert decided(seen).requeue_after == LIMITS.start
    late, due = NOW + START, NOW + START + timedelta(seconds=10)
    assert status_in(seen, now=late - SECOND).phase is Phase.STARTING
    told = status_in(seen, now=late)
    assert (told.phase, told.reason) == (Phase.FAILED, "StartTimeout")
    assert told.last_error == (
        "Not usable 300 s after its start: it has no node. The next try is at 2026-03-01T10:05:10Z."
    )
    failed = settled(seen, now=late)
    assert (backoff(failed, late), decided(failed, now=late).actions) == ((1, due), ())
    assert decided(failed, now=late).requeue_after == 10.0
    assert decided(failed, now=due).actions == (OFF,)
    off = replace(failed, virtual_machine=HALTED, instance=None)
    assert decided(off, now=due).actions == (ON,)
    assert status_in(off, now=due).phase is Phase.STARTING
    assert backoff(off, due) == (1, due), "the count stays until it has been up for a while"


def test_a_guest_that_runs_and_does_not_answer_is_left_alone() -> None:
    """Somebody may be at work at its console."""
    seen = settled(started(instance=an_instance(ready=False)))
    failed = settled(seen, now=NOW + START)
    much_later = NOW + timedelta(days=1)
    assert decided(failed, now=much_later).actions == ()
    status = status_in(failed, now=much_later)
    assert (status.reason, status.backoff) == ("StartTimeout", None)
    assert "its SSH port does not answer" in (status.last_error or "")
    answers = replace(failed, instance=an_instance())
    assert status_in(answers, now=much_later).phase is Phase.RUNNING


@pytest.mark.parametrize("backoff", [None, {"failures": 5}])
@pytest.mark.parametrize("reason", ["StartTimeout", "CrashLoop"])
def test_a_failed_machine_without_a_plan_gets_one(reason: str, backoff: Any) -> None:
    status = {"phase": "failed", "reason": reason, "backoff": backoff}
    down = a_vm(rests=True)
    seen = an_observation(a_machine(status=status), virtual_machine=down, instance=None)
    planned = status_in(seen).backoff
    assert planned is not None
    assert planned.next_retry_at is not None
    assert decided(seen).requeue_after is not None


def test_a_vm_that_rests_is_switched_off_and_on() -> None:
    """KubeVirt forgot it: a refusal after a restart is shown for a moment, and never tried again."""
    seen = settled(started(virtual_machine=a_vm(rests=True), instance=None))
    status = seen.machine.status
    assert (status.phase, status.reason) == (Phase.FAILED, "CrashLoop")
    due = NOW + timedelta(seconds=10)
    assert decided(seen, now=due).actions == (OFF,)
    unnoticed = replace(seen, virtual_machine=a_vm(run_strategy=RunStrategy.OFF, halting=True))
    assert decided(unnoticed, now=due).actions == ()
    assert decided(replace(seen, virtual_machine=HALTED), now=due).actions == (ON,)


@pytest.mark.parametrize(
    "parts",
    [
        {"fault": "spec.vcpu: too much"},
        {"home": None},
        {"virtual_machine": a_vm(rests=True, trouble=Trouble(Reason.QUOTA_EXCEEDED, "no"))},
    ],
    ids=["spec", "disk", "trouble"],
)
def test_nothing_is_counted_while_it_is_known_what_is_in_the_way(parts: dict[str, Any]) -> None:
    """Else each look would count one more, and the report of it would be the next look."""
    known = {"name": "m", "home_claim": "m-home"}
    seen = an_observation(
        a_machine(status={"phase": "starting", "vm": known}),
        **{"virtual_machine": a_vm(rests=True), "instance": None} | parts,
    )
    assert backoff(settled(seen)) is None


def test_a_switch_that_kubevirt_undid_is_set_again() -> None:
    seen = started(virtual_machine=a_vm(run_strategy="Always"), instance=an_instance())
    assert decided(seen).actions == (ON,)


# ---- time that was spent waiting for somebody does not count


def test_a_machine_that_waited_for_a_node_gets_all_its_time() -> None:
    waiting = settled(started(Phase.PLACEMENT_PENDING, instance=replace(WAITS, trouble=FULL)))
    assert decided(waiting).requeue_after is None, "nothing changes by time alone"
    hour = NOW + timedelta(hours=1)
    room = replace(waiting, instance=an_instance(InstancePhase.SCHEDULED, ready=False))
    assert status_in(room, now=hour).phase is Phase.STARTING
    queued = settled(replace(waiting, instance=WAITS), now=hour)
    assert queued.machine.status.reason == Reason.SCHEDULING
    assert 299 <= (decided(queued, now=hour).requeue_after or 0) <= 300
    assert status_in(queued, now=hour + START - SECOND).reason == Reason.SCHEDULING
    assert status_in(queued, now=hour + START).reason == Reason.START_TIMEOUT
