"""Two operators, and the leader is killed: how long until the other one works on a machine made at that moment."""

from __future__ import annotations

import asyncio
import signal
import time

from arms import machines, start_operator
from audit import AuditLog
from clusters import BenchError, progress
from figures import Report, measured
from load import offer
from plane import Plane, Process

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.resources import LEASES

__all__ = ["measure"]

_LIMIT = 20.0
_GIVE_UP = 90.0
_LEADER_LIMIT = 60.0
_SETTLE = 3.0

_PORTS = ("controller", "standby")
_LEASES = "machine-operator"


def measure(report: Report, plane: Plane, *, repeats: int) -> None:
    """Kill the leader `repeats` times; the killed one comes back as the standby."""
    plane.forget(plane.process("controller"), grace=20.0)
    running: dict[str, Process] = {}
    for identity in _PORTS:
        running[identity] = _start(plane, identity)
    first: list[float] = []
    ready: list[float] = []
    for number in range(repeats):
        leader = asyncio.run(_leader(plane, list(running)))
        time.sleep(_SETTLE)
        log, namespace = AuditLog(plane.audit), f"failover-{number}"
        running[leader].record.signal(signal.SIGKILL)
        at, begun = time.time(), time.monotonic()
        asyncio.run(_until_ready(plane, namespace))
        ready.append(time.monotonic() - begun)
        plane.forget(running.pop(leader), grace=0)
        first.append(min(r.at for r in log.writes(namespace=namespace)) - at)
        progress(f"failover {number + 1}/{repeats}: {first[-1]:.1f} s, Ready {ready[-1]:.1f} s")
        running[leader] = _start(plane, leader)
    for process in running.values():
        plane.forget(process)
    report.raw["failover"] = {"first write": first, "ready": ready}
    name = "kill -9 of the leader until the standby serves a new machine"
    report.add(measured(name, first, "s", limit=_LIMIT))
    report.add(measured("  until that machine is Ready", ready, "s"))


def _start(plane: Plane, identity: str) -> Process:
    options = ("--leader-elect", f"--identity={identity}", f"--lease-namespace={_LEASES}")
    # It says that it is ready once its caches are complete, whether it leads or not.
    return start_operator(plane, *options, name=identity, port=identity)


async def _leader(plane: Plane, identities: list[str]) -> str:
    """Whose the lease is, once it is one of theirs."""
    deadline = time.monotonic() + _LEADER_LIMIT
    async with KubeClient(await connect(plane.kubeconfig("admin"))) as client:
        while True:
            listed = await client.list(LEASES, namespace=_LEASES)
            holders = [str(item["spec"].get("holderIdentity")) for item in listed["items"]]
            for holder in holders:
                if holder in identities:
                    return holder
            if time.monotonic() > deadline:
                raise BenchError(f"of {identities} nobody leads; the leases are held by {holders}")
            await asyncio.sleep(0.5)


async def _until_ready(plane: Plane, namespace: str) -> None:
    async with KubeClient(await connect(plane.kubeconfig("admin"))) as client:
        taken = await offer(client, machines(1), namespace=namespace, rate=1.0, limit=_GIVE_UP)
    if taken.lost:
        raise BenchError(f"{_GIVE_UP:.0f} s after the leader's end nobody had served a machine")
