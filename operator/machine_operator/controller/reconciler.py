"""One pass over one machine: observe (caches only) -> decide (pure) -> act -> report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from machine_operator.api.machine import Machine
from machine_operator.api.phases import Reason
from machine_operator.controller.actor import Actor
from machine_operator.controller.children import Children
from machine_operator.kube.errors import (
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
)
from machine_operator.kubevirt.home import home_digest
from machine_operator.kubevirt.seed import seed_digest
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.kubevirt.vm import vm_digest
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.decision import decide
from machine_operator.lifecycle.goal import goal_of
from machine_operator.lifecycle.observation import Observation, Trouble, Wanted
from machine_operator.lifecycle.status import with_trouble
from machine_operator.lifecycle.table import Situation

__all__ = ["Outcome", "Reconciler"]

log = logging.getLogger(__name__)

_SOON = 0.5
"""Seconds until the next look after a conflict."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a pass went.

    Attributes:
        requeue_after: look again in so many seconds; None: only when something changes.
        gone: there is no such Machine any more: forget it. kopf does not tell of those that vanished while its watch
            was down, and their children would be made and garbage-collected in turns.
        retry: something failed: look again after the back-off, and at least `at_least` seconds from now.
    """

    requeue_after: float | None = None
    retry: bool = False
    gone: bool = False
    at_least: float = 0.0


class Reconciler:
    """Brings machines to where they should be, one pass at a time."""

    def __init__(
        self,
        *,
        actor: Actor,
        children: Children,
        defaults: MachineDefaults,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._actor = actor
        self._children = children
        self._defaults = defaults
        self._now = now

    async def reconcile(self, machine: Machine) -> Outcome:
        """One pass.

        Raises:
            KubeError: the API server did not let us work; the pass is to be repeated.
        """
        seen = self._observe(machine)
        decision = decide(seen, now=self._now())
        refused: tuple[do.Action, ApiError] | None = None
        for action in decision.actions:
            try:
                await self._actor.perform(machine, action)
            except ApiError as error:
                refused = refused or (action, error)
                if _others_need(action, seen):
                    break
        if refused is not None:
            return await self._failed(seen, *refused)
        status = decision.status
        try:
            if status is not None and await self._actor.report(machine, status):
                _log_change(machine, str(status.phase), status.reason)
        except NotFound:
            return Outcome(gone=True)
        return Outcome(requeue_after=decision.requeue_after)

    def _observe(self, machine: Machine) -> Observation:
        children = self._children
        return Observation(
            machine=machine,
            wanted=Wanted(
                virtual_machine=vm_digest(machine, self._defaults),
                home=home_digest(machine),
                seed=seed_digest(machine, self._defaults),
            ),
            virtual_machine=children.vm(machine),
            instance=children.instance(machine),
            home=children.home(machine),
            seed=children.seed(machine),
        )

    async def _failed(self, seen: Observation, action: do.Action, error: ApiError) -> Outcome:
        trouble = _trouble(action, error)
        if isinstance(error, Conflict):
            # Normal, not an error: somebody was faster. What they wrote is on its way into the caches.
            log.debug("%s: %s; looking again", _name(seen.machine), error)
            return Outcome(requeue_after=_SOON)
        if trouble is None:
            # The server has a hiccup: nothing that people need to see.
            log.info("%s: %s; looking again", _name(seen.machine), error)
            return Outcome(retry=True, at_least=error.retry_after or 0.0)
        log.warning("%s: %s: %s", _name(seen.machine), trouble.reason, error)
        situation = Situation(seen, goal_of(seen.machine))
        try:
            await self._actor.report(
                seen.machine, with_trouble(situation, trouble, now=self._now())
            )
        except KubeError as second:
            log.warning("%s: the status could not be written: %s", _name(seen.machine), second)
        return Outcome(retry=True, at_least=error.retry_after or 0.0)


def _others_need(action: do.Action, seen: Observation) -> bool:
    """Whether the actions after this one make no sense without it: a VM needs its disk and seed to be there.

    A disk that cannot grow, on the other hand, must not keep a machine from going to sleep.
    """
    match action:
        case do.ApplyHome():
            return seen.home is None
        case do.ApplySeed():
            return seen.seed is None
        case _:
            return False


def _trouble(action: do.Action, error: ApiError) -> Trouble | None:
    """What a failed write means for the machine; None for what passes by itself."""
    match error:
        case Conflict() | NotFound():
            return None
        case Forbidden() if "being terminated" in error.message:
            return None  # the namespace goes, and this Machine with it
        case Forbidden() if "quota" in error.message:
            return Trouble(Reason.QUOTA_EXCEEDED, error.message)
        case Forbidden() | Invalid() if isinstance(action, do.ApplyHome):
            resize = "resize" in error.message
            reason = Reason.STORAGE_NOT_RESIZABLE if resize else Reason.STORAGE_NOT_AVAILABLE
            return Trouble(reason, error.message)
        case Forbidden() | Invalid() if isinstance(action, do.ApplyVirtualMachine):
            return Trouble(Reason.VIRTUAL_MACHINE_REFUSED, error.message)
        case Forbidden() | Invalid():
            return Trouble(Reason.INTERNAL_ERROR, str(error))
        case _:
            return None


def _log_change(machine: Machine, phase: str, reason: str | None) -> None:
    before = machine.status
    if (str(before.phase), before.reason) != (phase, reason):
        log.info("%s: %s -> %s (%s)", _name(machine), before.phase or "new", phase, reason)


def _name(machine: Machine) -> str:
    return f"machine {machine.metadata.namespace}/{machine.metadata.name}"
