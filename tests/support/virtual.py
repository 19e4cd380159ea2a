"""Virtual time: an event loop whose clock jumps to the next timer as soon as nothing else is left to run.

Half a minute of back-off takes no time, and the order of events is the same in every run. There is no I/O in such a
loop, so a loop with neither something to run nor a timer can never go on: that is reported and not waited for.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from typing_extensions import override

__all__ = ["VirtualLoop", "eventually", "run_virtual"]

T = TypeVar("T")

_MANY_ROUNDS = 100_000
"""A test takes some hundred rounds. What spins in virtual time would never end, and no time limit could stop it."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop that skips waiting."""

    def __init__(self, *, rounds: int = _MANY_ROUNDS) -> None:
        super().__init__()
        # The real loop lets timers fire a clock tick early; here time would then stand still and they would spin.
        self._clock_resolution = 0.0
        self._virtual_now = 0.0
        self._rounds = 0
        self._most_rounds = rounds

    @override
    def time(self) -> float:
        return self._virtual_now

    def _run_once(self) -> None:
        self._rounds += 1
        if self._rounds > self._most_rounds:
            self._rounds = 0  # or nothing could be cleaned up
            raise AssertionError(f"something spins: {self._most_rounds} rounds of the loop")
        ready, scheduled = self._ready, self._scheduled  # type: ignore[attr-defined]
        if not ready:
            while scheduled and scheduled[0]._cancelled:
                handle = heapq.heappop(scheduled)
                handle._scheduled = False
                self._timer_cancelled_count -= 1  # type: ignore[attr-defined]
            if scheduled:
                due = math.nextafter(scheduled[0]._when, math.inf)
                self._virtual_now = max(self._virtual_now, due)
            elif not self._stopping:  # type: ignore[attr-defined]
                raise AssertionError("deadlock: every task waits, and no timer is left")
        super()._run_once()  # type: ignore[misc]


def run_virtual(scenario: Coroutine[Any, Any, T], *, rounds: int = _MANY_ROUNDS) -> T:
    """Run a coroutine in a virtual loop of its own; a long story needs more `rounds` of the loop."""
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(rounds=rounds)) as runner:
        return runner.run(scenario)


async def eventually(
    holds: Callable[[], Any], *, within: float = 120.0, state: Callable[[], Any] = lambda: ""
) -> None:
    """Return once `holds()`; fail with the state after `within` seconds of the loop's clock."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not holds():
        if loop.time() > deadline:
            raise AssertionError(f"not so after {within:.0f} s; the state: {state()}")
        await asyncio.sleep(0.1)
