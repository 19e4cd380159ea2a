"""The work queue under any sequence of calls, in virtual time: no key is lost, none is worked on twice at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine_operator.controller.queue import Priority, WorkQueue
from tests.support.virtual import run_virtual

KEYS = ("a", "b", "c")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from(KEYS), st.just(0.0)),
        st.tuples(st.just("after"), st.sampled_from(KEYS), st.floats(-1.0, 30.0)),
        st.tuples(st.just("retry"), st.sampled_from(KEYS), st.just(0.0)),
        st.tuples(st.just("pass"), st.sampled_from(KEYS), st.floats(0.0, 5.0)),
    ),
    max_size=25,
)


class Shift:
    """Workers that note who works on what, and when."""

    def __init__(self, queue: WorkQueue[str], *, work: float) -> None:
        self.queue, self.work = queue, work
        self.busy: set[str] = set()
        self.begun: dict[str, list[float]] = {key: [] for key in KEYS}

    async def __call__(self) -> None:
        while True:
            key = await self.queue.get()
            assert key not in self.busy, f"two workers on {key}"
            self.busy.add(key)
            self.begun[key].append(asyncio.get_running_loop().time())
            await asyncio.sleep(self.work)
            self.busy.discard(key)
            self.queue.done(key)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, work=st.sampled_from([0.0, 0.5, 3.0]))
def test_no_key_is_lost_and_none_is_held_twice(
    steps: list[tuple[str, str, float]], work: float
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        queue: WorkQueue[str] = WorkQueue(base=0.5, longest=20.0)
        shift = Shift(queue, work=work)
        workers = [asyncio.create_task(shift()) for _ in range(2)]
        promises: list[tuple[str, float, float]] = []  # key, asked at, due at
        for what, key, number in steps:
            now = loop.time()
            if what == "add":
                queue.add(key)
                promises.append((key, now, now))
            elif what == "after":
                queue.add_after(key, number)
                promises.append((key, now, now + max(number, 0.0)))
            elif what == "retry":
                promises.append((key, now, now + queue.retry(key)))
            else:
                await asyncio.sleep(number)
        await asyncio.sleep(200.0)
        for worker in workers:
            assert not worker.done(), worker.exception()
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        assert len(queue) == 0
        slack = work * (len(steps) + 1)
        for key, asked, due in promises:
            assert any(asked <= at <= due + slack + 1e-6 for at in shift.begun[key]), (
                f"{key}, asked for at {asked} to be due at {due}, was begun at {shift.begun[key]}"
            )

    run_virtual(scenario())


def run(scenario: Callable[[WorkQueue[str]], object]) -> None:
    async def inside() -> None:
        result = scenario(WorkQueue())
        if asyncio.iscoroutine(result):
            await result

    run_virtual(inside())


async def take(queue: WorkQueue[str]) -> tuple[str, float]:
    key = await queue.get()
    queue.done(key)
    return key, asyncio.get_running_loop().time()


def test_keys_come_in_the_order_in_which_they_were_added() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        for key in ("b", "a", "b", "c"):
            queue.add(key)
        assert [(await take(queue))[0] for _ in range(3)] == ["b", "a", "c"]
        assert len(queue) == 0

    run(scenario)


def test_the_earliest_of_two_delays_counts() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 10.0)
        queue.add_after("a", 3.0)
        queue.add_after("a", 7.0)
        assert await take(queue) == ("a", pytest.approx(3.0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 100.0)

    run(scenario)


def test_an_add_at_once_replaces_a_delay() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 10.0)
        queue.add("a")
        assert await take(queue) == ("a", pytest.approx(0.0))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 100.0)

    run(scenario)


def test_a_key_added_while_it_is_worked_on_comes_back_once() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("a")
        assert await queue.get() == "a"
        queue.add("a")
        queue.add("a")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 1.0)
        queue.done("a")
        assert (await take(queue))[0] == "a"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 1.0)

    run(scenario)


def test_a_delay_that_ends_while_the_key_is_worked_on_is_kept() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.add("a")
        await queue.get()
        queue.add_after("a", 1.0)
        queue.add("b")
        await asyncio.sleep(5.0)
        assert (await take(queue))[0] == "b"
        queue.done("a")
        assert (await take(queue))[0] == "a"

    run(scenario)


def test_pauses_grow_up_to_a_bound_and_start_again_after_a_success() -> None:
    def scenario(_: WorkQueue[str]) -> None:
        queue: WorkQueue[str] = WorkQueue(base=0.5, longest=300.0)
        pauses = [queue.retry("a") for _ in range(2000)]
        for number, pause in enumerate(pauses):
            full = min(0.5 * 2.0 ** min(number, 20), 300.0)
            assert full / 2 <= pause <= full
        assert max(pauses) > 250.0, "the pauses do not grow"
        assert len(set(pauses)) > 1900, "the pauses have no jitter"
        queue.forget("a")
        assert queue.retry("a") <= 0.5
        assert queue.retry("b") <= 0.5, "one key's failures are another's"

    run(scenario)


def test_the_server_can_ask_for_a_longer_pause() -> None:
    def scenario(queue: WorkQueue[str]) -> None:
        assert queue.retry("a", at_least=17.0) == 17.0

    run(scenario)


def test_one_add_wakes_one_worker() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        workers = [asyncio.create_task(queue.get()) for _ in range(3)]
        await asyncio.sleep(0)
        queue.add("a")
        queue.add_after("b", 2.0)
        await asyncio.sleep(1.0)
        assert [worker.done() for worker in workers] == [True, False, False]
        await asyncio.sleep(2.0)
        assert [worker.done() for worker in workers] == [True, True, False]
        workers[2].cancel()
        await asyncio.gather(*workers, return_exceptions=True)

    run(scenario)


def test_a_worker_cancelled_in_the_moment_of_its_wakening_takes_nothing_with_it() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        for cancel_first in (True, False):
            first, second = (asyncio.create_task(queue.get()) for _ in range(2))
            await asyncio.sleep(0)
            for step in (first.cancel, lambda: queue.add("a"))[:: 1 if cancel_first else -1]:
                step()
            assert await asyncio.wait_for(second, 10.0) == "a"
            queue.done("a")
            assert first.cancelled()

    run(scenario)


def test_a_cancelled_worker_takes_nothing_with_it() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        waiting = asyncio.create_task(queue.get())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        queue.add("a")
        assert (await take(queue))[0] == "a"

    run(scenario)


# ---- who comes next

WAITING = (Priority.USER, Priority.NORMAL, Priority.RESYNC)


def lanes(*, patience: int = 1_000_000) -> WorkQueue[str]:
    """A queue in which a key's first letter is its lane."""
    return WorkQueue(lane=lambda key: key[0], patience=patience)


async def order(queue: WorkQueue[str], count: int | None = None) -> list[str]:
    return [(await take(queue))[0] for _ in range(len(queue) if count is None else count)]


def test_the_urgent_come_first_and_a_waiting_key_can_be_raised() -> None:
    async def scenario(_: WorkQueue[str]) -> None:
        queue = lanes()
        for key in ("a1", "a2", "a3"):
            queue.add(key, priority=Priority.RESYNC)
        queue.add("b1")
        queue.add("c1", priority=Priority.USER)
        queue.add("a3", priority=Priority.USER)
        queue.add("c1", priority=Priority.RESYNC)  # does not lower it
        queue.add_after("a2", 60.0)  # raises it
        assert await order(queue) == ["c1", "a3", "b1", "a2", "a1"]

    run(scenario)


@pytest.mark.parametrize("known", WAITING)
@pytest.mark.parametrize("added", WAITING)
def test_dirty_and_delayed_keys_keep_the_highest_priority(known: Priority, added: Priority) -> None:
    async def scenario(_: WorkQueue[str]) -> None:
        for prepare in ("dirty", "longer delay", "shorter delay", "at once"):
            queue = lanes()
            if prepare == "dirty":
                queue.add("a")
                await queue.get()
                queue.add("a", priority=known)
                queue.add("a", priority=added)
                queue.done("a")
            else:
                queue.add_after("a", 5.0, priority=known)
                delays = {"longer delay": 7.0, "shorter delay": 3.0, "at once": 0.0}
                queue.add_after("a", delays[prepare], priority=added)
                await asyncio.sleep(20.0)
                assert queue.oldest() >= 0.0  # notices that its time has come
            # One rival of each priority, the later ones behind the key where it has theirs.
            for rival in WAITING:
                queue.add(rival.name, priority=rival)
            before = [rival.name for rival in WAITING if rival > max(known, added)]
            assert (await order(queue))[: len(before) + 1] == [*before, "a"], prepare

    run(scenario)


def test_a_full_lane_does_not_delay_another_lane() -> None:
    async def scenario(_: WorkQueue[str]) -> None:
        queue = lanes()
        for number in range(5000):
            queue.add(f"a{number}")
        queue.add("b0")
        queue.add("c0")
        queue.add("b1")
        assert await order(queue, 7) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]

    run(scenario)


def test_the_least_urgent_key_is_served_under_endless_urgent_work() -> None:
    async def scenario(_: WorkQueue[str]) -> None:
        queue = lanes(patience=10)
        queue.add("a", priority=Priority.RESYNC)
        queue.add("b", priority=Priority.NORMAL)
        for number in range(100):
            queue.add(f"u{number}", priority=Priority.USER)
        served = await order(queue)
        assert served.index("a") == 9
        assert served.index("b") == 19

    run(scenario)


# ---- what a queue keeps


def test_a_dropped_key_leaves_nothing_behind() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        queue.retry("a")
        queue.drop("a")
        assert queue.failures("a") == 0
        queue.add("b")
        queue.drop("b")
        assert (len(queue), queue.oldest()) == (0, 0.0)
        queue.add("c")
        await queue.get()
        queue.add("c")
        queue.drop("c")
        queue.done("c")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 1000.0)

    run(scenario)


def test_cancelled_timers_do_not_pile_up() -> None:
    async def scenario(queue: WorkQueue[str]) -> None:
        for number in range(2000):
            queue.add_after(f"key {number % 10}", 10_000.0 - number)  # each one earlier
        assert len(queue._heap) <= 100
        for number in range(2000):
            queue.add_after(f"key {number}", 10_000.0)
        for number in range(2000):
            queue.drop(f"key {number}")
        assert len(queue._heap) <= 100

    run(scenario)


class Counted:
    """Notes what a queue tells its metrics."""

    def __init__(self) -> None:
        self.added = self.retried = self.depth = 0
        self.waits: list[float] = []
        self.works: list[float] = []

    def queue_added(self) -> None:
        self.added += 1

    def queue_depth(self, keys: int) -> None:
        self.depth = keys

    def queue_waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def queue_worked(self, seconds: float) -> None:
        self.works.append(seconds)

    def queue_retried(self) -> None:
        self.retried += 1


def test_metrics_are_told_what_happens() -> None:
    async def scenario(_: WorkQueue[str]) -> None:
        counted = Counted()
        queue: WorkQueue[str] = WorkQueue(sink=counted)
        queue.add("a")
        queue.add("a")
        queue.add("b")
        assert (counted.added, counted.depth) == (2, 2)
        await asyncio.sleep(3.0)
        assert queue.oldest() == pytest.approx(3.0)
        await queue.get()
        queue.add("a")
        queue.add("a")
        await asyncio.sleep(2.0)
        await queue.get()
        await asyncio.sleep(1.0)
        assert queue.in_progress() == (2, pytest.approx(4.0), pytest.approx(3.0))
        queue.done("a")
        queue.done("b")
        queue.retry("b")
        assert (counted.added, counted.depth, counted.retried) == (3, 1, 1)
        assert counted.waits == pytest.approx([3.0, 5.0])
        assert counted.works == pytest.approx([3.0, 1.0])
        assert queue.in_progress() == (0, 0.0, 0.0)

    run(scenario)
