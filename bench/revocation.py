"""How long a revoked key is still accepted: its Secret is deleted while somebody asks again and again."""

from __future__ import annotations

import asyncio
import time

import aiohttp
from clusters import BenchError, progress
from figures import Report, measured
from gateways import Served, administrator, give_key, serve
from rounds import Planes

from machine_operator.gateway.keys import KEYS_NAMESPACE
from machine_operator.kube.client import KubeClient
from machine_operator.kube.resources import SECRETS

__all__ = ["measure"]

_LIMIT = 2.0
_GIVE_UP = 30.0
_PAUSE = 0.005


def measure(report: Report, planes: Planes, *, repeats: int) -> None:
    """Make a key, use it and delete it, `repeats` times."""
    with planes.new("revocation") as plane:
        taken = asyncio.run(_rounds(serve(plane, machines=1), repeats=repeats))
    report.raw["revocation"] = taken
    report.add(measured("revoked key still accepted for", taken["refused"], "s", limit=_LIMIT))
    report.add(measured("  new key not accepted yet for", taken["accepted"], "s"))


async def _rounds(served: Served, *, repeats: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {"accepted": [], "refused": []}
    async with (
        administrator(served.plane) as client,
        aiohttp.ClientSession(served.url) as session,
    ):
        for number in range(repeats):
            accepted, refused = await _round(client, session, served.targets[0])
            taken["accepted"].append(accepted)
            taken["refused"].append(refused)
            progress(f"revocation {number + 1}/{repeats}: {1000 * refused:.1f} ms")
    return taken


async def _round(
    client: KubeClient, session: aiohttp.ClientSession, target: str
) -> tuple[float, float]:
    """Seconds from a key's creation until it is accepted, and from before its deletion until it is refused."""
    key = await give_key(client)
    begun = time.monotonic()
    accepted = await _until(session, target, key.token, status=200) - begun
    begun = time.monotonic()
    refusal = asyncio.create_task(_until(session, target, key.token, status=401))
    await client.delete(SECRETS, key.secret["metadata"]["name"], namespace=KEYS_NAMESPACE)
    return accepted, await refusal - begun


async def _until(session: aiohttp.ClientSession, target: str, token: str, *, status: int) -> float:
    """When the key was first answered with `status`."""
    deadline = time.monotonic() + _GIVE_UP
    headers = {"Authorization": f"Bearer {token}"}
    while True:
        async with session.get(target, headers=headers) as answer:
            await answer.read()
        now = time.monotonic()
        if answer.status == status:
            return now
        if answer.status not in (200, 401):
            raise BenchError(f"a GET was answered with {answer.status}")
        if now > deadline:
            raise BenchError(
                f"a GET was still answered with {answer.status} after {_GIVE_UP:.0f} s"
            )
        await asyncio.sleep(_PAUSE)
