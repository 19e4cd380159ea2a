"""The work queue against a model that is too simple to be wrong, and too slow to be used.

The model keeps, for each key, when it was first due and how urgent it is, and looks at all of them at every turn. It
does not say which key must come next, but what the one that came must not have been: later than another that had the
better right to this turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from machine_operator.controller.queue import Priority, WorkQueue

PATIENCE = 4
KEYS = st.sampled_from([lane + number for lane in "abc" for number in "123"])
PRIORITIES = st.sampled_from([Priority.RESYNC, Priority.NORMAL, Priority.USER])
DELAYS = st.integers(-1, 30).map(float)


def lane_of(key: str) -> Hashable:
    return key[0]


@dataclass
class Wanted:
    """A key that waits."""

    priority: Priority
    since: float
    queued: int
    placed: int
    """When it came to its priority, which is later than `queued` where it was raised."""


@dataclass
class Model:
    now: float = 0.0
    ticks: int = 0
    turns: int = 0
    waiting: dict[str, Wanted] = field(default_factory=dict)
    working: set[str] = field(default_factory=set)
    dirty: dict[str, Priority] = field(default_factory=dict)
    timers: dict[str, tuple[float, Priority]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    served: dict[tuple[Priority, Hashable], set[Hashable]] = field(default_factory=dict)
    """For each lane in which keys wait: the lanes that had a turn since its own last one."""

    def add(self, key: str, priority: Priority) -> None:
        _, before = self.timers.pop(key, (0.0, priority))
        priority = max(priority, before)
        if key in self.working:
            self.dirty[key] = max(priority, self.dirty.get(key, priority))
        else:
            self.enqueue(key, priority)

    def enqueue(self, key: str, priority: Priority) -> None:
        self.ticks += 1
        known = self.waiting.get(key)
        if known is None:
            self.waiting[key] = Wanted(priority, self.now, self.ticks, self.ticks)
        elif known.priority < priority:
            known.priority, known.placed = priority, self.ticks
        self.tidy()

    def tidy(self) -> None:
        there = {(wanted.priority, lane_of(key)) for key, wanted in self.waiting.items()}
        self.served = {place: self.served.get(place, set()) for place in there}

    def add_after(self, key: str, delay: float, priority: Priority) -> None:
        if delay <= 0 or key in self.waiting or key in self.dirty:
            self.add(key, priority)
            return
        asked = self.now + delay
        due, before = self.timers.get(key, (float("inf"), priority))
        if asked < due:  # of two that are due together the one that was set first comes first
            self.timers.pop(key, None)
        self.timers[key] = (min(due, asked), max(priority, before))

    def promote(self) -> None:
        for key, (due, priority) in sorted(self.timers.items(), key=lambda item: item[1][0]):
            if due <= self.now:
                self.add(key, priority)

    def take(self, key: str) -> None:
        """Judge the key that the queue has handed out."""
        assert key not in self.working, f"{key} is in two workers' hands"
        assert key in self.waiting, f"nobody has asked for {key}"
        self.turns += 1
        oldest = min(self.waiting.values(), key=lambda wanted: wanted.queued)
        highest = max(wanted.priority for wanted in self.waiting.values())
        taken = self.waiting[key]
        right = oldest.priority if self.turns % PATIENCE == 0 else highest
        assert taken.priority == right, f"{key} is {taken.priority!r}; this turn was for {right!r}"
        lane = lane_of(key)
        for other, wanted in self.waiting.items():
            if wanted.priority == right and lane_of(other) == lane:
                assert taken.placed <= wanted.placed, f"{other} came to the lane before {key}"
        for (priority, other), seen in self.served.items():
            if priority == right and other != lane:
                assert lane not in seen, f"lane {lane} had two turns while {other} waited"
                seen.add(lane)
        self.served[right, lane] = set()
        del self.waiting[key]
        self.working.add(key)
        self.tidy()


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.queue: WorkQueue[str] = WorkQueue(
            lane=lane_of,
            patience=PATIENCE,
            clock=lambda: self.model.now,
            uniform=lambda: 0.5,
            base=0.5,
            longest=20.0,
        )
        self.runner = asyncio.Runner()

    def next_key(self) -> str | None:
        """What `get` hands out, or None where it waits (and is then cancelled)."""

        async def attempt() -> str | None:
            task = asyncio.create_task(self.queue.get())
            await asyncio.sleep(0)
            if task.done():
                return task.result()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return None

        return self.runner.run(attempt())

    @rule(key=KEYS, priority=PRIORITIES)
    def add(self, key: str, priority: Priority) -> None:
        self.queue.add(key, priority=priority)
        self.model.add(key, priority)

    @rule(key=KEYS, delay=DELAYS, priority=PRIORITIES)
    def add_after(self, key: str, delay: float, priority: Priority) -> None:
        self.queue.add_after(key, delay, priority=priority)
        self.model.add_after(key, delay, priority)

    @rule(key=KEYS, priority=PRIORITIES)
    def retry(self, key: str, priority: Priority) -> None:
        failures = self.model.failures.get(key, 0)
        self.model.failures[key] = failures + 1
        pause = self.queue.retry(key, priority=priority)
        assert pause == min(0.5 * 2**failures, 20.0) * 0.75
        self.model.add_after(key, pause, priority)

    @rule(key=KEYS, delay=DELAYS)
    def add_calmly(self, key: str, delay: float) -> None:
        failures = self.model.failures.get(key, 0)
        self.queue.add_calmly(key, delay)
        calm = max(delay, min(0.5 * 2**failures, 20.0)) if failures else delay
        self.model.add_after(key, calm, Priority.NORMAL)

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)
        self.model.failures.pop(key, None)

    @rule(key=KEYS)
    def drop(self, key: str) -> None:
        self.queue.drop(key)
        for known in (
            self.model.failures,
            self.model.dirty,
            self.model.timers,
            self.model.waiting,
        ):
            known.pop(key, None)
        self.model.tidy()

    @rule(seconds=st.integers(0, 20))
    def pass_time(self, seconds: int) -> None:
        self.model.now += seconds

    @rule(count=st.integers(1, 6))
    def take(self, count: int) -> None:
        for _ in range(count):
            key = self.next_key()
            self.model.promote()
            if key is None:
                assert not self.model.waiting, f"not handed out: {self.model.waiting}"
                return
            self.model.take(key)

    @precondition(lambda self: self.model.working)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(sorted(self.model.working))))

    def finish(self, key: str) -> None:
        self.queue.done(key)
        self.model.working.remove(key)
        priority = self.model.dirty.pop(key, None)
        if priority is not None:
            self.model.enqueue(key, priority)

    @invariant()
    def they_agree(self) -> None:
        oldest = self.queue.oldest()
        self.model.promote()
        waited = [self.model.now - wanted.since for wanted in self.model.waiting.values()]
        assert oldest == max(waited, default=0.0)
        assert len(self.queue) == len(self.model.waiting)
        for key, failures in self.model.failures.items():
            assert self.queue.failures(key) == failures

    def teardown(self) -> None:
        """No key is lost: all that was asked for comes out in the end."""
        try:
            for key in sorted(self.model.working):
                self.finish(key)
            self.model.now += 1000.0
            while (key := self.next_key()) is not None:
                self.model.promote()
                self.model.take(key)
                self.finish(key)
            assert not self.model.waiting, f"lost: {self.model.waiting}"
            assert not self.model.timers, f"never came: {self.model.timers}"
        finally:
            self.runner.close()


QueueMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestQueue = QueueMachine.TestCase
