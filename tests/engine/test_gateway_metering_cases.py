"""Metering, one thing at a time: rounds, gaps, the store's absence, the end of a process, and real informers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from machine_operator.gateway.machines import Machines
from machine_operator.gateway.metering import Metering
from machine_operator.store.database import Database
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.segments import Segment, SegmentKind
from tests.support.gateway import ORG, Cluster, until
from tests.support.metering import LONG, Gateway, Ledger, World, everything
from tests.support.store import EPOCH, sqlite_replicas


@pytest.fixture
async def databases(tmp_path: Path) -> AsyncIterator[list[Database]]:
    async with sqlite_replicas(tmp_path) as databases:
        yield databases


def spells(found: list[Segment], kind: SegmentKind) -> list[tuple[float, float | None]]:
    """Seconds of begin and end."""
    return [
        (
            (s.began_at - EPOCH).total_seconds(),
            None if s.ended_at is None else (s.ended_at - EPOCH).total_seconds(),
        )
        for s in found
        if s.kind == kind
    ]


@pytest.fixture
async def world() -> World:
    return World()


@pytest.fixture
async def gateway(world: World, databases: list[Database]) -> Gateway:
    world.create()
    (uid,) = world.objects
    world.move(uid, "running", 1)
    gateway = Gateway(world, Ledger(databases[0]))
    await gateway.round()
    return gateway


def later(world: World, gateway: Gateway, seconds: float, phase: str | None = None) -> None:
    world.now += timedelta(seconds=seconds)
    if phase is not None:
        world.move(next(iter(world.objects)), phase, 1)
    gateway.hear()


async def test_what_comes_between_two_rounds_is_counted(world: World, gateway: Gateway) -> None:
    for phase in ("sleeping", "running", "stopping", "sleeping", "running"):
        later(world, gateway, 0.1, phase)
    assert gateway.metering.waiting == 4
    await gateway.round()
    found = await everything(gateway.ledger)
    assert spells(found, "awake") == [(0.0, 0.1), (0.2, 0.3), (0.5, None)]


async def test_a_list_does_not_tell_what_happened_when(world: World, gateway: Gateway) -> None:
    gateway.contact = False  # though nobody has noticed
    later(world, gateway, 3)
    world.delete(next(iter(world.objects)))
    later(world, gateway, 3)
    gateway.regain(listing=True)
    for _ in range(2):
        await gateway.round()
        later(world, gateway, 6)
    found = await everything(gateway.ledger)
    assert spells(found, "awake") == [(0.0, 0.0)], "it was seen at the first round only"


async def test_what_goes_on_is_marked_once_a_minute(world: World, gateway: Gateway) -> None:
    seen = []
    for _ in range(5):
        later(world, gateway, 20)
        await gateway.round()
        (awake,) = [s for s in await everything(gateway.ledger) if s.kind == "awake"]
        seen.append((awake.seen_at - EPOCH).total_seconds())
    assert seen == [0, 0, 60, 60, 60]


async def test_without_contact_nothing_is_marked_as_seen(world: World, gateway: Gateway) -> None:
    await gateway.lose()
    later(world, gateway, 120)
    await gateway.round()
    (awake,) = [s for s in await everything(gateway.ledger) if s.kind == "awake"]
    assert awake.seen_at == EPOCH


async def test_that_the_store_is_away_is_said_once(
    world: World, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.ledger.down = True
    for phase in ("sleeping", "running", "sleeping"):
        later(world, gateway, 10, phase)
        await gateway.round()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    gateway.ledger.down = False
    with caplog.at_level("INFO"):
        await gateway.round()
    assert caplog.messages[1:] == ["use is recorded again"]
    assert spells(await everything(gateway.ledger), "awake") == [(0.0, 10.0), (20.0, 30.0)]


async def test_what_waits_for_the_store_is_bounded(
    world: World, databases: list[Database], caplog: pytest.LogCaptureFixture
) -> None:
    world.create()
    gateway = Gateway(world, Ledger(databases[0]))
    gateway.metering = Metering(
        cast(Machines, gateway.seen), gateway.ledger, clock=world.clock, most_waiting=10
    )
    await gateway.round()
    gateway.ledger.down = True
    for _ in range(100):
        later(world, gateway, 1, "running")
        later(world, gateway, 1, "sleeping")
    assert gateway.metering.waiting == 10
    assert [m for m in caplog.messages if "no more are taken" in m] == [
        "10 entries of use wait for the store: no more are taken"
    ]
    gateway.ledger.down = False
    later(world, gateway, 1, "running")
    await gateway.round()
    found = spells(await everything(gateway.ledger), "awake")
    assert found == [(1.0 + 2 * n, 2.0 + 2 * n) for n in range(5)] + [(201.0, None)]


async def test_the_last_thing_that_a_process_does(
    world: World, gateway: Gateway, databases: list[Database]
) -> None:
    task = asyncio.create_task(gateway.metering.run())
    await asyncio.sleep(0)
    later(world, gateway, 30, "sleeping")
    later(world, gateway, 1, "running")
    later(world, gateway, 5)
    task.cancel()
    assert (await asyncio.gather(task, return_exceptions=True))[
        0
    ].__class__ is asyncio.CancelledError
    awake = [s for s in await everything(UsageLedger(databases[1])) if s.kind == "awake"]
    assert spells(awake, "awake") == [(0.0, 30.0), (31.0, None)]
    assert awake[-1].seen_at == world.now


async def test_real_gateways_on_one_cluster(tmp_path: Path) -> None:
    """With their informers; and one that starts later finds what there is."""
    cluster = Cluster(tmp_path)
    async with _metered(cluster) as (one, first), _metered(cluster) as (two, second):
        name = (await one.create())["machine_id"]
        for phase in ("starting", "running", "stopping", "sleeping", "running"):
            cluster.report(name, phase)
            await one.caught_up()
            await two.caught_up()
        for metering in (second, first, second):
            await metering.round()
        assert one.database is not None
        ledger = UsageLedger(one.database)
        assert [s.kind for s in await ledger.open_segments()] == ["awake", "storage"]
        async with _metered(cluster) as (_, third):
            await third.round()
        cluster.report(name, "destroyed")
        await one.caught_up()
        await first.round()
        assert await ledger.open_segments() == []
        period = {"begin": EPOCH - LONG, "end": EPOCH + 10 * LONG}
        awake = await ledger.segments(ORG, kind="awake", **period)
        disks = await ledger.segments(ORG, kind="storage", **period)
        assert [s.machine_id for s in awake + disks] == [name] * 3, "each counted once"


@asynccontextmanager
async def _metered(cluster: Cluster) -> AsyncIterator[tuple[Any, Metering]]:
    async with cluster.gateway() as replica:
        assert replica.database is not None
        metering = Metering(replica.machines, UsageLedger(replica.database))
        await until(lambda: replica.machines.informer.behind == 0.0)
        await metering.round()
        yield replica, metering
