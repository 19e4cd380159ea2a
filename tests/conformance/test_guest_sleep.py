"""Autosleep counts from the last use of a machine, on the second; and who comes while it sleeps wakes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import pytest

from tests.cluster.support import Cluster, Object
from tests.conformance.support import Rest

pytestmark = pytest.mark.cluster

IDLE = timedelta(seconds=15)
_SIZES = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1, "autosleep": "15s"}
_ENDED = ("succeeded", "failed", "cancelled", "expired")


@asynccontextmanager
async def machine(env: dict[str, str]) -> AsyncIterator[tuple[Rest, str]]:
    """A machine that sleeps soon."""
    async with Rest.open(env["DEDALUS_BASE_URL"], env["DEDALUS_API_KEY"]) as api:
        made = await api.call("POST", "/v1/machines", _SIZES)
        machine_id = made.body["machine_id"]
        try:
            await api.eventually(machine_id, "running")
            yield api, machine_id
        finally:
            await api.call("DELETE", f"/v1/machines/{machine_id}")


async def run(api: Rest, machine_id: str, program: str) -> Object:
    """An execution, once it has ended."""
    path = f"/v1/machines/{machine_id}/executions"
    answer = await api.call("POST", path, {"command": ["/bin/sh", "-c", program]})
    assert answer.status == 200, answer
    for _ in range(180):
        seen: Object = (await api.call("GET", f"{path}/{answer.body['execution_id']}")).body
        if seen["status"] in _ENDED:
            return seen
        await asyncio.sleep(0.5)  # twenty of them stay below what one organisation may ask
    raise AssertionError(f"it does not end: {seen}")


async def asleep_since(api: Rest, machine_id: str, cluster: Cluster) -> tuple[datetime, Object]:
    """When the sleep was asked for, and the machine."""
    await api.eventually(machine_id, "sleeping")
    [found] = [
        item
        for item in cluster.items("machines", namespace="default")
        if item["metadata"]["name"] == machine_id
    ]
    return datetime.fromisoformat(found["status"]["power_request"]["at"]), found


def test_it_sleeps_when_the_last_execution_is_that_long_ago_whatever_runs_in_the_background(
    real_cluster: Cluster, real_env: dict[str, str]
) -> None:
    async def story() -> None:
        async with machine(real_env) as (api, machine_id):
            # Longer than autosleep: a running execution keeps it awake; a process that it leaves behind does not.
            began = time.monotonic()
            program = "sleep 600 >/dev/null 2>&1 & sleep 20; echo done"
            seen = await run(api, machine_id, program)
            assert seen["status"] == "succeeded", seen
            assert time.monotonic() - began >= 20
            ended = datetime.fromisoformat(seen["completed_at"])
            at, found = await asleep_since(api, machine_id, real_cluster)
            assert found["status"]["power_request"]["by"] == "autosleep"
            late = at - (ended + IDLE)
            print(f"asleep {late.total_seconds():.2f} s after its time")
            assert timedelta(seconds=-0.5) <= late <= timedelta(seconds=2), late

    asyncio.run(story())


def test_twenty_knocks_at_once_make_one_wake(
    real_cluster: Cluster, real_env: dict[str, str]
) -> None:
    async def story() -> None:
        async with machine(real_env) as (api, machine_id):
            await api.call("POST", f"/v1/machines/{machine_id}/sleep")
            await api.eventually(machine_id, "sleeping")
            _, before = await asleep_since(api, machine_id, real_cluster)
            seen = await asyncio.gather(
                *(run(api, machine_id, f"echo {number}") for number in range(20))
            )
            assert {one["status"] for one in seen} == {"succeeded"}
            [found] = [
                item
                for item in real_cluster.items("machines", namespace="default")
                if item["metadata"]["name"] == machine_id
            ]
            sequence = found["status"]["power_request"]["sequence"]
            assert sequence == before["status"]["power_request"]["sequence"] + 1
            woken = found["status"]["wake_count"] - before["status"].get("wake_count", 0)
            assert woken == 1

    asyncio.run(story())
