"""When which thing was first seen while a machine starts: watches on everything that takes part, on one clock.

The clock counts from the boot of the host, as the start times of processes in /proc do; so QEMU's start needs nobody
who looks at the right moment.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from clusters import BenchError, Cluster

from machine_operator.api.names import NAME_LABEL
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.resources import (
    MACHINES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    Resource,
)
from machine_operator.local.guest.image import CONSOLE_MARKER
from machine_operator.local.processes import ProcessRecord

__all__ = ["Timeline", "marker", "now", "started", "watching"]

_NAMESPACE = "default"

_GLANCE = 0.02
"""Seconds between looks at a file; the same for both arms of a comparison."""

Object = dict[str, Any]


def now() -> float:
    """Seconds since the host's boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def started(process: ProcessRecord) -> float:
    """When a process was started, on the same clock (to a hundredth of a second)."""
    return process.started / os.sysconf("SC_CLK_TCK")


async def marker(console: Path) -> float:
    """Wait until the guest says on its console that its sshd listens; returns when that was."""
    while True:
        if _spoke(console):
            return now()
        await asyncio.sleep(_GLANCE)


def _spoke(console: Path) -> bool:
    return console.exists() and CONSOLE_MARKER.encode() in console.read_bytes()


class Timeline:
    """What the watches see. `current` maps a kind to the objects that are there, `seen` a milestone to its moment."""

    def __init__(self) -> None:
        self.current: dict[str, dict[str, Object]] = {}
        self.seen: dict[str, float] = {}
        self._machine = ""
        self._changed = asyncio.Event()

    def begin(self, machine: str) -> float:
        """Forget what was seen; from now on look at this machine. Returns the moment."""
        self._machine = machine
        self.seen = {}
        return now()

    async def until(self, what: str, check: Callable[[], bool], *, limit: float = 120.0) -> float:
        """Wait for something in `current` or `seen`; returns the moment at which it was noticed.

        Raises:
            BenchError: it did not come within `limit` seconds.
        """
        try:
            async with asyncio.timeout(limit):
                while not check():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            status = self.machine().get("status", {})
            raise BenchError(
                f"gave up waiting for {what} after {limit:.0f} s; seen: {sorted(self.seen)}; "
                f"the machine: {status.get('phase')} ({status.get('last_error') or status.get('reason')})"
            ) from error
        return now()

    def machine(self) -> Object:
        """The machine as last seen, {} where it is not there."""
        return self.current.get("Machine", {}).get(self._machine, {})

    def instance(self) -> Object:
        """Its VMI, {} where there is none."""
        return next(self._ours("VirtualMachineInstance"), {})

    def runs(self) -> bool:
        """Whether it still has a VMI or a pod."""
        kinds = ("VirtualMachineInstance", "Pod")
        return any(next(self._ours(kind), None) for kind in kinds)

    def gone(self) -> bool:
        """Whether nothing of it is left."""
        children = (kind for kind in self.current if kind != "Machine")
        return not self.machine() and not any(next(self._ours(kind), None) for kind in children)

    def _ours(self, kind: str) -> Iterator[Object]:
        return (item for item in self.current.get(kind, {}).values() if self._is_ours(item))

    def _is_ours(self, item: Object) -> bool:
        if item["kind"] == "Machine":
            return bool(item["metadata"]["name"] == self._machine)
        return (item["metadata"].get("labels") or {}).get(NAME_LABEL) == self._machine

    def take(self, resource: Resource, event: Object) -> None:
        """One event of a watch."""
        moment, item = now(), event["object"]
        item["kind"] = resource.kind
        items = self.current.setdefault(resource.kind, {})
        if event["type"] == "DELETED":
            items.pop(item["metadata"]["name"], None)
        else:
            items[item["metadata"]["name"]] = item
            if self._is_ours(item):
                for milestone in _milestones(item):
                    self.seen.setdefault(milestone, moment)
        self._changed.set()


def _milestones(item: Object) -> Iterator[str]:
    kind, spec, status = item["kind"], item.get("spec") or {}, item.get("status") or {}
    if item["metadata"].get("deletionTimestamp"):
        return
    yield f"{kind} there"
    if kind == "Pod" and spec.get("nodeName"):
        yield "Pod scheduled"
    if phase := status.get("phase"):
        yield f"{kind} {phase}"
    for condition in status.get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] == "True":
            yield f"{kind} Ready"


@asynccontextmanager
async def watching(cluster: Cluster) -> AsyncIterator[Timeline]:
    """Watch everything of machines in the namespace while the block runs."""
    timeline = Timeline()
    kinds = (
        MACHINES,
        VIRTUAL_MACHINES,
        VIRTUAL_MACHINE_INSTANCES,
        PODS,
        PERSISTENT_VOLUME_CLAIMS,
    )
    async with KubeClient(await connect(str(cluster.paths.kubeconfig))) as client:
        tasks = [asyncio.create_task(_watch(client, kind, timeline)) for kind in kinds]
        try:
            yield timeline
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(client: KubeClient, resource: Resource, timeline: Timeline) -> None:
    while True:
        listed = await client.list(resource, namespace=_NAMESPACE)
        timeline.current[resource.kind] = {}
        for item in listed["items"]:
            timeline.take(resource, {"type": "ADDED", "object": item})
        version = listed["metadata"]["resourceVersion"]
        async for event in client.watch(resource, namespace=_NAMESPACE, resource_version=version):
            if event["type"] != "BOOKMARK":
                timeline.take(resource, event)
