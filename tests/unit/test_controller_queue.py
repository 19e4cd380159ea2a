"""The work queue under any sequence of calls, in virtual time: no key is lost, none is worked on twice at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine_operator.controller.queue import WorkQueue
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
        queue.forget("a")
        assert queue.retry("a") <= 0.5
        assert queue.retry("b") <= 0.5, "one key's failures are another's"

    run(scenario)


def test_the_server_can_ask_for_a_longer_pause() -> None:
    def scenario(queue: WorkQueue[str]) -> None:
        assert queue.retry("a", at_least=17.0) == 17.0

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
