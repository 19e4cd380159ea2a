"""Wakes machines, a few at a time and in turns, so that many knocks at once do not sink the cluster.

A knock waits in the queue of its org. Orgs take turns; each has so many machines on their way up at most, and all of
them together so many, per replica. A machine gives its slot back once it runs, has failed, is gone, or is not wanted
any more; or after two minutes, since by then it only waits for something else. A knock on a machine that is waiting or
on its way up already costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from machine_operator.api.phases import DesiredState, Phase, Power
from machine_operator.gateway.changes import Changes
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.problems import GatewayError
from machine_operator.gateway.views import MachineView

__all__ = ["QueueFull", "Wakes"]

log = logging.getLogger(__name__)

_MOST: Final = 10_000
_SLOT: Final = 120.0
"""Seconds for which a machine on its way up keeps its slot."""
_PATIENCE: Final = 600.0
"""Seconds after which a knock that nobody has repeated is not worth a wake any more."""
_TRIES: Final = 4
_FIRST_PAUSE: Final = 0.5
_REMEMBERED: Final = 30.0
"""Seconds for which it is told that a wake has failed."""


class QueueFull(Exception):
    """So many machines wait for their turn that no more are taken."""


@dataclass(slots=True, eq=False)
class _Knock:
    """One machine that is to be woken.

    Attributes:
        at: when somebody last asked, then when it got its slot; on the loop's clock.
        asked: the power request has been made.
    """

    view: MachineView
    by: str
    at: float
    asked: bool = False
    task: asyncio.Task[None] | None = None


class Wakes:
    """The fair queue of one replica.

    Args:
        machines: the cache.
        changes: makes the power requests.
        limit: machines on their way up at once; `org_limit` of one org.
        most: machines that may wait; one org may take up half of that.
        jitter: a number from 0 to 1.

    Attributes:
        asked: knocks that were taken; `coalesced`: on machines that were waiting or on their way up already;
            `refused`: for which there was no room.
        failures: wakes that were given up.
    """

    def __init__(
        self,
        machines: Machines,
        changes: Changes,
        *,
        limit: int,
        org_limit: int,
        most: int = _MOST,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.asked = self.coalesced = self.refused = self.failures = 0
        self._machines = machines
        self._changes = changes
        self._limit, self._org_limit = limit, org_limit
        self._most = most
        self._jitter = jitter
        self._waiting: dict[str, OrderedDict[str, _Knock]] = {}
        self._turns: OrderedDict[str, None] = OrderedDict()
        """Orgs with somebody waiting and room for one more, in the order of their turns."""
        self._queued = 0
        self._rising: dict[str, _Knock] = {}
        """In the order in which they got their slots."""
        self._by_org: dict[str, int] = {}
        self._failed: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._broken: BaseException | None = None
        self._news = asyncio.Event()
        machines.observers.append(self._changed)

    @property
    def waiting(self) -> int:
        """Machines that wait for their turn."""
        return self._queued

    @property
    def rising(self) -> int:
        """Machines on their way up."""
        return len(self._rising)

    # ---- asking

    def ask(self, view: MachineView, *, by: str) -> None:
        """Have a machine woken when its turn comes.

        Args:
            view: a machine that sleeps, or is going to.
            by: who asks, for its status.

        Raises:
            QueueFull: try again later.
        """
        uid, org, now = view.machine.metadata.uid, view.org, self._time()
        queue = self._queue(org)
        known = queue.get(uid) or self._rising.get(uid)
        if known is not None:
            self.coalesced += 1
            if uid in queue:
                known.at = now
            return
        if self._queued >= self._most or len(queue) >= max(1, self._most // 2):
            self.refused += 1
            raise QueueFull(
                f"{self._queued} machines wait to be woken, {len(queue)} of org {org}; no more are taken now"
            )
        self.asked += 1
        self._failed.pop(uid, None)
        self._waiting.setdefault(org, OrderedDict())[uid] = _Knock(view, by, now)
        self._queued += 1
        if len(queue) == 0:
            self._take_turns(org)
        self._news.set()

    def knows(self, view: MachineView) -> bool:
        """Whether the machine waits for its turn, or is on its way up."""
        uid = view.machine.metadata.uid
        return uid in self._rising or uid in self._queue(view.org)

    def failure(self, view: MachineView) -> str | None:
        """Why a wake was given up of late; None where none was."""
        until, why = self._failed.get(view.machine.metadata.uid, (0.0, ""))
        return why if self._time() < until else None

    # ---- turns

    def _queue(self, org: str) -> Mapping[str, _Knock]:
        return self._waiting.get(org, {})

    def _take_turns(self, org: str) -> None:
        room = self._by_org.get(org, 0) < self._org_limit
        if org in self._waiting and room:
            self._turns.setdefault(org)

    async def run(self) -> None:
        """Wake until cancelled."""
        try:
            while True:
                self._start()
                at = next((knock.at + _SLOT for knock in self._rising.values()), None)
                try:
                    async with asyncio.timeout_at(at):
                        await self._news.wait()
                except TimeoutError:
                    self._give_up_slots()
                self._news.clear()
                if self._broken is not None:
                    raise self._broken
        finally:
            tasks = [knock.task for knock in self._rising.values() if knock.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self) -> None:
        now = self._time()
        while self._turns and len(self._rising) < self._limit:
            org, _ = self._turns.popitem(last=False)
            uid, knock = self._waiting[org].popitem(last=False)
            self._left_queue(org)
            if now - knock.at > _PATIENCE:
                self._note_failure(knock, "its turn did not come in time")
            else:
                knock.at = now
                self._rising[uid] = knock
                self._by_org[org] = self._by_org.get(org, 0) + 1
                knock.task = asyncio.create_task(self._wake(uid, knock))
                knock.task.add_done_callback(self._woken)
            self._take_turns(org)

    def _left_queue(self, org: str) -> None:
        self._queued -= 1
        if not self._waiting[org]:
            del self._waiting[org]
            self._turns.pop(org, None)

    def _give_up_slots(self) -> None:
        now = self._time()
        for uid, knock in list(self._rising.items()):
            if knock.at + _SLOT > now:
                break
            if knock.asked:
                log.info("machine %s is not up after %g s; others go on", _name(knock), _SLOT)
            else:
                self._note_failure(knock, f"the API server did not answer in {_SLOT:g} s")
            self._free(uid)

    def _free(self, uid: str) -> None:
        knock = self._rising.pop(uid, None)
        if knock is None:
            return
        org = knock.view.org
        self._by_org[org] -= 1
        if not self._by_org[org]:
            del self._by_org[org]
        if knock.task is not None and knock.task is not asyncio.current_task():
            knock.task.cancel()
        self._take_turns(org)
        self._news.set()

    def _changed(self, old: MachineView | None, new: MachineView | None) -> None:
        view = new if new is not None else old
        if view is None or not (self._queued or self._rising):
            return
        uid = view.machine.metadata.uid
        rising = self._rising.get(uid)
        if rising is not None:
            if new is None or (rising.asked and _settled(new)):
                self._free(uid)
            return
        queue = self._queue(view.org)
        if uid in queue and (new is None or not _wanted_asleep(new)):
            del self._waiting[view.org][uid]
            self._left_queue(view.org)

    # ---- waking

    async def _wake(self, uid: str, knock: _Knock) -> None:
        """Ask for one machine. It keeps its slot while that is tried again."""
        for attempt in range(1, _TRIES + 1):
            view = self._machines.latest(knock.view)
            try:
                await self._changes.power(view, Power.RUNNING, by=knock.by, guard=_any_version)
                break
            except GatewayError as error:
                passing = error.status >= 500 or error.status == 429
                if attempt == _TRIES or not passing:
                    self._note_failure(knock, str(error))
                    self._free(uid)
                    return
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) * (0.5 + 0.5 * self._jitter()))
        knock.asked = True
        if _settled(self._machines.latest(knock.view)):
            self._free(uid)

    def _woken(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._broken = task.exception()
            self._news.set()

    def _note_failure(self, knock: _Knock, why: str) -> None:
        self.failures += 1
        log.warning("machine %s was not woken: %s", _name(knock), why)
        now = self._time()
        while self._failed and (
            len(self._failed) >= self._most or next(iter(self._failed.values()))[0] <= now
        ):
            self._failed.popitem(last=False)
        self._failed[knock.view.machine.metadata.uid] = (now + _REMEMBERED, why)

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()


def _wanted_asleep(view: MachineView) -> bool:
    return not view.gone and view.desired_state is DesiredState.SLEEPING


def _settled(view: MachineView) -> bool:
    """Whether a machine that was asked to run is not on its way up any more."""
    up = view.phase is Phase.RUNNING
    return up or view.phase is Phase.FAILED or view.desired_state is not DesiredState.RUNNING


def _any_version(_: MachineView) -> None:
    pass


def _name(knock: _Knock) -> str:
    meta = knock.view.machine.metadata
    return f"{meta.namespace}/{meta.name}"
