"""The status of a machine, computed whole from what is seen; from the old one come only counters and stamps."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from machine_operator.api.conditions import (
    Condition,
    ConditionStatus,
    ConditionType,
    set_conditions,
)
from machine_operator.api.machine import (
    Backoff,
    DesiredPower,
    MachineStatus,
    Sizes,
    VirtualMachineRef,
)
from machine_operator.api.names import PAUSED_ANNOTATION
from machine_operator.api.phases import REASONS, SETTLED, DesiredState, Phase, Reason
from machine_operator.api.revision import revision_with
from machine_operator.api.timestamps import format_timestamp
from machine_operator.lifecycle.autosleep import sleeps_at
from machine_operator.lifecycle.backoff import backoff_of
from machine_operator.lifecycle.goal import overtaken
from machine_operator.lifecycle.observation import InstancePhase, Trouble
from machine_operator.lifecycle.situation import Situation
from machine_operator.lifecycle.table import row_of
from machine_operator.lifecycle.words import explain

__all__ = ["status_of", "with_trouble"]

_LONGEST: Final = 2048
"""Characters of a text of somebody else's. It is told in several places, and a status has to stay small."""

_MOST_ADDRESSES: Final = 64
"""As the CRD has it: a guest that runs containers has an address for each of their networks."""

_WAITS: Final = {
    False: "The home disk waits for a volume.",
    True: "The home disk waits for a volume; once it has one, it grows to the size asked for.",
}

_TRANSITIONAL = frozenset(set(Phase) - SETTLED - {Phase.FAILED})


def status_of(at: Situation) -> MachineStatus:
    """What the controller reports about this situation."""
    row = row_of(at)
    reason = row.reason or (at.trouble.reason if at.trouble else Reason.UNKNOWN)
    backoff = backoff_of(at)
    error = explain(at, reason, backoff)
    return _status(at, phase=row.phase, reason=reason, error=error, backoff=backoff)


def with_trouble(at: Situation, trouble: Trouble) -> MachineStatus:
    """The same, after an action failed: the phase stays what is seen, and the failure is the reason."""
    phase, backoff = row_of(at).phase, backoff_of(at)
    return _status(at, phase=phase, reason=trouble.reason, error=trouble.message, backoff=backoff)


def _status(
    at: Situation, *, phase: Phase, reason: Reason, error: str | None, backoff: Backoff | None
) -> MachineStatus:
    machine, before, now = at.seen.machine, at.seen.machine.status, at.now
    error = error[:_LONGEST] if error is not None else None
    moved = before.phase is not phase
    since = now if moved else before.last_transition_at or now
    transitions = (before.transitions or 0) + (1 if moved else 0)
    conditions = _conditions(at, phase=phase, reason=reason, error=error)
    progressed = moved or before.reason != reason or _flips(before.conditions, conditions)
    woke = before.phase is Phase.SLEEPING and at.goal.state is DesiredState.RUNNING and moved
    instance = at.seen.instance
    return MachineStatus(
        phase=phase,
        reason=reason,
        retryable=REASONS[reason].retryable,
        revision=revision_with(machine, transitions=transitions, request=before.power_request),
        last_transition_at=since,
        last_progress_at=now if progressed else before.last_progress_at,
        last_error=error,
        transitions=transitions,
        observedGeneration=machine.metadata.generation,
        conditions=conditions,
        desired_power=DesiredPower(
            state=at.goal.state, why=at.goal.why[:_LONGEST], overtaken=overtaken(machine)
        ),
        next_sleep_at=_next_sleep(at, phase=phase, since=since),
        wake_count=(before.wake_count or 0) + (1 if woke else 0),
        effective=_effective(at),
        vm=_reference(at),
        node=instance.node if instance else None,
        addresses=instance.addresses[:_MOST_ADDRESSES] if instance else (),
        backoff=backoff,
    )


def _next_sleep(at: Situation, *, phase: Phase, since: datetime) -> datetime | None:
    """When autosleep is due for a machine that is in this phase since then."""
    up = phase is Phase.RUNNING and at.goal.state is DesiredState.RUNNING
    if not up or at.seen.fault is not None:
        return None
    return sleeps_at(at.seen.machine, awake_since=since, limits=at.limits)


def _flips(before: tuple[Condition, ...], after: tuple[Condition, ...]) -> bool:
    return {c.type: c.status for c in before} != {c.type: c.status for c in after}


def _reference(at: Situation) -> VirtualMachineRef | None:
    vm, instance, home = at.seen.virtual_machine, at.seen.instance, at.seen.home
    before = at.seen.machine.status.vm
    if at.goal.state is DesiredState.DESTROYED and not at.anything_left:
        return None
    if vm is None:
        return before.model_copy(update={"instance_uid": None}) if before else None
    # Remembered for as long as the machine lives: it tells a lost disk from one that was never there.
    claim = home.name if home and home.bound else before.home_claim if before else None
    return VirtualMachineRef(
        name=vm.name,
        uid=vm.uid,
        instance_uid=instance.uid if instance else None,
        home_claim=claim,
    )


def _effective(at: Situation) -> Sizes | None:
    instance, home = at.seen.instance, at.seen.home
    if instance is None or instance.vcpu is None or instance.memory_mib is None:
        return None
    if home is None or not home.bound:
        return None
    return Sizes(vcpu=instance.vcpu, memory_mib=instance.memory_mib, storage_gib=home.capacity_gib)


# ---- conditions


def _conditions(
    at: Situation, *, phase: Phase, reason: Reason, error: str | None
) -> tuple[Condition, ...]:
    wanted = [
        _ready(at, phase, reason, error),
        _reconciling(at, phase, reason),
        _stalled(reason, error),
        _awake(at),
        _scheduled(at),
        _storage(at),
        _reachable(at),
        _restart(at),
    ]
    generation = at.seen.machine.metadata.generation
    previous = [
        {"type": c.type, "status": c.status, "lastTransitionTime": c.lastTransitionTime}
        for c in at.seen.machine.status.conditions
    ]
    stamped = set_conditions(previous, wanted, now=format_timestamp(at.now.replace(microsecond=0)))
    return tuple(Condition(**{**item, "observedGeneration": generation}) for item in stamped)


def _condition(
    kind: ConditionType, status: ConditionStatus, reason: Reason, message: str
) -> Condition:
    # A webhook's text has no bound; what to do about it is added to it.
    return Condition(type=kind, status=status, reason=reason, message=message[: 2 * _LONGEST])


def _ready(at: Situation, phase: Phase, reason: Reason, error: str | None) -> Condition:
    as_asked = phase in SETTLED and reason is Reason.DESIRED_STATE_REACHED
    # A destroyed machine is as it was asked to be, but nobody can use it.
    usable = at.goal.state is not DesiredState.DESTROYED
    if as_asked and usable:
        message = {
            Phase.RUNNING: "The machine runs and answers.",
            Phase.SLEEPING: "The machine sleeps and wakes when used.",
        }[phase]
        return _condition(ConditionType.READY, "True", reason, message)
    return _condition(ConditionType.READY, "False", reason, error or REASONS[reason].meaning)


def _reconciling(at: Situation, phase: Phase, reason: Reason) -> Condition:
    if at.seen.machine.metadata.annotations.get(PAUSED_ANNOTATION) == "true":
        paused = REASONS[Reason.PAUSED]
        message = f"{paused.meaning} {paused.unblocks}"
        return _condition(ConditionType.RECONCILING, "False", Reason.PAUSED, message)
    moving = phase in _TRANSITIONAL and not REASONS[reason].is_trouble
    status: ConditionStatus = "True" if moving else "False"
    return _condition(ConditionType.RECONCILING, status, reason, REASONS[reason].meaning)


def _stalled(reason: Reason, error: str | None) -> Condition:
    if REASONS[reason].is_trouble:
        message, todo = error or REASONS[reason].meaning, REASONS[reason].unblocks
        if todo not in message:
            end = "" if message.endswith((".", "!", "?")) else "."
            message = f"{message}{end} What to do: {todo}"
        return _condition(ConditionType.STALLED, "True", reason, message)
    return _condition(ConditionType.STALLED, "False", reason, "Nothing is in the way.")


def _awake(at: Situation) -> Condition:
    instance = at.seen.instance
    if instance is not None and instance.phase in (InstancePhase.SCHEDULED, InstancePhase.RUNNING):
        return _condition(ConditionType.AWAKE, "True", Reason.AWAKE, REASONS[Reason.AWAKE].meaning)
    if instance is not None and not instance.deleting:
        return _condition(ConditionType.AWAKE, "False", Reason.STARTING, "Nothing runs yet.")
    return _condition(ConditionType.AWAKE, "False", Reason.ASLEEP, "Nothing of the machine runs.")


def _scheduled(at: Situation) -> Condition:
    instance = at.seen.instance
    if instance is not None and instance.node:
        message = f"The machine is on node {instance.node}."
        return _condition(ConditionType.SCHEDULED, "True", Reason.NODE_ASSIGNED, message)
    if at.troubled_by(Reason.UNSCHEDULABLE) and at.trouble is not None:
        return _condition(
            ConditionType.SCHEDULED, "False", Reason.UNSCHEDULABLE, at.trouble.message
        )
    if instance is None:
        return _condition(
            ConditionType.SCHEDULED, "False", Reason.ASLEEP, "The machine needs no node now."
        )
    return _condition(
        ConditionType.SCHEDULED, "False", Reason.SCHEDULING, REASONS[Reason.SCHEDULING].meaning
    )


def _storage(at: Situation) -> Condition:
    home, size = at.seen.home, at.seen.machine.spec.storage_gib
    kind = ConditionType.STORAGE_READY
    if at.storage_lost:
        facts = REASONS[Reason.STORAGE_LOST]
        return _condition(kind, "False", Reason.STORAGE_LOST, f"{facts.meaning} {facts.unblocks}")
    if home is None or not home.bound:
        message = (
            "The home disk is not there yet."
            if home is None
            else at.seen.unbound_because or _WAITS[at.home_waits_to_grow]
        )
        return _condition(kind, "False", Reason.STORAGE_PENDING, message)
    if home.capacity_gib < size:
        message = f"The home disk grows from {home.capacity_gib} to {size} GiB."
        return _condition(kind, "False", Reason.STORAGE_PENDING, message)
    return _condition(
        kind, "True", Reason.STORAGE_BOUND, f"The home disk has {home.capacity_gib} GiB."
    )


def _reachable(at: Situation) -> Condition:
    kind, instance = ConditionType.GUEST_REACHABLE, at.seen.instance
    if instance is None or instance.phase.ended:
        return _condition(kind, "False", Reason.ASLEEP, "The machine is off.")
    if instance.ready:
        return _condition(kind, "True", Reason.GUEST_ANSWERS, "The guest's SSH port answers.")
    return _condition(
        kind, "False", Reason.GUEST_NOT_REACHABLE, "The guest's SSH port does not answer (yet)."
    )


def _restart(at: Situation) -> Condition:
    kind, instance, spec = ConditionType.RESTART_PENDING, at.seen.instance, at.seen.machine.spec
    if instance is None or instance.phase is not InstancePhase.RUNNING or at.seen.fault is not None:
        return _condition(kind, "False", Reason.SIZES_APPLIED, "No change waits for a restart.")
    waits = []
    if instance.vcpu is not None and instance.vcpu != spec.vcpu:
        waits.append(f"{spec.vcpu:g} vCPU instead of {instance.vcpu:g}")
    if instance.memory_mib is not None and instance.memory_mib != spec.memory_mib:
        waits.append(f"{spec.memory_mib} MiB of memory instead of {instance.memory_mib}")
    if instance.started_from != at.seen.wanted.boot and not waits:
        waits.append("a change of the image or of the VM's settings")
    if not waits:
        return _condition(kind, "False", Reason.SIZES_APPLIED, "No change waits for a restart.")
    return _condition(
        kind, "True", Reason.SIZES_DIFFER, f"Wait for the next start: {', '.join(waits)}."
    )
