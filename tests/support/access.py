"""The way into machines of one gateway replica, on a fake API server, with guests that need no SSH.

In virtual time with the real controller beside it (`World`), or alone with statuses that a test writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest

from machine_operator.api.phases import Power
from machine_operator.gateway import changes as gateway_changes
from machine_operator.gateway import views as gateway_views
from machine_operator.gateway.access import Access
from machine_operator.gateway.changes import Changes
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.settings import load_settings
from machine_operator.gateway.views import MachineView
from machine_operator.guest.target import GuestTarget
from tests.support.apiserver import FakeApi, Object
from tests.support.client import FakeClient
from tests.support.clock import wall_clock
from tests.support.machines import machine_object
from tests.support.virtual import eventually

__all__ = ["FakeGuests", "Way", "a_sleeper", "virtual_clock", "way_in"]


@dataclass
class FakeGuests:
    """Connections that are made at once.

    Attributes:
        trouble: what the next attempts raise.
        hangs: no attempt ends.
    """

    trouble: list[Exception] = field(default_factory=list)
    hangs: bool = False
    connected: list[GuestTarget] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    async def connect(self, target: GuestTarget) -> Any:
        if self.hangs:
            await asyncio.Future()
        if self.trouble:
            raise self.trouble.pop(0)
        self.connected.append(target)
        return target

    def drop(self, machine_uid: str) -> None:
        self.dropped.append(machine_uid)


@dataclass
class Way:
    """One replica."""

    client: FakeClient
    machines: Machines
    changes: Changes
    access: Access
    guests: FakeGuests
    tasks: list[asyncio.Task[None]]

    def view(self, name: str = "box", *, namespace: str = "ns") -> MachineView:
        """A machine as its cache has it."""
        found = self.machines.informer.get(namespace, name)
        assert found is not None, f"{name} is not in the cache"
        return found

    async def sees(self, name: str = "box") -> MachineView:
        """The same, once its cache has what there is now."""
        api = self.client.api
        version = max((c[0] for c in api.history if c[2] == "machines"), default=0)
        await eventually(lambda: self.machines.informer.position >= version)
        return self.view(name)

    async def power(self, to: Power, name: str = "box") -> None:
        """What REST's sleep and wake do."""
        view = await self.sees(name)
        await self.changes.power(view, to, by="ada", guard=lambda _: None)

    async def stop(self) -> None:
        """The end of the process as it should be."""
        for task in self.tasks:
            task.cancel()
        ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        assert [e for e in ended if not isinstance(e, asyncio.CancelledError)] == []

    def kill(self) -> None:
        """The end of the process as it should not be."""
        self.client.dead.set()


@asynccontextmanager
async def way_in(
    api: FakeApi,
    *,
    replica: str = "r1",
    latency: float = 0.005,
    ahead: float = 0.0,
    **changed: Any,
) -> AsyncIterator[Way]:
    """A replica, for a while; its clock is `ahead` of the others' by so many seconds."""
    settings = replace(load_settings(flags={}, environ={})[0], **changed)
    async with FakeClient(api, latency=latency) as client:
        assert isinstance(client, FakeClient)
        machines, guests = Machines(client), FakeGuests()
        changes = Changes(client, machines)
        access = Access(
            client,
            machines,
            changes,
            guests,  # type: ignore[arg-type]
            settings,
            replica=replica,
            now=lambda: wall_clock() + timedelta(seconds=ahead),
        )
        tasks = [
            asyncio.create_task(machines.informer.run()),
            asyncio.create_task(access.run()),
        ]
        way = Way(client, machines, changes, access, guests, tasks)
        await eventually(machines.informer.synced.is_set)
        try:
            yield way
            for task in tasks:
                assert not task.done() or task.cancelled(), task.exception()
        finally:
            await way.stop()


def virtual_clock(patch: pytest.MonkeyPatch) -> None:
    """Views and changes tell the time by the virtual loop, as the controller does."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return wall_clock()

    patch.setattr(gateway_changes, "datetime", Clock)
    patch.setattr(gateway_views, "datetime", Clock)


def a_sleeper(name: str, *, namespace: str = "ns", by: str = "ada", **status: Any) -> Object:
    """A machine that sleeps, as it is stored, for an API server without a controller."""
    request = {
        "state": "sleeping",
        "by": by,
        "at": wall_clock().isoformat().replace("+00:00", "Z"),
        "sequence": 1,
        "spec_desired_state": "running",
    }
    obj = machine_object(
        name=name,
        uid=f"uid-{namespace}-{name}",
        spec={"autosleep": "5m", "desired_state": "running"},
        status={
            "phase": "sleeping",
            "reason": "DesiredStateReached",
            "power_request": request,
            "observedGeneration": 1,
            **status,
        },
    )
    obj["metadata"]["namespace"] = namespace
    return obj
