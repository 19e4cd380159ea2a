"""The work queue: keys to look at, each at most once at a time.

As in client-go's workqueue: adding a key that waits is free; adding a key that is being worked on marks it dirty, and
it comes back when the work is done, so no change is lost and no two workers ever hold one key. A delayed add keeps
the earliest due time. Failures come back after an exponential, jittered pause that `forget` resets.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["WorkQueue"]

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys in the order in which they became due.

    Args:
        clock: monotonic seconds; the loop's own clock where not given.
        base: the first pause after a failure, in seconds.
        longest: the longest pause after failures, in seconds.
    """

    def __init__(
        self, *, clock: Callable[[], float] | None = None, base: float = 0.5, longest: float = 300.0
    ) -> None:
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._base = base
        self._longest = longest
        self._ready: deque[K] = deque()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._dirty: set[K] = set()
        self._due: dict[K, float] = {}
        self._timers: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._failures: dict[K, int] = {}
        self._wakeup = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: K) -> None:
        """Have `key` looked at as soon as a worker is free."""
        self._due.pop(key, None)
        if key in self._working:
            self._dirty.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.append(key)
            self._wakeup.set()

    def add_after(self, key: K, delay: float) -> None:
        """Have `key` looked at in `delay` seconds, or earlier where that was asked for before."""
        if delay <= 0:
            self.add(key)
            return
        due = self._clock() + delay
        if key in self._waiting or self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._timers, (due, self._sequence, key))
        self._wakeup.set()

    def retry(self, key: K, *, at_least: float = 0.0) -> float:
        """Have `key` looked at again after its back-off; returns the pause in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        pause = max(self._pause(failures) * random.uniform(0.5, 1.0), at_least)
        self.add_after(key, pause)
        return pause

    def add_calmly(self, key: K, delay: float) -> None:
        """Have `key` looked at in `delay` seconds, but no sooner than its next retry where it fails.

        For changes that a failing pass itself makes: they must not turn its back-off into a busy loop.
        """
        failures = self._failures.get(key, 0)
        self.add_after(key, max(delay, self._pause(failures)) if failures else delay)

    def _pause(self, failures: int) -> float:
        # Bounded exponent: 2.0**1024 is an error, not infinity.
        return min(self._base * 2.0 ** min(failures, 32), self._longest)

    def forget(self, key: K) -> None:
        """The key did well: its next failure starts with the shortest pause again."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key that is due; the caller says `done` when finished with it."""
        while True:
            self._promote()
            if self._ready:
                key = self._ready.popleft()
                self._waiting.discard(key)
                self._working.add(key)
                return key
            self._wakeup.clear()
            await self._until_next_timer()

    def done(self, key: K) -> None:
        """Work on `key` has ended; it comes back at once where it was added meanwhile."""
        self._working.discard(key)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    def _promote(self) -> None:
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            due, _, key = heapq.heappop(self._timers)
            if self._due.get(key) == due:  # else an earlier add has replaced this timer
                self.add(key)

    async def _until_next_timer(self) -> None:
        limit = max(self._timers[0][0] - self._clock(), 0.0) if self._timers else None
        try:
            async with asyncio.timeout(limit):
                await self._wakeup.wait()
        except TimeoutError:
            return
