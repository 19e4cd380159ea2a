"""Use of machines keeps them awake, and its end lets them sleep, on the second: with the real controller beside it."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from machine_operator.api.phases import Power
from machine_operator.api.timestamps import parse_timestamp
from machine_operator.gateway.activity.uses import UseKind
from machine_operator.lifecycle.limits import Limits
from tests.support.access import Way, virtual_clock, way_in
from tests.support.apiserver import FakeApi, Request
from tests.support.clock import EPOCH, wall_clock
from tests.support.faults import Answer, TimeOut
from tests.support.virtual import eventually, run_virtual
from tests.support.world import World

EXECUTION, TERMINAL, SSH = UseKind.EXECUTION, UseKind.TERMINAL, UseKind.SSH


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_clock(monkeypatch)


@asynccontextmanager
async def running(autosleep: str = "5m", *, minimum_awake: float = 0.0) -> AsyncIterator[World]:
    """A cluster with one machine that runs, and is in the middle of its idle time."""
    world = World()
    async with world.operator(engine={"limits": Limits(minimum_awake=minimum_awake)}):
        world.create(autosleep=autosleep)
        await world.phase("running", reason="DesiredStateReached")
        yield world


def activity(world: World) -> Any:
    return world.status().get("activity") or {}


def holds(world: World) -> list[str]:
    return sorted(hold["id"] for hold in activity(world).get("holds") or [])


def touched(world: World) -> datetime:
    return parse_timestamp(activity(world)["last_touch_at"])


def writes(api: FakeApi, *, replica: str = "r1") -> list[Request]:
    """Its writes of activity."""
    return [r for r in api.log if r.params.get("fieldManager", "").endswith(f"gateway-{replica}")]


def touches(world: World) -> list[datetime]:
    """All last touches that there have been, in order."""
    states = (c[3].get("status") or {} for c in world.api.history if c[2] == "machines")
    found = ((status.get("activity") or {}).get("last_touch_at") for status in states)
    return [parse_timestamp(stamp) for stamp in found if stamp is not None]


async def asleep_at(world: World, *, within: float = 1200.0) -> datetime:
    """When the controller put the machine to sleep."""
    await world.phase("sleeping", within=within)
    request = world.status()["power_request"]
    assert request["by"] == "autosleep", request
    return parse_timestamp(request["at"])


# ---- on the second


@pytest.mark.parametrize("autosleep", [1, 2, 3, 5, 9, 10, 11, 60, 300])
@pytest.mark.parametrize("used", [0.2, 7.3, 100.0])
def test_it_sleeps_on_the_second_after_the_last_use(autosleep: int, used: float) -> None:
    async def scenario() -> None:
        async with running(str(autosleep)) as world, way_in(world.api) as way:
            with way.access.use(way.view(), EXECUTION):
                await asyncio.sleep(used)
                assert world.status()["phase"] == "running"
            end = wall_clock()
            at = await asleep_at(world)
            due = math.ceil((end - EPOCH).total_seconds() + autosleep)
            assert timedelta() <= at - EPOCH - timedelta(seconds=due) < timedelta(seconds=0.1)
            assert holds(world) == []
            assert touched(world) == end

    run_virtual(scenario())


@pytest.mark.parametrize("autosleep", [1, 5, 15, 300])
def test_the_idle_clock_starts_with_the_last_of_many_touches(autosleep: int) -> None:
    async def scenario() -> None:
        async with running(str(autosleep)) as world, way_in(world.api) as way:
            last = wall_clock()
            for pause in [0.0, 0.1, 0.7, 0.9, 0.4, 0.8, 0.3] * 10:
                await asyncio.sleep(pause)
                way.access.touch(way.view())
                last = wall_clock()
            assert world.status()["wake_count"] == 0
            at = await asleep_at(world)
            due = math.ceil((last - EPOCH).total_seconds() + autosleep)
            assert timedelta() <= at - EPOCH - timedelta(seconds=due) < timedelta(seconds=0.1)

    run_virtual(scenario())


def test_a_use_that_lasts_keeps_it_awake_in_few_writes() -> None:
    async def scenario() -> None:
        async with running("1m") as world, way_in(world.api) as way:
            with way.access.use(way.view(), TERMINAL):
                await asyncio.sleep(1800.0)
                assert world.status()["phase"] == "running"
                assert holds(world) == ["r1.terminal"]
            await asleep_at(world)
            assert world.status()["wake_count"] == 0
            assert len(writes(world.api)) <= 1800 / 40 + 3

    run_virtual(scenario())


def test_ten_thousand_touches_are_two_writes() -> None:
    async def scenario() -> None:
        async with running() as world, way_in(world.api) as way:
            view = way.view()
            for _ in range(100):
                for _ in range(100):
                    way.access.touch(view)
                await asyncio.sleep(0.01)
            last = wall_clock() - timedelta(seconds=0.01)
            await asyncio.sleep(30.0)
            assert len(writes(world.api)) == 2
            assert abs(touched(world) - last) < timedelta(seconds=0.001)
            assert len(way.access.activity) == 0

    run_virtual(scenario())


def test_fifty_uses_at_once_are_one_hold() -> None:
    async def scenario() -> None:
        async with running() as world, way_in(world.api) as way:

            async def one() -> None:
                with way.access.use(way.view(), EXECUTION), way.access.use(way.view(), EXECUTION):
                    await asyncio.sleep(3.0)

            await asyncio.gather(*(one() for _ in range(50)))
            assert holds(world) == ["r1.execution"]
            await asyncio.sleep(15.0)
            assert holds(world) == []
            assert len(writes(world.api)) == 2

    run_virtual(scenario())


def test_a_shorter_autosleep_counts_at_once() -> None:
    async def scenario() -> None:
        async with running("1h") as world, way_in(world.api) as way:
            with way.access.use(way.view(), EXECUTION):
                await asyncio.sleep(1.0)
            end = wall_clock()
            world.edit(autosleep="3s")
            assert await asleep_at(world) - end < timedelta(seconds=4.1)

    run_virtual(scenario())


# ---- against the decision to sleep


@pytest.mark.parametrize("kind", ["use", "touch"])
@pytest.mark.parametrize("late", [-0.03, -0.02, -0.012, -0.006, -0.001, 0.0, 0.004, 0.01, 0.02])
def test_a_use_that_races_the_decision_to_sleep(kind: str, late: float) -> None:
    """It keeps the machine awake, or wakes it again; it is never slept through."""

    async def scenario() -> None:
        async with running("20s") as world, way_in(world.api) as way:
            due = parse_timestamp(world.status()["next_sleep_at"])
            await asyncio.sleep((due - wall_clock()).total_seconds() + late)
            view = way.view()
            if kind == "use":
                with way.access.use(view, EXECUTION):
                    way.access.knock(view, by="ada")
                    await asyncio.sleep(60.0)
                    assert world.status()["phase"] == "running", world.describe()
                    assert holds(world) == ["r1.execution"]
            else:
                way.access.touch(view)
                await asyncio.sleep(15.0)
                assert world.status()["phase"] == "running", world.describe()
            await asleep_at(world, within=60.0)

    run_virtual(scenario())


def test_the_end_of_the_session_that_powered_the_guest_off_does_not_wake_it() -> None:
    async def scenario() -> None:
        async with running() as world, way_in(world.api) as way:
            with way.access.use(way.view(), SSH):
                await asyncio.sleep(100.0)
                world.kubevirt.power_off(world.vm_name())
                await world.phase("sleeping")
                await asyncio.sleep(90.0)  # the connection is dead; nobody has noticed
            await asyncio.sleep(60.0)
            assert world.status()["phase"] == "sleeping"
            assert world.status()["power_request"]["by"] == "guest"
            assert holds(world) == []

    run_virtual(scenario())


def test_an_open_terminal_does_not_wake_what_somebody_put_to_sleep() -> None:
    async def scenario() -> None:
        async with running() as world, way_in(world.api) as way:
            with way.access.use(way.view(), TERMINAL):
                await asyncio.sleep(20.0)
                await way.power(Power.SLEEPING)
                await world.phase("sleeping")
                count = len(writes(world.api))
                await asyncio.sleep(600.0)
                assert len(writes(world.api)) == count
            await asyncio.sleep(60.0)
            assert world.status()["phase"] == "sleeping"
            assert holds(world) == []

    run_virtual(scenario())


def test_a_use_of_a_sleeping_machine_is_no_way_around_the_queue() -> None:
    """Its hold would wake the machine by itself, so it is written when the machine is on its way up."""

    async def scenario() -> None:
        async with running("20s") as world, way_in(world.api) as way:
            await asleep_at(world)
            way.access.wakes._limit = 0  # nobody's turn comes
            with way.access.use(await way.sees(), EXECUTION):
                way.access.knock(way.view(), by="ada")
                await asyncio.sleep(60.0)
                assert world.status()["phase"] == "sleeping"
                assert writes(world.api) == []
                way.access.wakes._limit = 1
                way.access.wakes._news.set()
                await world.phase("running")
                await eventually(lambda: holds(world) == ["r1.execution"])
                await asyncio.sleep(60.0)
                assert world.status()["phase"] == "running"
            await asleep_at(world)

    run_virtual(scenario())


@pytest.mark.parametrize("seed", range(12))
def test_whatever_people_do_no_use_is_slept_through(seed: int) -> None:
    """Two replicas, uses at random, many as the machine is about to sleep, and a server that fails at times."""

    async def scenario() -> None:
        dice = random.Random(seed)
        idle = dice.choice([1, 2, 5, 12, 30])
        async with (
            running(str(idle)) as world,
            way_in(world.api) as one,
            way_in(world.api, replica="r2") as two,
        ):
            last = wall_clock()

            async def person(way: Way) -> None:
                nonlocal last
                for _ in range(12):
                    view = way.view()
                    with way.access.use(view, dice.choice(list(UseKind))):
                        await way.access.guest(view, by="ada", timeout=60.0)
                        for _ in range(dice.randrange(1, 20)):
                            await asyncio.sleep(dice.choice([0.01, 0.3, 3.0]))
                            assert world.status()["phase"] == "running", world.describe()
                    last = max(last, wall_clock())
                    if dice.random() < 0.3:
                        way.client.faults.next(Answer(dice.choice([409, 500])), when=_activity)
                    near = idle + dice.choice([-1, 0, 1]) * dice.random() * 0.2
                    await asyncio.sleep(dice.choice([0.0, 0.5, near, near, 2 * idle]))

            async with asyncio.TaskGroup() as people:
                for way in (one, one, two):
                    people.create_task(person(way))
            at = await asleep_at(world)
            due = math.ceil((last - EPOCH).total_seconds() + idle)
            assert timedelta() <= at - EPOCH - timedelta(seconds=due) < timedelta(seconds=0.6)
            assert touched(world) == last
            assert holds(world) == []

    run_virtual(scenario(), rounds=1_000_000)


def _activity(asked: Request) -> bool:
    return asked.writes and "gateway-r" in asked.params.get("fieldManager", "")


# ---- several replicas, and the end of one


@pytest.mark.parametrize("ahead", [0.0, 60.0])
def test_replicas_do_not_take_each_others_holds_nor_turn_the_touch_back(ahead: float) -> None:
    """Even where their clocks differ, and they write at the same moment."""

    async def scenario() -> None:
        async with (
            running("30s") as world,
            way_in(world.api) as one,
            way_in(world.api, replica="r2", ahead=ahead) as two,
        ):
            with one.access.use(one.view(), SSH):
                for pause in [0.3, 2.0, 9.7, 0.01, 5.0, 10.0, 0.2] * 6:
                    two.access.touch(two.view())
                    one.access.touch(one.view())
                    with two.access.use(two.view(), EXECUTION):
                        await asyncio.sleep(pause / 2)
                        await eventually(lambda: "r1.ssh" in holds(world))
                        await asyncio.sleep(pause / 2)
                        assert "r1.ssh" in holds(world)
                await asyncio.sleep(100.0)
                assert holds(world) == ["r1.ssh"]
            end = wall_clock()
            assert timedelta(seconds=30) <= await asleep_at(world) - end < timedelta(seconds=31.1)
            assert touched(world) == end
            stamps = touches(world)
            assert len(stamps) > 20
            assert stamps == sorted(stamps)

    run_virtual(scenario())


def test_a_replica_that_dies_costs_one_lease() -> None:
    async def scenario() -> None:
        async with running("30s") as world:
            async with way_in(world.api) as way:
                with way.access.use(way.view(), SSH):
                    await asyncio.sleep(100.0)
                    way.kill()
                    died = wall_clock()
                    at = await asleep_at(world)
            assert timedelta(seconds=30) < at - died <= timedelta(seconds=60 + 30 + 1.1)
            assert holds(world) == ["r1.ssh"]

    run_virtual(scenario())


def test_a_replica_that_ends_says_so() -> None:
    async def scenario() -> None:
        async with running("30s") as world:
            async with way_in(world.api) as way:
                with way.access.use(way.view(), SSH):
                    await asyncio.sleep(20.0)
                end = wall_clock()
                assert holds(world) == ["r1.ssh"]
            assert holds(world) == []
            assert touched(world) == end
            assert await asleep_at(world) - end < timedelta(seconds=31.1)

    run_virtual(scenario())


def test_what_goes_on_in_the_guest_keeps_its_hold_for_the_next_replica() -> None:
    async def scenario() -> None:
        async with running("5s") as world:
            async with way_in(world.api) as way:

                async def job(kind: UseKind) -> None:
                    with way.access.use(way.view(), kind):
                        await asyncio.Future()

                jobs = [asyncio.create_task(job(kind)) for kind in (EXECUTION, SSH)]
                await asyncio.sleep(20.0)
                way.access.drain()
                for task in jobs:
                    task.cancel()
                await asyncio.gather(*jobs, return_exceptions=True)
            assert holds(world) == ["r1.execution"]
            ended = wall_clock()
            async with way_in(world.api, replica="r2") as way:
                await asyncio.sleep(30.0)
                with way.access.use(way.view(), EXECUTION):
                    await asyncio.sleep(5.0)
                    assert world.status()["phase"] == "running"
                    assert holds(world) == ["r1.execution", "r2.execution"]
            assert await asleep_at(world) - ended < timedelta(seconds=66.1)

    run_virtual(scenario())


def test_the_end_waits_no_longer_than_it_may() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with running() as world, way_in(world.api, drain=3.0) as way:
            with way.access.use(way.view(), SSH):
                await asyncio.sleep(20.0)
            way.client.faults.rules.append(lambda asked, _: TimeOut() if asked.writes else None)
            began = loop.time()
            await way.stop()
            assert loop.time() - began < 3.1

    run_virtual(scenario())


# ---- troubles


def test_writes_that_fail_are_made_again() -> None:
    async def scenario() -> None:
        async with running("30s") as world, way_in(world.api) as way:
            way.client.faults.next(Answer(503), when=lambda r: r.writes, times=3)
            way.client.faults.next(TimeOut(after=True), when=lambda r: r.writes)
            with way.access.use(way.view(), SSH):
                await eventually(lambda: way.access.activity.writes == 1)
                await asyncio.sleep(100.0)
                way.client.faults.next(Answer(409, "Conflict"), when=lambda r: r.writes, times=3)
            end = wall_clock()
            assert await asleep_at(world) - end < timedelta(seconds=31.1)
            assert way.access.activity.failures == 4

    run_virtual(scenario())


def test_a_server_that_refuses_for_long_is_not_stormed() -> None:
    async def scenario() -> None:
        async with running("1h") as world, way_in(world.api) as way:
            view = way.view()
            way.client.faults.rules.append(lambda asked, _: Answer(500) if asked.writes else None)
            with way.access.use(view, SSH):
                await asyncio.sleep(600.0)
                failed = way.access.activity.failures
                assert 60 <= failed <= 130
            await asyncio.sleep(60.0)
            assert len(way.access.activity) == 0, "the end of a use is given up at some time"
            assert way.access.activity.failures <= failed + 10
            assert writes(world.api) == []

    run_virtual(scenario())


def test_what_is_never_accepted_is_given_up() -> None:
    async def scenario() -> None:
        async with running() as world, way_in(world.api) as way:
            way.client.faults.rules.append(
                lambda asked, _: Answer(422, "Invalid") if asked.writes else None
            )
            way.access.touch(way.view())
            await asyncio.sleep(1.0)
            assert len(way.access.activity) == 0
            assert way.access.activity.failures == 1
            assert world.status()["phase"] == "running"

    run_virtual(scenario())


def test_a_machine_that_is_gone_is_forgotten_also_while_it_is_used() -> None:
    async def scenario() -> None:
        async with running() as world, way_in(world.api) as way:
            view = way.view()
            with way.access.use(view, SSH):
                await asyncio.sleep(1.0)
                world.delete()
                await eventually(world.gone)
                await asyncio.sleep(1.0)
                assert len(way.access.activity) == 0
                count = len(writes(world.api))
                world.create(autosleep="never")  # another one, of the same name
                await world.phase("running")
            way.access.touch(view)
            await asyncio.sleep(60.0)
            assert len(writes(world.api)) == count
            assert len(way.access.activity) == 0
            assert activity(world) == {}

    run_virtual(scenario())


def test_few_writes_are_under_way_at_a_time() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            for n in range(60):
                world.create(f"box{n}")
            await world.quiet()
            async with way_in(world.api, latency=0.5) as way:
                for n in range(60):
                    way.access.touch(way.view(f"box{n}"))
                await asyncio.sleep(0)
                most = 0
                for _ in range(100):
                    most = max(most, len(way.access.activity._writing))
                    await asyncio.sleep(0.1)
                assert most == 16
                assert way.access.activity.writes == 60

    run_virtual(scenario(), rounds=1_000_000)
