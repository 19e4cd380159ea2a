"""Knock, wait, connect: with the real controller and KubeVirt's stand-in, and guests that need no SSH."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from machine_operator.api.phases import Power
from machine_operator.gateway.access import Access, NotUsable, Readiness
from machine_operator.gateway.activity.uses import UseKind
from machine_operator.guest.errors import GuestRefused, GuestUnreachable
from tests.support.access import Way, virtual_clock, way_in
from tests.support.faults import Answer
from tests.support.virtual import eventually, run_virtual
from tests.support.world import World


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_clock(monkeypatch)


@asynccontextmanager
async def sleeping(*, autosleep: str = "5m") -> AsyncIterator[tuple[World, Way]]:
    """A machine that was put to sleep."""
    world = World()
    async with world.operator():
        world.create(autosleep=autosleep)
        await world.phase("running", reason="DesiredStateReached")
        async with way_in(world.api) as way:
            await way.power(Power.SLEEPING)
            await world.phase("sleeping")
            await way.sees()
            yield world, way


def test_a_guest_is_there_once_the_machine_is_awake() -> None:
    async def scenario() -> None:
        async with sleeping() as (world, way):
            seconds: list[float] = []
            way.access.on_connect = seconds.append
            assert way.access.target(way.view()) is None
            guests = await asyncio.gather(
                *(way.access.guest(way.view(), by="ada", timeout=60.0) for _ in range(50))
            )
            assert world.status()["phase"] == "running"
            assert world.status()["power_request"]["sequence"] == 2
            assert world.status()["wake_count"] == 1
            assert set(guests) == {way.access.target(way.view())}
            assert len(seconds) == 50

    run_virtual(scenario())


def test_an_unreachable_guest_is_tried_again_within_the_time() -> None:
    async def scenario() -> None:
        async with sleeping() as (_, way):
            way.guests.trouble = [GuestUnreachable("not yet") for _ in range(5)]
            await way.access.guest(way.view(), by="ada", timeout=60.0)
            assert way.guests.trouble == []

    run_virtual(scenario())


def test_time_is_up() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with sleeping() as (world, way):
            way.guests.trouble = [GuestUnreachable("no route") for _ in range(1000)]
            began = loop.time()
            with pytest.raises(NotUsable) as failed:
                await way.access.guest(way.view(), by="ada", timeout=30.0)
            assert loop.time() - began == pytest.approx(30.0, abs=0.1)
            error = failed.value
            assert (error.code, str(error)) == (
                "machine_not_routable",
                "machine is not routable for execution",
            )
            assert error.retryable
            assert error.readiness is Readiness.READY
            assert isinstance(error.__cause__, GuestUnreachable)
            assert 900 < len(way.guests.trouble) < 990

            way.guests.hangs, began = True, loop.time()
            with pytest.raises(NotUsable):
                await way.access.guest(way.view(), by="ada", timeout=3.0)
            assert loop.time() - began == pytest.approx(3.0, abs=0.1)
            assert world.status()["phase"] == "running"
            assert way.machines._followers == {}

    run_virtual(scenario())


def test_a_guest_that_refuses_us_is_not_tried_again() -> None:
    async def scenario() -> None:
        async with sleeping() as (_, way):
            way.guests.trouble = [GuestRefused("not the host that it should be")]
            with pytest.raises(GuestRefused):
                await way.access.guest(way.view(), by="ada", timeout=30.0)

    run_virtual(scenario())


@pytest.mark.parametrize("how", ["delete", "destroy"])
def test_a_machine_that_goes_while_it_is_waited_for(how: str) -> None:
    async def scenario() -> None:
        async with sleeping() as (world, way):
            way.access.wakes._limit = 0
            view = way.view()
            waiting = asyncio.create_task(way.access.guest(view, by="ada", timeout=600.0))
            await asyncio.sleep(7.0)
            if how == "delete":
                world.delete()
            else:
                world.edit(desired_state="destroyed")
            with pytest.raises(NotUsable) as failed:
                await asyncio.wait_for(waiting, 10.0)
            assert failed.value.code == "machine_not_found"
            assert str(failed.value) == "machine no longer exists"
            assert way.access.readiness(view) is Readiness.GONE

    run_virtual(scenario())


def test_a_wake_that_fails_ends_the_wait() -> None:
    async def scenario() -> None:
        async with sleeping() as (world, way):
            way.client.faults.rules.append(lambda asked, _: Answer(500) if asked.writes else None)
            began = asyncio.get_running_loop().time()
            with pytest.raises(NotUsable) as failed:
                await way.access.guest(way.view(), by="ada", timeout=600.0)
            assert failed.value.code == "machine_not_routable"
            assert asyncio.get_running_loop().time() - began < 15.0
            assert world.status()["phase"] == "sleeping"

    run_virtual(scenario())


def test_a_machine_that_goes_to_sleep_while_it_is_waited_for_is_woken_again() -> None:
    async def scenario() -> None:
        async with sleeping() as (world, way):
            way.guests.trouble = [GuestUnreachable("not yet") for _ in range(8)]
            waiting = asyncio.create_task(way.access.guest(way.view(), by="ada", timeout=600.0))
            await world.phase("running")
            await way.power(Power.SLEEPING)
            await waiting
            await way.sees()
            assert world.status()["power_request"]["sequence"] == 4
            assert way.access.readiness(way.view()) is Readiness.READY

    run_virtual(scenario())


def test_a_warm_connection_is_dropped_when_its_boot_is_over() -> None:
    async def scenario() -> None:
        async with sleeping() as (world, way):
            guest = await way.access.guest(way.view(), by="ada", timeout=60.0)
            way.guests.dropped.clear()
            await way.power(Power.SLEEPING)
            await world.phase("sleeping")
            await eventually(lambda: way.guests.dropped == [guest.machine_uid])  # type: ignore[attr-defined]
            await way.access.guest(way.view(), by="ada", timeout=60.0)
            world.virtctl_restart()
            await eventually(lambda: len(way.guests.dropped) == 2)
            await world.phase("running")
            await asyncio.sleep(5.0)
            world.delete()
            await eventually(world.gone)
            await eventually(lambda: len(way.guests.dropped) == 3)

    run_virtual(scenario())


def test_a_connected_use_outlives_autosleep() -> None:
    async def scenario() -> None:
        async with sleeping(autosleep="5s") as (world, way):
            view = way.view()
            with way.access.use(view, UseKind.EXECUTION):
                await way.access.guest(view, by="ada", timeout=60.0)
                await asyncio.sleep(300.0)
                assert world.status()["phase"] == "running"
                assert world.status()["wake_count"] == 1
            await world.phase("sleeping", within=10.0)

    run_virtual(scenario())


def test_reads_never_wake() -> None:
    async def scenario() -> None:
        async with sleeping() as (world, way):
            for _ in range(10):
                assert way.access.readiness(way.view()) is Readiness.WAKING
                await asyncio.sleep(1.0)
            assert world.status()["phase"] == "sleeping"
            assert world.status()["power_request"]["sequence"] == 1
            assert Access.RETRY_MS > 0

    run_virtual(scenario())
