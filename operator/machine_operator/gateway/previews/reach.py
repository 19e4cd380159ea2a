"""The way from a hit to a stream: the machine is woken, connected to, and its port answers.

    asleep ── knock ──> waking ──> connected ──> the port answers
      a person: waiting page ┴──────────┘ ├─ refuses, and the machine woke a moment ago: wait on
      a program: held, then 503           └─ refuses: 502

A machine that has just woken has its services still to start, so a port that refuses is believed only after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from machine_operator.api.phases import Phase
from machine_operator.gateway.access import Access, NotUsable, Readiness
from machine_operator.gateway.previews.access import no_such_preview
from machine_operator.gateway.previews.pool import StreamPool
from machine_operator.gateway.previews.tunnels import PortClosed, Stream
from machine_operator.gateway.problems import Coded, Problem
from machine_operator.gateway.views import MachineView
from machine_operator.guest.errors import GuestError, GuestRefused
from machine_operator.store.previews import Preview

if TYPE_CHECKING:
    from machine_operator.guest.guest import Guest

__all__ = ["Reach", "Reached", "Waking", "waking"]

_CONNECT: Final = 5.0
"""Seconds for a connection to a machine that runs."""
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 1.0
_RETRY_MS: Final = 1000


class Waking(Exception):
    """The machine wakes up, and a person is shown so."""


def waking(message: str = "the machine is waking up") -> Coded:
    """503: the machine is not there yet."""
    return Coded(503, "DEPENDENCY_UNAVAILABLE", message, retryable=True, retry_after_ms=_RETRY_MS)


@dataclass(slots=True)
class Reached:
    """A stream to the port of a preview; whoever has it gives it back, or closes it.

    Attributes:
        guest: over whose connection it goes.
        stream: the stream.
        reused: whether it has been in use before.
    """

    guest: Guest
    stream: Stream
    reused: bool


class Reach:
    """The way of one hit.

    Args:
        preview: where it goes.
        by: who wakes the machine.
        page: whether a person waits, who is shown a page rather than kept waiting.
        access, pool: the ways in.
        find: the machine as it is now; raises where it is gone.
        wait: seconds for which a program is held.
        starting: seconds after a wake in which a port that refuses is not believed.
        clock: tells the time, with a zone.
    """

    def __init__(
        self,
        preview: Preview,
        *,
        by: str,
        page: bool,
        access: Access,
        pool: StreamPool,
        find: Callable[[Preview], MachineView],
        wait: float,
        starting: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._preview = preview
        self._by = by
        self._page = page
        self._access = access
        self._pool = pool
        self._find = find
        self._clock = clock
        self._starting = timedelta(seconds=starting)
        self._until = _now() + wait

    @property
    def tls(self) -> bool:
        """Whether TLS is spoken at the port."""
        return self._preview.protocol == "https"

    async def stream(self, *, twice: bool, new: bool = False) -> Reached:
        """A stream to the port.

        Args:
            twice: whether what will be sent may be sent twice.
            new: take none that has been in use.

        Raises:
            Waking: show the page.
            GatewayError: 404, 502 or 503.
        """
        pause = _FIRST_PAUSE
        while True:
            view = self._find(self._preview)
            guest = await self._guest(view)
            port = self._preview.port
            try:
                stream, reused = await self._pool.take(
                    guest, port, tls=self.tls, twice=twice, new=new
                )
                self._access.touch(view)
                return Reached(guest, stream, reused)
            except PortClosed as error:
                if not self._has_just_woken(view):
                    raise Problem(502, str(error)) from error
                if self._page:
                    raise Waking from error
            except GuestError as error:
                if self._page and _now() >= self._until:
                    raise Waking from error
            if _now() >= self._until:
                raise waking("the machine does not answer yet")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def give_back(self, reached: Reached) -> None:
        """The stream has served its request, and can serve another one."""
        self._pool.give(reached.guest, self._preview.port, reached.stream, tls=self.tls)

    async def _guest(self, view: MachineView) -> Guest:
        try:
            awake = self._access.knock(view, by=self._by) is Readiness.READY
            if self._page and not awake:
                if self._access.readiness(view) is Readiness.WAKING:
                    raise Waking
                awake = True  # nothing to wait for: let it say what is the case
            left = self._until - _now()
            return await self._access.guest(
                view, by=self._by, timeout=max(left, _CONNECT) if awake else max(left, 0.0)
            )
        except NotUsable as error:
            raise self._refusal(error) from error
        except GuestRefused as error:
            raise Problem(502, "the machine lets the gateway not in") from error

    def _refusal(self, error: NotUsable) -> Exception:
        match error.readiness:
            case Readiness.GONE:
                return no_such_preview()
            case Readiness.FAILED:
                return Problem(502, "the machine could not be started")
            case Readiness.READY | Readiness.WAKING:
                return Waking() if self._page else waking()

    def _has_just_woken(self, view: MachineView) -> bool:
        since = view.machine.status.last_transition_at
        if view.phase is not Phase.RUNNING or since is None:
            return False
        return self._clock() - since < self._starting


def _now() -> float:
    return asyncio.get_running_loop().time()
