"""Requests to a server in the guest: through a preview, and through `ssh -L`, in turns."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
from clusters import BenchError, progress
from figures import Report, measured, percentile
from guest_machines import Inside, Machine

__all__ = ["measure"]

_RATE, _P99 = 0.7, 1.5
_CONNECTIONS = 8
_PORT = 8080
_SERVER = (
    "mkdir -p /srv/site; head -c 2000 /dev/zero | tr '\\0' x >/srv/site/index.html; "
    f"busybox httpd -p 127.0.0.1:{_PORT} -h /srv/site"
)


async def measure(report: Report, world: Inside, *, repeats: int, requests: int) -> None:
    """Requests a second, and how long they take."""
    async with world.machines() as [machine]:
        await _measure(report, world, machine, repeats=repeats, requests=requests)


async def _measure(
    report: Report, world: Inside, machine: Machine, *, repeats: int, requests: int
) -> None:
    await world.ended(await world.begin(machine.id, "sh", "-c", _SERVER))
    preview = await world.call(
        "POST", f"{machine.path}/previews", {"port": _PORT, "visibility": "public"}
    )
    ours: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    async with _forwarded(world, machine) as port:
        # Not everywhere does the C library know names below `localhost`.
        named = urlsplit(preview["url"])
        through = f"http://127.0.0.1:{named.port}/"
        arms = ((ours, through, named.netloc), (bare, f"http://127.0.0.1:{port}/", "localhost"))
        for _, url, host in arms:
            await _ask(url, host, count=_CONNECTIONS * 4)
        for number in range(1, repeats + 1):
            for results, url, host in arms if number % 2 else reversed(arms):
                results.append(await _ask(url, host, count=requests))
            progress(
                f"previews {number}/{repeats}: {ours[-1][0]:.0f}/s, ssh -L {bare[-1][0]:.0f}/s"
            )
    report.raw["previews"] = {"preview": ours, "ssh -L": bare}
    pairs = list(zip(ours, bare, strict=True))
    rates = [one[0] / other[0] for one, other in pairs]
    report.add(measured("preview: requests/s over ssh -L", rates, "x", least=_RATE))
    p99 = [one[1] / other[1] for one, other in pairs]
    report.add(measured("preview: p99 over ssh -L", p99, "x", limit=_P99))
    report.add(measured("preview: requests/s", [one[0] for one in ours], "/s"))
    report.raw["previews median"] = statistics.median(rates)


@asynccontextmanager
async def _forwarded(world: Inside, machine: Machine) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *world.ssh(machine, "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{_PORT}")
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            if time.monotonic() > deadline:
                raise BenchError("ssh -L does not listen")
            await asyncio.sleep(0.1)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def _ask(url: str, host: str, *, count: int) -> tuple[float, float]:
    """Requests a second, and the p99 in seconds."""
    times: list[float] = []
    numbers = itertools.count()
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
    headers = {"Host": host}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def worker() -> None:
            while next(numbers) < count:
                begun = time.perf_counter()
                async with session.get(url) as response:
                    body = await response.read()
                if response.status != 200 or len(body) != 2000:
                    raise BenchError(f"{url}: {response.status}, {len(body)} bytes")
                times.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(worker() for _ in range(_CONNECTIONS)))
        wall = time.perf_counter() - begun
    return count / wall, percentile(times, 99)
