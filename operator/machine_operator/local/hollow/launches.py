"""Starting guests: a few at a time, and with a pause that grows after each failure.

A booting guest takes a whole core for some seconds, so many that boot at once would all be slow. A
slot is given up when the guest has said that it is up, or after a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from machine_operator.kube.errors import KubeError
from machine_operator.local.guest.errors import GuestError
from machine_operator.local.hollow.console import ConsoleWatch
from machine_operator.local.hollow.guest import Guest
from machine_operator.local.hollow.guests import GuestStartError
from machine_operator.local.hollow.mounts import MountError
from machine_operator.local.hollow.network import AddressesError
from machine_operator.local.hollow.plan import PlanError

__all__ = ["Failure", "Launches"]

log = logging.getLogger(__name__)

_FIRST_PAUSE = 2.0
_LONGEST_PAUSE = 60.0
_SETTLE = 10.0

_EXPECTED = (
    PlanError,
    GuestStartError,
    AddressesError,
    MountError,
    GuestError,
    KubeError,
    OSError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a guest did not start, and when it is tried again (monotonic seconds)."""

    message: str
    pause: float
    again: float


class Launches:
    """Starts of guests that are under way or failed.

    Args:
        start: starts the guest of a uid; None where that is not wanted any more.
        on_done: called with the uid after each attempt.
        slots: how many guests may boot at once.
    """

    def __init__(
        self,
        *,
        start: Callable[[str], Awaitable[Guest | None]],
        on_done: Callable[[str], None],
        slots: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._on_done = on_done
        self._slots = asyncio.Semaphore(slots)
        self._clock = clock
        self._pending: set[str] = set()
        self._failures: dict[str, Failure] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def pending(self, uid: str) -> bool:
        """Whether a start is waiting or under way."""
        return uid in self._pending

    def failure(self, uid: str) -> Failure | None:
        """The last attempt's failure, until an attempt succeeds."""
        return self._failures.get(uid)

    def wait(self, uid: str) -> float:
        """Seconds until the next attempt may be made."""
        failure = self._failures.get(uid)
        return 0.0 if failure is None else max(failure.again - self._clock(), 0.0)

    def begin(self, uid: str) -> None:
        """Start a guest as soon as a slot is free."""
        if uid in self._pending:
            return
        self._pending.add(uid)
        task = asyncio.create_task(self._launch(uid))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, uid: str) -> None:
        """The VMI is gone."""
        self._failures.pop(uid, None)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _launch(self, uid: str) -> None:
        async with self._slots:
            guest = await self._attempt(uid)
            if guest is not None:
                await _settled(guest)

    async def _attempt(self, uid: str) -> Guest | None:
        try:
            guest = await self._start(uid)
        except _EXPECTED as error:
            self._note(uid, str(error))
            return None
        except Exception as error:
            log.exception("the guest of %s could not be started", uid)
            self._note(uid, f"{type(error).__name__}: {error}")
            return None
        else:
            self._failures.pop(uid, None)
            return guest
        finally:
            self._pending.discard(uid)
            self._on_done(uid)

    def _note(self, uid: str, message: str) -> None:
        former = self._failures.get(uid)
        pause = _FIRST_PAUSE if former is None else min(former.pause * 2, _LONGEST_PAUSE)
        log.warning("guest of %s: %s; again in %.0f s", uid, message, pause)
        self._failures[uid] = Failure(message, pause=pause, again=self._clock() + pause)


async def _settled(guest: Guest) -> None:
    """Wait until the guest has booted, ended, or had its time."""
    marker = asyncio.create_task(ConsoleWatch(guest.record.console).marker())
    ended = asyncio.create_task(guest.ended.wait())
    try:
        await asyncio.wait({marker, ended}, timeout=_SETTLE, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (marker, ended):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(marker, ended, return_exceptions=True)
