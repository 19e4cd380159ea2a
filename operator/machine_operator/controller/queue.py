"""The work queue: keys to look at, each at most once at a time.

As in client-go's workqueue: adding a key that waits is free; adding a key that is being worked on marks it dirty, and
it comes back when the work is done, so no change is lost and no two workers ever hold one key. A delayed add keeps
the earliest due time. Failures come back after an exponential, jittered pause that `forget` resets.

Which waiting key comes next: one of the highest priority; within a priority the lanes (namespaces) take turns; within
a lane the first come. Every `patience`-th turn goes to the priority of the key that has waited longest, so that a
stream of urgent keys slows the others down but never stops them. Each operation costs O(1), or O(log n) with a delay.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

__all__ = ["Priority", "QueueMetrics", "Work", "WorkQueue"]

K = TypeVar("K", bound=Hashable)

_SLACK = 64
"""Cancelled timers that the heap may keep besides as many as there are live ones."""


class Priority(IntEnum):
    """How urgent a look at a key is."""

    RESYNC = 0
    """Nothing is known to have changed: start-up, and checks from time to time."""
    NORMAL = 1
    """Something around the object has changed, or its time has come."""
    USER = 2
    """Somebody waits for an answer."""


class QueueMetrics(Protocol):
    """Who counts what happens in a queue."""

    def queue_added(self) -> None:
        """A key that neither waited nor was dirty has been added."""

    def queue_depth(self, keys: int, /) -> None:
        """So many keys wait now."""

    def queue_waited(self, seconds: float, /) -> None:
        """A key that waited so long has been handed out."""

    def queue_worked(self, seconds: float, /) -> None:
        """Work on a key has ended."""

    def queue_retried(self) -> None:
        """A key has failed, and will come back."""


class Work(NamedTuple):
    """What is in the workers' hands."""

    keys: int
    seconds: float
    """So long they have taken so far, all together."""
    longest: float
    """So long one of them has taken so far, at most."""


class _NoMetrics:
    """Counts nothing."""

    def queue_added(self) -> None: ...
    def queue_depth(self, keys: int, /) -> None: ...
    def queue_waited(self, seconds: float, /) -> None: ...
    def queue_worked(self, seconds: float, /) -> None: ...
    def queue_retried(self) -> None: ...


@dataclass(slots=True)
class _Place:
    """Where a waiting key stands."""

    priority: Priority
    since: float


@dataclass(frozen=True, slots=True)
class _Timer:
    """When a key is due; `number` tells which entry of the heap is its own."""

    due: float
    number: int
    priority: Priority


class _Level(Generic[K]):
    """The waiting keys of one priority, in lanes that take turns."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[Hashable, OrderedDict[K, None]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def push(self, lane: Hashable, key: K) -> None:
        self._lanes.setdefault(lane, OrderedDict())[key] = None

    def pop(self) -> K:
        lane, keys = self._lanes.popitem(last=False)
        key, _ = keys.popitem(last=False)
        if keys:
            self._lanes[lane] = keys  # behind all others
        return key

    def remove(self, lane: Hashable, key: K) -> None:
        keys = self._lanes[lane]
        del keys[key]
        if not keys:
            del self._lanes[lane]


def _same_lane(_: Hashable) -> Hashable:
    return None


class WorkQueue(Generic[K]):
    """Keys to look at. One event loop uses it; its workers are ended by cancelling them.

    Args:
        lane: whose key it is, always the same for a key; lanes of one priority are served in turn.
        patience: one in so many turns goes to the priority of the key that has waited longest.
        sink: told of what happens.
        clock: monotonic seconds; the loop's own clock where not given.
        uniform: a random number in [0, 1), for jitter.
        base: the longest pause after a first failure, in seconds; it doubles with each further one.
        longest: the longest pause after any number of failures, in seconds.
    """

    def __init__(
        self,
        *,
        lane: Callable[[K], Hashable] = _same_lane,
        patience: int = 10,
        sink: QueueMetrics | None = None,
        clock: Callable[[], float] | None = None,
        uniform: Callable[[], float] = random.random,
        base: float = 0.5,
        longest: float = 300.0,
    ) -> None:
        self._lane = lane
        self._patience = patience
        self._metrics: QueueMetrics = sink or _NoMetrics()
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._uniform = uniform
        self._base = base
        self._longest = longest
        # A key waits, or is worked on (then perhaps dirty), or neither. It has a timer only where nothing sooner
        # is certain: not while it waits or is dirty.
        self._waiting: OrderedDict[K, _Place] = OrderedDict()  # the longest waiting first
        self._levels: dict[Priority, _Level[K]] = {
            priority: _Level() for priority in sorted(Priority, reverse=True)
        }
        self._working: dict[K, float] = {}
        self._dirty: dict[K, Priority] = {}
        self._timers: dict[K, _Timer] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._failures: dict[K, int] = {}
        self._turns = 0
        self._numbers = 0
        self._idle: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_due = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    # ---- asking for a look

    def add(self, key: K, *, priority: Priority = Priority.NORMAL) -> None:
        """Have `key` looked at as soon as a worker is free. Of several priorities the highest counts."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            priority = max(priority, timer.priority)
            self._compact()
        if key in self._waiting or key in self._dirty:
            self._raise(key, priority)
            return
        self._metrics.queue_added()
        if key in self._working:
            self._dirty[key] = priority
        else:
            self._enqueue(key, priority)

    def add_after(self, key: K, delay: float, *, priority: Priority = Priority.NORMAL) -> None:
        """Have `key` looked at in `delay` seconds, or earlier where that was asked for before."""
        if delay <= 0:
            self.add(key, priority=priority)
            return
        if key in self._waiting or key in self._dirty:
            self._raise(key, priority)
            return
        due = self._clock() + delay
        known = self._timers.get(key)
        if known is not None:
            priority = max(priority, known.priority)
            if known.due <= due:
                self._timers[key] = _Timer(known.due, known.number, priority)
                return
        self._numbers += 1
        self._timers[key] = _Timer(due, self._numbers, priority)
        heapq.heappush(self._heap, (due, self._numbers, key))
        self._compact()
        self._set_alarm()

    def retry(
        self,
        key: K,
        *,
        at_least: float = 0.0,
        at_most: float = math.inf,
        priority: Priority = Priority.NORMAL,
    ) -> float:
        """Have `key` looked at again after its back-off, which is cut at `at_most`; returns the pause in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        self._metrics.queue_retried()
        # Jitter, so that what failed together does not come back together; half of the pause is certain, so that what
        # fails for hours is not tried more often by luck.
        pause = self._pause(failures) * (0.5 + 0.5 * self._uniform())
        pause = max(min(pause, at_most), at_least)
        self.add_after(key, pause, priority=priority)
        return pause

    def add_calmly(self, key: K, delay: float, *, priority: Priority = Priority.NORMAL) -> None:
        """Have `key` looked at in `delay` seconds, but no sooner than its next retry where it fails.

        For changes that a failing pass itself makes: they must not turn its back-off into a busy loop.
        """
        failures = self._failures.get(key, 0)
        calm = max(delay, self._pause(failures)) if failures else delay
        self.add_after(key, calm, priority=priority)

    def _pause(self, failures: int) -> float:
        # Bounded exponent: 2.0**1024 is an error, not infinity.
        return min(self._base * 2.0 ** min(failures, 32), self._longest)

    # ---- what is known of a key

    def forget(self, key: K) -> None:
        """The key did well: its next failure starts with the shortest pause again."""
        self._failures.pop(key, None)

    def drop(self, key: K) -> None:
        """The object is gone: no look at it is due any more. Work on it that is under way goes on."""
        self._failures.pop(key, None)
        self._dirty.pop(key, None)
        if self._timers.pop(key, None) is not None:
            self._compact()
        place = self._waiting.pop(key, None)
        if place is not None:
            self._levels[place.priority].remove(self._lane(key), key)
            self._metrics.queue_depth(len(self._waiting))

    def failures(self, key: K) -> int:
        """How often the key has failed since it was last forgotten."""
        return self._failures.get(key, 0)

    def oldest(self) -> float:
        """Seconds that the longest waiting key has waited; 0 where none waits."""
        self._promote()
        for place in self._waiting.values():
            return self._clock() - place.since
        return 0.0

    def in_progress(self) -> Work:
        """What the workers have in hand."""
        now = self._clock() if self._working else 0.0
        taken = [now - began for began in self._working.values()]
        return Work(len(taken), sum(taken), max(taken, default=0.0))

    # ---- workers

    async def get(self) -> K:
        """The next key that is due; the caller says `done` when finished with it."""
        self._loop = asyncio.get_running_loop()
        self._promote()
        while not self._waiting:
            self._set_alarm()
            await self._until_woken(self._loop.create_future())
            self._promote()
        return self._hand_out()

    def done(self, key: K) -> None:
        """Work on `key` has ended; it comes back at once where it was added meanwhile."""
        began = self._working.pop(key, None)
        if began is not None:
            self._metrics.queue_worked(self._clock() - began)
        priority = self._dirty.pop(key, None)
        if priority is not None:
            self._enqueue(key, priority)

    def _hand_out(self) -> K:
        self._turns += 1
        if self._turns % self._patience == 0:
            level = self._levels[next(iter(self._waiting.values())).priority]
        else:
            level = next(level for level in self._levels.values() if level)
        key = level.pop()
        place = self._waiting.pop(key)
        now = self._clock()
        self._working[key] = now
        self._metrics.queue_waited(now - place.since)
        self._metrics.queue_depth(len(self._waiting))
        return key

    async def _until_woken(self, woken: asyncio.Future[None]) -> None:
        self._idle.append(woken)
        try:
            await woken
        except asyncio.CancelledError:
            woken.cancel()  # without effect where it was woken already
            if woken.cancelled():
                with suppress(ValueError):  # an add since the cancellation has taken it off already
                    self._idle.remove(woken)
            elif self._waiting:
                self._wake_one()  # the key that it was woken for is another one's now
            raise

    # ---- inside

    def _enqueue(self, key: K, priority: Priority) -> None:
        self._waiting[key] = _Place(priority, self._clock())
        self._levels[priority].push(self._lane(key), key)
        self._metrics.queue_depth(len(self._waiting))
        self._wake_one()

    def _raise(self, key: K, priority: Priority) -> None:
        place = self._waiting.get(key)
        if place is None:
            self._dirty[key] = max(priority, self._dirty[key])
        elif place.priority < priority:
            lane = self._lane(key)
            self._levels[place.priority].remove(lane, key)
            self._levels[priority].push(lane, key)
            place.priority = priority

    def _wake_one(self) -> None:
        # One, not all: with many idle workers each new key would else cost a round of all of them.
        while self._idle:
            woken = self._idle.popleft()
            if not woken.done():
                woken.set_result(None)
                return

    def _promote(self) -> None:
        """Queue the keys whose time has come."""
        if not self._heap:
            return
        now = self._clock()
        while self._heap and self._heap[0][0] <= now:
            _, number, key = heapq.heappop(self._heap)
            timer = self._timers.get(key)
            if timer is not None and timer.number == number:  # else it was replaced or cancelled
                self.add(key, priority=timer.priority)

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._timers) + _SLACK:
            self._heap = [(timer.due, timer.number, key) for key, timer in self._timers.items()]
            heapq.heapify(self._heap)

    def _set_alarm(self) -> None:
        """Promote in time also while no worker comes by, so that depth and age stay true."""
        if self._loop is None or not self._heap:
            return
        due = self._heap[0][0]
        if self._alarm is not None:
            if self._alarm_due <= due:
                return
            self._alarm.cancel()
        delay = max(due - self._clock(), 0.0)
        self._alarm, self._alarm_due = self._loop.call_later(delay, self._ring), due

    def _ring(self) -> None:
        self._alarm = None
        self._promote()
        self._set_alarm()
