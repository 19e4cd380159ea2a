"""Whether a machine more takes longer where many are there: probes in turns on a small and on a crowded plane."""

from __future__ import annotations

import asyncio
import time

from arms import load, machines
from clusters import BenchError, progress
from figures import Report, measured, percentile
from plane import Plane

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.resources import MACHINES

__all__ = ["measure"]

_RATE = 5.0
_RATIO = 1.1
_GONE_LIMIT = 180.0
_SETTLE = 5.0


def measure(
    report: Report, planes: dict[str, Plane], *, size: int, repeats: int, probes: int
) -> None:
    """Probe "small" and "crowd" in turns; what was probed is deleted before the next one."""
    medians: dict[str, list[float]] = {name: [] for name in planes}
    for number in range(repeats):
        for name in [*planes] if number % 2 else [*reversed(planes)]:
            medians[name].append(_probe(planes[name], f"probes-{number}", probes=probes))
        small, crowd = (medians[name][-1] for name in ("small", "crowd"))
        progress(f"flat {number + 1}/{repeats}: {small * 1000:.1f} ms, {crowd * 1000:.1f} ms")
    report.raw["flat"] = medians
    ratios = [c / s for c, s in zip(medians["crowd"], medians["small"], strict=True)]
    name = f"create -> Ready p50 at 5/s with {size} machines over with 100"
    report.add(measured(name, ratios, "x", limit=_RATIO))
    for which in planes:
        values = [1000 * value for value in medians[which]]
        report.add(measured(f"  {which}", values, "ms"))


def _probe(plane: Plane, namespace: str, *, probes: int) -> float:
    taken = load(
        plane.kubeconfig("admin"),
        machines(probes),
        scratch=plane.paths.data,
        namespace=namespace,
        rate=_RATE,
        end="machine-ready",
        limit=60.0,
    )
    if taken.lost:
        raise BenchError(f"{taken.lost} of {probes} probes did not become Ready")
    asyncio.run(_delete_all(plane, namespace))
    time.sleep(_SETTLE)
    return percentile(taken.latencies, 50)


async def _delete_all(plane: Plane, namespace: str) -> None:
    """Delete the machines; the operator takes its finalizers off."""
    async with KubeClient(await connect(plane.kubeconfig("admin"))) as client:
        path = MACHINES.path(namespace=namespace)
        await client.request("DELETE", path, timeout=60.0)
        deadline = time.monotonic() + _GONE_LIMIT
        while left := (await client.list(MACHINES, namespace=namespace))["items"]:
            if time.monotonic() > deadline:
                raise BenchError(f"{len(left)} deleted machines were still there in {namespace}")
            await asyncio.sleep(0.5)
