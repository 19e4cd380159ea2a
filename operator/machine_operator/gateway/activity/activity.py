"""Writes down who uses machines: `status.activity`, from which the controller tells when to put them to sleep.

Each replica applies its own part under its own field manager: one hold for each kind of use and machine, named
`<replica>.<kind>`, and the last touch, which whoever writes last takes over. `uses.py` tells when; here it is done: one
heap of what is due, and a few writes at a time (`writes.py`).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from types import TracebackType
from typing import Final

from machine_operator.api.durations import parse_autosleep
from machine_operator.gateway.activity.holds import asleep
from machine_operator.gateway.activity.uses import Moment, Pace, UseKind, Uses
from machine_operator.gateway.activity.writes import ActivityWriter, UsedMachine
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.views import MachineView
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import KubeError
from machine_operator.store.moments import utc_now

__all__ = ["Activity"]

log = logging.getLogger(__name__)

_AT_ONCE: Final = 16
"""Writes at a time."""
_TRIES: Final = 10
"""Failures in a row after which the end of a use is given up."""
_LAST_TRIES: Final = 3
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 10.0


class Activity:
    """See the module.

    Args:
        client: the gateway's connection.
        machines: the cache; learns of each answer.
        replica: the id of this process: one label of a DNS name.
        window: seconds in which at most two writes are made for a machine.
        lease: seconds for which a hold lives that is not renewed.
        drain: seconds that the last writes may take when `run` is cancelled.
        wake: asked to wake a machine that has gone to sleep under a use.
        now: tells the time, with a zone.
        jitter: a number from 0 to 1.

    Attributes:
        failures: writes that have failed.
        draining: this process is about to end: what is cut off now goes on elsewhere.
    """

    def __init__(
        self,
        client: KubeClient,
        machines: Machines,
        *,
        replica: str,
        window: float,
        lease: float,
        drain: float,
        wake: Callable[[MachineView], None],
        now: Callable[[], datetime] = utc_now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.failures = 0
        self.draining = False
        self._writer = ActivityWriter(client, machines, replica=replica, wake=wake, now=now)
        self._window, self._lease, self._drain = window, lease, drain
        self._jitter = jitter
        self._used: dict[str, UsedMachine] = {}
        self._heap: list[tuple[float, int, UsedMachine]] = []
        self._numbers = itertools.count()
        self._writing: set[asyncio.Task[None]] = set()
        self._broken: BaseException | None = None
        self._news = asyncio.Event()
        machines.observers.append(self._changed)

    @property
    def writes(self) -> int:
        """How many have been made."""
        return self._writer.writes

    def __len__(self) -> int:
        """Machines that are used, or were a moment ago."""
        return len(self._used)

    # ---- uses

    def use(self, view: MachineView, kind: UseKind) -> AbstractContextManager[None]:
        """A use for as long as the block runs."""
        return _Use(self, view, kind)

    def touch(self, view: MachineView) -> None:
        """A use that is over already."""
        moment = self._writer.moment()
        used = self._of(view, moment)
        if used.uses.touch(moment):
            self._schedule(used)

    def begin(self, view: MachineView, kind: UseKind) -> UsedMachine:
        """A use begins; what is to be handed to `end`."""
        moment = self._writer.moment()
        used = self._of(view, moment)
        if used.uses.begin(kind, moment):
            used.paused = False
            self._schedule(used)
        return used

    def end(self, used: UsedMachine, kind: UseKind, *, cut: bool) -> None:
        """A use ends; `cut`: it was cancelled from outside."""
        if cut and self.draining and kind.survives:
            return
        if used.uses.end(kind, self._writer.moment()):
            used.paused = False
            self._schedule(used)

    def _of(self, view: MachineView, moment: Moment) -> UsedMachine:
        uid = view.machine.metadata.uid
        used = self._used.get(uid)
        if used is None:
            used = self._used[uid] = UsedMachine(view, Uses(self._pace(view), moment))
        return used

    def _pace(self, view: MachineView) -> Pace:
        idle = parse_autosleep(view.machine.spec.autosleep)
        return Pace.of(window=self._window, lease=self._lease, autosleep=idle)

    # ---- when

    def _schedule(self, used: UsedMachine) -> None:
        """See to it that the machine is looked at in time."""
        if used.writing or used.gone:
            return  # it is looked at once that is done
        at = self._next(used, asyncio.get_running_loop().time())
        if at is not None and (used.queued is None or at < used.queued):
            used.queued = at
            heapq.heappush(self._heap, (at, next(self._numbers), used))
            if self._heap[0][2] is used:
                self._news.set()

    def _next(self, used: UsedMachine, now: float) -> float | None:
        """When to look at it: something is due then, or it can be forgotten."""
        if used.paused:
            return None
        due = used.uses.due(now)
        return max(due, used.retry_at) if due is not None else used.uses.over_at()

    def _changed(self, old: MachineView | None, new: MachineView | None) -> None:
        view = new if new is not None else old
        used = self._used.get(view.machine.metadata.uid) if view is not None else None
        if used is None:
            return
        if new is None:
            self._forget(used)
            return
        used.uses.pace = self._pace(new)
        used.paused = used.paused and asleep(new)
        self._schedule(used)

    def _forget(self, used: UsedMachine) -> None:
        used.gone = True
        uid = used.view.machine.metadata.uid
        if self._used.get(uid) is used:
            del self._used[uid]

    async def run(self) -> None:
        """Write until cancelled; then say what is left to be said."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._start_due(loop.time())
                full = len(self._writing) >= _AT_ONCE
                at = self._heap[0][0] if self._heap and not full else None
                try:
                    async with asyncio.timeout_at(at):
                        await self._news.wait()
                except TimeoutError:
                    pass
                self._news.clear()
                if self._broken is not None:
                    raise self._broken
        finally:
            self.draining = True
            await self._finish()

    def _start_due(self, now: float) -> None:
        while self._heap and self._heap[0][0] <= now and len(self._writing) < _AT_ONCE:
            at, _, used = heapq.heappop(self._heap)
            if used.queued != at:
                continue  # another look came before
            used.queued = None
            if used.gone or used.writing:
                continue
            over = used.uses.over_at()
            due = self._next(used, now)
            if over is not None and over <= now:
                self._forget(used)
            elif due is not None and due > now:
                self._schedule(used)
            elif due is not None:
                used.writing = True
                task = asyncio.create_task(self._write(used))
                self._writing.add(task)
                task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[None]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._broken = task.exception()
        self._news.set()

    # ---- writing

    async def _write(self, used: UsedMachine) -> None:
        try:
            await self._writer.tell(used, Uses.report)
            used.failures, used.retry_at = 0, 0.0
        except KubeError as error:
            self._failed(used, error)
        finally:
            used.writing = False
            if used.gone:
                self._forget(used)
            self._schedule(used)

    def _failed(self, used: UsedMachine, error: KubeError) -> None:
        self.failures += 1
        used.failures += 1
        lasting = not error.retryable or used.failures >= _TRIES
        if lasting and not used.uses.live:
            log.warning("machine %s: the end of its use could not be written: %s", used, error)
            self._forget(used)
            return
        if used.failures == 1:
            log.warning("machine %s: its use could not be written yet: %s", used, error)
        pause = _LONGEST_PAUSE if lasting else _FIRST_PAUSE * 2 ** (used.failures - 1)
        pause = min(pause, _LONGEST_PAUSE) * (0.5 + 0.5 * self._jitter())
        pause = max(pause, min(error.retry_after or 0.0, _LONGEST_PAUSE))
        used.retry_at = asyncio.get_running_loop().time() + pause

    # ---- the end

    async def _finish(self) -> None:
        """Tell what is left, in the time that there is; holds that are left over expire."""
        try:
            async with asyncio.timeout(self._drain):
                if self._writing:
                    await asyncio.wait(self._writing)
                now = asyncio.get_running_loop().time()
                left = iter(
                    [u for u in self._used.values() if u.uses.due(now) is not None and not u.paused]
                )
                await asyncio.gather(*(self._tell_last(left) for _ in range(_AT_ONCE)))
        except TimeoutError:
            log.warning("the last use of machines was not written in %g s", self._drain)
        finally:
            for task in self._writing:
                task.cancel()
            await asyncio.gather(*self._writing, return_exceptions=True)

    async def _tell_last(self, left: Iterator[UsedMachine]) -> None:
        for used in left:
            for attempt in range(_LAST_TRIES):
                try:
                    await self._writer.tell(used, Uses.last_report)
                    break
                except KubeError as error:
                    self.failures += 1
                    log.warning("machine %s: its last use was not written: %s", used, error)
                    await asyncio.sleep(_FIRST_PAUSE * 2**attempt)


class _Use:
    """One use, as a context."""

    __slots__ = ("_activity", "_kind", "_used", "_view")

    def __init__(self, activity: Activity, view: MachineView, kind: UseKind) -> None:
        self._activity = activity
        self._view = view
        self._kind = kind

    def __enter__(self) -> None:
        self._used = self._activity.begin(self._view, self._kind)

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        cut = kind is not None and issubclass(kind, asyncio.CancelledError)
        self._activity.end(self._used, self._kind, cut=cut)
