"""One cluster with its operator, in memory and in virtual time: what the engine and crash tests drive.

The Machine events that kopf would bring come from a watch of ours, with the same two calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from machine_operator.api.names import GROUP
from machine_operator.controller.engine import Engine, Pace
from machine_operator.kube.errors import KubeError
from machine_operator.kubevirt.names import child_names
from tests.support.apiserver import FakeApi, Object, Request, copied, failure
from tests.support.client import FakeClient
from tests.support.clock import wall_clock
from tests.support.kubevirt import FakeKubeVirt
from tests.support.machines import DEFAULTS, machine_object
from tests.support.virtual import eventually

__all__ = ["GATEWAY", "USER", "Operator", "World"]

GATEWAY, USER = "machine-gateway", "kubectl"
"""Field managers of those who are not the operator."""


class Operator:
    """One process of the operator: a client, an engine, and the feed of Machine events.

    Args:
        engine: what the engine is made with, besides the client and the defaults.
        client: what the client is made with.
    """

    def __init__(self, api: FakeApi, *, engine: Object | None = None, **client: Any) -> None:
        self.api = api
        self.client = FakeClient(api, **client)
        options: Object = {"defaults": DEFAULTS, "pace": Pace(workers=4), "now": wall_clock}
        self.engine = Engine(self.client, **(options | (engine or {})))
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
            self.engine.saw_machine({**machine_object(), **item}, listed=True)
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

    def create(self, name: str = "box", *, annotations: Object | None = None, **spec: Any) -> None:
        obj = machine_object(name=name, spec={"autosleep": "never", **spec})
        obj["metadata"] = {"name": name, "namespace": "ns"}
        if annotations:
            obj["metadata"]["annotations"] = annotations
        self._ask(Request("create", "machines", "ns", None, None, obj, {}, agent=USER))

    def edit(self, name: str = "box", **spec: Any) -> None:
        self.api.edit("machines", name, lambda m: m["spec"].update(spec), manager=USER)

    def annotate(self, name: str = "box", **annotations: str | None) -> None:
        """Set annotations of our group, or with None take them off."""

        def change(machine: Object) -> None:
            have = machine["metadata"].setdefault("annotations", {})
            for key, value in annotations.items():
                full = f"{GROUP}/{key.replace('_', '-')}"
                have[full] = value
                if value is None:
                    del have[full]

        self.api.edit("machines", name, change, manager=USER)

    def delete(self, name: str = "box") -> None:
        self.api.remove("machines", name)

    def scribble(self, status: Object, name: str = "box") -> None:
        """Somebody writes a status by hand."""

        def change(machine: Object) -> None:
            machine["status"] = copied(status)

        self.api.edit("machines", name, change, manager=USER)

    # ---- what gateways do

    def request_power(self, state: str, name: str = "box", *, sequence: int | None = 1) -> None:
        """What a gateway does for REST's sleep and wake. Without a sequence it is the next one."""
        machine = self.api.find("machines", name)
        last = ((machine.get("status") or {}).get("power_request") or {}).get("sequence", 0)
        request = {
            "state": state,
            "by": "ada",
            "at": moment(),
            "sequence": last + 1 if sequence is None else sequence,
            "spec_desired_state": machine["spec"].get("desired_state", "running"),
        }
        self._as_gateway(name, {"power_request": request})

    def touch(self, name: str = "box") -> str:
        """Somebody uses the machine; the moment."""
        at = moment()
        self._as_gateway(name, {"activity": self._activity(name) | {"last_touch_at": at}})
        return at

    def hold(self, id: str = "ssh-1", seconds: float = 60.0, name: str = "box") -> None:
        """Something keeps the machine awake for so long, unless it is renewed; 0 seconds: it ends."""
        activity = self._activity(name)
        holds = {hold["id"]: hold for hold in activity.get("holds") or []}
        since = holds.pop(id, {}).get("since", moment())
        if seconds > 0:
            expires = moment(seconds)
            holds[id] = {"id": id, "kind": "ssh", "since": since, "expires_at": expires}
        self._as_gateway(name, {"activity": activity | {"holds": [*holds.values()]}})

    def _activity(self, name: str) -> Object:
        activity: Object = copied(self.status(name).get("activity") or {})
        return activity

    def _as_gateway(self, name: str, status: Object) -> None:
        """An apply of the gateway's whole part of the status."""
        mine = {"power_request", "activity"}
        kept = {k: copied(v) for k, v in self.status(name).items() if k in mine}
        body = {"metadata": {"name": name, "namespace": "ns"}, "status": kept | status}
        params = {"fieldManager": GATEWAY, "force": "true"}
        self._ask(Request("apply", "machines", "ns", name, "status", body, params))

    def _ask(self, request: Request) -> Object:
        """A request that the troubles of the operator's own connection do not touch."""
        refuse, down = self.api.refuse, self.api.down
        self.api.refuse, self.api.down = [], False
        try:
            return self.api.handle(request)
        finally:
            self.api.refuse, self.api.down = refuse, down

    # ---- what people do to KubeVirt's objects

    def vm_name(self, name: str = "box") -> str:
        """Name of the VM (and VMI) of a machine."""
        return child_names(self.api.find("machines", name)["metadata"]["uid"]).vm

    def delete_vm(self, name: str = "box", *, orphan: bool = False) -> None:
        """Somebody deletes the VM; with `orphan` its VMI stays."""
        vm = self.vm_name(name)
        self.api.remove("virtualmachines", vm, propagation="Orphan" if orphan else "Background")
        if orphan and ("virtualmachines", "ns", vm) in self.api.objects:
            free: Object = {"finalizers": []}
            self.api.edit("virtualmachines", vm, lambda obj: obj["metadata"].update(free))

    def delete_vmi(self, name: str = "box") -> None:
        """Somebody deletes the VMI."""
        self.api.remove("virtualmachineinstances", self.vm_name(name))

    def virtctl_restart(self, name: str = "box") -> None:
        """`virtctl restart`: a Stop and a Start request."""
        self._virtctl(name, "Stop", "Start")

    def virtctl_stop(self, name: str = "box") -> None:
        """`virtctl stop`: a Stop request under RerunOnFailure, else Halted."""
        vm = self.api.find("virtualmachines", self.vm_name(name))
        if vm["spec"]["runStrategy"] == "RerunOnFailure":
            self._virtctl(name, "Stop")
        else:
            self._strategy(name, "Halted")

    def virtctl_start(self, name: str = "box") -> None:
        """`virtctl start`: Always where it was Halted, else a Start request.

        Raises:
            Conflict: it runs already.
        """
        vm = self.api.find("virtualmachines", self.vm_name(name))
        if vm["spec"]["runStrategy"] == "Halted":
            self._strategy(name, "Always")
        elif vm["spec"]["runStrategy"] == "Always" or (vm.get("status") or {}).get("created"):
            raise failure(409, "Conflict", "VM is already running")
        else:
            self._virtctl(name, "Start")

    def _strategy(self, name: str, strategy: str) -> None:
        change = {"runStrategy": strategy}
        self.api.edit(
            "virtualmachines",
            self.vm_name(name),
            lambda vm: vm["spec"].update(change),
            manager=USER,
        )

    def _virtctl(self, name: str, *actions: str) -> None:
        vm = self.vm_name(name)
        found = self.api.objects.get(("virtualmachineinstances", "ns", vm))
        requests: list[Object] = [{"action": action} for action in actions]
        if requests[0]["action"] == "Stop":
            if found is None:
                raise failure(409, "Conflict", "VM is not running")
            requests[0]["uid"] = found.body["metadata"]["uid"]

        def change(obj: Object) -> None:
            obj.setdefault("status", {})["stateChangeRequests"] = requests

        self.api.edit("virtualmachines", vm, change)

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
        count = -1
        while count != len(self.api.changes):
            assert loop.time() < deadline, f"never quiet: {self.api.changes[-12:]}"
            count = len(self.api.changes)
            await asyncio.sleep(seconds)

    def describe(self, name: str = "box") -> str:
        """For messages of failed tests."""
        status = {k: v for k, v in self.status(name).items() if k != "conditions"}
        return f"status {status}; last changes {self.api.changes[-12:]}"


def moment(later: float = 0.0) -> str:
    """A moment as gateways write it, to the microsecond."""
    return (wall_clock() + timedelta(seconds=later)).isoformat().replace("+00:00", "Z")
