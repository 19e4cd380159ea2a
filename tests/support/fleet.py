"""Operators that come and go: what a schedule kills, doubles and replaces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from tests.support.faults import Die, Fault, StreamFault
from tests.support.world import Operator, World

__all__ = ["Fleet"]


class Fleet:
    """The operators of a world; mostly one."""

    def __init__(self, world: World) -> None:
        self.running: list[Operator] = []
        self.written = 0
        self._world = world
        self._changes: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """One more."""
        process = Operator(self._world.api, latency=0.005 + 0.002 * len(self.running))
        self.running.append(process)
        await process.start()

    def soon(self, change: Coroutine[Any, Any, None]) -> None:
        """A change that takes time, beside everything else."""
        self._changes.append(asyncio.ensure_future(change))

    async def kill(self, *, after: bool, pause: float) -> None:
        """The oldest one dies at its next write (or in three seconds), and is replaced after a pause."""
        if not self.running:
            return
        process = self.running.pop(0)
        process.client.faults.at_write(process.client.written + 1, Die(after=after))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.client.dead.wait(), 3.0)
        await self._end(process)
        await asyncio.sleep(pause)
        await self.start()

    async def double(self, seconds: float) -> None:
        """A second one for a while, as when a lease is lost and nobody has noticed."""
        await self.start()
        process = self.running[-1]
        await asyncio.sleep(seconds)
        if process in self.running:
            self.running.remove(process)
            await self._end(process)

    async def _end(self, process: Operator) -> None:
        assert not process.engine.failed, "a task of the engine ended"
        self.written += process.client.written
        await process.stop()

    def trouble(self, fault: Fault, *, times: int, reads: bool = False) -> None:
        """The next writes (and reads) of all of them go wrong."""
        for process in self.running:
            process.client.faults.next(fault, when=lambda r: reads or r.writes, times=times)

    def garble(self, fault: StreamFault, *, every: int) -> None:
        """From now on every n-th event of their watches goes wrong."""
        for process in self.running:
            process.client.faults.stream_rules.append(
                lambda _, number: fault if number % every == 0 else None
            )

    async def recover(self) -> None:
        """All changes are done, one is left, and nothing breaks any more."""
        await asyncio.gather(*self._changes)
        self._changes.clear()
        while len(self.running) > 1:
            await self._end(self.running.pop())
        if not self.running:
            await self.start()
        faults = self.running[0].client.faults
        faults.rules.clear()
        faults.stream_rules.clear()

    async def stop(self) -> None:
        """All end."""
        for change in self._changes:
            change.cancel()
        await asyncio.gather(*self._changes, return_exceptions=True)
        while self.running:
            await self._end(self.running.pop())
