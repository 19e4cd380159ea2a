"""Executions: who has to run, when, and by which gateway.

    POST ──> a row, owned by this gateway ──> its machine's line ──> a run (`run.py`) ──> the guest forgets it
                        │                          ▲
    another gateway died: its lease runs out ──────┘

Whoever makes an execution owns it and begins it at once, without asking the store again. One statement keeps all that
is ours, another one asks which of it somebody wants to be cancelled by way of another gateway.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from machine_operator.gateway.access import Access, NotUsable, Readiness
from machine_operator.gateway.artifacts.artifacts import Artifacts
from machine_operator.gateway.executions.context import Context, Patience
from machine_operator.gateway.executions.crew import Crew
from machine_operator.gateway.executions.lines import LineFull
from machine_operator.gateway.executions.outcomes import CANCELLED
from machine_operator.gateway.executions.run import Run
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.problems import Coded, Problem
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.views import MachineView
from machine_operator.guest.errors import GuestError
from machine_operator.store.database import Database
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.executions import Execution, ExecutionInputs, ExecutionRecords, Work
from machine_operator.store.moments import utc_now

__all__ = ["Executions", "Pace"]

log = logging.getLogger(__name__)

_COPIES: Final = 16
_FULL_MS: Final = 1000


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds.

    Attributes:
        round: between two looks at what is cancelled or left.
        lease: for which work is a gateway's own; it is renewed thrice in that time.
        cancelling: for which a cancellation is waited for before it is answered.
        waking: for which an execution waits for its machine, at most.
        sweep: between two removals of what has expired.
        forget: for the guest to forget what is done.
    """

    round: float = 1.0
    lease: float = 15.0
    cancelling: float = 7.0
    waking: float = 900.0
    sweep: float = 60.0
    forget: float = 10.0


class Executions:
    """The executions of all machines, and those of this gateway in particular.

    Args:
        database: where they are.
        machines: what there is.
        access: the way into machines.
        artifacts: takes what they leave.
        settings: limits and retention.
        owner: of this process; None makes one up.
        clock: tells the time, with a zone.
        patience, pace: how long things may take.
    """

    def __init__(
        self,
        database: Database,
        machines: Machines,
        access: Access,
        artifacts: Artifacts,
        settings: GatewaySettings,
        *,
        owner: str | None = None,
        clock: Callable[[], datetime] = utc_now,
        patience: Patience | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._pace = pace or Pace()
        self.records = ExecutionRecords(
            database, owner=owner or secrets.token_hex(16), lease=self._pace.lease, clock=clock
        )
        self._machines = machines
        self._access = access
        self._artifacts = artifacts
        self._settings = settings
        self._context = Context(
            records=self.records,
            access=access,
            artifacts=artifacts,
            settings=settings,
            latest=machines.latest,
            copying=asyncio.Semaphore(_COPIES),
            patience=patience or Patience(),
            clock=clock,
        )
        self._time = asyncio.get_running_loop().time
        self._crew = Crew(self._context, done=self._ended)
        self._done: list[str] = []  # nothing is left to be done, but the store does not know
        self._spooled: dict[str, tuple[MachineView, list[str]]] = {}
        self._unknown: set[str] = set()
        machines.observers.append(self._crew.changed)

    def __len__(self) -> int:
        """Those that run, or wait for their turn, on this gateway."""
        return self._crew.lines.active

    # ---- for requests

    async def create(
        self, view: MachineView, id: str, values: Mapping[str, Any], inputs: ExecutionInputs
    ) -> Execution:
        """A new execution on a machine, which begins at once, or when the machine is ready.

        Args:
            view: the machine.
            id: of the execution: the same for each repetition of a request.
            values: command, cwd, env_keys, timeout_ms, created_by.
            inputs: what its program is given.

        Raises:
            Coded: 429, too many wait; 503, too many machines do.
            StoreUnavailable: the database cannot be used.
        """
        machine = view.machine.metadata.uid
        try:
            readiness = self._access.knock(view, by=values["created_by"])
        except NotUsable as error:
            raise _too_many_wakes(str(error)) from error
        self._crew.expect(machine, view)
        try:
            at_once = self._crew.lines.promise(machine, id, ready=readiness is Readiness.READY)
        except LineFull:
            raise self._full() from None
        target = self._access.target(view) if at_once else None
        new = False
        try:
            execution, new = await self.records.create(
                {
                    "id": id,
                    "org": view.org,
                    "machine_id": view.uuid,
                    "machine_uid": machine,
                    "status": "wake_in_progress" if readiness is Readiness.WAKING else "queued",
                    "instance_uid": None if target is None else target.instance_uid,
                    **values,
                },
                inputs if inputs.env or inputs.stdin else None,
            )
        finally:
            if not new and id not in self._crew.runs:
                self._crew.drop(machine, id)
        if not new:
            return execution
        if at_once:
            self._crew.start(machine, Run(self._context, id, view, known=(execution, inputs)))
        else:
            self._crew.wait(machine, id)
        return execution

    async def cancel(self, execution: Execution) -> Execution | None:
        """End one that is active; what it is then, or is after a while. None: it has ended already."""
        end = {**CANCELLED.values(), **self._context.ending()}
        found = await self.records.cancel(execution.id, end)
        if found is None:
            return None
        if found.completed_at is not None:
            self._crew.drop(found.machine_uid, found.id)
            return found
        deadline = self._time() + self._pace.cancelling
        run = self._crew.runs.get(execution.id)
        if run is not None:
            run.cancel()
        while (left := deadline - self._time()) > 0:
            if run is None:
                await asyncio.sleep(min(left, self._pace.round / 4))
            else:
                await _within(run.finished.wait(), left)
                run = None
            again = await self.records.find(self.records.table.c.id == found.id)
            if again is None:
                return found
            found = again
            if found.completed_at is not None:
                break
        return found

    async def remove(self, execution: Execution) -> None:
        """Remove one that has ended, with all that it left."""
        await self._artifacts.remove(await self._artifacts.records.of_execution(execution.id))
        await self.records.remove([execution.id])

    def _full(self) -> Coded:
        return Coded(
            429,
            "RATE_LIMITED",
            "too many executions wait for this machine",
            retryable=True,
            retry_after_ms=_FULL_MS,
            details={
                "rate_limit_scope": "machine_executions",
                "execution_limit": str(self._settings.execution_limit),
                "execution_queue": str(self._settings.execution_queue),
            },
        )

    # ---- beside requests

    async def run(self) -> None:
        """Look after what is ours and what others have left, until cancelled; then it is left to others."""
        pace = self._pace
        await self._machines.informer.synced.wait()
        renew = sweep = self._time()
        try:
            while True:
                now = self._time()
                try:
                    if now >= renew:
                        renew = now + pace.lease / 3
                        await self._renew()
                        await self._take_over()
                    if now >= sweep:
                        sweep = now + pace.sweep
                        await self.records.sweep()
                    await self._round()
                except StoreUnavailable as error:
                    log.warning("executions wait for the store: %s", error)
                await asyncio.sleep(pace.round)
        finally:
            await self._close()

    async def _close(self) -> None:
        self._machines.observers.remove(self._crew.changed)
        await self._crew.close()
        self._artifacts.files.close()  # not before: what is cut off must not be taken for a failure
        try:
            await self.records.hand_over()
        except StoreUnavailable as error:
            log.warning("executions are left until their lease ends: %s", error)

    async def _round(self) -> None:
        if self._crew.runs:
            for id in await self.records.cancelled():
                if (run := self._crew.runs.get(id)) is not None:
                    run.cancel()
        self._crew.expire_waits(self._pace.waking)
        await self._forget()

    async def _renew(self) -> None:
        """Keep what is ours; what is ours without our knowing came of a transaction whose end was not heard of."""
        ours = await self.records.renew()
        spooled = {id for _, ids in self._spooled.values() for id in ids}
        unknown = ours - self._crew.known - set(self._done) - spooled
        for id in unknown & self._unknown:
            execution = await self.records.mine(id)
            if execution is not None:
                self._adopt(_work_of(execution))
        self._unknown = unknown - self._unknown

    async def _take_over(self) -> None:
        while True:
            left = await self.records.take_over()
            for work in left:
                if work.id not in self._crew.runs:
                    log.info("execution %s is taken over", work.id)
                    self._adopt(work)
            if not left:
                return

    def _adopt(self, work: Work) -> None:
        machine = work.machine_uid
        try:
            view: MachineView | None = self._machines.find(work.org, work.machine_id)
        except Problem:
            view = None
        if view is not None and view.machine.metadata.uid != machine:
            view = None
        if work.completed_at is not None:
            if view is not None and self._same_boot(view, work.instance_uid):
                self._spooled.setdefault(machine, (view, []))[1].append(work.id)
            else:
                self._done.append(work.id)
            return
        if view is None or work.instance_uid is not None:
            self._crew.begin(machine, work.id, view)
            return
        try:
            readiness = self._access.knock(view, by=work.created_by)
        except NotUsable as error:
            # It is ours, and not known here: the next renewal comes upon it.
            log.warning("execution %s: %s", work.id, error)
            return
        self._crew.expect(machine, view)
        if readiness in (Readiness.READY, Readiness.WAKING):
            self._crew.wait(machine, work.id)
        else:
            self._crew.begin(machine, work.id, view)

    # ---- forgetting

    def _ended(self, machine: str, run: Run) -> None:
        if run.told and run.view is not None:
            self._spooled.setdefault(machine, (run.view, []))[1].append(run.id)
        else:
            self._done.append(run.id)

    def _same_boot(self, view: MachineView, instance_uid: str | None) -> bool:
        target = self._access.target(view)
        return target is not None and target.instance_uid == instance_uid

    async def _forget(self) -> None:
        """Let guests forget what has ended, and then do so ourselves."""
        spooled, self._spooled = self._spooled, {}
        done, self._done = self._done, []
        await asyncio.gather(*(self._clear(view, ids) for view, ids in spooled.values()))
        done += (id for _, ids in spooled.values() for id in ids)
        if done:
            try:
                await self.records.settle(done)
            except StoreUnavailable:
                self._done += done
                raise

    async def _clear(self, view: MachineView, ids: Iterable[str]) -> None:
        view = self._machines.latest(view)
        if self._access.readiness(view) is not Readiness.READY:
            return  # what the guest had is gone with it; to look would wake it
        seconds = self._pace.forget
        try:
            async with asyncio.timeout(seconds):
                guest = await self._access.guest(view, by="executions", timeout=seconds)
                await guest.runner.forget(list(ids))
        except (GuestError, NotUsable, TimeoutError) as error:
            log.info("a guest keeps what it has of executions until it stops: %s", error)


def _too_many_wakes(message: str) -> Coded:
    return Coded(
        503, "DEPENDENCY_UNAVAILABLE", message, retryable=True, retry_after_ms=Access.RETRY_MS
    )


def _work_of(execution: Execution) -> Work:
    return Work(**{name: getattr(execution, name) for name in Work.__slots__})


async def _within(work: Coroutine[Any, Any, Any], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return
