"""Gateway replicas that run executions in fake guests, and the ways in which one can die."""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typing_extensions import override

from machine_operator.gateway.access import Access
from machine_operator.gateway.artifacts.artifacts import Artifacts
from machine_operator.gateway.dcs.artifacts import artifact_routes
from machine_operator.gateway.dcs.executions import execution_routes
from machine_operator.gateway.executions.context import Patience
from machine_operator.gateway.executions.executions import Executions, Pace
from machine_operator.gateway.tokens import Tokens
from machine_operator.store.database import Timeouts
from tests.support.asgi import Answer
from tests.support.gateway import Cluster, Replica, TearableDatabase, until
from tests.support.guests import Boot, FakeGuests, GuestWorld

__all__ = ["FAST", "QUICK", "Death", "Node", "Scene"]

FAST = Patience(
    mark=0.01,
    first_look=0.01,
    look=0.01,
    longest_look=0.05,
    connect=2.0,
    unreachable=0.5,
    term=0.1,
    kill=0.5,
    last_output=0.2,
    retry=0.01,
    longest_retry=0.05,
)
QUICK = Pace(round=0.02, lease=15.0, cancelling=2.0, waking=900.0, sweep=60.0, forget=1.0)

_PATIENT = Timeouts(statement=8.0, queue=8.0)
"""Several gateways on one file, on a computer that does other things too."""


class Death:
    """Kills a gateway at one of its steps: what it asks of the store and of guests, each before and after.

    Args:
        at: the number of the step, from 0; None lets it live, and counts.
    """

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.steps: list[str] = []
        self.dead = asyncio.Event()

    async def step(self, name: str) -> None:
        """One step; a gateway that is dead goes no further."""
        if self.dead.is_set():
            await asyncio.Future()
        number = len(self.steps)
        self.steps.append(name)
        if number == self.at:
            self.dead.set()
            await asyncio.Future()


class MortalDatabase(TearableDatabase):
    """A database that a gateway may die at."""

    death: Death | None = None

    @override
    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        self._must_be_up()
        if self.death is not None:
            await self.death.step("transaction")
        async with super().transaction() as connection:
            yield connection
        if self.death is not None:
            await self.death.step("transaction done")

    @override
    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        self._must_be_up()
        if self.death is not None:
            await self.death.step("reading")
        async with super().reading() as connection:
            yield connection


@dataclass
class Node:
    """One gateway with executions."""

    scene: Scene
    replica: Replica
    access: Access
    guests: FakeGuests
    artifacts: Artifacts
    executions: Executions
    database: MortalDatabase
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def call(self, method: str, target: str, **more: Any) -> Answer:
        return await self.replica.call(method, target, **more)

    async def post(self, machine: str, *command: str, key: str | None = None, **body: Any) -> Any:
        """Run a program; what was answered."""
        path = f"/v1/machines/{machine}/executions"
        answer = await self.call("POST", path, json={"command": command, **body}, key=key)
        assert answer.status == 200, (answer.status, answer.body)
        return answer.json()

    async def get(self, execution: Any, part: str = "") -> Any:
        """An execution as it is, or a part of it such as `/output`."""
        path = f"/v1/machines/{execution['machine_id']}/executions/{execution['execution_id']}"
        answer = await self.call("GET", path + part)
        assert answer.status == 200, (answer.status, answer.body)
        return answer.json()

    async def delete(self, execution: Any, **more: Any) -> Answer:
        path = f"/v1/machines/{execution['machine_id']}/executions/{execution['execution_id']}"
        return await self.call("DELETE", path, **more)

    async def ended(self, execution: Any, *, within: float = 10.0) -> Any:
        """The execution, once it has ended."""
        return await self.sees(execution, lambda now: "completed_at" in now, within=within)

    async def sees(
        self, execution: Any, holds: Callable[[Any], Any], *, within: float = 10.0
    ) -> Any:
        """The execution, once something holds of it."""
        deadline = asyncio.get_running_loop().time() + within
        while not holds(now := await self.get(execution)):
            assert asyncio.get_running_loop().time() < deadline, now
            await asyncio.sleep(0.005)
        return now

    async def kill(self) -> None:
        """As SIGKILL does: nothing goes on, nothing is told."""
        self.replica.kill()
        self.database.down = True
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        # The kernel closes a dead process's files, and so ends its transactions; here somebody has to.
        gc.collect()
        await asyncio.sleep(0)
        await self.database.close()

    async def stop(self) -> None:
        """As SIGTERM does."""
        for task in self.tasks:
            task.cancel()
        ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        assert [e for e in ended if not isinstance(e, asyncio.CancelledError)] == []


class Scene:
    """A cluster, its guests, and gateways."""

    def __init__(self, directory: Path) -> None:
        self.cluster = Cluster(directory)
        self.world = GuestWorld()
        self.url = f"sqlite:///{directory / 'gateway.db'}"
        self.blobs = f"memory://{uuid.uuid4().hex}"
        self.machines: dict[str, int] = {}

    @asynccontextmanager
    async def node(
        self,
        *,
        patience: Patience = FAST,
        pace: Pace = QUICK,
        death: Death | None = None,
        **changed: Any,
    ) -> AsyncIterator[Node]:
        """A gateway, for a while."""
        settings = {"artifacts": self.blobs, "activity_window": 1.0, "drain": 0.2, **changed}
        async with AsyncExitStack() as stack:
            replica = await stack.enter_async_context(self.cluster.gateway(**settings))
            database = await MortalDatabase.open(self.url, timeouts=_PATIENT)
            stack.push_async_callback(database.close)
            assert isinstance(database, MortalDatabase)
            database.death = death
            node = self._assembled(replica, database, patience=patience, pace=pace)
            node.guests.step = None if death is None else death.step
            yield node
            if not node.database.down:
                await node.stop()

    def _assembled(
        self, replica: Replica, database: MortalDatabase, *, patience: Patience, pace: Pace
    ) -> Node:
        gateway, guests = replica.gateway, FakeGuests(self.world)
        settings, machines = gateway.settings, gateway.machines
        access = Access(
            replica.client,
            machines,
            gateway.changes,
            guests,  # type: ignore[arg-type]
            settings,
            replica=f"r{uuid.uuid4().hex[:8]}",
        )
        artifacts = Artifacts(database, Tokens(b"k" * 32), settings, clock=self.now)
        executions = Executions(
            database,
            machines,
            access,
            artifacts,
            settings,
            clock=self.now,
            patience=patience,
            pace=pace,
        )
        routes = replica.app.router.routes  # type: ignore[attr-defined]
        routes[0:0] = [
            *execution_routes(gateway, executions).routes,
            *artifact_routes(gateway, artifacts).routes,
        ]
        node = Node(self, replica, access, guests, artifacts, executions, database)
        node.tasks = [
            asyncio.create_task(work) for work in (access.run(), artifacts.run(), executions.run())
        ]
        return node

    def now(self) -> datetime:
        """By the clocks of the gateways."""
        return datetime.now(UTC) + self.cluster.later

    async def machine(self, node: Node, *, phase: str = "running") -> str:
        """A new machine, awake or not."""
        name = str((await node.replica.create())["machine_id"])
        self.machines[name] = 0
        if phase == "running":
            self.start(name)
        else:
            self.cluster.report(name, phase)
        await node.replica.caught_up()
        return name

    def start(self, name: str) -> Boot:
        """It runs, from now on, with a new boot."""
        self.machines[name] += 1
        uid = f"boot-{self.machines[name]}-of-{name}"
        self.cluster.report(name, "running", vm={"name": f"m-{name}", "instance_uid": uid})
        return self.world.boot(uid)

    def stop(self, name: str, *, phase: str = "sleeping") -> None:
        """Its guest is gone."""
        self.boot(name).stop()
        self.cluster.report(name, phase)

    def boot(self, name: str) -> Boot:
        """Its guest now, or the last one."""
        return self.world.boots[f"boot-{self.machines[name]}-of-{name}"]

    async def starts(self, execution: Any) -> int:
        """How often a program was started, in all guests."""
        id = execution["execution_id"]
        await until(lambda: True)
        return sum(boot.starts[id] for boot in self.world.boots.values())
