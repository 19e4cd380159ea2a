"""Gateways with terminals: real servers, a fake API server, and a real sshd as the guest of every machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from websockets.asyncio.client import connect

from machine_operator.gateway.access import Access
from machine_operator.gateway.dcs.terminals import terminal_routes
from machine_operator.gateway.serving.server import serve
from machine_operator.gateway.terminals.terminals import Terminals
from machine_operator.gateway.tokens import Tokens
from machine_operator.guest.errors import GuestUnreachable
from machine_operator.guest.target import GuestTarget
from machine_operator.store.terminals import TerminalRecords
from tests.support.gateway import Cluster, Replica
from tests.support.terminal_guest import PlainGuest, TerminalGuest

__all__ = ["Gateway", "World", "gateway"]

_KEY = b"k" * 32


@dataclass
class _Guests:
    """The warm connections of one replica, all to the same sshd."""

    guest: TerminalGuest
    trouble: Exception | None = None
    connected: dict[str, PlainGuest] = field(default_factory=dict)
    attempts: int = 0

    async def connect(self, target: GuestTarget) -> Any:
        self.attempts += 1
        if self.trouble is not None:
            raise self.trouble
        known = self.connected.get(target.machine_uid)
        if known is not None:
            alive = not known.connection.is_closed()
            if alive and known.target.instance_uid == target.instance_uid:
                return known
            self.drop(target.machine_uid)
        try:
            plain = await self.guest.connect(instance_uid=target.instance_uid)
        except OSError as error:
            raise GuestUnreachable(str(error)) from error
        self.connected[target.machine_uid] = plain
        return plain

    def drop(self, machine_uid: str) -> None:
        plain = self.connected.pop(machine_uid, None)
        if plain is not None:
            plain.connection.abort()

    async def close(self) -> None:
        for plain in self.connected.values():
            plain.connection.abort()
            await plain.connection.wait_closed()


@dataclass
class World:
    """What gateways share.

    Attributes:
        later: by how much the clocks of terminals are ahead.
    """

    cluster: Cluster
    guest: TerminalGuest
    later: timedelta = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.later

    def phase(self, machine_id: str, phase: str, *, boot: str = "boot-1", **status: Any) -> None:
        """What the controller says about a machine."""
        self.cluster.report(
            machine_id,
            phase,
            vm={"name": "m-1", "instance_uid": boot if phase == "running" else None},
            addresses=["10.0.0.1"],
            **status,
        )


@dataclass
class Gateway:
    """One gateway process, listening."""

    world: World
    replica: Replica
    terminals: Terminals
    guests: _Guests
    port: int
    stop: Callable[[], Any]

    async def machine(self, phase: str = "running", **status: Any) -> str:
        """A machine in some phase; its id."""
        machine_id: str = (await self.replica.create(storage_gib=1))["machine_id"]
        self.world.phase(self.name(machine_id), phase, **status)
        await self.replica.caught_up()
        return machine_id

    async def phase(self, machine_id: str, phase: str, **status: Any) -> None:
        """The controller says something new, and this gateway has heard it."""
        self.world.phase(self.name(machine_id), phase, **status)
        await self.replica.caught_up()

    def name(self, machine_id: str) -> str:
        """Of the object."""
        machine = self.replica.machines.find("ns", machine_id).machine
        return str(machine.metadata.name)

    async def make(self, machine_id: str, *, key: str | None = None, **body: Any) -> Any:
        """A new terminal, with a POSIX shell unless said otherwise."""
        asked = {"width": 80, "height": 24, "shell": "/bin/sh", **body}
        answer = await self.replica.call(
            "POST", f"/v1/machines/{machine_id}/terminals", json=asked, key=key
        )
        assert answer.status == 200, (answer.status, answer.body)
        return answer.json()

    async def get(self, terminal: Any) -> Any:
        """A terminal as it is now."""
        path = f"/v1/machines/{terminal['machine_id']}/terminals/{terminal['terminal_id']}"
        answer = await self.replica.call("GET", path)
        assert answer.status == 200, (answer.status, answer.body)
        return answer.json()

    async def delete(self, terminal: Any) -> Any:
        """Close a terminal."""
        path = f"/v1/machines/{terminal['machine_id']}/terminals/{terminal['terminal_id']}"
        answer = await self.replica.call("DELETE", path)
        assert answer.status == 200, (answer.status, answer.body)
        return answer.json()

    def url(self, terminal: Any) -> str:
        """The link of a terminal, to this gateway."""
        rest = terminal["stream_url"].partition("/v1/")[2]
        return f"ws://127.0.0.1:{self.port}/v1/{rest}"

    def connect(self, terminal: Any, **options: Any) -> connect:
        """Its WebSocket, by its link."""
        return self.connect_to(self.url(terminal), **options)

    def connect_to(self, url: str, **options: Any) -> connect:
        """Some WebSocket."""
        return connect(url, proxy=None, compression=None, close_timeout=2, **options)


@asynccontextmanager
async def gateway(world: World, **settings: Any) -> AsyncIterator[Gateway]:
    """A gateway process, for a while."""
    async with AsyncExitStack() as stack:
        replica = await stack.enter_async_context(world.cluster.gateway(**settings))
        guests = _Guests(world.guest)
        stack.push_async_callback(guests.close)
        inner = replica.gateway
        access = Access(
            replica.client,
            replica.machines,
            inner.changes,
            guests,  # type: ignore[arg-type]
            inner.settings,
            replica="r1",
        )
        assert replica.database is not None
        terminals = Terminals(
            TerminalRecords(replica.database),
            access,
            replica.machines,
            Tokens(_KEY, clock=lambda: world.now().timestamp()),
            inner.settings,
            clock=world.now,
            root=world.guest.root,
        )
        app = replica.app
        assert isinstance(app, FastAPI)
        app.router.routes[:0] = terminal_routes(inner, terminals).routes
        for work in (access.run(), terminals.run()):
            stack.push_async_callback(_end, asyncio.create_task(work))
        draining = asyncio.Event()
        address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(
            serve(
                app,
                host="127.0.0.1",
                port=0,
                draining=draining,
                on_listening=address.set_result,
                drain_seconds=5,
            )
        )

        async def stop() -> None:
            draining.set()
            await server

        stack.push_async_callback(stop)
        port = int((await address).rpartition(":")[2])
        yield Gateway(world, replica, terminals, guests, port, stop)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    ended = (await asyncio.gather(task, return_exceptions=True))[0]
    if not isinstance(ended, asyncio.CancelledError):
        pytest.fail(f"it ended by itself: {ended!r}")
