"""What replicas that died left behind is taken away, without waking anything and without putting anything to sleep."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from machine_operator.api.phases import Power
from machine_operator.api.timestamps import parse_timestamp
from machine_operator.gateway.activity.uses import UseKind
from machine_operator.gateway.settings import load_settings
from machine_operator.gateway.upkeep import Upkeep
from machine_operator.lifecycle.limits import Limits
from tests.support.access import Way, virtual_clock, way_in
from tests.support.clock import wall_clock
from tests.support.faults import Answer
from tests.support.virtual import run_virtual
from tests.support.world import World

DEAD = "machine-operator-gateway-r1"


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_clock(monkeypatch)


class NoRecords:
    async def sweep(self) -> None:
        pass


def upkeep(way: Way) -> Upkeep:
    records: Any = NoRecords()
    settings = replace(load_settings(flags={}, environ={})[0], activity_lease=60.0)
    return Upkeep(way.client, way.machines, records, settings)


@asynccontextmanager
async def left_behind(
    autosleep: str, *, end: float = 30.0, survivor: str = "r2"
) -> AsyncIterator[tuple[World, Way]]:
    """A replica has died in the middle of two uses; another one is there."""
    world = World()
    async with world.operator(engine={"limits": Limits(minimum_awake=0.0)}):
        world.create(autosleep=autosleep)
        await world.phase("running", reason="DesiredStateReached")
        async with way_in(world.api) as way:
            with (
                way.access.use(way.view(), UseKind.SSH),
                way.access.use(way.view(), UseKind.EXECUTION),
            ):
                await asyncio.sleep(end)
                way.kill()
        async with way_in(world.api, replica=survivor) as way:
            yield world, way


def holds(world: World) -> list[str]:
    activity = world.status().get("activity") or {}
    return sorted(hold["id"] for hold in activity.get("holds") or [])


def test_holds_of_a_dead_replica_go_when_nobody_renews_them() -> None:
    async def scenario() -> None:
        async with left_behind("10m") as (world, way):
            rounds = upkeep(way)
            ends = max(
                parse_timestamp(h["expires_at"]) for h in world.status()["activity"]["holds"]
            )
            while wall_clock() < ends + timedelta(seconds=55):
                await rounds.round(wall_clock())
                assert holds(world) == ["r1.execution", "r1.ssh"]
                await asyncio.sleep(5.0)
            await asyncio.sleep(10.0)
            await rounds.round(wall_clock())
            assert holds(world) == []
            count = len(world.api.changes)
            await rounds.round(wall_clock())
            assert len(world.api.changes) == count
            await world.phase("sleeping", within=900.0)
            at = parse_timestamp(world.status()["power_request"]["at"])
            # The idle clock had started with the end of the last hold, and goes on.
            assert timedelta(seconds=600) <= at - ends < timedelta(seconds=601.1)

    run_virtual(scenario())


def test_nothing_of_the_dead_replica_is_owned_after_the_next_use() -> None:
    async def scenario() -> None:
        async with left_behind("10m") as (world, way):
            await asyncio.sleep(200.0)
            await upkeep(way).round(wall_clock())
            way.access.touch(way.view())
            await asyncio.sleep(30.0)
            assert not world.api.owners("machines", "box").get(DEAD)

    run_virtual(scenario())


@pytest.mark.parametrize("by", ["autosleep", "ada", "guest"])
def test_a_machine_that_sleeps_does_not_wake_by_that(by: str) -> None:
    async def scenario() -> None:
        autosleep = "30s" if by == "autosleep" else "10m"
        async with left_behind(autosleep) as (world, way):
            if by == "ada":
                await way.power(Power.SLEEPING)
            if by == "guest":
                world.kubevirt.power_off(world.vm_name())
            await world.phase("sleeping")
            assert world.status()["power_request"]["by"] == by
            await asyncio.sleep(300.0)
            assert holds(world)
            await upkeep(way).round(wall_clock())
            assert holds(world) == []
            await asyncio.sleep(60.0)
            assert world.status()["phase"] == "sleeping"
            assert world.status()["wake_count"] == 0

    run_virtual(scenario())


def test_a_replica_that_lives_is_left_alone() -> None:
    async def scenario() -> None:
        async with left_behind("10m") as (world, way):
            with way.access.use(way.view(), UseKind.SSH):
                for _ in range(60):
                    await asyncio.sleep(10.0)
                    await upkeep(way).round(wall_clock())
                    assert "r2.ssh" in holds(world)
                assert holds(world) == ["r2.ssh"]

    run_virtual(scenario())


def test_what_an_earlier_process_of_the_same_name_left_goes_too() -> None:
    async def scenario() -> None:
        async with left_behind("10m", survivor="r1") as (world, way):
            await asyncio.sleep(200.0)
            assert holds(world)
            await upkeep(way).round(wall_clock())
            assert holds(world) == []

    run_virtual(scenario())


def test_holds_that_no_gateway_made_are_left_alone() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            world.create(autosleep="1h")
            await world.phase("running")
            world.hold("ssh-1", 5.0)
            world.hold("somebody.vpn", 5.0)
            async with way_in(world.api) as way:
                await asyncio.sleep(600.0)
                await upkeep(way).round(wall_clock())
                assert holds(world) == ["somebody.vpn", "ssh-1"]

    run_virtual(scenario())


@pytest.mark.parametrize("status", [404, 409, 500])
def test_a_failure_is_for_the_next_round(status: int) -> None:
    async def scenario() -> None:
        async with left_behind("10m") as (world, way):
            await asyncio.sleep(200.0)
            way.client.faults.next(Answer(status), when=lambda r: r.writes)
            await upkeep(way).round(wall_clock())
            assert holds(world)
            await upkeep(way).round(wall_clock())
            assert holds(world) == []

    run_virtual(scenario())
