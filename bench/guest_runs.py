"""Executions beside commands over an open SSH connection to the same guest."""

from __future__ import annotations

import asyncio
import statistics
import time

from clusters import BenchError, processor_seconds, progress
from figures import Report, measured, percentile, single
from guest_machines import Inside, Machine

__all__ = ["measure", "measure_crowd", "measure_throughput"]

_P50, _P99 = 2.0, 3.0
_THROUGHPUT = 0.6
_BLOCK = 10
_LANES = 8
"""Executions at a time over many machines: their guests' processors are emulated by those of the gateway."""


async def measure(report: Report, world: Inside, *, repeats: int, count: int) -> None:
    """The time of `true`: POST until it is told to have succeeded, over `run('true')`; in turns."""
    async with world.machines() as [machine]:
        await _measure(report, world, machine, repeats=repeats, count=count)


async def _measure(
    report: Report, world: Inside, machine: Machine, *, repeats: int, count: int
) -> None:
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    async with world.straight(machine) as connection:
        for _ in range(_BLOCK):  # both ways are warm, and the guest's translation cache too
            await _execution(world, machine)
            await connection.run("true", check=True)
        for number in range(1, repeats + 1):
            ours.append([])
            bare.append([])
            for _ in range(0, count, _BLOCK):
                for _ in range(_BLOCK):
                    ours[-1].append(await _execution(world, machine))
                for _ in range(_BLOCK):
                    begun = time.perf_counter()
                    await connection.run("true", check=True)
                    bare[-1].append(time.perf_counter() - begun)
            progress(
                f"runs {number}/{repeats}: {1000 * statistics.median(ours[-1]):.0f} ms, "
                f"bare {1000 * statistics.median(bare[-1]):.0f} ms"
            )
    report.raw["runs"] = {"execution": ours, "bare": bare}
    for name, percent, limit in (("p50", 50, _P50), ("p99", 99, _P99)):
        ratios = [
            percentile(one, percent) / percentile(other, percent)
            for one, other in zip(ours, bare, strict=True)
        ]
        report.add(
            measured(f"execution of true, {name}, over run('true')", ratios, "x", limit=limit)
        )
    for name, series in (("execution of true", ours), ("run('true')", bare)):
        values = [1000 * statistics.median(one) for one in series]
        report.add(measured(f"{name}, p50", values, "ms"))


async def _execution(world: Inside, machine: Machine) -> float:
    begun = time.perf_counter()
    await world.ended(await world.begin(machine.id, "true"))
    return time.perf_counter() - begun


async def measure_crowd(report: Report, world: Inside, *, together: int, machines: int) -> None:
    """Many at once on one machine; and on many machines, by what they cost the gateway."""
    async with world.machines() as crowd:
        wall = await _at_once(world, crowd, each=together)
    report.add(single(f"{together} executions at once on one machine: errors", 0, "", limit=0))
    report.add(single(f"{together} executions at once on one machine: until all ended", wall, "s"))
    progress(f"crowd: {together} at once took {wall:.1f} s; now {machines} machines")
    async with world.machines(machines) as crowd:
        await _at_once(world, crowd, each=1, most=_LANES)  # their connections
        pid = world.cluster.processes()["gateway"]
        before = processor_seconds(pid)
        each = 20
        wall = await _at_once(world, crowd, each=each, most=_LANES)
        used, number = processor_seconds(pid) - before, each * len(crowd)
    report.raw["crowd"] = {"machines": len(crowd), "executions": number, "s": wall, "cpu": used}
    report.add(single("executions a second for each processor of the gateway", number / used, "/s"))
    report.add(single(f"executions a second over {len(crowd)} machines", number / wall, "/s"))


async def _at_once(
    world: Inside,
    machines: list[Machine],
    *,
    each: int,
    most: int = 1000,
    look: float = 0.1,
) -> float:
    """Seconds until that many on each machine have succeeded, `most` at a time; any other end is an error."""
    room = asyncio.Semaphore(most)

    async def one(machine: Machine, number: int) -> None:
        async with room:
            path = await world.begin(machine.id, "echo", f"number {number}")
            await world.ended(path, look=look)
            output = await world.call("GET", f"{path}/output")
        if output.get("stdout") != f"number {number}\n":
            raise BenchError(f"{path} said {output}")

    begun = time.perf_counter()
    await asyncio.gather(*(one(machine, n) for n in range(each) for machine in machines))
    return time.perf_counter() - begun


async def measure_throughput(report: Report, world: Inside, *, repeats: int, mib: int) -> None:
    """Output of many MiB, all of which is kept, over the system's ssh."""
    async with world.machines() as [machine]:
        await _measure_throughput(report, world, machine, repeats=repeats, mib=mib)


async def _measure_throughput(
    report: Report, world: Inside, machine: Machine, *, repeats: int, mib: int
) -> None:
    # The same bytes for both, which do not compress; made beforehand, since making them takes the guest's time.
    size = mib * 2**20
    make = f"head -c {size} /dev/urandom | base64 -w 0 | head -c {size} >/root/noise"
    await world.ended(await world.begin(machine.id, "sh", "-c", make))
    rates: list[tuple[float, float]] = []
    for number in range(repeats + 1):
        begun = time.perf_counter()
        execution = await world.begin(machine.id, "cat", "/root/noise")
        seen = await world.ended(execution, look=0.05)
        ours = time.perf_counter() - begun
        if seen.get("stdout_bytes") != size or seen.get("stdout_truncated"):
            raise BenchError(f"not all was kept: {seen}")
        begun = time.perf_counter()
        plain = await asyncio.create_subprocess_exec(
            *world.ssh(machine), "cat /root/noise", stdout=asyncio.subprocess.PIPE
        )
        said, _ = await plain.communicate()
        bare = time.perf_counter() - begun
        if len(said) != size:
            raise BenchError(f"ssh brought {len(said)} bytes")
        if number:  # the first one warms the guest
            rates.append((mib / ours, mib / bare))
            progress(f"throughput {number}/{repeats}: {mib / ours:.1f} MiB/s, ssh {mib / bare:.1f}")
    report.raw["throughput"] = rates
    ratios = [ours / bare for ours, bare in rates]
    report.add(measured("stdout throughput over plain ssh", ratios, "x", least=_THROUGHPUT))
    report.add(measured("stdout throughput", [ours for ours, _ in rates], "MiB/s"))
