"""One execution on its way to its end, from wherever the store says that it has come.

    marked in the store ──> started in the guest ──> output copied now and then ──> ended, all copied, artifacts
    collected ──> its end in the store

Each try begins with what the store has, as a successor's would: a database or a guest that was away for a while is
the same case as a gateway that died. The mark comes before the guest is told, so an execution that may have begun can
be told from one that has not: the first is asked for in the same boot of the machine, and is lost with it; the other
one is begun. Output goes into the store together with how far the copy has come.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from machine_operator.api.phases import DesiredState
from machine_operator.gateway.access import NotUsable, Readiness, UseKind
from machine_operator.gateway.artifacts.artifacts import Collection
from machine_operator.gateway.executions.context import Context
from machine_operator.gateway.executions.outcomes import (
    CANCELLED,
    EXPIRED,
    INTERRUPTED,
    NOT_ROUTABLE,
    Outcome,
    not_prepared,
    of_ended,
    without_machine,
)
from machine_operator.gateway.executions.output import NotOurs, OutputCopy
from machine_operator.gateway.views import MachineView
from machine_operator.guest.errors import GuestError, GuestLost, GuestRefused, GuestUnreachable
from machine_operator.guest.job import Ended, Job
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.executions import Event, Execution, ExecutionInputs

if TYPE_CHECKING:
    from machine_operator.guest.guest import Guest
    from machine_operator.guest.runner import Runner

__all__ = ["Result", "Run"]

log = logging.getLogger(__name__)

_TERM: Final = 15
_KILL: Final = 9
_MANY_FAULTS: Final = 3
_LONG: Final = 3600.0
_MUCH: Final = 256 * 1024
"""Bytes of output in one look after which the next one comes at once."""


class Result(Enum):
    """How a run ended for this gateway."""

    DONE = auto()  # it has ended, or somebody else sees to it
    WAIT = auto()  # the machine is not ready, and it has not begun


@dataclass(slots=True)
class _End:
    """How it is over: by itself, or by our doing.

    Attributes:
        outcome: for people.
        ended: what the guest says.
        copy: of its output, if it ran.
        began_at: when it was started, if it ran.
        collection: what it has left.
    """

    outcome: Outcome
    ended: Ended | None = None
    copy: OutputCopy | None = None
    began_at: datetime | None = None
    collection: Collection | None = None


class Run:
    """One execution.

    Args:
        context: what runs share.
        id: whose run.
        view: its machine; None where that is gone.
        known: the execution and its inputs where it has just been made: nobody else can have begun it.
        verdict: how it ends unless it has begun.

    Attributes:
        told: whether the guest may keep something for it, which is ours to have removed.
        finished: set once nothing is done about it here any more.
    """

    def __init__(
        self,
        context: Context,
        id: str,
        view: MachineView | None,
        *,
        known: tuple[Execution, ExecutionInputs] | None = None,
        verdict: Outcome | None = None,
    ) -> None:
        self.id = id
        self.view = view
        self.told = False
        self.finished = asyncio.Event()
        self._context = context
        self._known = known
        self._untold = known is not None
        self._verdict = verdict
        self._cancelled = False
        self._collected = not self._untold
        self._nudged: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        """End it, soon."""
        self._cancelled = True
        self.nudge()

    def nudge(self) -> None:
        """Look again: something has changed."""
        if not self._nudged.done():
            self._nudged.set_result(None)

    async def follow(self) -> Result:
        """Return once there is nothing left to be done about it here."""
        lost_since, faults = None, 0
        patience, now = self._context.patience, asyncio.get_running_loop().time
        pause = patience.retry
        try:
            while True:
                over = lost_since is not None and now() - lost_since >= patience.unreachable
                try:
                    return await self._attempt(give_up=over or faults > _MANY_FAULTS)
                except NotOurs:
                    self.told = False  # what the guest keeps is somebody else's
                    return Result.DONE
                except StoreUnavailable as error:
                    log.warning("execution %s waits for the store: %s", self.id, error)
                except (GuestLost, GuestUnreachable) as error:
                    log.info("execution %s: the guest is out of reach: %s", self.id, error)
                    lost_since = now() if lost_since is None else lost_since
                except GuestError as error:
                    faults += 1
                    log.warning("execution %s: %s", self.id, error)
                except Exception:
                    faults += 1
                    log.exception("execution %s: an attempt failed unexpectedly", self.id)
                _unless_cancelled()
                await asyncio.sleep(pause)
                pause = min(2 * pause, patience.longest_retry)
        finally:
            self.finished.set()

    async def _attempt(self, *, give_up: bool) -> Result:
        """From what the store has to the end.

        Raises:
            NotOurs, StoreUnavailable, GuestLost, GuestUnreachable: not this time.
        """
        context = self._context
        execution, inputs = self._known or (await context.records.mine(self.id), None)
        self._known = None
        if execution is None:
            raise NotOurs
        if execution.completed_at is not None:
            return Result.DONE
        self._cancelled = self._cancelled or execution.cancelling
        if self._nudged.done():
            self._nudged = asyncio.get_running_loop().create_future()
        begun = execution.instance_uid is not None and not self._untold
        if give_up:
            return await self._conclude(execution, NOT_ROUTABLE)
        if not begun and (self._cancelled or self._verdict):
            return await self._conclude(execution, self._verdict or CANCELLED)
        waits, outcome = self._of_machine(execution, begun=begun)
        if outcome is not None:
            return await self._conclude(execution, outcome)
        if waits or self.view is None:
            return Result.WAIT
        with context.access.use(self.view, UseKind.EXECUTION):
            try:
                guest = await context.access.guest(
                    self.view, by=execution.created_by, timeout=context.patience.connect
                )
            except NotUsable as error:
                if error.readiness is Readiness.READY:
                    raise GuestUnreachable(str(error)) from error
                lost = without_machine(error.readiness, begun=begun)
                return Result.WAIT if lost is None else await self._conclude(execution, lost)
            except GuestRefused as error:
                log.error("execution %s: %s", self.id, error)
                return await self._conclude(execution, NOT_ROUTABLE)
            return await self._in_guest(guest, execution, inputs, begun=begun)

    def _of_machine(self, execution: Execution, *, begun: bool) -> tuple[bool, Outcome | None]:
        if self.view is not None:
            self.view = self._context.latest(self.view)
        return self._context.of_machine(self.view, execution, begun=begun)

    # ---- in the guest

    async def _in_guest(
        self, guest: Guest, execution: Execution, inputs: ExecutionInputs | None, *, begun: bool
    ) -> Result:
        instance, records = guest.target.instance_uid, self._context.records
        if begun and execution.instance_uid != instance:
            return await self._conclude(execution, INTERRUPTED)
        if execution.instance_uid != instance:
            execution = _ours(await records.begin(execution, instance_uid=instance))
        if inputs is None:
            inputs = await records.inputs(self.id)
        if self._cancelled:
            state = await guest.runner.state(self.id) if begun else "absent"
            if state == "absent":
                return await self._conclude(execution, CANCELLED)
        self._untold, self.told = False, True
        # One that was left before it was told to be running has begun right when it was made.
        began_at = execution.started_at or (
            execution.created_at if begun else self._context.clock()
        )
        try:
            await guest.runner.start(self._job(execution, inputs))
        except (GuestLost, GuestUnreachable):
            raise
        except GuestError as error:
            log.warning("execution %s could not be started: %s", self.id, error)
            return await self._conclude(execution, not_prepared(str(error)))
        del inputs
        copy = OutputCopy(
            records,
            execution,
            most=self._context.settings.execution_output_kib * 1024,
            room=self._context.copying,
        )
        end = await self._watch(guest, copy, began_at)
        end.copy, end.began_at = copy, began_at
        if end.ended is not None:
            await copy.rest(guest.runner, end.ended)
            end.collection = await self._collect(guest, copy.execution, end)
        return await self._finish(copy.execution, end)

    async def _watch(self, guest: Guest, copy: OutputCopy, began_at: datetime) -> _End:
        """Copy its output until it has ended, or has to."""
        context, patience = self._context, self._context.patience
        timeout = timedelta(milliseconds=copy.execution.timeout_ms)
        ending = asyncio.create_task(_ended(guest.runner, self.id))
        look = patience.mark if copy.execution.started_at is None else patience.look
        try:
            while True:
                left = (began_at + timeout - context.clock()).total_seconds()
                wait = max(0.0, min(look, left))
                either: set[asyncio.Future[Any]] = {ending, self._nudged}
                await asyncio.wait(either, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if ending.done():
                    late = context.clock() >= began_at + timeout
                    return self._by_itself(ending.result(), late=late)
                if self._nudged.done():
                    self._nudged = asyncio.get_running_loop().create_future()
                    _, outcome = self._of_machine(copy.execution, begun=True)
                    if outcome is not None:
                        await self._last_output(guest.runner, copy)
                        return _End(outcome)
                if self._cancelled:
                    return _End(CANCELLED, await self._kill(guest.runner, ending))
                if context.clock() >= began_at + timeout:
                    return _End(EXPIRED, await self._kill(guest.runner, ending))
                if copy.execution.started_at is None:
                    copy.execution = await self._mark(copy.execution, began_at)
                    look = patience.first_look
                    continue
                if await copy.look(guest.runner) >= _MUCH:
                    look = patience.mark
                    continue
                age = (context.clock() - began_at).total_seconds()
                look = min(max(patience.look, age / 100), patience.longest_look)
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    def _by_itself(self, ended: Ended, *, late: bool) -> _End:
        """It ended. A guest that stops ends its programs first, and one of its own accord ends what is over time."""
        if ended.signal in (_TERM, _KILL):
            view = self.view
            if late:
                return _End(EXPIRED, ended)
            if (
                view is not None
                and self._context.latest(view).desired_state is not DesiredState.RUNNING
            ):
                return _End(INTERRUPTED, ended)
        return _End(of_ended(ended), ended)

    async def _mark(self, execution: Execution, began_at: datetime) -> Execution:
        instance = execution.instance_uid
        assert instance is not None  # noqa: S101 - it was marked before the guest was told
        return _ours(
            await self._context.records.begin(execution, instance_uid=instance, at=began_at)
        )

    async def _kill(self, runner: Runner, ending: asyncio.Task[Ended]) -> Ended | None:
        """TERM, and after a while KILL, to its whole process group; None where even that has no effect."""
        patience = self._context.patience
        for number, seconds in ((_TERM, patience.term), (_KILL, patience.kill)):
            await runner.kill(self.id, number)
            await asyncio.wait({ending}, timeout=seconds)
            if ending.done():
                return ending.result()
        log.error("execution %s: its program does not end even when it is killed", self.id)
        return None

    async def _last_output(self, runner: Runner, copy: OutputCopy) -> None:
        with suppress(GuestError, TimeoutError):
            async with asyncio.timeout(self._context.patience.last_output):
                await copy.look(runner)

    async def _collect(self, guest: Guest, execution: Execution, end: _End) -> Collection | None:
        if end.ended is None or not end.ended.artifacts or end.outcome == CANCELLED:
            return None
        again, self._collected = self._collected, True
        return await self._context.artifacts.collect(execution, guest, again=again)

    def _job(self, execution: Execution, inputs: ExecutionInputs) -> Job:
        settings = self._context.settings
        return Job(
            id=self.id,
            argv=tuple(execution.command),
            cwd=execution.cwd or settings.guest_home,
            env=inputs.env,
            stdin=inputs.stdin,
            timeout=execution.timeout_ms / 1000,
            kept_bytes=settings.execution_output_kib * 1024,
        )

    # ---- the end

    async def _conclude(self, execution: Execution, outcome: Outcome) -> Result:
        """The end of one that has not run, or whose guest is not there any more."""
        return await self._finish(execution, _End(outcome))

    async def _finish(self, execution: Execution, end: _End) -> Result:
        """Its end, in one transaction."""
        context = self._context
        values = {**end.outcome.values(), **context.ending()}
        completed_at: datetime = values["completed_at"]
        events: list[Event] = []
        if end.copy is not None:
            values |= end.copy.totals(end.ended)
            if execution.started_at is None:
                values["started_at"] = began_at = end.began_at or completed_at
                events.append(Event(0, "lifecycle", began_at, status="running"))
            events += end.copy.events
        collection = end.collection
        if collection is not None:
            values["artifacts"] = collection.references or None
            events += (omission.event(completed_at) for omission in collection.omissions)

        async def publish(connection: AsyncConnection) -> None:
            if collection is not None:
                await context.artifacts.publish(connection, collection)

        _ours(await context.records.end(execution, events, values, more=publish))
        return Result.DONE


def _unless_cancelled() -> None:
    """What fails while it is being cancelled may well hide that."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _ours(execution: Execution | None) -> Execution:
    if execution is None:
        raise NotOurs
    return execution


async def _ended(runner: Runner, id: str) -> Ended:
    while True:
        ended = await runner.ended(id, timeout=_LONG)
        if ended is not None:
            return ended
