"""The executions that a gateway has in hand: which of them run, and what becomes of those that wait.

Machines are followed, not asked: what waits begins when its machine is ready, and ends when that will not come to be.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from machine_operator.api.phases import DesiredState
from machine_operator.gateway.access import Readiness
from machine_operator.gateway.executions.context import Context
from machine_operator.gateway.executions.lines import Lines
from machine_operator.gateway.executions.outcomes import INTERRUPTED, NOT_ROUTABLE, Outcome
from machine_operator.gateway.executions.run import Result, Run
from machine_operator.gateway.views import MachineView
from machine_operator.store.errors import StoreUnavailable

__all__ = ["Crew"]

log = logging.getLogger(__name__)

_AT_ONCE: Final = 8192


class Crew:
    """All runs of a gateway, and the lines before its machines.

    Args:
        context: what the runs share.
        done: told of each run that has ended: its machine, and the run.

    Attributes:
        lines: who runs and who waits.
        runs: what runs, by id.
    """

    def __init__(self, context: Context, *, done: Callable[[str, Run], None]) -> None:
        settings = context.settings
        self.runs: dict[str, Run] = {}
        self._context = context
        self._done = done
        self._time = asyncio.get_running_loop().time
        self.lines = Lines(
            at_once=settings.execution_limit,
            queue=settings.execution_queue,
            most=_AT_ONCE,
            start=self._turn,
            clock=self._time,
        )
        self._views: dict[str, MachineView] = {}
        self._woken: set[str] = set()  # machines with a line that were to run, once
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Stop all of it, as it is."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def known(self) -> set[str]:
        """All that is in hand."""
        known = set(self.runs)
        for machine in self.lines.machines:
            line = self.lines[machine]
            known |= set(line.waiting) | line.coming | line.running
        return known

    # ---- what comes

    def expect(self, machine: str, view: MachineView) -> None:
        """Something is about to come for a machine, at which somebody has knocked."""
        self._views[machine] = view
        if view.desired_state is DesiredState.RUNNING:
            self._woken.add(machine)
        else:
            self._woken.discard(machine)  # the knock will have it run

    def wait(self, machine: str, id: str) -> None:
        """One waits for its turn, and for its machine."""
        self.lines.wait(machine, id)
        if (view := self._views.get(machine)) is not None:
            self.look(machine, self._context.latest(view))

    def drop(self, machine: str, id: str) -> None:
        """One does not come after all, or waits no more."""
        self.lines.drop(machine, id)
        self._tidy(machine)

    def begin(
        self, machine: str, id: str, view: MachineView | None, *, verdict: Outcome | None = None
    ) -> None:
        """Begin one whether or not there is a place for it: it runs already, or it is to be ended."""
        self.lines.adopt(machine, id)
        if view is not None:
            self._views.setdefault(machine, view)
        if id not in self.runs:
            self.start(machine, Run(self._context, id, view, verdict=verdict))

    def start(self, machine: str, run: Run) -> None:
        """Begin one that has a place."""
        self.runs[run.id] = run
        self._soon(self._follow(machine, run))

    def _turn(self, machine: str, id: str) -> None:
        self.start(machine, Run(self._context, id, self._views.get(machine)))

    async def _follow(self, machine: str, run: Run) -> None:
        result = Result.DONE
        try:
            result = await run.follow()
        finally:
            del self.runs[run.id]
            if result is Result.WAIT:
                self.lines.close(machine)  # or it would be its turn at once
            self.lines.drop(machine, run.id)
            if result is Result.WAIT:
                self.lines.wait(machine, run.id)
            self._tidy(machine)
        if result is Result.DONE:
            self._done(machine, run)

    # ---- machines

    def changed(self, old: MachineView | None, new: MachineView | None) -> None:
        """A machine has changed."""
        seen = new if new is not None else old
        machine = None if seen is None else seen.machine.metadata.uid
        if seen is not None and machine in self._views:
            view = self._views[machine] = self._context.latest(seen)
            self.look(machine, view)

    def look(self, machine: str, view: MachineView) -> None:
        """What the state of a machine means for its line."""
        for id in self.lines[machine].running:
            if (run := self.runs.get(id)) is not None:
                run.nudge()
        readiness = self._context.access.readiness(view)
        if readiness is Readiness.READY:
            self._woken.add(machine)
            self.lines.open(machine)
            if self.lines[machine].waiting:
                self._soon(self._queued(machine))
            return
        self.lines.close(machine)
        if readiness is not Readiness.WAKING:
            self._end_waiting(machine, None)
        elif view.desired_state is DesiredState.RUNNING:
            self._woken.add(machine)
        elif machine in self._woken:
            # Somebody has put it to sleep after it had been woken for these.
            self._end_waiting(machine, INTERRUPTED)

    def expire_waits(self, seconds: float) -> None:
        """End what has waited for its machine for so long."""
        longest = self._time() - seconds
        for machine in self.lines.machines:
            line = self.lines[machine]
            for id, since in list(line.waiting.items()) if not line.open else ():
                if since <= longest:
                    self.begin(machine, id, self._views.get(machine), verdict=NOT_ROUTABLE)

    def _end_waiting(self, machine: str, verdict: Outcome | None) -> None:
        for id in list(self.lines[machine].waiting):
            self.begin(machine, id, self._views.get(machine), verdict=verdict)

    async def _queued(self, machine: str) -> None:
        try:
            await self._context.records.queued(machine)
        except StoreUnavailable as error:
            log.warning("executions are shown as waiting for their machine: %s", error)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tidy(self, machine: str) -> None:
        if self.lines[machine].empty:
            self._views.pop(machine, None)
            self._woken.discard(machine)
