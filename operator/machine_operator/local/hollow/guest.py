"""One guest: a QEMU process and the conversation with it.

A guest that powers itself off stays paused in QEMU (`-action shutdown=pause`) until we saw it,
wrote the outcome down and told QEMU to quit; so the outcome survives our own death. Any other end
is a crash, unless we cut the power.

A kernel that panics asks for a reset, as a reboot does. What it printed tells the two apart: after
a panic QEMU is ended, since a guest that boots in place for ever would look healthy. A guest whose
write found the host's disk full is stopped by QEMU (`stalled`); it is told to go on now and then,
until there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine_operator.local.hollow.console import PANIC, ConsoleWatch
from machine_operator.local.hollow.process import HeldProcess
from machine_operator.local.hollow.qmp import Qmp, QmpError
from machine_operator.local.hollow.rundir import GuestRecord, Outcome, RunDirectory
from machine_operator.local.hollow.waiting import first_of, wait_within

__all__ = ["Guest"]

log = logging.getLogger(__name__)

_PRESS_AGAIN = 5.0
"""Seconds between presses of the power button: a guest that is still booting misses the first ones."""

_CONNECT = 3.0
_QUIT = 5.0
_RECONNECT = 1.0

_GO_ON = 20.0
"""Seconds between attempts to let a stalled guest go on."""

_GOES_ON = 1.0
"""Seconds in which its next write would have stopped it again."""


class Guest:
    """A guest that runs, or did.

    Args:
        directory: its run directory.
        record: what is written down about it.
        process: its QEMU.
        on_change: called when it stalls, when it goes on, and when it has ended and its outcome is
            known.
    """

    def __init__(
        self,
        directory: RunDirectory,
        record: GuestRecord,
        process: HeldProcess,
        *,
        on_change: Callable[[str], None],
    ) -> None:
        self.directory = directory
        self.record = record
        self.ended = asyncio.Event()
        self.connected = asyncio.Event()
        self.restarted = asyncio.Event()
        """Set when the guest was reset (a reboot from inside); whoever waits for it clears it."""
        self._process = process
        self._on_change = on_change
        self._qmp: Qmp | None = None
        self._powered_off = asyncio.Event()
        self._stalled = asyncio.Event()
        # What stands there already was printed by an earlier boot, which is over.
        self._panics = ConsoleWatch(record.console, offset=_size(record.console), pattern=PANIC)
        self._ending: asyncio.Task[None] | None = None
        self._following = asyncio.create_task(self._follow())
        self._pushing = asyncio.create_task(self._push())

    @property
    def uid(self) -> str:
        """The VMI's uid."""
        return self.record.uid

    @property
    def outcome(self) -> Outcome | None:
        """How it ended; None while it runs."""
        return self.directory.outcome() if self.ended.is_set() else None

    @property
    def stalled(self) -> bool:
        """Whether QEMU has stopped it because a write to the host's disk failed."""
        return self._stalled.is_set() and not self.ended.is_set()

    # ---- what can be done to it

    def shut_down(self, grace: Callable[[], float]) -> None:
        """Press the power button, again and again, and cut the power after `grace()` seconds.

        `grace` is asked each time, since KubeVirt may shorten it while we wait. A second call
        changes nothing.
        """
        if self._ending is None and not self.ended.is_set():
            self._ending = asyncio.create_task(self._shut_down(grace))

    def cut_power(self) -> None:
        """Kill it now."""
        if not self.ended.is_set() and not self._powered_off.is_set():
            self.directory.write_outcome(Outcome.KILLED)
        self._process.kill()

    async def resize(self, path: Path, size: int) -> bool:
        """Tell the guest that the disk with this file now has `size` bytes; False where it has no such disk.

        Raises:
            QmpError: QEMU could not be told.
        """
        for disk in self.record.disks:
            if disk.path == path:
                await self._execute("block_resize", {"device": disk.drive, "size": size})
                return True
        return False

    async def let_go(self) -> None:
        """Stop following it; it goes on running, to be adopted again."""
        for task in (self._ending, self._pushing, self._following):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        if self._qmp is not None:
            await self._qmp.close()
        self._process.release()

    # ---- how it goes on

    async def _shut_down(self, grace: Callable[[], float]) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        # A press that is lost costs seconds until the next one.
        await first_of(self.connected, self._process.ended, seconds=min(grace(), _CONNECT))
        while not self._process.ended.is_set():
            left = begun + grace() - loop.time()
            if left <= 0:
                self.cut_power()
                return
            try:
                await self._execute("system_powerdown")
            except QmpError as error:
                log.debug("%s: power button: %s", self.record.name, error)
            await wait_within(self._process.ended, min(left, _PRESS_AGAIN))

    async def _follow(self) -> None:
        talking = asyncio.create_task(self._talk())
        try:
            await self._process.ended.wait()
        finally:
            talking.cancel()
            self._pushing.cancel()
            for error in await asyncio.gather(talking, self._pushing, return_exceptions=True):
                if isinstance(error, Exception):
                    log.error("%s: talking to QEMU failed", self.record.name, exc_info=error)
        self.directory.write_outcome(
            Outcome.SHUTDOWN if self._powered_off.is_set() else Outcome.CRASHED
        )
        if self._qmp is not None:
            await self._qmp.close()
        self.ended.set()
        self._on_change(self.uid)

    async def _talk(self) -> None:
        while not self._process.ended.is_set():
            try:
                self._qmp = await Qmp.connect(self.directory.qmp, on_event=self._event)
                self._saw(await self._status())
                self.connected.set()
                await self._until_closed_or_off(self._qmp)
            except QmpError as error:
                log.debug("%s: %s", self.record.name, error)
            await asyncio.sleep(_RECONNECT if self.connected.is_set() else 0.02)

    async def _until_closed_or_off(self, qmp: Qmp) -> None:
        await first_of(qmp.closed, self._powered_off)
        if self._powered_off.is_set():
            with contextlib.suppress(QmpError):
                await qmp.execute("quit", timeout=_QUIT)
            await wait_within(self._process.ended, _QUIT)
            self._process.kill()

    def _event(self, name: str, data: dict[str, Any]) -> None:
        match name:
            case "SHUTDOWN" if data.get("guest"):
                self._saw("shutdown")
            case "RESET" if self._panics.look():
                self._saw("guest-panicked")
            case "RESET":
                self.restarted.set()
            case "BLOCK_IO_ERROR" if data.get("action") == "stop":
                self._saw("io-error")
            case _:
                pass

    def _saw(self, status: str) -> None:
        match status:
            case "shutdown":
                self.directory.write_outcome(Outcome.SHUTDOWN)
                self._powered_off.set()
            case "internal-error" | "guest-panicked":
                log.warning("%s: QEMU stopped the guest: %s", self.record.name, status)
                panicked = status == "guest-panicked"
                self.directory.write_outcome(Outcome.PANICKED if panicked else Outcome.CRASHED)
                self._process.kill()
            case "io-error" if not self._stalled.is_set():
                log.warning("%s: a write failed, so QEMU stopped the guest", self.record.name)
                self._stalled.set()
                self._on_change(self.uid)
            case _:
                pass

    async def _push(self) -> None:
        """Let the guest go on when it has stalled, again and again."""
        while True:
            await self._stalled.wait()
            await wait_within(self._process.ended, _GO_ON)
            try:
                await self._execute("cont")
                # RESUME proves nothing: the write is repeated, and fails again where nothing changed.
                await wait_within(self._process.ended, _GOES_ON)
                if await self._status() == "running":
                    self._stalled.clear()
                    self._on_change(self.uid)
            except QmpError as error:
                log.debug("%s: going on: %s", self.record.name, error)

    async def _status(self) -> str:
        return str((await self._execute("query-status"))["status"])

    async def _execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        if self._qmp is None:
            raise QmpError(f"{command}: QEMU of {self.record.name} is not connected yet")
        return await self._qmp.execute(command, arguments)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
