"""What happened to machines, told where people look: a log line for each change, an Event for what the operator met or
decided by itself, and metrics.

What somebody asked for and got is no Event: it is in the status, and whoever asked knows.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from machine_operator.api.machine import Machine, MachineStatus, PowerRequest
from machine_operator.api.names import API_VERSION, KIND
from machine_operator.api.phases import REASONS, Phase, Reason
from machine_operator.kube.events import EventRecorder, ObjectRef
from machine_operator.lifecycle.goal import ACTIVITY, AUTOSLEEP, GUEST

__all__ = ["Journal", "Measures", "reference_to"]

log = logging.getLogger(__name__)

_ON_THE_WAY = frozenset({Phase.STARTING, Phase.STOPPING})

_ASKED_BY = {AUTOSLEEP: "Autosleep", GUEST: "GuestPoweredOff", ACTIVITY: "WokenByUse"}


class Measures(Protocol):
    """Where durations and counts go."""

    def time_to_running(self, seconds: float, *, since: str) -> None:
        """A machine became usable; `since` is `create` or `wake`."""

    def time_to_sleep(self, seconds: float) -> None:
        """A machine fell asleep."""

    def trouble_told(self, reason: str) -> None:
        """A machine got into trouble."""


class Journal:
    """Tells."""

    def __init__(
        self, *, events: EventRecorder, measures: Measures, now: Callable[[], datetime]
    ) -> None:
        self._events = events
        self._measures = measures
        self._now = now

    def reported(
        self, machine: Machine, status: MachineStatus, *, since: datetime | None = None
    ) -> None:
        """The status of `machine` is now `status`; `since` is when the way there began, if it was not reported."""
        before = machine.status
        if (before.phase, before.reason) != (status.phase, status.reason):
            log.info(
                "machine %s/%s: %s -> %s (%s)",
                machine.metadata.namespace,
                machine.metadata.name,
                before.phase or "new",
                status.phase,
                status.reason,
            )
        self._tell_trouble(machine, status)
        self._tell_crash(machine, status)
        if before.phase is not status.phase:
            self._measure(machine, status, since=since)

    def requested(self, machine: Machine, request: PowerRequest) -> None:
        """The operator asked for power by itself."""
        reason = _ASKED_BY.get(request.by, "PowerRequest")
        text = f"{request.state}: {request.reason}"
        log.info("machine %s/%s: %s", machine.metadata.namespace, machine.metadata.name, text)
        message = {
            AUTOSLEEP: f"Goes to sleep: {request.reason}.",
            GUEST: f"Goes to sleep: {request.reason}.",
            ACTIVITY: f"Wakes up: {request.reason}.",
        }.get(request.by, text)
        self._note(machine, "Normal", reason, message, action="PowerRequest")

    def _tell_trouble(self, machine: Machine, status: MachineStatus) -> None:
        before = machine.status
        if _is_trouble(status.reason):
            if (before.reason, before.last_error) != (status.reason, status.last_error):
                self._measures.trouble_told(str(status.reason))
                message = status.last_error or str(status.reason)
                self._note(machine, "Warning", str(status.reason), message, action="Reconcile")
        elif _is_trouble(before.reason) and status.reason == Reason.DESIRED_STATE_REACHED:
            message = f"Is {status.phase} as asked; {before.reason} is over."
            self._note(machine, "Normal", "Recovered", message, action="Reconcile")

    def _tell_crash(self, machine: Machine, status: MachineStatus) -> None:
        old, new = machine.status.backoff, status.backoff
        if new is None or new.failures <= (old.failures if old else 0):
            return
        if status.reason == Reason.CRASH_LOOP:
            return  # told with its trouble
        message = f"The guest ended without being told to, for the {_ordinal(new.failures)} time."
        self._note(machine, "Warning", "GuestCrashed", message, action="Reconcile")

    def _measure(self, machine: Machine, status: MachineStatus, *, since: datetime | None) -> None:
        before, born = machine.status, machine.metadata.creationTimestamp
        if before.phase in _ON_THE_WAY:
            since = before.last_transition_at
        if status.phase is Phase.SLEEPING and before.phase is not None and since is not None:
            self._measures.time_to_sleep(self._seconds(since))
        if status.phase is not Phase.RUNNING or before.phase is Phase.FAILED:
            return
        if born is not None and _first_start(before):
            self._measures.time_to_running(self._seconds(born), since="create")
        elif since is not None:
            self._measures.time_to_running(self._seconds(since), since="wake")

    def _seconds(self, since: datetime) -> float:
        return max((self._now() - since).total_seconds(), 0.0)

    def _note(self, machine: Machine, kind: str, reason: str, message: str, *, action: str) -> None:
        self._events.note(
            reference_to(machine),
            type="Warning" if kind == "Warning" else "Normal",
            reason=reason,
            message=message,
            action=action,
        )


def reference_to(machine: Machine) -> ObjectRef:
    """The machine as Events name it."""
    meta = machine.metadata
    return ObjectRef(
        api_version=API_VERSION,
        kind=KIND,
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
    )


def _is_trouble(reason: str | None) -> bool:
    facts = REASONS.get(Reason(reason)) if reason in set(Reason) else None
    return facts is not None and facts.is_trouble


def _first_start(before: MachineStatus) -> bool:
    """Whether a machine that was so had never run before."""
    if before.phase is not Phase.STARTING:
        return before.phase in (None, Phase.ACCEPTED, Phase.PLACEMENT_PENDING)
    # At most accepted, placement_pending and starting itself; a crash leaves its count, and a wake its own.
    steps = before.transitions or 0
    return steps <= 3 and not before.wake_count and before.backoff is None


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
