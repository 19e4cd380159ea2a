"""API writes by the operator for one sleep and one wake of a machine, from the API server's audit log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import rates
from arms import Arm, load, machines, start_operator, start_stub
from audit import AuditLog, by_kind
from clusters import BenchError, progress
from feed import Object, follow, is_ready
from figures import Report, single
from plane import Plane
from rounds import Planes, run_round, warm_up

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.resources import MACHINES

__all__ = ["measure"]

_LIMIT = 3.0
_SETTLE = 3.0
_NAMESPACE = "power"
_EDITS_PER_SECOND = 20.0
_TURN_LIMIT = 60.0


def measure(report: Report, planes: Planes, *, count: int, seconds: float) -> None:
    """Turn `count` running machines off and on by `spec.desired_state`.

    Without the part "rates" before it, also the writes of a create, from one round at each of its outermost rates.
    """
    if "rates" not in report.raw:
        alone = {}
        for rate in (25.0, 150.0):
            alone[rate] = [run_round(planes, Arm.OPERATOR, rate=rate, seconds=seconds)]
            progress(f"writes: {alone[rate][0].writes:.3f} per create at {rate:g}/s")
        report.raw["writes"] = [found.to_json() for [found] in alone.values()]
        report.add(*rates.write_figures(dict(alone)))
    with planes.new("power") as plane:
        start_stub(plane)
        start_operator(plane)
        warm_up(plane)
        load(
            plane.kubeconfig("admin"),
            machines(count),
            scratch=plane.paths.data,
            namespace=_NAMESPACE,
            rate=_EDITS_PER_SECOND,
            end="machine-ready",
        )
        time.sleep(_SETTLE)
        raw: dict[str, Any] = {}
        for state in ("sleeping", "running"):
            raw[state] = _turn(plane, state, count=count)
            name = {"sleeping": "sleep", "running": "wake"}[state]
            each = sum(raw[state].values()) / count
            progress(f"writes: {each:.2f} per {name}: {raw[state]}")
            report.add(single(f"API writes per {name}", each, "", limit=_LIMIT))
    report.raw["power writes"] = raw


def _turn(plane: Plane, state: str, *, count: int) -> dict[str, int]:
    log = AuditLog(plane.audit)
    asyncio.run(_edit_all(plane, state, count=count))
    time.sleep(_SETTLE)
    return by_kind(log.writes(namespace=_NAMESPACE))


async def _edit_all(plane: Plane, state: str, *, count: int) -> None:
    """Edit each machine, and wait until all are where they should be."""

    def arrived(item: Object) -> bool:
        return (item.get("status") or {}).get("phase") == state and is_ready(item)

    connection = await connect(plane.kubeconfig("admin"))
    async with KubeClient(connection) as client, _Arrivals(client, arrived) as arrivals:
        for body in machines(count):
            name = body["metadata"]["name"]
            change = {"spec": {"desired_state": state}}
            await client.merge_patch(MACHINES, name, change, namespace=_NAMESPACE)
            await asyncio.sleep(1 / _EDITS_PER_SECOND)
        await arrivals.wait(count, what=f"{count} machines {state}")


class _Arrivals:
    """Which machines are where they should be."""

    def __init__(self, client: KubeClient, arrived: Callable[[Object], bool]) -> None:
        self._arrived = arrived
        self._names: set[str] = set()
        self._changed = asyncio.Event()
        self._watch = follow(client, MACHINES, self._take, namespace=_NAMESPACE)

    async def __aenter__(self) -> _Arrivals:
        self._task = asyncio.create_task(self._watch)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _take(self, _event: str, item: Object) -> None:
        name = item["metadata"]["name"]
        if self._arrived(item):
            self._names.add(name)
        else:
            self._names.discard(name)
        self._changed.set()

    async def wait(self, count: int, *, what: str) -> None:
        try:
            async with asyncio.timeout(_TURN_LIMIT):
                while len(self._names) < count:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise BenchError(
                f"gave up waiting for {what} after {_TURN_LIMIT:.0f} s: {len(self._names)} are"
            ) from error
