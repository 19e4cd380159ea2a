"""The table of phases: from what is seen to phase and reason. The first row whose condition holds applies.

The order is the argument: root causes come before their symptoms, and a goal that is reached comes before the
ways to it. The last row of each goal always holds, so the table is total. It is data: the documentation draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from machine_operator.api.phases import DesiredState, Phase, Reason
from machine_operator.lifecycle.goal import Goal
from machine_operator.lifecycle.observation import InstancePhase, Observation, Trouble

__all__ = ["TABLE", "Row", "Situation", "row_of"]


@dataclass(frozen=True, slots=True)
class Situation:
    """An observation together with the goal, and the questions that the table asks about them."""

    seen: Observation
    goal: Goal

    @property
    def phase_before(self) -> Phase | None:
        """The phase that the status has now."""
        return self.seen.machine.status.phase

    @property
    def storage_lost(self) -> bool:
        """The home disk was there once, and is not any more."""
        known = self.seen.machine.status.vm
        return known is not None and known.home_claim is not None and self.seen.home is None

    @property
    def instance_phase(self) -> InstancePhase | None:
        """How far the VMI is; None without one."""
        return self.seen.instance.phase if self.seen.instance else None

    @property
    def trouble(self) -> Trouble | None:
        """The root cause of what is wrong: the VMI's own before the VM's."""
        instance, vm = self.seen.instance, self.seen.virtual_machine
        if instance is not None and instance.trouble is not None and not instance.deleting:
            return instance.trouble
        return vm.trouble if vm is not None else None

    def troubled_by(self, *reasons: Reason) -> bool:
        """Whether the root cause is one of these."""
        return self.trouble is not None and self.trouble.reason in reasons

    @property
    def same_instance(self) -> bool:
        """The VMI is the one that the status speaks of."""
        known, instance = self.seen.machine.status.vm, self.seen.instance
        return instance is not None and known is not None and known.instance_uid == instance.uid

    @property
    def off(self) -> bool:
        """The VM is told to be off, and nothing runs any more."""
        vm = self.seen.virtual_machine
        return vm is not None and vm.run_strategy == "Halted" and self.seen.instance is None

    @property
    def anything_left(self) -> bool:
        """A VM or a VMI is still there."""
        return self.seen.virtual_machine is not None or self.seen.instance is not None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        when: in words, for the documentation.
        holds: the same as a function.
        phase: the phase, or a function of the situation where the way there matters.
        reason: the reason, or None for the root cause's own.
    """

    goal: DesiredState
    when: str
    holds: Callable[[Situation], bool]
    phase: Phase
    reason: Reason | None


_RUN, _SLEEP, _DESTROY = DesiredState.RUNNING, DesiredState.SLEEPING, DesiredState.DESTROYED

_NEW = frozenset({None, Phase.ACCEPTED, Phase.PLACEMENT_PENDING})
"""Phases of a machine that has not been on its way up before; a waking one shows `starting` throughout."""


def _running_but_silent(at: Situation) -> bool:
    was_up = at.phase_before is Phase.RUNNING and at.same_instance
    return at.instance_phase is InstancePhase.RUNNING and was_up


def _answers(at: Situation) -> bool:
    instance = at.seen.instance
    return (
        instance is not None
        and instance.phase is InstancePhase.RUNNING
        and instance.ready
        and not instance.deleting
    )


def _remains(at: Situation) -> bool:
    return at.seen.seed is not None or not at.seen.home_is_done


TABLE: tuple[Row, ...] = (
    Row(
        _DESTROY,
        "a VM or VMI is left",
        lambda at: at.anything_left,
        Phase.DESTROYING,
        Reason.DESTROYING,
    ),
    Row(
        _DESTROY,
        "disk or seed are left",
        _remains,
        Phase.DESTROYING,
        Reason.DESTROYING,
    ),
    Row(
        _DESTROY, "nothing is left", lambda at: True, Phase.DESTROYED, Reason.DESIRED_STATE_REACHED
    ),
    # ---- sleeping
    Row(
        _SLEEP,
        "the home disk vanished",
        lambda at: at.storage_lost,
        Phase.FAILED,
        Reason.STORAGE_LOST,
    ),
    Row(
        _SLEEP, "VM halted, no VMI", lambda at: at.off, Phase.SLEEPING, Reason.DESIRED_STATE_REACHED
    ),
    Row(
        _SLEEP,
        "no VM yet",
        lambda at: at.seen.virtual_machine is None and at.phase_before in _NEW,
        Phase.ACCEPTED,
        Reason.ACCEPTED,
    ),
    Row(_SLEEP, "otherwise", lambda at: True, Phase.STOPPING, Reason.STOPPING),
    # ---- running
    Row(
        _RUN,
        "the home disk vanished",
        lambda at: at.storage_lost,
        Phase.FAILED,
        Reason.STORAGE_LOST,
    ),
    Row(
        _RUN,
        "no VM yet",
        lambda at: at.seen.virtual_machine is None and at.phase_before in _NEW,
        Phase.ACCEPTED,
        Reason.ACCEPTED,
    ),
    Row(
        _RUN,
        "VMI paused",
        lambda at: at.troubled_by(Reason.GUEST_PAUSED),
        Phase.RUNNING,
        Reason.GUEST_PAUSED,
    ),
    Row(_RUN, "VMI running and ready", _answers, Phase.RUNNING, Reason.DESIRED_STATE_REACHED),
    Row(
        _RUN,
        "no node fits",
        lambda at: at.troubled_by(Reason.UNSCHEDULABLE),
        Phase.PLACEMENT_PENDING,
        Reason.UNSCHEDULABLE,
    ),
    Row(_RUN, "KubeVirt reports trouble", lambda at: at.trouble is not None, Phase.FAILED, None),
    Row(
        _RUN,
        "VMI was ready and no longer answers",
        _running_but_silent,
        Phase.RUNNING,
        Reason.GUEST_NOT_REACHABLE,
    ),
    Row(
        _RUN,
        "VMI has a node",
        lambda at: at.instance_phase in (InstancePhase.SCHEDULED, InstancePhase.RUNNING),
        Phase.STARTING,
        Reason.STARTING,
    ),
    Row(
        _RUN,
        "new, and the home disk has no volume",
        lambda at: at.phase_before in _NEW and at.seen.home is not None and not at.seen.home.bound,
        Phase.PLACEMENT_PENDING,
        Reason.STORAGE_PENDING,
    ),
    Row(
        _RUN,
        "new, without a node",
        lambda at: at.phase_before in _NEW,
        Phase.PLACEMENT_PENDING,
        Reason.SCHEDULING,
    ),
    Row(_RUN, "otherwise (waking, restarting)", lambda at: True, Phase.STARTING, Reason.STARTING),
)


def row_of(situation: Situation) -> Row:
    """The row that applies."""
    return next(row for row in TABLE if row.goal is situation.goal.state and row.holds(situation))
