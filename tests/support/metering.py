"""A world of machines with a clock and a truth, and gateways that keep the ledger of it, for tests of metering."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from typing_extensions import override

from machine_operator.api.machine import read_machine
from machine_operator.api.timestamps import format_timestamp
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.metering import Metering
from machine_operator.gateway.views import MachineView
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.segments import Segment, SegmentKind, Sizes
from tests.support.gateway import ORG
from tests.support.machines import machine_object
from tests.support.store import EPOCH

__all__ = ["LONG", "Gateway", "Ledger", "World", "everything"]

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


async def everything(ledger: UsageLedger) -> list[Segment]:
    found = []
    for kind in ("awake", "storage"):
        found += await ledger.segments(
            ORG, kind=cast(SegmentKind, kind), begin=EPOCH - LONG, end=EPOCH + LONG
        )
    return found
