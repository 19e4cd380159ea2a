"""The load: a process that creates objects at a fixed rate and notes when each one is ready.

An open loop: each create is issued when it is due, whatever became of those before, with a bound on those under way.
Its clock for an object starts when the create is due, not when a connection is free, so a server that holds
creates back is not flattered. What an object becomes is seen by a single watch, of the Machines themselves or, for a
floor that writes no status, of the instances of their VMs. The result is one JSON object on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from feed import Object, follow, is_ready

from machine_operator.api.names import NAME_LABEL
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.errors import KubeError
from machine_operator.kube.resources import (
    MACHINES,
    NAMESPACES,
    PERSISTENT_VOLUME_CLAIMS,
    SECRETS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    Resource,
)

__all__ = ["COMPANIONS", "ENDS", "Taken", "offer"]

_AT_A_TIME = 1000

COMPANIONS = "companions"
"""The member of a body with what is created before it, as part of the same create: plural -> object."""

_COMPANION_KINDS = {kind.plural: kind for kind in (SECRETS, PERSISTENT_VOLUME_CLAIMS)}


@dataclass(frozen=True, slots=True)
class _End:
    """Where to look, and when one is done. `name` tells which of ours an object of that kind is about."""

    watched: Resource
    done: Callable[[Object], bool]
    name: Callable[[Object], str] = lambda item: str(item["metadata"]["name"])


def _running(machine: Object) -> bool:
    return bool((machine.get("status") or {}).get("phase") == "running")


def _vm_ready(vm: Object) -> bool:
    return (vm.get("status") or {}).get("ready") is True


def _owner(instance: Object) -> str:
    return str(instance["metadata"]["labels"][NAME_LABEL])


ENDS: dict[str, tuple[Resource, _End]] = {
    # What is created, and what is waited for.
    "machine-ready": (MACHINES, _End(MACHINES, is_ready)),
    "machine-running": (MACHINES, _End(MACHINES, _running)),
    "instance-ready": (MACHINES, _End(VIRTUAL_MACHINE_INSTANCES, is_ready, _owner)),
    "vm-ready": (VIRTUAL_MACHINES, _End(VIRTUAL_MACHINES, _vm_ready)),
}


@dataclass(slots=True)
class Taken:
    """What one load saw.

    Attributes:
        latencies: seconds from create to ready, in the order of the creates; without the lost ones.
        posts: seconds that each create took.
        lost: how many were not ready in time.
        span: seconds from the first create to the last one that became ready.
        late: the longest that a create was issued after it was due, in seconds: a sign of a busy generator.
        failures: what the API server said to creates that it refused.
        cpu: processor seconds of the generator.
    """

    latencies: list[float] = field(default_factory=list)
    posts: list[float] = field(default_factory=list)
    lost: int = 0
    span: float = 0.0
    late: float = 0.0
    failures: list[str] = field(default_factory=list)
    cpu: float = 0.0

    @property
    def per_second(self) -> float:
        """How many became ready in a second, from the first create to the last ready."""
        return len(self.latencies) / self.span if self.span else 0.0


class _Load:
    """The creates and the watch of one load."""

    def __init__(self, client: KubeClient, namespace: str, *, end: str) -> None:
        self._client = client
        self._namespace = namespace
        self._kind, self._end = ENDS[end]
        self._issued: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._expected = 0
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._watching = asyncio.Event()
        self._all = asyncio.Event()
        self._cpu = time.process_time()
        self.taken = Taken()

    async def run(self, bodies: list[Object], *, rate: float, limit: float) -> Taken:
        """Create all of them; return when all are done, or `limit` seconds after the last one was due."""
        self._expected = len(bodies)
        watch = asyncio.create_task(
            follow(
                self._client,
                self._end.watched,
                self._take,
                namespace=self._namespace,
                listed=self._watching.set,
            )
        )
        try:
            await self._watching.wait()
            await self._offer(bodies, rate=rate)
            async with asyncio.timeout(limit):
                await self._all.wait()
        except TimeoutError:
            pass  # what is missing is counted as lost
        finally:
            watch.cancel()
        return self._summary(bodies)

    async def _offer(self, bodies: list[Object], *, rate: float) -> None:
        begun = time.monotonic() + 0.05
        async with asyncio.TaskGroup() as group:
            for number, body in enumerate(bodies):
                due = begun + number / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self._slots.acquire()
                self.taken.late = max(self.taken.late, time.monotonic() - due)
                self._issued[body["metadata"]["name"]] = due
                group.create_task(self._create(body))

    async def _create(self, body: Object) -> None:
        begun = time.monotonic()
        own = {key: value for key, value in body.items() if key != COMPANIONS}
        try:
            for plural, companion in body.get(COMPANIONS, {}).items():
                kind = _COMPANION_KINDS[plural]
                await self._client.create(kind, companion, namespace=self._namespace)
            await self._client.create(self._kind, own, namespace=self._namespace)
        except KubeError as error:
            self.taken.failures.append(str(error))
        finally:
            self._slots.release()
        self.taken.posts.append(time.monotonic() - begun)

    def _take(self, event: str, item: Object) -> None:
        if event == "DELETED" or not self._end.done(item):
            return
        name = self._end.name(item)
        if name in self._issued and name not in self._done:
            self._done[name] = time.monotonic()
            if len(self._done) == self._expected:
                self._all.set()

    def _summary(self, bodies: list[Object]) -> Taken:
        names = [body["metadata"]["name"] for body in bodies]
        taken, done = self.taken, self._done
        taken.latencies = [done[name] - self._issued[name] for name in names if name in done]
        taken.lost = len(names) - len(done)
        taken.span = max(done.values(), default=0.0) - min(self._issued.values(), default=0.0)
        taken.cpu = time.process_time() - self._cpu
        return taken


async def offer(
    client: KubeClient,
    bodies: list[Object],
    *,
    namespace: str,
    rate: float,
    end: str = "machine-ready",
    limit: float = 120.0,
) -> Taken:
    """Create objects at `rate` per second in a namespace, which is made where it is missing.

    Args:
        client: the connection and identity.
        bodies: what to create, in order.
        namespace: where.
        rate: creates per second.
        end: of `ENDS`: what is created and what is waited for.
        limit: seconds from the last create until what is missing is lost.
    """
    await client.apply(
        NAMESPACES, namespace, {"metadata": {"name": namespace}}, manager="bench-load"
    )
    return await _Load(client, namespace, end=end).run(bodies, rate=rate, limit=limit)


async def _main(arguments: argparse.Namespace) -> dict[str, Any]:
    bodies = [json.loads(line) for line in arguments.bodies.read_text().splitlines()]
    async with KubeClient(await connect(arguments.kubeconfig), user_agent="bench-load") as client:
        taken = await offer(
            client,
            bodies,
            namespace=arguments.namespace,
            rate=arguments.rate,
            end=arguments.end,
            limit=arguments.limit,
        )
    return asdict(taken)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Create objects at a rate.")
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--bodies", type=Path, required=True, help="one JSON object per line")
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--end", choices=ENDS, default="machine-ready")
    parser.add_argument("--limit", type=float, default=120.0)
    json.dump(uvloop.run(_main(parser.parse_args())), sys.stdout)
