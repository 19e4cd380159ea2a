"""When a machine that nobody uses goes to sleep, and what wins against it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from machine_operator.api.machine import PowerRequest
from machine_operator.api.phases import DesiredState, Power, Reason
from machine_operator.api.timestamps import format_timestamp
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.autosleep import sleeps_at
from machine_operator.lifecycle.observation import (
    InstancePhase,
    NodeView,
    Observation,
    RunStrategy,
    Trouble,
)
from tests.support.decisions import decided, settled, status_in
from tests.support.machines import LIMITS, NOW, a_machine, a_vm, an_instance, an_observation

UP = NOW.replace(microsecond=0)
MINUTE = timedelta(minutes=1)
NODE = NodeView(name="node-1", ready=True, schedulable=True)


def at(minutes: float) -> str:
    return format_timestamp(UP + minutes * MINUTE)


def hold(*, since: float = 0, until: float) -> dict[str, Any]:
    return {"id": f"e{until}", "kind": "execution", "since": at(since), "expires_at": at(until)}


def due(*, autosleep: str = "5m", **activity: Any) -> datetime | None:
    machine = a_machine(spec={"autosleep": autosleep}, status={"activity": activity})
    return sleeps_at(machine, awake_since=UP, limits=LIMITS)


@pytest.mark.parametrize(
    ("activity", "minutes"),
    [
        ({}, 5),
        ({"last_touch_at": at(3)}, 8),
        ({"last_touch_at": at(-60)}, 5),
        ({"holds": [hold(until=10)]}, 15),
        ({"holds": [hold(until=10), hold(until=4)], "last_touch_at": at(3)}, 15),
        ({"holds": [hold(until=1)], "last_touch_at": at(3)}, 8),
        ({"holds": [hold(since=-30, until=-20)]}, 5),
    ],
    ids=["up", "touch", "old touch", "hold", "longest hold", "touch after hold", "lost holder"],
)
def test_the_idle_clock_starts_with_the_latest_of_all(
    activity: dict[str, Any], minutes: float
) -> None:
    assert due(**activity) == UP + minutes * MINUTE


def test_never_means_never() -> None:
    assert due(autosleep="never", last_touch_at=at(0)) is None
    seen = settled(an_observation(a_machine(spec={"autosleep": "never"})))
    assert seen.machine.status.next_sleep_at is None
    assert decided(seen, now=NOW + timedelta(days=400)).actions == ()


def test_a_machine_is_awake_for_a_while_however_short_its_autosleep() -> None:
    assert due(autosleep="1") == UP + timedelta(seconds=LIMITS.minimum_awake)


def test_the_moment_is_a_whole_second_and_none_too_early() -> None:
    machine = a_machine()
    assert sleeps_at(machine, awake_since=UP.replace(microsecond=250), limits=LIMITS) == (
        UP + timedelta(minutes=5, seconds=1)
    )


def test_the_longest_autosleep_and_an_eternal_hold_end_with_the_calendar() -> None:
    eternal = {"id": "e", "kind": "x", "since": at(0), "expires_at": "9999-12-31T23:59:59Z"}
    found = due(autosleep="9223372036", holds=[eternal])
    assert found is not None
    assert found.year == 9999


# ---- the request


def running(**activity: Any) -> Observation:
    """A machine that came up at NOW."""
    return settled(an_observation(a_machine(status={"activity": activity}), node=NODE))


def request_in(seen: Observation, *, now: datetime) -> PowerRequest | None:
    actions = decided(seen, now=now).actions
    if not actions:
        return None
    (action,) = actions
    assert isinstance(action, do.RequestPower)
    return action.request


def requested(seen: Observation, request: PowerRequest | None, **activity: Any) -> Observation:
    """The same once the request is written; somebody may have been active."""
    assert request is not None
    update: dict[str, Any] = {"power_request": request}
    if activity:
        machine = a_machine(status={"activity": activity})
        update["activity"] = machine.status.activity
    status = seen.machine.status.model_copy(update=update)
    return replace(seen, machine=seen.machine.model_copy(update={"status": status}))


def test_it_is_shown_and_looked_at_when_it_is_due() -> None:
    seen = running()
    planned = seen.machine.status.next_sleep_at
    assert planned == UP + timedelta(minutes=5, seconds=1)
    decision = decided(seen)
    assert decision.requeue_after == (planned - NOW).total_seconds()
    assert request_in(seen, now=planned - timedelta(seconds=1)) is None
    request = request_in(seen, now=planned)
    assert request == PowerRequest(
        state=Power.SLEEPING,
        by="autosleep",
        reason="nobody used it for 5m",
        at=planned,
        sequence=1,
        spec_desired_state=DesiredState.RUNNING,
    )


def test_then_the_vm_is_switched_off_and_the_status_says_why() -> None:
    seen = running(last_touch_at=at(0))
    later = NOW + timedelta(hours=1)
    asleep = requested(seen, request_in(seen, now=later))
    decision = decided(asleep, now=later)
    assert decision.actions == (do.ApplyVirtualMachine(RunStrategy.OFF),)
    assert decision.status is not None
    assert decision.status.desired_power is not None
    assert decision.status.desired_power.why == "requested by autosleep: nobody used it for 5m"
    assert decision.status.next_sleep_at is None


def test_a_guest_that_nobody_can_reach_is_not_kept_awake_for_it() -> None:
    seen = replace(running(), instance=an_instance(ready=False))
    assert request_in(seen, now=NOW + timedelta(hours=1)) is not None


@pytest.mark.parametrize(
    "parts",
    [
        {"instance": an_instance(trouble=Trouble(Reason.GUEST_PAUSED, "PausedIOError"))},
        {"instance": an_instance(deleting_since=NOW)},
        {"instance": an_instance(ready=False), "node": replace(NODE, ready=False)},
    ],
    ids=["paused", "stopping", "lost"],
)
def test_what_a_shutdown_would_make_worse_is_not_put_to_sleep(parts: dict[str, Any]) -> None:
    assert request_in(replace(running(), **parts), now=NOW + timedelta(hours=1)) is None


def test_a_request_to_run_counts_as_use() -> None:
    asked = {"state": "running", "by": "ada", "at": at(4), "sequence": 1}
    status = {"power_request": asked | {"spec_desired_state": "running"}}
    machine = a_machine(status=status)
    assert sleeps_at(machine, awake_since=UP, limits=LIMITS) == UP + 9 * MINUTE


def test_never_while_a_hold_lives_and_at_last_when_its_holder_is_lost() -> None:
    seen = running(holds=[hold(until=600)])
    assert request_in(seen, now=UP + 599 * MINUTE) is None
    assert request_in(seen, now=UP + 604 * MINUTE) is None
    assert request_in(seen, now=UP + 605 * MINUTE) is not None


# ---- races


def test_a_touch_before_the_request_is_written_wins() -> None:
    """The write is refused, since the Machine changed; the next decision sees the touch."""
    seen = running(last_touch_at=at(0))
    later = UP + 6 * MINUTE
    touched = requested(seen, request_in(seen, now=later), last_touch_at=at(6))
    unwritten = touched.machine.status.model_copy(update={"power_request": None})
    touched = replace(touched, machine=touched.machine.model_copy(update={"status": unwritten}))
    assert request_in(touched, now=later) is None


@pytest.mark.parametrize(
    "activity",
    [
        {"last_touch_at": at(6)},
        {"last_touch_at": at(-6)},
        {"last_touch_at": at(0), "holds": [hold(since=6, until=60)]},
        {"last_touch_at": at(0), "holds": [hold(since=0, until=60)]},
    ],
    ids=["touch", "touch by a slow clock", "new hold", "hold renewed after it ran out"],
)
def test_use_that_the_request_had_not_seen_becomes_a_wake(activity: dict[str, Any]) -> None:
    seen = running(last_touch_at=at(0))
    later = UP + 6 * MINUTE
    first = request_in(seen, now=later)
    wake = request_in(requested(seen, first, **activity), now=later)
    assert wake is not None
    assert (wake.state, wake.by, wake.sequence) == ("running", "activity", 2)
    assert wake.reason == "used after the request by autosleep to sleep"
    woken = requested(seen, wake, **activity)
    assert decided(woken, now=later).actions == (), "it runs, and is left to run"
    # The wake outlives the use that it came from.
    much_later = decided(woken, now=later + timedelta(days=30))
    (again,) = much_later.actions
    assert isinstance(again, do.RequestPower)
    assert (again.request.by, again.request.sequence) == ("autosleep", 3)


def test_a_wake_while_stopping_waits_until_the_old_boot_is_gone() -> None:
    wake = {"state": "running", "by": "activity", "at": at(6), "sequence": 2}
    status = {"phase": "stopping", "power_request": wake | {"spec_desired_state": "running"}}
    halted = a_vm(run_strategy=RunStrategy.OFF, halting=True)
    seen = an_observation(
        a_machine(status=status), virtual_machine=halted, instance=an_instance(deleting_since=NOW)
    )
    assert decided(seen).actions == ()
    assert decided(replace(seen, instance=None)).actions == (), "KubeVirt has not noticed yet"
    off = replace(seen, instance=None, virtual_machine=a_vm(run_strategy=RunStrategy.OFF))
    assert decided(off).actions == (do.ApplyVirtualMachine(RunStrategy.ON),)


# ---- the guest powers itself off


ENDED = an_instance(InstancePhase.SUCCEEDED)


def test_a_power_off_from_inside_becomes_a_request_to_sleep() -> None:
    request = request_in(replace(running(), instance=ENDED), now=NOW)
    assert request is not None
    assert (request.state, request.by) == ("sleeping", "guest")
    assert request.reason == "the guest powered itself off"


def test_the_session_in_which_it_was_typed_does_not_wake_it_again() -> None:
    session = {"last_touch_at": at(0), "holds": [hold(since=-5, until=60)]}
    seen = replace(running(**session), instance=ENDED)
    asleep = requested(seen, request_in(seen, now=NOW))
    assert decided(asleep, now=NOW + MINUTE).actions == (do.ApplyVirtualMachine(RunStrategy.OFF),)
    later = requested(asleep, asleep.machine.status.power_request, last_touch_at=at(2))
    wake = request_in(later, now=NOW + 2 * MINUTE)
    assert wake is not None
    assert (wake.state, wake.by) == ("running", "activity")


def test_it_is_told_after_the_fact_where_the_machine_had_been_up() -> None:
    gone = replace(running(), instance=None, virtual_machine=a_vm(rests=True))
    request = request_in(gone, now=NOW)
    assert request is not None
    assert request.by == "guest"


@pytest.mark.parametrize(
    ("node", "vm"),
    [
        (NodeView(name="node-1", ready=True, schedulable=False), a_vm()),
        (NodeView(name="node-1", ready=False, schedulable=True), a_vm()),
    ],
    ids=["drained", "lost"],
)
def test_a_guest_that_its_node_threw_out_starts_elsewhere(node: NodeView, vm: Any) -> None:
    seen = replace(running(), instance=ENDED, node=node, virtual_machine=vm)
    assert decided(seen).actions == (do.ApplyVirtualMachine(RunStrategy.OFF),)
    off = replace(seen, instance=None, virtual_machine=a_vm(run_strategy=RunStrategy.OFF))
    assert decided(off).actions == (do.ApplyVirtualMachine(RunStrategy.ON),)


def test_a_restart_is_no_power_off() -> None:
    restarting = replace(running(), instance=ENDED, virtual_machine=a_vm(start_requested=True))
    assert decided(restarting).actions == ()
    assert status_in(restarting).phase == "starting"
