"""Many open status streams: what each one costs in memory, and how late a change arrives in it.

Each repeat has a new gateway, which has answered a GET of each machine before its memory is first read: what it keeps
for a machine is not counted for its stream. Then each machine changes its phase once, at a fixed rate.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import listeners
from asker import Job, ask
from clusters import BenchError, progress
from figures import Report, measured, percentile
from gateways import ORG, Served, administrator, serve, serve_anew, status
from plane import Process
from rounds import Planes

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import KubeError
from machine_operator.kube.resources import MACHINES

__all__ = ["measure"]

_DELAY, _MEMORY = 150.0, 40.0
_RATE = 100.0
_PHASES = ("starting", "placement_pending")
"""Neither ends a stream of a machine that is to run."""

_SETTLE = 2.0
_LISTEN_LIMIT = 60.0


def measure(report: Report, planes: Planes, *, repeats: int, count: int) -> None:
    """`count` machines with a stream each."""
    heard: list[listeners.Heard] = []
    memory: dict[str, list[float]] = {"open": [], "changed": []}
    with planes.new("streams") as plane:
        served = serve(plane, machines=count, phase="accepted")
        for number in range(repeats):
            served = serve_anew(served) if number else served
            sizes, taken = _repeat(served, number)
            heard.append(taken)
            for name, size in sizes.items():
                memory[name].append(size)
            told = f"p99 {percentile(taken.delays, 99):.1f} ms" if taken.delays else "nothing came"
            progress(
                f"streams {number + 1}/{repeats}: {told}, lost {taken.lost}, ended {taken.ended}, "
                f"{memory['open'][-1]:.1f} KB each, {memory['changed'][-1]:.1f} after the change"
            )
    _report(report, heard, memory, count=count)


def _report(
    report: Report, heard: list[listeners.Heard], memory: dict[str, list[float]], *, count: int
) -> None:
    report.raw["streams"] = {"heard": [asdict(taken) for taken in heard], "memory": memory}
    if any(not taken.delays for taken in heard):
        raise BenchError("a change arrived in no stream at all")
    worst = [percentile(taken.delays, 99) for taken in heard]
    name = f"{count} status streams: delivery p99 after the watch"
    report.add(measured(name, worst, "ms", limit=_DELAY))
    report.add(measured("  p50", [percentile(taken.delays, 50) for taken in heard], "ms"))
    lost = [float(taken.lost + taken.ended) for taken in heard]
    report.add(measured("  changes lost, streams ended", lost, "", limit=0, least=0))
    report.add(measured("  memory per stream", memory["open"], "KB", limit=_MEMORY))
    report.add(measured("  memory per stream after the change", memory["changed"], "KB"))


def _repeat(served: Served, number: int) -> tuple[dict[str, float], listeners.Heard]:
    """Memory of a stream in KB when all are open and after the changes, and what was heard."""
    plane, count = served.plane, len(served.ids)
    ask(Job(served.port, served.targets, served.headers, max(500, count)))
    time.sleep(_SETTLE)
    before = served.process.resident_mib()
    process, result = _listen(served, number)
    time.sleep(_SETTLE)
    sizes = {"open": served.process.resident_mib()}
    asyncio.run(_change_all(served, number))
    heard = _result(process, result)
    sizes["changed"] = served.process.resident_mib()
    plane.forget(process)
    # VmRSS is in KiB; what is asked for is in KB.
    return {n: 1.024 * 1024 * (size - before) / count for n, size in sizes.items()}, heard


def _listen(served: Served, number: int) -> tuple[Process, Path]:
    """Start the client; returns when all its streams are open."""
    plane = served.plane
    files = {name: plane.paths.data / f"listeners-{number}.{name}" for name in ("job", "up", "out")}
    job = listeners.Job(
        port=served.port,
        headers=served.headers,
        ids=served.ids,
        kubeconfig=plane.kubeconfig("admin"),
        namespace=ORG,
        ready=str(files["up"]),
        result=str(files["out"]),
        limit=len(served.ids) / _RATE + _LISTEN_LIMIT,
    )
    files["job"].write_text(json.dumps(asdict(job)))
    command = [sys.executable, listeners.__file__, str(files["job"])]
    process = plane.start("listeners", command, ready=files["up"], limit=120.0)
    return process, files["out"]


def _result(process: Process, result: Path) -> listeners.Heard:
    deadline = time.monotonic() + 2 * _LISTEN_LIMIT
    while not result.exists():
        process.popen.poll()
        if process.popen.returncode not in (None, 0):
            process.check()
        if time.monotonic() > deadline:
            raise BenchError(f"the listeners were not done after {2 * _LISTEN_LIMIT:.0f} s")
        time.sleep(0.05)
    return listeners.Heard(**json.loads(result.read_text()))


async def _change_all(served: Served, number: int) -> None:
    """Report a new phase of each machine, each when it is due."""
    changed = status(_PHASES[number % 2], transitions=number + 2)
    async with administrator(served.plane) as client, asyncio.TaskGroup() as group:
        begun = time.monotonic()
        for position, name in enumerate(served.ids):
            await asyncio.sleep(max(0.0, begun + position / _RATE - time.monotonic()))
            group.create_task(_change(client, name, changed))


async def _change(client: KubeClient, name: str, changed: dict[str, object]) -> None:
    try:
        await client.apply(
            MACHINES,
            name,
            {"status": changed},
            manager="bench",
            namespace=ORG,
            subresource="status",
        )
    except KubeError as error:
        raise BenchError(f"the phase of {name} could not be written: {error}") from error
