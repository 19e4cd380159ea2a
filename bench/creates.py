"""What the gateway adds to a create: one over REST and one at the API server, in turns, one after the other.

Both write the same object: the spec with the gateway's defaults in it, and the hash of the request as an annotation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import aiohttp
from clusters import BenchError, progress
from figures import Report, measured, percentile
from gateways import ORG, Served, administrator, serve
from rounds import Planes

from machine_operator.gateway.changes import REQUEST_HASH_ANNOTATION
from machine_operator.gateway.machine_ids import new_name
from machine_operator.kube.client import KubeClient
from machine_operator.kube.resources import MACHINES

__all__ = ["measure"]

_LIMIT = 10.0
_WARM_UP = 20

_REQUEST = {"vcpu": 1, "memory_mib": 2048, "storage_gib": 10, "autosleep_seconds": 1800}

Times = dict[str, list[float]]
Create = Callable[[], Awaitable[object]]


def measure(report: Report, planes: Planes, *, repeats: int, count: int) -> None:
    """`count` creates of each sort in each repeat."""
    with planes.new("creates") as plane:
        rounds = asyncio.run(_rounds(serve(plane, machines=1), repeats=repeats, count=count))
    report.raw["create"] = [
        {name: {p: percentile(values, p) for p in (50, 90, 99)} for name, values in times.items()}
        for times in rounds
    ]
    medians = {name: [percentile(times[name], 50) for times in rounds] for name in rounds[0]}
    more = [g - b for g, b in zip(medians["gateway"], medians["bare"], strict=True)]
    report.add(measured("create: p50 above the bare create", more, "ms", limit=_LIMIT))
    for name, values in medians.items():
        report.add(measured(f"  {name}", values, "ms"))


async def _rounds(served: Served, *, repeats: int, count: int) -> list[Times]:
    rounds: list[Times] = []
    async with administrator(served.plane) as client, _session(served) as session:
        spec, annotations = await _stored(client, session)
        arms: dict[str, Create] = {
            "gateway": lambda: _over_rest(session),
            "bare": lambda: _bare(client, spec, annotations),
        }
        await _turns(arms, count=_WARM_UP)
        for number in range(repeats):
            rounds.append(await _turns(arms, count=count))
            told = ", ".join(f"{n} {percentile(v, 50):.2f} ms" for n, v in rounds[-1].items())
            progress(f"create {number + 1}/{repeats}: {told}")
    return rounds


async def _turns(arms: dict[str, Create], *, count: int) -> Times:
    times: Times = {name: [] for name in arms}
    for number in range(count):
        for name in [*arms] if number % 2 else [*reversed(arms)]:
            begun = time.perf_counter()
            await arms[name]()
            times[name].append(1000 * (time.perf_counter() - begun))
    return times


async def _over_rest(session: aiohttp.ClientSession) -> str:
    headers = {"Idempotency-Key": str(uuid4())}
    async with session.post("/v1/machines", json=_REQUEST, headers=headers) as answer:
        body = await answer.json()
        if answer.status != 202:
            raise BenchError(f"a create was answered with {answer.status}: {body}")
    return str(body["machine_id"])


async def _bare(client: KubeClient, spec: dict[str, object], annotations: dict[str, str]) -> None:
    metadata = {"name": new_name(ORG, None), "annotations": annotations}
    await client.create(MACHINES, {"metadata": metadata, "spec": spec}, namespace=ORG)


async def _stored(
    client: KubeClient, session: aiohttp.ClientSession
) -> tuple[dict[str, object], dict[str, str]]:
    """The spec and the annotations of what a create over REST makes."""
    made = await client.get(MACHINES, await _over_rest(session), namespace=ORG)
    annotations = made["metadata"]["annotations"]
    if REQUEST_HASH_ANNOTATION not in annotations:
        raise BenchError("a machine that was made with an Idempotency-Key has no hash of it")
    # What the API server fills in by itself it shall fill in here as well.
    spec = {name: value for name, value in made["spec"].items() if name in _WRITTEN}
    return spec, annotations


_WRITTEN = ("vcpu", "memory_mib", "storage_gib", "autosleep")


@asynccontextmanager
async def _session(served: Served) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(served.url, headers=served.headers) as session:
        yield session
