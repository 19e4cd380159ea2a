"""One cluster with its operator, in memory and in virtual time: what the engine and crash tests drive.

The Machine events that kopf would bring come from a watch of ours, with the same two calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from machine_operator.controller.engine import Engine
from machine_operator.kube.errors import KubeError
from tests.support.apiserver import FakeApi, Object, Request
from tests.support.client import FakeClient
from tests.support.kubevirt import FakeKubeVirt
from tests.support.machines import DEFAULTS, machine_object
from tests.support.virtual import eventually

__all__ = ["Operator", "World"]


class Operator:
    """One process of the operator: a client, an engine, and the feed of Machine events."""

    def __init__(self, api: FakeApi, **client: Any) -> None:
        self.api = api
        self.client = FakeClient(api, **client)
        self.engine = Engine(self.client, defaults=DEFAULTS, workers=4)
        self._feed: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.engine.start()
        self._feed = asyncio.create_task(self._machines(), name="feed")

    async def stop(self) -> None:
        assert self._feed is not None
        self._feed.cancel()
        await asyncio.gather(self._feed, return_exceptions=True)
        await self.engine.stop()

    async def _machines(self) -> None:
        while True:
            try:
                await self._follow()
            except KubeError:
                await asyncio.sleep(1.0)

    async def _follow(self) -> None:
        listing = Request("list", "machines", None, None, None, None, {})
        answer = self.api.handle(listing)
        for item in answer["items"]:
            self.engine.saw_machine({**machine_object(), **item})
        since = int(answer["metadata"]["resourceVersion"])
        async for event in self.api.watch("machines", since=since):
            await asyncio.sleep(0.005)
            if event["type"] == "DELETED":
                self.engine.lost_machine(event["object"])
            elif event["type"] != "BOOKMARK":
                self.engine.saw_machine(event["object"])


class World:
    """The cluster. Machines are in the namespace `ns`."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.kubevirt = FakeKubeVirt(self.api)

    @asynccontextmanager
    async def operator(self, **client: Any) -> AsyncIterator[Operator]:
        """An operator process, for a while."""
        process = Operator(self.api, **client)
        await process.start()
        try:
            yield process
            assert not process.engine.failed, "a task of the engine ended"
        finally:
            await process.stop()

    # ---- what people do

    def create(self, name: str = "box", **spec: Any) -> None:
        obj = machine_object(name=name, spec=spec)
        obj["metadata"] = {"name": name, "namespace": "ns"}
        self.api.handle(Request("create", "machines", "ns", None, None, obj, {}))

    def edit(self, name: str = "box", **spec: Any) -> None:
        self.api.edit("machines", name, lambda machine: machine["spec"].update(spec))

    def delete(self, name: str = "box") -> None:
        self.api.remove("machines", name)

    def request_power(self, state: str, name: str = "box", *, sequence: int = 1) -> None:
        """What a gateway does for REST's sleep and wake."""

        def change(machine: Object) -> None:
            machine.setdefault("status", {})["power_request"] = {
                "state": state,
                "by": "ada",
                "at": "2026-03-01T10:00:00Z",
                "sequence": sequence,
                "spec_desired_state": machine["spec"].get("desired_state", "running"),
            }

        self.api.edit("machines", name, change)

    # ---- what people see

    def status(self, name: str = "box") -> Object:
        stored = self.api.objects.get(("machines", "ns", name))
        return (stored.body.get("status") or {}) if stored else {}

    def gone(self, name: str = "box") -> bool:
        return ("machines", "ns", name) not in self.api.objects

    async def phase(
        self, phase: str, name: str = "box", *, reason: str | None = None, within: float = 120.0
    ) -> Object:
        """Wait for a phase (and a reason); the status then."""

        def there() -> bool:
            status = self.status(name)
            return status.get("phase") == phase and reason in (None, status.get("reason"))

        await eventually(there, within=within, state=lambda: self.describe(name))
        return self.status(name)

    async def quiet(self, *, seconds: float = 30.0, within: float = 1200.0) -> None:
        """Wait until nothing at all has changed for a while."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        version = -1
        while version != self.api.version:
            assert loop.time() < deadline, f"never quiet: {self.api.changes[-12:]}"
            version = self.api.version
            await asyncio.sleep(seconds)

    def describe(self, name: str = "box") -> str:
        """For messages of failed tests."""
        status = {k: v for k, v in self.status(name).items() if k != "conditions"}
        return f"status {status}; last changes {self.api.changes[-12:]}"
