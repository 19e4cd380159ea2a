"""The table of phases: from what is seen to phase and reason. The first row whose condition holds applies.

The order is the argument: root causes come before their symptoms, and a goal that is reached comes before the
ways to it. The last row of each goal always holds, so the table is total. It is data: the documentation draws it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from machine_operator.api.phases import DesiredState, Phase, Reason
from machine_operator.lifecycle.backoff import backoff_of, holds_off
from machine_operator.lifecycle.observation import InstancePhase
from machine_operator.lifecycle.situation import Situation

__all__ = ["TABLE", "Row", "row_of"]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        goal: for which it is.
        when: in words, for the documentation.
        holds: the same as a function.
        phase: what the status then says.
        reason: why, or None for the root cause's own.
    """

    goal: DesiredState
    when: str
    holds: Callable[[Situation], bool]
    phase: Phase
    reason: Reason | None


_RUN, _SLEEP, _DESTROY = DesiredState.RUNNING, DesiredState.SLEEPING, DesiredState.DESTROYED

_NEW = frozenset({None, Phase.ACCEPTED, Phase.PLACEMENT_PENDING})
"""Phases of a machine that has not been on its way up before; a waking one shows `starting` throughout."""


def _always(_: Situation) -> bool:
    return True


def _new(at: Situation) -> bool:
    return at.phase_before in _NEW


def _without_vm(at: Situation) -> bool:
    return at.seen.virtual_machine is None and _new(at)


def _running_but_silent(at: Situation) -> bool:
    was_up = at.phase_before is Phase.RUNNING and at.same_instance
    return at.instance_phase is InstancePhase.RUNNING and was_up


def _lost_with_its_node(at: Situation) -> bool:
    return at.node_lost and at.phase_before is Phase.RUNNING and not at.answers


def _remains(at: Situation) -> bool:
    return at.seen.seed is not None or not at.seen.home_is_done


TABLE: Final[tuple[Row, ...]] = (
    Row(
        _DESTROY,
        "the VMI outlives its grace period",
        lambda at: at.stop_overdue,
        Phase.DESTROYING,
        Reason.STOP_TIMEOUT,
    ),
    Row(
        _DESTROY,
        "a VM or VMI is left",
        lambda at: at.anything_left,
        Phase.DESTROYING,
        Reason.DESTROYING,
    ),
    Row(_DESTROY, "disk or seed are left", _remains, Phase.DESTROYING, Reason.DESTROYING),
    Row(_DESTROY, "nothing is left", _always, Phase.DESTROYED, Reason.DESIRED_STATE_REACHED),
    # ---- sleeping
    Row(
        _SLEEP,
        "the spec cannot be read",
        lambda at: at.seen.fault is not None,
        Phase.FAILED,
        Reason.SPEC_INVALID,
    ),
    Row(
        _SLEEP,
        "the home disk vanished",
        lambda at: at.storage_lost,
        Phase.FAILED,
        Reason.STORAGE_LOST,
    ),
    Row(
        _SLEEP,
        "the disk to adopt is missing or another's",
        lambda at: at.home_fault is not None,
        Phase.FAILED,
        None,
    ),
    Row(
        _SLEEP, "VM halted, no VMI", lambda at: at.off, Phase.SLEEPING, Reason.DESIRED_STATE_REACHED
    ),
    Row(_SLEEP, "no VM yet", _without_vm, Phase.ACCEPTED, Reason.ACCEPTED),
    Row(
        _SLEEP,
        "the VMI outlives its grace period",
        lambda at: at.stop_overdue,
        Phase.STOPPING,
        Reason.STOP_TIMEOUT,
    ),
    Row(_SLEEP, "otherwise", _always, Phase.STOPPING, Reason.STOPPING),
    # ---- running
    Row(
        _RUN,
        "the spec cannot be read",
        lambda at: at.seen.fault is not None,
        Phase.FAILED,
        Reason.SPEC_INVALID,
    ),
    Row(
        _RUN,
        "the home disk vanished",
        lambda at: at.storage_lost,
        Phase.FAILED,
        Reason.STORAGE_LOST,
    ),
    Row(
        _RUN,
        "the disk to adopt is missing or another's",
        lambda at: at.home_fault is not None,
        Phase.FAILED,
        None,
    ),
    Row(
        _RUN,
        "VMI paused",
        lambda at: at.troubled_by(Reason.GUEST_PAUSED),
        Phase.RUNNING,
        Reason.GUEST_PAUSED,
    ),
    Row(
        _RUN,
        "VMI running and ready",
        lambda at: at.answers,
        Phase.RUNNING,
        Reason.DESIRED_STATE_REACHED,
    ),
    Row(
        _RUN,
        "the guest died too often, and the next try is not due",
        lambda at: holds_off(at, backoff_of(at)),
        Phase.FAILED,
        Reason.CRASH_LOOP,
    ),
    Row(
        _RUN,
        "no node fits",
        lambda at: at.troubled_by(Reason.UNSCHEDULABLE),
        Phase.PLACEMENT_PENDING,
        Reason.UNSCHEDULABLE,
    ),
    Row(
        _RUN,
        "VMI was ready, and its node no longer reports",
        _lost_with_its_node,
        Phase.RUNNING,
        Reason.NODE_NOT_READY,
    ),
    Row(_RUN, "KubeVirt reports trouble", lambda at: at.trouble is not None, Phase.FAILED, None),
    Row(
        _RUN,
        "VM switched on, and KubeVirt rests with nothing running",
        lambda at: at.down and not at.guest_powered_off,
        Phase.FAILED,
        Reason.CRASH_LOOP,
    ),
    Row(
        _RUN,
        "the home disk cannot be provided",
        lambda at: at.unprovided,
        Phase.FAILED,
        Reason.STORAGE_NOT_AVAILABLE,
    ),
    Row(
        _RUN,
        "the start takes too long",
        lambda at: at.start_overdue,
        Phase.FAILED,
        Reason.START_TIMEOUT,
    ),
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
    Row(_RUN, "no VM yet", _without_vm, Phase.ACCEPTED, Reason.ACCEPTED),
    Row(_RUN, "new, without a node", _new, Phase.PLACEMENT_PENDING, Reason.SCHEDULING),
    Row(_RUN, "otherwise (waking, restarting)", _always, Phase.STARTING, Reason.STARTING),
)


def row_of(situation: Situation) -> Row:
    """The row that applies."""
    return next(row for row in TABLE if row.goal is situation.goal.state and row.holds(situation))
