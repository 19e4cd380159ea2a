"""How long a key takes to come back: a terminal over its WebSocket beside a pty over plain SSH, in turns."""

from __future__ import annotations

import asyncio
import base64
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import asyncssh
from clusters import BenchError, progress
from figures import Report, measured
from guest_machines import Inside, Machine

__all__ = ["measure", "open_terminal"]

_ABOVE_MS = 5.0
_BLOCK = 20
_LIMIT = 30.0
_MOMENT = 2.0
"""Seconds."""
# Not the shell's own prompt, whose line editor would take the guest's time: what echoes is the terminal itself.
_COMMAND = "exec cat >/dev/null"


async def measure(report: Report, world: Inside, *, repeats: int, keys: int) -> None:
    """Both arms at once open, and keys typed into them in turns."""
    async with world.machines() as [machine]:
        await _measure(report, world, machine, repeats=repeats, keys=keys)


async def _measure(
    report: Report, world: Inside, machine: Machine, *, repeats: int, keys: int
) -> None:
    ours: list[list[float]] = []
    bare: list[list[float]] = []
    async with (
        open_terminal(world, machine.id) as socket,
        world.straight(machine) as connection,
        connection.create_process(term_type="xterm", term_size=(80, 24), encoding=None) as process,
    ):
        through, plain = _Through(socket), _Plain(process)
        for arm in (through, plain):
            await _quiet(arm.read)
            await arm.type(f"{_COMMAND}\n".encode())
            await _quiet(arm.read)
            await _type(arm.type, arm.read, count=_BLOCK)
        for number in range(1, repeats + 1):
            ours.append([])
            bare.append([])
            for _ in range(0, keys, _BLOCK):
                ours[-1] += await _type(through.type, through.read, count=_BLOCK)
                bare[-1] += await _type(plain.type, plain.read, count=_BLOCK)
            progress(
                f"terminals {number}/{repeats}: {1000 * statistics.median(ours[-1]):.1f} ms, "
                f"ssh {1000 * statistics.median(bare[-1]):.1f} ms"
            )
        process.kill()
    report.raw["terminals"] = {"terminal": ours, "ssh": bare}
    above = [
        1000 * (statistics.median(one) - statistics.median(other))
        for one, other in zip(ours, bare, strict=True)
    ]
    report.add(measured("echo of a key, p50, above plain ssh", above, "ms", limit=_ABOVE_MS))
    values = [1000 * statistics.median(other) for other in bare]
    report.add(measured("echo of a key over plain ssh, p50", values, "ms"))


async def _quiet(read: Callable[[], Awaitable[bytes]]) -> None:
    """Read until nothing has come for a moment: keys that come before a program reads them may be lost."""
    while True:
        reading = asyncio.ensure_future(read())
        done, _ = await asyncio.wait([reading], timeout=_MOMENT)
        if not done:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            return


def open_terminal(world: Inside, machine_id: str) -> Any:
    """The WebSocket of a new terminal; to be entered."""
    return _Opened(world, machine_id)


class _Opened:
    def __init__(self, world: Inside, machine_id: str) -> None:
        self._world = world
        self._machine_id = machine_id

    async def __aenter__(self) -> aiohttp.ClientWebSocketResponse:
        path = f"/v1/machines/{self._machine_id}/terminals"
        made = await self._world.call("POST", path, {"width": 80, "height": 24})
        one = f"{path}/{made['terminal_id']}"
        deadline = time.monotonic() + _LIMIT
        while (seen := await self._world.call("GET", one))["status"] != "ready":
            if time.monotonic() > deadline:
                raise BenchError(f"{one} is not ready: {seen}")
            await asyncio.sleep(0.1)
        self._socket = await self._world.session.ws_connect(seen["stream_url"])
        return self._socket

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()


class _Through:
    """The arm over the gateway."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket

    async def type(self, data: bytes) -> None:
        message = {"type": "input", "data": base64.b64encode(data).decode()}
        await self._socket.send_str(json.dumps(message))

    async def read(self) -> bytes:
        message = await self._socket.receive_json()
        if message["type"] != "output":
            raise BenchError(f"the terminal says {message}")
        return base64.b64decode(message["data"])


class _Plain:
    """The arm over SSH."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._process = process

    async def type(self, data: bytes) -> None:
        self._process.stdin.write(data)

    async def read(self) -> bytes:
        return await self._process.stdout.read(65536)


async def _type(
    type: Callable[[bytes], Awaitable[None]], read: Callable[[], Awaitable[bytes]], *, count: int
) -> list[float]:
    """Seconds until each key was echoed. No shell's prompt has these characters, and each is another one."""
    times = []
    for number in range(count):
        key = chr(0x3B1 + number % 24).encode()  # Greek letters
        begun = time.perf_counter()
        await type(key)
        seen = b""
        async with asyncio.timeout(_LIMIT):
            while key not in seen:
                seen += await read()
        times.append(time.perf_counter() - begun)
    return times
