"""The writes of `status.activity`: each is guarded by the version of the machine that it was decided on.

So the last touch never goes back, and a write that races the controller's decision to sleep is decided again: a use
that the decision has not seen keeps the machine awake. What is asleep already is woken through the fair queue only,
never by a hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from typing_extensions import override

from machine_operator.api.phases import DesiredState
from machine_operator.gateway.activity.holds import (
    activity_body,
    asleep,
    decision_to_sleep,
    fresh,
    manager_of,
)
from machine_operator.gateway.activity.uses import Moment, Report, Uses
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.views import MachineView
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import Conflict, NotFound
from machine_operator.kube.resources import MACHINES

__all__ = ["ActivityWriter", "UsedMachine"]

Object = dict[str, Any]

_RACES: Final = 8
"""How often a write is decided again because somebody was faster."""


@dataclass(slots=True, eq=False)
class UsedMachine:
    """One machine that is used.

    Attributes:
        queued: when it is looked at next, on the loop's clock.
        writing: a write is under way.
        paused: it sleeps; nothing is written until that changes.
        gone: it is not to be kept any more.
    """

    view: MachineView
    uses: Uses
    queued: float | None = None
    writing: bool = False
    paused: bool = False
    gone: bool = False
    retry_at: float = 0.0
    failures: int = 0

    @override
    def __str__(self) -> str:
        meta = self.view.machine.metadata
        return f"{meta.namespace}/{meta.name}"


class ActivityWriter:
    """Writes as one replica.

    Args:
        client: the gateway's connection.
        machines: the cache; learns of each answer.
        replica: the id of this process: one label of a DNS name.
        wake: asked to wake a machine that has gone to sleep under a use.
        now: tells the time, with a zone.

    Attributes:
        writes: how many there have been.
    """

    def __init__(
        self,
        client: KubeClient,
        machines: Machines,
        *,
        replica: str,
        wake: Callable[[MachineView], None],
        now: Callable[[], datetime],
    ) -> None:
        self.writes = 0
        self._client = client
        self._machines = machines
        self._replica = replica
        self._wake = wake
        self._now = now

    def moment(self) -> Moment:
        """Now."""
        return Moment(asyncio.get_running_loop().time(), self._now())

    async def tell(self, used: UsedMachine, say: Callable[[Uses, Moment], Report]) -> None:
        """Bring the API server up to date, where there is something to tell it.

        Raises:
            KubeError: it could not be told.
        """
        view = self._machines.latest(used.view)
        for race in range(_RACES):
            used.view = view
            told = self._plan(used, view, say)
            if told is None:
                return
            report, body = told
            try:
                answer = await self._apply(view, body)
            except NotFound:
                used.gone = True
                return
            except Conflict:
                if race + 1 == _RACES:
                    raise
                view = await self._read_again(view)
                continue
            self.writes += 1
            used.uses.told(report)
            self._machines.learn(answer)
            return

    def _plan(
        self, used: UsedMachine, view: MachineView, say: Callable[[Uses, Moment], Report]
    ) -> tuple[Report, Object] | None:
        uses = used.uses
        if view.gone or view.desired_state is DesiredState.DESTROYED:
            used.gone = True
            return None
        report, decision = say(uses, self.moment()), decision_to_sleep(view)
        undo = fresh(decision, begun=uses.begun, unheard=uses.unheard)
        if asleep(view) and (report.holds or undo):
            self._leave_asleep(used, view, wake=undo)
            return None
        keep = decision is not None and not undo
        if keep and not report.holds and not uses.holding:
            uses.told(report)  # it was over before the machine went to sleep
            return None
        return report, activity_body(view, report, replica=self._replica, keep=keep)

    def _leave_asleep(self, used: UsedMachine, view: MachineView, *, wake: bool) -> None:
        if wake:
            used.uses.heard()
            self._wake(view)
        if used.uses.live or used.uses.holding:
            used.paused = True  # until it is on its way up, or the use ends
        else:
            used.gone = True  # the wake stands for it

    async def _apply(self, view: MachineView, body: Object) -> Object:
        meta = view.machine.metadata
        return await self._client.apply(
            MACHINES,
            meta.name,
            body,
            manager=manager_of(self._replica),
            namespace=meta.namespace,
            subresource="status",
        )

    async def _read_again(self, view: MachineView) -> MachineView:
        meta = view.machine.metadata
        try:
            there = await self._client.get(MACHINES, meta.name, namespace=meta.namespace)
        except NotFound:
            return MachineView(view.machine, view.version, gone=True)
        now = self._machines.learn(there)
        if now.machine.metadata.uid != meta.uid:  # another machine has taken over the name
            return MachineView(view.machine, view.version, gone=True)
        return now
