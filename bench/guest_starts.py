"""Until the first output: a new machine and one that sleeps, over the guest's own bare boot and an SSH login."""

from __future__ import annotations

import asyncio
import time

from boots import BootBench, bare_boot, template
from clusters import BenchError, progress
from figures import Report, measured
from guest_machines import SPEC, Inside
from timeline import watching

__all__ = ["measure"]

_RATIO = 1.15


async def measure(report: Report, world: Inside, *, repeats: int) -> None:
    """All three in turns."""
    directory = world.directory / "starts"
    directory.mkdir()
    key = directory / "id_ed25519"
    keygen = await asyncio.create_subprocess_exec(
        "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)
    )
    await keygen.wait()
    times: dict[str, list[float]] = {"bare": [], "create": [], "wake": []}
    await _alone(world)
    async with watching(world.cluster) as timeline:
        bench = BootBench(world.cluster, timeline, directory=directory, key=key)
        plan = await template(bench)
        for number in range(1, repeats + 1):
            await asyncio.to_thread(world.cluster.wait_quiet)
            times["bare"].append((await bare_boot(bench, plan, number=number))["ssh"])
            await asyncio.to_thread(world.cluster.wait_quiet)
            await _create_and_wake(world, times)
            told = ", ".join(f"{name} {values[-1]:.2f} s" for name, values in times.items())
            progress(f"starts {number}/{repeats}: {told}")
    report.raw["starts"] = times
    for name, words in (("create", "create"), ("wake", "wake")):
        ratios = [one / other for one, other in zip(times[name], times["bare"], strict=True)]
        report.add(
            measured(
                f"{words} until the first output, over the bare boot", ratios, "x", limit=_RATIO
            )
        )
        report.add(measured(f"{words} until the first output", times[name], "s"))
    report.add(measured("bare boot until ssh answered", times["bare"], "s"))


async def _alone(world: Inside) -> None:
    """Wait for the guests of the part before: a machine is destroyed some moments before its QEMU has ended."""
    for _ in range(300):
        if not world.cluster.guests():
            return
        await asyncio.sleep(0.2)
    raise BenchError("guests of another part still run")


async def _create_and_wake(world: Inside, times: dict[str, list[float]]) -> None:
    begun = time.perf_counter()
    made = await world.call("POST", "/v1/machines", SPEC)
    machine_id = made["machine_id"]
    await _first_output(world, machine_id)
    times["create"].append(time.perf_counter() - begun)
    await world.call("POST", f"/v1/machines/{machine_id}/sleep")
    await _phase(world, machine_id, "sleeping")
    await asyncio.to_thread(world.cluster.wait_quiet)
    begun = time.perf_counter()
    await _first_output(world, machine_id)
    times["wake"].append(time.perf_counter() - begun)
    await world.call("DELETE", f"/v1/machines/{machine_id}")


async def _first_output(world: Inside, machine_id: str) -> None:
    path = await world.begin(machine_id, "echo", "hello")
    await world.ended(path, look=0.02)
    output = await world.call("GET", f"{path}/output")
    if output.get("stdout") != "hello\n":
        raise BenchError(f"{path} said {output}")


async def _phase(world: Inside, machine_id: str, phase: str) -> None:
    for _ in range(600):
        if (await world.call("GET", f"/v1/machines/{machine_id}"))["phase"] == phase:
            return
        await asyncio.sleep(0.1)
    raise BenchError(f"{machine_id} is not {phase}")
