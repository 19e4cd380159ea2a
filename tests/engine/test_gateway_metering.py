"""Metering: whatever machines and gateways go through, the ledger has what was seen, and never more than the truth.

Machines live at random in a world with a clock of its own. Two gateways hear of it, over streams that break and lists
that skip what happened meanwhile; they die, start again, and lose the store. The ledger is the real one.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from machine_operator.api.machine import read_machine
from machine_operator.api.timestamps import format_timestamp
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.metering import Metering
from machine_operator.gateway.views import MachineView
from machine_operator.store.buckets import cut, total
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.segments import Segment, SegmentKind, Sizes
from tests.support.gateway import ORG
from tests.support.machines import machine_object
from tests.support.store import EPOCH, sqlite_replicas

LONG = timedelta(days=300)
Event = tuple[str, MachineView | None]


# ---- the world


@dataclass
class Spell:
    """A stretch of the truth."""

    uid: str
    kind: SegmentKind
    sizes: Sizes
    begin: datetime
    end: datetime | None = None


@dataclass
class World:
    now: datetime = EPOCH
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    truth: list[Spell] = field(default_factory=list)
    made: int = 0

    def clock(self) -> datetime:
        return self.now

    def create(self) -> None:
        self.made += 1
        uid = f"{self.made:08d}-0000-4000-8000-000000000000"
        created = self.now.replace(microsecond=0)
        self.objects[uid] = machine_object(
            name=f"dm-{uid}",
            uid=uid,
            creationTimestamp=format_timestamp(created),
            generation=1,
            spec={"storage_gib": 10},
        )
        self._turn(uid, "storage", Sizes(250, 512, 10), at=created)
        self._say(uid)

    def move(self, uid: str, phase: str, vcpu: int) -> None:
        """To another phase, unless it is there or at its end."""
        machine = self.objects[uid]
        status = machine.get("status") or {}
        if status.get("phase") in (phase, "destroyed"):
            return
        machine["status"] = {
            "phase": phase,
            "transitions": status.get("transitions", 0) + 1,
            "last_transition_at": format_timestamp(self.now),
        }
        awake = phase == "running"
        if awake:
            machine["status"]["effective"] = {"vcpu": vcpu, "memory_mib": 512, "storage_gib": 10}
        self._turn(uid, "awake", Sizes(vcpu * 1000, 512, 0) if awake else None)
        if phase == "destroyed":
            self._turn(uid, "storage", None)
        self._say(uid)

    def plug(self, uid: str, vcpu: int) -> None:
        """Other sizes while it runs."""
        status = self.objects[uid].get("status") or {}
        if "effective" in status:
            status["effective"] = {**status["effective"], "vcpu": vcpu}
            self._turn(uid, "awake", Sizes(vcpu * 1000, 512, 0))
            self._say(uid)

    def grow(self, uid: str) -> None:
        machine = self.objects[uid]
        if (machine.get("status") or {}).get("phase") == "destroyed":
            return
        machine["spec"] = {**machine["spec"], "storage_gib": machine["spec"]["storage_gib"] + 5}
        machine["metadata"]["generation"] += 1
        self._turn(uid, "storage", Sizes(250, 512, machine["spec"]["storage_gib"]))
        self._say(uid)

    def delete(self, uid: str) -> None:
        del self.objects[uid]
        self._turn(uid, "awake", None)
        self._turn(uid, "storage", None)
        self.log.append((uid, None))

    def view(self, uid: str) -> MachineView:
        machine = self.objects[uid]
        return MachineView(read_machine(machine), int(machine["metadata"]["resourceVersion"]))

    def _say(self, uid: str) -> None:
        metadata = {**self.objects[uid]["metadata"], "resourceVersion": str(len(self.log) + 1)}
        self.objects[uid] = {**self.objects[uid], "metadata": metadata}
        self.log.append((uid, self.view(uid)))

    def _turn(
        self, uid: str, kind: SegmentKind, sizes: Sizes | None, *, at: datetime | None = None
    ) -> None:
        for spell in self.truth:
            if (spell.uid, spell.kind, spell.end) == (uid, kind, None):
                spell.end = self.now
        if sizes is not None:
            self.truth.append(Spell(uid, kind, sizes, at or self.now))

    def true_segments(self) -> list[Segment]:
        return [
            Segment(
                s.uid, s.kind, 0, ORG, f"dm-{s.uid}", s.sizes, s.begin, s.end or self.now, self.now
            )
            for s in self.truth
        ]


# ---- gateways


class Ledger(UsageLedger):
    """The real one, which can be away; or the answers of its writes get lost."""

    down = False
    deaf = False

    @override
    async def open_segment(self, *args: Any, **kwargs: Any) -> bool:
        return await self._answered(super().open_segment(*args, **kwargs))

    @override
    async def resize(self, *args: Any, **kwargs: Any) -> bool:
        return await self._answered(super().resize(*args, **kwargs))

    @override
    async def close_segment(self, *args: Any, **kwargs: Any) -> bool:
        return await self._answered(super().close_segment(*args, **kwargs))

    @override
    async def touch(self, *args: Any, **kwargs: Any) -> int:
        return await self._answered(super().touch(*args, **kwargs))

    @override
    async def open_segments(self, *args: Any, **kwargs: Any) -> list[Segment]:
        return await self._answered(super().open_segments(*args, **kwargs))

    async def _answered(self, work: Any) -> Any:
        if self.down:
            work.close()
            raise StoreUnavailable("the store is away")
        answer = await work
        if self.deaf:
            raise StoreUnavailable("the answer was lost")
        return answer


class Seen:
    """What a gateway's `Machines` is to metering, fed by hand."""

    def __init__(self) -> None:
        self.observers: list[Callable[[MachineView | None, MachineView | None], None]] = []
        self.informer = SimpleNamespace(position=0, behind=0.0, synced=asyncio.Event())
        self.known: dict[str, MachineView] = {}

    def __iter__(self) -> Iterator[MachineView]:
        return iter(list(self.known.values()))

    def tell(self, uid: str, new: MachineView | None) -> None:
        old = self.known.pop(uid, None)
        if new is not None:
            self.known[uid] = new
        for observer in self.observers:
            observer(old, new)


class Gateway:
    """One process, which can die and be followed by another one."""

    def __init__(self, world: World, ledger: Ledger) -> None:
        self.world, self.ledger = world, ledger
        self.alive = self.contact = False
        self.start()

    def start(self) -> None:
        self.alive = self.contact = True
        self.seen = Seen()
        self.metering = Metering(cast(Machines, self.seen), self.ledger, clock=self.world.clock)
        self.relist()
        self.seen.informer.synced.set()

    def hear(self) -> None:
        """All that the stream has."""
        while self.alive and self.contact and self.heard < len(self.world.log):
            self.seen.tell(*self.world.log[self.heard])
            self.heard += 1

    def relist(self) -> None:
        """What there is, and not how it came about."""
        self.seen.informer.position = 0
        for uid in self.world.objects:
            if self.seen.known.get(uid) != self.world.view(uid):
                self.seen.tell(uid, self.world.view(uid))
        for uid in self.seen.known.keys() - self.world.objects.keys():
            self.seen.tell(uid, None)
        self.heard = len(self.world.log)
        self.seen.informer.position = len(self.world.log) + 1

    async def lose(self) -> None:
        self.contact, self.seen.informer.behind = False, 3.0
        await self.round()

    def regain(self, *, listing: bool) -> None:
        self.contact, self.seen.informer.behind = True, 0.0
        if listing:
            self.relist()
        self.hear()

    async def round(self) -> None:
        if self.alive:
            await self.metering.round()


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


async def everything(ledger: UsageLedger) -> list[Segment]:
    found = []
    for kind in ("awake", "storage"):
        found += await ledger.segments(
            ORG, kind=cast(SegmentKind, kind), begin=EPOCH - LONG, end=EPOCH + LONG
        )
    return found


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
