"""One pass over one machine: observe -> decide (pure) -> act -> report.

After its own writes a pass observes again before it reports: the answers are in the caches by then, so the status
says what is, and nothing is decided from what was. What can be written a moment later is: a phase that is only passed
through, and details. By then it is mostly over, and the API server, of which each write costs the most, was spared.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from machine_operator.api.machine import Machine, MachineStatus
from machine_operator.controller.actor import Actor
from machine_operator.controller.journal import Journal
from machine_operator.controller.observer import Observer
from machine_operator.controller.patience import patience_for
from machine_operator.controller.troubles import trouble_of
from machine_operator.kube.errors import (
    ApiError,
    Conflict,
    KubeError,
    NotFound,
    ServerError,
    TooManyRequests,
    Unreachable,
)
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.decision import Decision, decide
from machine_operator.lifecycle.goal import goal_of
from machine_operator.lifecycle.limits import Limits
from machine_operator.lifecycle.observation import Observation
from machine_operator.lifecycle.situation import Situation
from machine_operator.lifecycle.status import with_trouble

__all__ = ["Known", "Outcome", "Reconciler"]

log = logging.getLogger(__name__)

_SOON = 0.5
"""Seconds until the next look after a conflict."""

_OUTAGE = 30.0
"""Seconds between two tries while the API server or a webhook is away."""

_ROUNDS = 4
"""Times that a pass acts. More rounds than that would mean that its writes change nothing."""


@dataclass(frozen=True, slots=True)
class Known:
    """A Machine as it was last told.

    Attributes:
        fault: what is wrong with its spec, which is then a stand-in.
    """

    machine: Machine
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a pass went.

    Attributes:
        requeue_after: look again in so many seconds; None: only when something changes.
        gone: there is no such Machine any more: forget it. kopf does not tell of those that vanished while its watch
            was down, and their children would be made and garbage-collected in turns.
        calm: nobody waits for that look; it may come later where there is other work.
        retry: something failed: look again after the back-off, at least `at_least` and at most `at_most` seconds from
            now.
    """

    requeue_after: float | None = None
    calm: bool = False
    retry: bool = False
    gone: bool = False
    at_least: float = 0.0
    at_most: float = math.inf

    @classmethod
    def after(cls, error: KubeError) -> Outcome:
        """To be tried again. Where the server is away, soon after it is back, however long that took."""
        away = isinstance(error, Unreachable | ServerError | TooManyRequests)
        wait = error.retry_after or 0.0
        return cls(retry=True, at_least=wait, at_most=_OUTAGE if away else math.inf)

    @property
    def result(self) -> Literal["success", "requeue_after", "error"]:
        """In the words of controller-runtime's metrics."""
        if self.retry:
            return "error"
        return "success" if self.requeue_after is None else "requeue_after"


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A report that is put off: until when, by the loop's clock, and what it is about began at that moment."""

    due: float
    since: datetime


class Reconciler:
    """Brings machines to where they should be, one pass at a time.

    Args:
        known: the newest word about the Machine of this one's name; None where it is gone.
    """

    def __init__(
        self,
        *,
        observer: Observer,
        actor: Actor,
        journal: Journal,
        limits: Limits,
        known: Callable[[Machine], Known | None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._observer = observer
        self._actor = actor
        self._journal = journal
        self._limits = limits
        self._known = known
        self._now = now
        self._waiting: dict[str, _Waiting] = {}

    async def reconcile(self, known: Known) -> Outcome:
        """One pass.

        Raises:
            KubeError: the API server did not let us work; the pass is to be repeated.
        """
        done: tuple[do.Action, ...] = ()
        for _ in range(_ROUNDS):
            seen, decision = await self._decide(known)
            if not decision.actions or decision.actions == done:
                break
            done = decision.actions
            refused = await self._act(seen, done)
            again = self._known(known.machine)
            if again is None:
                return Outcome()
            known = again
            if refused is not None:
                return await self._failed(known, *refused)
        try:
            return await self._report(known.machine, decision)
        except NotFound:
            return Outcome(gone=True)

    def forget(self, machine: Machine) -> None:
        """The machine is gone."""
        self._waiting.pop(machine.metadata.uid, None)
        self._observer.forget(machine)

    async def _decide(self, known: Known) -> tuple[Observation, Decision]:
        seen = self._observer.observe(known.machine, fault=known.fault)
        decision = decide(seen, now=self._now(), limits=self._limits)
        while decision.questions:
            # Each answer is in `seen.answered`, so the questions end.
            seen = await self._observer.answer(seen, decision.questions)
            decision = decide(seen, now=self._now(), limits=self._limits)
        return seen, decision

    # ---- act

    async def _act(
        self, seen: Observation, actions: tuple[do.Action, ...]
    ) -> tuple[do.Action, ApiError] | None:
        """Do it all, side by side what does not need each other; the first refusal, if there was one."""
        refused: tuple[do.Action, ApiError] | None = None
        for batch in _batches(actions):
            errors = await asyncio.gather(
                *(self._perform(seen, action) for action in batch), return_exceptions=True
            )
            for action, error in zip(batch, errors, strict=True):
                if isinstance(error, ApiError):
                    refused = refused or (action, error)
                elif error is not None:
                    raise error
            if refused is not None and _others_need(refused[0], seen):
                break
        return refused

    async def _perform(self, seen: Observation, action: do.Action) -> None:
        # What an earlier action of this pass wrote counts: the finalizer moves the resourceVersion on.
        known = self._known(seen.machine)
        machine = known.machine if known is not None else seen.machine
        await self._actor.perform(machine, action)
        if isinstance(action, do.RequestPower):
            self._journal.requested(machine, action.request)

    async def _failed(self, known: Known, action: do.Action, error: ApiError) -> Outcome:
        machine, trouble = known.machine, trouble_of(action, error)
        name = f"machine {machine.metadata.namespace}/{machine.metadata.name}"
        if isinstance(error, Conflict):
            # Normal, not an error: somebody was faster. What they wrote is on its way into the caches.
            log.debug("%s: %s; looking again", name, error)
            return Outcome(requeue_after=_SOON)
        if trouble is None:
            # The server has a hiccup: nothing that people need to see.
            log.info("%s: %s; looking again", name, error)
            return Outcome.after(error)
        seen = self._observer.observe(machine, fault=known.fault)
        now = self._now()
        at = Situation(seen, goal_of(machine, now=now), now, self._limits)
        try:
            await self._write(machine, with_trouble(at, trouble))
        except KubeError as second:
            log.warning("%s: the status could not be written: %s", name, second)
        return Outcome.after(error)

    # ---- report

    async def _report(self, machine: Machine, decision: Decision) -> Outcome:
        status, later = decision.status, decision.requeue_after
        if status is None:
            return Outcome(requeue_after=later)
        wait = self._wait(machine, status)
        if wait > 0 and (later is None or wait < later):
            return Outcome(requeue_after=wait, calm=True)
        if wait > 0:
            return Outcome(requeue_after=later)
        await self._write(machine, status)
        return Outcome(requeue_after=later)

    async def _write(self, machine: Machine, status: MachineStatus) -> None:
        waiting = self._waiting.pop(machine.metadata.uid, None)
        if await self._actor.report(machine, status):
            self._journal.reported(machine, status, since=waiting.since if waiting else None)

    def _wait(self, machine: Machine, status: MachineStatus) -> float:
        """Seconds for which the report can wait; 0 where it cannot, or there is nothing to report."""
        uid, before = machine.metadata.uid, self._waiting.get(machine.metadata.uid)
        if not self._actor.differs(machine, status):
            self._waiting.pop(uid, None)
            return 0.0
        patience = patience_for(machine.status, status)
        if not patience:
            return 0.0
        now = asyncio.get_running_loop().time()
        due = now + patience if before is None else min(before.due, now + patience)
        self._waiting[uid] = _Waiting(due, before.since if before else self._now())
        return due - now


def _batches(actions: tuple[do.Action, ...]) -> list[list[do.Action]]:
    """The same actions in the same order; what does not need each other side by side.

    A disk or seed that is there before the finalizer is no loss: the owner reference sees to its end. A VM is.
    """
    batches: list[list[do.Action]] = []
    for action in actions:
        if (
            batches
            and isinstance(action, _SIDE_BY_SIDE)
            and isinstance(batches[-1][0], _SIDE_BY_SIDE)
        ):
            batches[-1].append(action)
        else:
            batches.append([action])
    return batches


_SIDE_BY_SIDE = (do.AddFinalizer, do.ApplyHome, do.ApplySeed)


def _others_need(action: do.Action, seen: Observation) -> bool:
    """Whether the actions after this one make no sense without it: a VM needs its disk and seed to be there.

    A disk that cannot grow, on the other hand, must not keep a machine from going to sleep.
    """
    match action:
        case do.AddFinalizer() | do.RequestPower():
            return True
        case do.ApplyHome():
            return seen.home is None or seen.home.machine_uid != seen.machine.metadata.uid
        case do.ApplySeed():
            return seen.seed is None
        case _:
            return False
