"""The gateway on a plane, as local mode starts it: an organisation, its API key, its machines.

Nobody turns those Machines into VMs: the benchmark writes their status where it needs one. Machines are there before
the gateway is, so a gateway that is ready knows them all.
"""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from clusters import BenchError
from plane import Plane, Process

from machine_operator.gateway.keys import KEYS_NAMESPACE, NewKey, new_key
from machine_operator.gateway.machine_ids import new_name
from machine_operator.gateway.orgs import ORG_LABEL
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.resources import MACHINES, NAMESPACES, SECRETS
from machine_operator.local.components import components

__all__ = [
    "ORG",
    "SPEC",
    "Served",
    "administrator",
    "each",
    "give_key",
    "serve",
    "serve_anew",
    "start_empty",
    "status",
]

ORG = "bench-org"

SPEC: dict[str, Any] = {"vcpu": 1, "memory_mib": 2048, "storage_gib": 10, "autosleep": "30m"}

_START_LIMIT = 60.0
_WRITERS = 32
_QUIET_LIMIT = 120.0
_WINDOW = 2.0
"""Seconds; what the gateway does by itself it does every second."""

# So high that the limiter counts each request, and refuses none.
_LIMITS = (
    *("--read-rate=20000", "--read-burst=20000"),
    *("--change-rate=20000", "--change-burst=20000"),
    *("--sleep-rate=20000", "--sleep-burst=20000"),
)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Served:
    """A gateway that is ready.

    Attributes:
        plane: where it is.
        process: it.
        token: an API key of ORG.
        ids: the machines of ORG.
    """

    plane: Plane
    process: Process
    token: str
    ids: list[str]

    @property
    def port(self) -> int:
        """Where it listens, on loopback."""
        return self.plane.settings.ports["gateway"]

    @property
    def url(self) -> str:
        """Its base URL."""
        return self.plane.settings.rest

    @property
    def headers(self) -> dict[str, str]:
        """With what a client comes."""
        return {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}

    @property
    def targets(self) -> list[str]:
        """The path of each machine."""
        return [f"/v1/machines/{name}" for name in self.ids]


@asynccontextmanager
async def administrator(plane: Plane) -> AsyncIterator[KubeClient]:
    """The API server, as somebody who may do everything."""
    async with KubeClient(await connect(plane.kubeconfig("admin"))) as client:
        yield client


async def each(items: Iterable[Item], work: Callable[[Item], Awaitable[object]]) -> None:
    """Do `work` for all items, some of them at a time."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(_WRITERS):
            group.create_task(worker())


async def give_key(client: KubeClient) -> NewKey:
    """A new API key of ORG, in the cluster."""
    key = new_key(ORG, now=datetime.now(UTC), description="bench")
    await client.create(SECRETS, key.secret, namespace=KEYS_NAMESPACE)
    return key


def status(phase: str, *, transitions: int = 1) -> dict[str, Any]:
    """What a controller would report of a machine whose spec has never changed."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    settled = phase == "running"
    reason = "DesiredStateReached" if settled else "Starting"
    ready = {"type": "Ready", "status": "True" if settled else "False", "reason": reason}
    return {
        "phase": phase,
        "reason": reason,
        "retryable": False,
        "transitions": transitions,
        "revision": str(transitions + 1),
        "observedGeneration": 1,
        "last_transition_at": now,
        "last_progress_at": now,
        "conditions": [
            {**ready, "lastTransitionTime": now, "message": "", "observedGeneration": 1}
        ],
    }


def serve(
    plane: Plane, *, machines: int, phase: str = "running", options: Sequence[str] = ()
) -> Served:
    """Make an organisation with machines of one phase and an API key, and start a gateway for it, with more options."""
    token, ids = asyncio.run(_furnish(plane, machines, phase))
    return Served(plane, _start(plane, options), token, ids)


def serve_anew(served: Served) -> Served:
    """The same with a new process."""
    served.plane.forget(served.process)
    return Served(served.plane, _start(served.plane), served.token, served.ids)


async def _furnish(plane: Plane, machines: int, phase: str) -> tuple[str, list[str]]:
    ids = [new_name(ORG, None) for _ in range(machines)]
    async with administrator(plane) as client:
        label = {"metadata": {"name": ORG, "labels": {ORG_LABEL: ORG}}}
        await client.apply(NAMESPACES, ORG, label, manager="bench")

        async def make(name: str) -> None:
            body = {"metadata": {"name": name}, "spec": SPEC}
            await client.create(MACHINES, body, namespace=ORG)
            await client.apply(
                MACHINES,
                name,
                {"status": status(phase)},
                manager="bench",
                namespace=ORG,
                subresource="status",
            )

        await each(ids, make)
        key = await give_key(client)
    return key.token, ids


def _start(plane: Plane, options: Sequence[str] = ()) -> Process:
    command = components(plane.settings, plane.paths)["gateway"].command
    process = plane.start("gateway", [*command, *_LIMITS, *options])
    ready = f"http://127.0.0.1:{plane.settings.ports['gateway-metrics']}/readyz"
    for url in (ready, f"{plane.settings.rest}/healthz"):
        _await(url, process)
    _settle(process)
    return process


def _settle(process: Process) -> None:
    """Wait until the gateway has nothing left to do: its ledger notes each machine that it sees for the first time."""
    deadline = time.monotonic() + _QUIET_LIMIT
    before = process.processor_seconds
    while time.monotonic() < deadline:
        time.sleep(_WINDOW)
        after = process.processor_seconds
        if after - before < 0.03 * _WINDOW:
            return
        before = after
    raise BenchError(f"the gateway was still busy {_QUIET_LIMIT:.0f} s after its start")


def start_empty(plane: Plane) -> tuple[Process, int]:
    """Start what answers nothing over the same stack; the process and its port."""
    port, ready = plane.settings.ports["standby"], plane.paths.data / "empty.ready"
    command = [
        *(sys.executable, str(Path(__file__).parent / "empty.py")),
        *("--port", str(port)),
        *("--ready", str(ready)),
    ]
    return plane.start("empty", command, ready=ready), port


def _await(url: str, process: Process) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while True:
        process.check()
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - ours
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise BenchError(
                    f"the gateway was not ready after {_START_LIMIT:.0f} s: {error}"
                ) from error
        time.sleep(0.05)
