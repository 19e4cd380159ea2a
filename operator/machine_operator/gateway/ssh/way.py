"""The way of one SSH client to its machine: the machine is woken, connected to, and held awake.

It is gone once, for all channels together, and again where the connection has broken since. The hold begins when the
client has logged in, so that a machine which wakes for it does not fall asleep again before there is a channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

from machine_operator.api.phases import DesiredState, Phase
from machine_operator.gateway.access import Access, NotUsable, Readiness, UseKind
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.problems import GatewayError
from machine_operator.gateway.views import MachineView
from machine_operator.guest.errors import GuestError, GuestRefused
from machine_operator.guest.guest import Guest
from machine_operator.store.ssh_sessions import SshSession

__all__ = ["Unreached", "Way"]

log = logging.getLogger(__name__)

_WAKE: Final = 60.0
"""Seconds for the machine to wake and to be connected to."""
_NOT_NOW: Final = "the machine cannot be reached now: try again later"
_UNUSABLE: Final = {
    Readiness.FAILED: "the machine has failed and cannot be woken",
    Readiness.GONE: "the machine has been destroyed",
    Readiness.WAKING: "the machine did not wake in time: try again later",
}
_ENDED: Final = (Phase.STOPPING, Phase.SLEEPING, Phase.DESTROYING, Phase.DESTROYED, Phase.FAILED)


class Unreached(Exception):
    """The machine cannot be had; the message is for the client."""


class Way:
    """See the module.

    Args:
        session: names the machine.
        access, machines: what leads there.
    """

    def __init__(self, session: SshSession, access: Access, machines: Machines) -> None:
        self._session, self._access, self._machines = session, access, machines
        self._task: asyncio.Task[Guest] | None = None
        self._held = self._reached = False
        self._use = contextlib.ExitStack()

    def start(self) -> None:
        """Go it now; where that fails, whoever asks for the guest is told."""
        self._task = self._going()

    async def guest(self) -> Guest:
        """The guest, connected.

        Raises:
            Unreached: it cannot be had.
        """
        return await asyncio.shield(self._going())

    def close(self) -> None:
        """The client is gone."""
        if self._task is not None:
            self._task.cancel()
        self._use.close()

    @property
    def ended(self) -> str | None:
        """What has become of the machine since it was reached; None while it goes on."""
        if not self._reached:
            return None
        try:
            view = self._view()
        except Unreached as error:
            return str(error)
        return _end_of(view) if view.phase in _ENDED else None

    @property
    def loss(self) -> str:
        """Why the connection to the machine broke."""
        try:
            view = self._view()
        except Unreached as error:
            return str(error)
        if view.phase in _ENDED or view.desired_state is not DesiredState.RUNNING:
            return _end_of(view)
        return "the connection to the machine was lost"

    def _view(self) -> MachineView:
        """The machine as it is now."""
        if not self._machines.informer.synced.is_set():
            raise Unreached(_NOT_NOW)
        with contextlib.suppress(GatewayError):
            view = self._machines.find(self._session.org, self._session.machine_id)
            if view.machine.metadata.uid == self._session.machine_uid and not view.gone:
                return view
        raise Unreached(_UNUSABLE[Readiness.GONE])

    def _going(self) -> asyncio.Task[Guest]:
        task = self._task
        if task is None or (task.done() and (_failed(task) or task.result().closed)):
            task = self._task = asyncio.get_running_loop().create_task(self._go())
            task.add_done_callback(_failed)  # so that nobody has to ask
        return task

    async def _go(self) -> Guest:
        view = self._view()
        if not self._held:
            self._use.enter_context(self._access.use(view, UseKind.SSH))
            self._held = True
        try:
            guest = await self._access.guest(view, by=self._session.created_by, timeout=_WAKE)
        except NotUsable as error:
            raise Unreached(_UNUSABLE.get(error.readiness, _NOT_NOW)) from error
        except GuestRefused as error:
            log.warning("machine %s/%s: %s", view.org, view.uuid, error)
            raise Unreached("the machine does not let the gateway in") from error
        except (GuestError, GatewayError) as error:
            log.info("machine %s/%s: %s", view.org, view.uuid, error)
            raise Unreached(_NOT_NOW) from error
        self._reached = True
        # Its connection is not to make room for another machine's, even while there is no channel.
        self._use.enter_context(guest.hold())
        return guest


def _end_of(view: MachineView) -> str:
    if view.phase is Phase.FAILED:
        return "the machine has failed"
    match view.desired_state:
        case DesiredState.DESTROYED:
            return "the machine has been destroyed"
        case DesiredState.SLEEPING:
            return "the machine went to sleep"
        case _:
            return "the machine ended"


def _failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
