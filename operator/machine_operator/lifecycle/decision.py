"""One decision: what to do now, what to say, and when to look again.

Total and pure: any observation gives a decision, the same one each time. Where nothing is to be done the actions are
empty, and the status equals the one that is there, so the steady state writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from machine_operator.api.machine import Activity, MachineStatus, PowerRequest
from machine_operator.api.names import FINALIZER, PAUSED_ANNOTATION
from machine_operator.api.phases import DesiredState, Phase, Power, ReclaimPolicy
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.goal import ACTIVITY, AUTOSLEEP, GUEST, goal_of
from machine_operator.lifecycle.limits import Limits
from machine_operator.lifecycle.looks import next_look
from machine_operator.lifecycle.observation import Observation, Question, RunStrategy
from machine_operator.lifecycle.power import strategy_of
from machine_operator.lifecycle.questions import questions_of
from machine_operator.lifecycle.situation import Situation
from machine_operator.lifecycle.status import status_of

__all__ = ["Decision", "decide"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in this order, and the status to report.

    Attributes:
        status: the controller's whole part of the status; None where none is to be written: something has to be
            asked first, or the object is about to go.
        requeue_after: seconds until the next look, or None where only a change matters.
        questions: what has to be asked of the API server before anything can be decided; then there are no actions.
    """

    actions: tuple[do.Action, ...]
    status: MachineStatus | None
    requeue_after: float | None = None
    questions: frozenset[Question] = frozenset()


def decide(seen: Observation, *, now: datetime, limits: Limits) -> Decision:
    """What to do about a machine that looks like this.

    Args:
        seen: from caches, and the answers to questions.
        now: wall-clock time with a zone, for the stamps in the status and for what is due.
        limits: how long things may take.
    """
    at = Situation(seen, goal_of(seen.machine, now=now), now, limits)
    questions = questions_of(at) - seen.answered
    if questions:
        return Decision((), None, questions=questions)
    status = status_of(at)
    if seen.machine.metadata.annotations.get(PAUSED_ANNOTATION) == "true":
        return Decision((), status, next_look(at, status))
    if at.goal.state is DesiredState.DESTROYED:
        actions, last = _end(seen)
        gone = last or (not actions and _deleted(seen) and status.phase is Phase.DESTROYED)
        return Decision(actions, None if gone else status, next_look(at, status))
    return Decision(_steps(at, status), status, next_look(at, status))


def _steps(at: Situation, status: MachineStatus) -> tuple[do.Action, ...]:
    seen = at.seen
    if seen.fault is not None:
        return ()
    steps: list[do.Action] = []
    if FINALIZER not in seen.machine.metadata.finalizers:
        steps.append(do.AddFinalizer())
    if at.storage_lost or at.home_fault is not None:
        # An empty disk under the old name would look like the machine and hold none of its files.
        return tuple(steps)
    request = _request(at, status)
    if request is not None:
        return (*steps, do.RequestPower(request))
    home, vm, instance = seen.home, seen.virtual_machine, seen.instance
    if home is None or (
        (home.applied != seen.wanted.home or not home.labelled)
        and not home.deleting
        and not at.home_waits_to_grow
    ):
        steps.append(do.ApplyHome(seen.wanted.home_name))
    if seen.seed is None or seen.seed.applied != seen.wanted.seed:
        steps.append(do.ApplySeed())
    if vm is None and instance is not None:
        # Its VM was deleted from above it: a new one would not take it over.
        return (*steps, *(() if instance.deleting else (do.DeleteInstance(instance.uid),)))
    strategy = strategy_of(at, status.backoff)
    # A start that KubeVirt plans would switch on even a VM that is told to be off.
    planned = vm is not None and vm.start_requested and strategy == RunStrategy.OFF
    if vm is None or (
        not vm.deleting
        and (planned or vm.applied != seen.wanted.virtual_machine or vm.run_strategy != strategy)
    ):
        steps.append(do.ApplyVirtualMachine(strategy, drop_start=planned))
    return tuple(steps)


def _request(at: Situation, status: MachineStatus) -> PowerRequest | None:
    """A power request that nobody made, but that is due."""
    if at.goal.state is not DesiredState.RUNNING:
        return None
    if at.goal.wakes:
        return _written(at, Power.RUNNING, by=ACTIVITY, reason=at.goal.why)
    if at.guest_powered_off:
        return _written(at, Power.SLEEPING, by=GUEST, reason="the guest powered itself off")
    due = status.next_sleep_at
    if at.may_autosleep and due is not None and due <= at.now:
        reason = f"nobody used it for {at.seen.machine.spec.autosleep}"
        return _written(at, Power.SLEEPING, by=AUTOSLEEP, reason=reason)
    return None


def _written(at: Situation, state: Power, *, by: str, reason: str) -> PowerRequest:
    before = at.seen.machine.status
    return PowerRequest(
        state=state,
        by=by,
        reason=reason,
        at=at.now,
        sequence=(before.power_request.sequence if before.power_request else 0) + 1,
        spec_desired_state=at.seen.machine.spec.desired_state,
        last_touch_at=(before.activity or Activity()).last_touch_at,
    )


def _end(seen: Observation) -> tuple[tuple[do.Action, ...], bool]:
    """What to remove next, and whether that is the last thing."""
    vm, instance, home, seed = seen.virtual_machine, seen.instance, seen.home, seen.seed
    if vm is not None:
        # The disk and the seed stay until nothing can use them any more.
        return (() if vm.deleting else (do.DeleteVirtualMachine(vm.uid),)), False
    if instance is not None:
        return (() if instance.deleting else (do.DeleteInstance(instance.uid),)), False
    steps: list[do.Action] = []
    ours = home is not None and home.machine_uid == seen.machine.metadata.uid
    if home is not None and ours:
        if seen.machine.spec.reclaim_policy is ReclaimPolicy.DELETE:
            if not home.deleting:
                steps.append(do.DeleteHome(home.name, home.uid))
        elif home.owned:
            steps.append(do.ReleaseHome(home.name, home.uid))
    if seed is not None:
        steps.append(do.DeleteSeed(seed.uid))
    done = not steps and seen.home_is_done and _deleted(seen)
    if done and FINALIZER in seen.machine.metadata.finalizers:
        return (do.RemoveFinalizer(),), True
    return tuple(steps), False


def _deleted(seen: Observation) -> bool:
    return seen.machine.metadata.deletionTimestamp is not None
