"""The way into machines for everything that runs in them: knock, wait until it is awake, connect, and be seen using it.

readiness ─ what a look tells
knock ─ the same, and a sleeping machine is woken in its turn (`wakes.py`)
guest ─ knock, wait, connect
use, touch ─ what keeps it awake (`activity.py`)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from enum import Enum
from typing import ClassVar, Final

from machine_operator.api.phases import DesiredState, Phase
from machine_operator.gateway.activity.activity import Activity
from machine_operator.gateway.activity.uses import UseKind
from machine_operator.gateway.changes import Changes
from machine_operator.gateway.machines import Follower, Machines
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.views import MachineView
from machine_operator.gateway.wakes import QueueFull, Wakes
from machine_operator.guest.errors import GuestLost, GuestUnreachable
from machine_operator.guest.guest import Guest
from machine_operator.guest.guests import Guests
from machine_operator.guest.target import GuestTarget
from machine_operator.kube.client import KubeClient
from machine_operator.lifecycle.goal import ACTIVITY
from machine_operator.store.moments import utc_now

__all__ = ["Access", "NotUsable", "Readiness", "UseKind"]

log = logging.getLogger(__name__)

_LOOK: Final = 5.0
"""Seconds after which a machine that is waited for is looked at again without news of it."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0


class Readiness(Enum):
    """What somebody who wants to get into a machine has to expect."""

    READY = "ready"
    WAKING = "waking"
    FAILED = "failed"
    GONE = "gone"


class NotUsable(Exception):
    """There is no way into the machine; the message is for clients.

    Attributes:
        readiness: what it is instead.
        code: for clients, in lower snake case.
        retryable: whether the same may work in a moment.
    """

    def __init__(
        self, readiness: Readiness, code: str, message: str, *, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.readiness = readiness
        self.code = code
        self.retryable = retryable


class Access:
    """See the module.

    Args:
        client: the gateway's connection.
        machines, changes: the cache, and what writes.
        guests: the warm connections.
        replica: the id of this process, one label of a DNS name.
        now: tells the time, with a zone.

    Attributes:
        activity, wakes: count what they do.
        on_connect: told the seconds from being asked for the guest of an awake machine to having it.
    """

    RETRY_MS: ClassVar[int] = 1000
    """When to look again at something that waits for a machine."""

    def __init__(
        self,
        client: KubeClient,
        machines: Machines,
        changes: Changes,
        guests: Guests,
        settings: GatewaySettings,
        *,
        replica: str,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.on_connect: Callable[[float], None] = _unobserved
        self._machines = machines
        self._guests = guests
        self.wakes = Wakes(
            machines, changes, limit=settings.wake_limit, org_limit=settings.wake_org_limit
        )
        self.activity = Activity(
            client,
            machines,
            replica=replica,
            window=settings.activity_window,
            lease=settings.activity_lease,
            drain=settings.drain,
            wake=self._wake_again,
            now=now,
        )
        machines.observers.append(self._changed)

    async def run(self) -> None:
        """Wake machines and write down their use until cancelled, and what is left of that then."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.wakes.run())
            tasks.create_task(self.activity.run())

    def drain(self) -> None:
        """This process is about to end: what goes on in guests keeps its holds for those who take it over."""
        self.activity.draining = True

    # ---- looking and knocking

    def readiness(self, view: MachineView) -> Readiness:
        """How it is with a machine now; `view` may be an old one."""
        now = self._machines.latest(view)
        readiness = _readiness(now)
        if readiness is Readiness.WAKING and self.wakes.failure(now) is not None:
            return Readiness.FAILED
        return readiness

    def knock(self, view: MachineView, *, by: str) -> Readiness:
        """The same; a machine that sleeps, or is going to, is woken when its turn comes.

        Raises:
            NotUsable: too many machines wait for that; `retryable`.
        """
        now = self._machines.latest(view)
        readiness = _readiness(now)
        if readiness is Readiness.WAKING and now.desired_state is DesiredState.SLEEPING:
            try:
                self.wakes.ask(now, by=by)
            except QueueFull as error:
                message = "too many machines are waiting to be woken; try again in a moment"
                raise NotUsable(
                    readiness, "machine_not_routable", message, retryable=True
                ) from error
        return readiness

    def target(self, view: MachineView) -> GuestTarget | None:
        """The guest of a machine; None unless it runs."""
        return _target(self._machines.latest(view))

    # ---- getting in

    async def guest(self, view: MachineView, *, by: str, timeout: float) -> Guest:
        """Knock, wait until the machine runs, and connect.

        Raises:
            NotUsable: it is gone, or cannot be reached in `timeout` seconds, or at all.
            GuestRefused: the guest is not who it should be, or lets us not in.
        """
        unreachable: BaseException | None = None
        try:
            async with asyncio.timeout(timeout):
                with self._machines.followed(view) as follower:
                    self.knock(view, by=by)
                    pause = _FIRST_PAUSE
                    while True:
                        target = await self._awake(view, follower, by=by)
                        try:
                            return await self._connect(target)
                        except (GuestUnreachable, GuestLost) as error:
                            unreachable = error
                        # News of the machine is a reason to try again at once.
                        await follower.next(timeout=pause)
                        pause = min(2 * pause, _LONGEST_PAUSE)
        except TimeoutError as error:
            raise _not_routable(self.readiness(view), retryable=True) from (unreachable or error)

    async def _awake(self, view: MachineView, follower: Follower, *, by: str) -> GuestTarget:
        """Wait until the machine runs."""
        while True:
            readiness = self.readiness(view)
            if readiness is Readiness.GONE:
                raise NotUsable(readiness, "machine_not_found", "machine no longer exists")
            if readiness is Readiness.FAILED:
                raise _not_routable(readiness)
            if readiness is Readiness.READY:
                target = self.target(view)
                if target is not None:
                    return target
            self.knock(view, by=by)  # it may have gone to sleep again
            await follower.next(timeout=_LOOK)

    async def _connect(self, target: GuestTarget) -> Guest:
        loop = asyncio.get_running_loop()
        began = loop.time()
        guest = await self._guests.connect(target)
        self.on_connect(loop.time() - began)
        return guest

    # ---- being seen

    def use(self, view: MachineView, kind: UseKind) -> AbstractContextManager[None]:
        """Keeps the machine awake for as long as the block runs; at its end the idle clock starts."""
        return self.activity.use(view, kind)

    def touch(self, view: MachineView) -> None:
        """One use that is over already."""
        self.activity.touch(view)

    def _wake_again(self, view: MachineView) -> None:
        try:
            self.wakes.ask(view, by=ACTIVITY)
        except QueueFull as error:
            log.warning("machine %s/%s went to sleep under a use: %s", view.org, view.uuid, error)

    def _changed(self, old: MachineView | None, new: MachineView | None) -> None:
        """A connection to a boot that is over is of no use."""
        before = _target(old, going=True) if old is not None else None
        if before is None:
            return
        now = _target(new, going=True) if new is not None else None
        if now is None or now.instance_uid != before.instance_uid:
            self._guests.drop(before.machine_uid)


def _readiness(view: MachineView) -> Readiness:
    if view.gone or view.desired_state is DesiredState.DESTROYED:
        return Readiness.GONE
    if view.phase in (Phase.DESTROYING, Phase.DESTROYED):
        return Readiness.GONE
    wanted = view.desired_state is DesiredState.RUNNING
    if view.phase is Phase.FAILED:
        # Nobody can ask a failed machine to wake: only what the operator tries anyway may help.
        trying = wanted and bool(view.machine.status.retryable)
        return Readiness.WAKING if trying else Readiness.FAILED
    return Readiness.READY if _target(view) is not None else Readiness.WAKING


def _target(view: MachineView, *, going: bool = False) -> GuestTarget | None:
    """The guest that runs; `going`: also of a machine that is about to sleep."""
    vm = view.machine.status.vm
    if view.phase is not Phase.RUNNING or vm is None or vm.instance_uid is None:
        return None
    if not going and view.desired_state is not DesiredState.RUNNING:
        return None
    meta = view.machine.metadata
    return GuestTarget(
        view.org, meta.uid, vm.name, vm.instance_uid, tuple(view.machine.status.addresses)
    )


def _not_routable(readiness: Readiness, *, retryable: bool = False) -> NotUsable:
    message = "machine is not routable for execution"
    return NotUsable(readiness, "machine_not_routable", message, retryable=retryable)


def _unobserved(_: float) -> None:
    pass
