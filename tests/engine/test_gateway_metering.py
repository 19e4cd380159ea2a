"""Metering: whatever machines and gateways go through, the ledger has what was seen, and never more than the truth.

Machines live at random in a world with a clock of its own. Two gateways hear of it, over streams that break and lists
that skip what happened meanwhile; they die, start again, and lose the store. The ledger is the real one.
"""

from __future__ import annotations

import asyncio
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from machine_operator.store.buckets import cut, total
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.segments import Segment
from tests.support.metering import LONG, Gateway, Ledger, World, everything
from tests.support.store import EPOCH, sqlite_replicas

# ---- stories

Steps = list[tuple[Any, ...]]
MACHINE = st.integers(0, 2)
POWER = st.sampled_from(("running", "sleeping"))
PHASE = st.sampled_from(("running", "sleeping", "starting", "stopping", "failed", "destroyed"))
LIFE = st.one_of(
    st.tuples(st.just("move"), MACHINE, POWER, st.integers(1, 3)),
    st.tuples(st.just("move"), MACHINE, POWER, st.just(1)),
    st.tuples(st.just("move"), MACHINE, PHASE, st.just(2)),
    st.tuples(st.sampled_from(("grow", "delete", "create")), MACHINE),
)
PLUG = st.tuples(st.just("plug"), MACHINE, st.integers(1, 3))
TIME = st.tuples(
    st.just("wait"), st.sampled_from((1, 333, 1_000, 30_500, 61_000, 3_599_999, 40_000_000))
)
STORE = st.tuples(st.sampled_from(("store down", "store up", "store deaf")))


@st.composite
def stories(draw: st.DrawFn, *, unwatched: tuple[int, ...], plugs: bool) -> Steps:
    """Lives of three machines; of some times some gateways know nothing."""
    life = st.one_of(LIFE, TIME, PLUG) if plugs else st.one_of(LIFE, TIME)
    steps: Steps = [("create", 0)] * 3
    for _ in range(draw(st.integers(1, 4))):
        steps += draw(st.lists(st.one_of(life, life, STORE), min_size=1, max_size=6))
        ways = st.sampled_from((("kill", "start"), ("lose", "relist"), ("lose", "resume")))
        gap = [(number, *draw(ways)) for number in unwatched if draw(st.booleans())]
        steps += [(away, number) for number, away, _ in gap]
        steps += draw(st.lists(life, min_size=1, max_size=6))
        steps += [(back, number) for number, _, back in gap]
    return steps


class Story:
    def __init__(self, world: World, gateways: list[Gateway]) -> None:
        self.world, self.gateways = world, gateways

    async def step(self, what: str, *rest: Any) -> None:
        match what:
            case "create":
                self.world.create()
            case "move" | "plug" | "grow" | "delete":
                names = list(self.world.objects)
                if rest[0] < len(names):
                    getattr(self.world, what)(names[rest[0]], *rest[1:])
            case "wait":
                await self._wait(timedelta(milliseconds=rest[0]))
            case "store down" | "store up" | "store deaf":
                for gateway in self.gateways:
                    gateway.ledger.down = what == "store down"
                    gateway.ledger.deaf = what == "store deaf"
            case "kill" | "start" | "lose" | "relist" | "resume":
                await self._trouble(self.gateways[rest[0]], what)
        for gateway in self.gateways:
            gateway.hear()

    async def _wait(self, length: timedelta) -> None:
        part = length / 3
        for _ in range(3):
            self.world.now += part
            await self.rounds()

    async def rounds(self) -> None:
        for gateway in self.gateways:
            await gateway.round()

    async def _trouble(self, gateway: Gateway, what: str) -> None:
        if what == "kill":
            gateway.alive = False
        elif what == "start" and not gateway.alive:
            gateway.start()
        elif what == "lose" and gateway.alive and gateway.contact:
            await gateway.lose()
        elif what in ("relist", "resume") and gateway.alive and not gateway.contact:
            gateway.regain(listing=what == "relist")

    async def end(self) -> None:
        """Everybody is back, and has had the time to find out."""
        await self.step("store up")
        for number in range(len(self.gateways)):
            await self.step("start", number)
            await self.step("resume", number)
        for seconds in (1, 6, 6, 61, 61):
            self.world.now += timedelta(seconds=seconds)
            await self.rounds()
        waiting = [gateway.metering.waiting for gateway in self.gateways]
        assert waiting == [0] * len(self.gateways)


async def tell(steps: Steps) -> tuple[World, list[Segment]]:
    """Live through it; the truth, and what the ledger says."""
    world = World()
    with tempfile.TemporaryDirectory() as directory:
        async with sqlite_replicas(Path(directory)) as databases:
            gateways = [Gateway(world, Ledger(database)) for database in databases]
            story = Story(world, gateways)
            await story.rounds()
            for step in steps:
                await story.step(*step)
            await story.end()
            found = await everything(UsageLedger(databases[0]))
    return world, found


def by_hour(segments: list[Segment], world: World) -> dict[tuple[str, datetime], tuple[int, ...]]:
    period = {"begin": EPOCH - LONG, "end": world.now}
    buckets = cut(segments, granularity="hour", **period)
    whole = total(segments, **period)
    days = cut(segments, granularity="day", **period)
    for member in ("awake_ms", "cpu_millicore_ms", "memory_mib_ms", "storage_mib_ms"):
        sums = [sum(getattr(bucket, member) for bucket in part) for part in (buckets, days)]
        assert sums == [getattr(whole, member)] * 2, member
    return {
        (b.machine_id, b.begin): (b.awake_ms, b.cpu_millicore_ms, b.memory_mib_ms, b.storage_mib_ms)
        for b in buckets
    }


@settings(max_examples=100)
@given(steps=stories(unwatched=(1,), plugs=True))
def test_what_one_gateway_sees_is_counted_exactly_whatever_the_other_goes_through(
    steps: Steps,
) -> None:
    world, found = asyncio.run(tell(steps))
    assert by_hour(found, world) == by_hour(world.true_segments(), world)


@settings(max_examples=150)
@given(steps=stories(unwatched=(0, 1), plugs=False))
def test_what_nobody_sees_is_never_counted_as_more_than_it_was(steps: Steps) -> None:
    world, found = asyncio.run(tell(steps))
    truth, measured = by_hour(world.true_segments(), world), by_hour(found, world)
    for bucket, amounts in measured.items():
        for amount, real in zip(amounts, truth.get(bucket, (0, 0, 0, 0)), strict=True):
            assert amount <= real, (bucket, amounts, truth.get(bucket))
    for kind in ("awake", "storage"):
        going_on = {s.uid for s in world.truth if s.end is None and s.kind == kind}
        assert going_on == {s.machine_uid for s in found if s.ended_at is None and s.kind == kind}
