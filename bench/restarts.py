"""A restart among thousands of machines: when the next machine is served, when all old ones have been looked at."""

from __future__ import annotations

import asyncio
import time

from arms import machines, metrics, start_operator
from audit import AuditLog, by_kind
from clusters import BenchError, progress
from figures import Report, measured, single
from load import offer
from plane import Plane

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect

__all__ = ["measure"]

_FIRST, _ALL = 3.0, 30.0
"""Seconds from the start of the process."""

_GIVE_UP = 120.0
_SETTLE = 5.0


def measure(report: Report, plane: Plane, *, size: int, repeats: int) -> None:
    """End the operator and start it again, `repeats` times."""
    first: list[float] = []
    every: list[float] = []
    old: list[dict[str, int]] = []
    for number in range(repeats):
        plane.forget(plane.process("controller"), grace=20.0)
        log, namespace = AuditLog(plane.audit), f"restart-{number}"
        begun = time.monotonic()
        start_operator(plane, wait=False)
        first.append(asyncio.run(_first(plane, namespace, begun=begun)))
        every.append(_verified(plane, size, begun=begun))
        time.sleep(_SETTLE)
        old.append(by_kind(r for r in log.writes() if r.namespace != namespace))
        progress(
            f"restart {number + 1}/{repeats}: first {first[-1]:.2f} s, all {every[-1]:.2f} s, "
            f"writes to old machines {old[-1]}"
        )
    report.raw["restart"] = {"first": first, "all": every, "writes": old}
    name = f"restart with {size} machines until a new one is Ready"
    report.add(measured(name, first, "s", limit=_FIRST))
    report.add(measured("  until all were looked at", every, "s", limit=_ALL))
    report.add(single("  writes to old objects", sum(map(_total, old)), "", limit=0, least=0))


async def _first(plane: Plane, namespace: str, *, begun: float) -> float:
    async with KubeClient(await connect(plane.kubeconfig("admin"))) as client:
        taken = await offer(client, machines(1), namespace=namespace, rate=1.0, limit=_GIVE_UP)
    if taken.lost:
        raise BenchError(f"a machine made at a restart was not Ready after {_GIVE_UP:.0f} s")
    return time.monotonic() - begun


def _verified(plane: Plane, size: int, *, begun: float) -> float:
    """Wait until the operator has made as many passes as there are machines, and none waits."""
    while True:
        passes = metrics(plane, "controller_runtime_reconcile_total")
        waiting = metrics(plane, "workqueue_depth")
        if passes is not None and passes >= size and not waiting:
            return time.monotonic() - begun
        if time.monotonic() - begun > _GIVE_UP:
            raise BenchError(
                f"{_GIVE_UP:.0f} s after a restart with {size} machines, "
                f"controller_runtime_reconcile_total is {passes} and workqueue_depth {waiting}"
            )
        time.sleep(0.1)


def _total(counts: dict[str, int]) -> int:
    return sum(counts.values())
