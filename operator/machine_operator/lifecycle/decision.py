"""One decision: what to do now, and what to say.

Total and pure: any observation gives a decision, the same one each time. Where nothing is to be done the actions are
empty, and the status equals the one that is there, so the steady state writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from machine_operator.api.machine import MachineStatus
from machine_operator.api.names import FINALIZER, PAUSED_ANNOTATION
from machine_operator.api.phases import DesiredState, ReclaimPolicy
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.goal import Goal, goal_of
from machine_operator.lifecycle.observation import InstancePhase, Observation
from machine_operator.lifecycle.status import status_of
from machine_operator.lifecycle.table import Situation

__all__ = ["Decision", "decide"]


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in this order, and the status to report.

    Attributes:
        status: the controller's whole part of the status; None where none is to be written: the machine is paused, or
            its object is about to go.
        requeue_after: seconds until the next look, or None where only a change matters.
    """

    actions: tuple[do.Action, ...]
    status: MachineStatus | None
    requeue_after: float | None = None


def decide(seen: Observation, *, now: datetime) -> Decision:
    """What to do about a machine that looks like this.

    Args:
        seen: from caches only.
        now: wall-clock time with a zone, for the stamps in the status.
    """
    if seen.machine.metadata.annotations.get(PAUSED_ANNOTATION) == "true":
        return Decision((), None)
    goal = goal_of(seen.machine)
    situation = Situation(seen, goal)
    status = status_of(situation, now=now)
    if goal.state is DesiredState.DESTROYED:
        return _end(seen, status)
    if FINALIZER not in seen.machine.metadata.finalizers:
        return Decision((do.AddFinalizer(),), status)
    if situation.storage_lost:
        # An empty disk under the old name would look like the machine and hold none of its files.
        return Decision((), status)
    return Decision(tuple(_steps(seen, goal)), status)


def _steps(seen: Observation, goal: Goal) -> list[do.Action]:
    steps: list[do.Action] = []
    if seen.home is None or (seen.home.applied != seen.wanted.home and not seen.home.deleting):
        steps.append(do.ApplyHome())
    if seen.seed is None or seen.seed.applied != seen.wanted.seed:
        steps.append(do.ApplySeed())
    on = goal.state is DesiredState.RUNNING and not _stuck_with_old_template(seen)
    strategy = "Always" if on else "Halted"
    vm = seen.virtual_machine
    if vm is None or (
        not vm.deleting
        and (vm.applied != seen.wanted.virtual_machine or vm.run_strategy != strategy)
    ):
        steps.append(do.ApplyVirtualMachine(strategy))
    return steps


def _stuck_with_old_template(seen: Observation) -> bool:
    """A VMI that waits for an image or a node is not started anew by KubeVirt when the VM is corrected.

    Switching the VM off and on does it, if it stays off until the VMI is gone: where KubeVirt sees one that ended
    early while the VM is on, it counts a failed start and holds the next one back.
    """
    instance = seen.instance
    return (
        instance is not None
        and instance.phase in (InstancePhase.PENDING, InstancePhase.ENDED)
        and instance.applied != seen.wanted.virtual_machine
    )


def _end(seen: Observation, status: MachineStatus) -> Decision:
    vm, home, seed = seen.virtual_machine, seen.home, seen.seed
    if vm is not None:
        # The disk and the seed stay until nothing can use them any more.
        return Decision(() if vm.deleting else (do.DeleteVirtualMachine(vm.uid),), status)
    if seen.instance is not None:
        return Decision((), status)
    steps: list[do.Action] = []
    if home is not None and seen.machine.spec.reclaim_policy is ReclaimPolicy.DELETE:
        if not home.deleting:
            steps.append(do.DeleteHome(home.uid))
    elif home is not None and home.owned:
        steps.append(do.ReleaseHome(home.uid))
    if seed is not None:
        steps.append(do.DeleteSeed(seed.uid))
    if steps or not seen.home_is_done:
        return Decision(tuple(steps), status)
    deleted = seen.machine.metadata.deletionTimestamp is not None
    if deleted and FINALIZER in seen.machine.metadata.finalizers:
        return Decision((do.RemoveFinalizer(),), None)
    return Decision((), None if deleted else status)
