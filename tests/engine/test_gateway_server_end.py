"""How the HTTP server begins and ends, and what it makes of paths."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from starlette.applications import Starlette

from machine_operator.gateway.serving.protocol import ConnectionLimits
from machine_operator.gateway.serving.server import serve
from tests.support.raw import PATIENCE, Line, eventually, on_uvloop, says
from tests.support.served import Served, serving

ROOT = Path(__file__).parents[2]
GET = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass(slots=True)
class Server:
    """A server in a process of its own."""

    process: asyncio.subprocess.Process
    port: int

    async def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def refuses(self) -> bool:
        try:
            line = await Line.open(self.port)
        except OSError:
            return True
        await line.close()
        return False

    async def end(self) -> tuple[int, str, str]:
        out, err = await asyncio.wait_for(self.process.communicate(), PATIENCE)
        assert self.process.returncode is not None
        return self.process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def process(*, drain_seconds: float) -> AsyncIterator[Server]:
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.served", "{}", str(drain_seconds)),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert started.stdout is not None
    try:
        address = await asyncio.wait_for(started.stdout.readline(), 30)
        yield Server(started, int(address.rpartition(b":")[2]))
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@on_uvloop
async def test_a_signal_ends_streams_and_lets_nobody_in(number: int) -> None:
    async with process(drain_seconds=30) as server:
        stream, idle = await Line.open(server.port), await Line.open(server.port)
        await stream.send(GET % b"stream")
        await stream.until(b"first\n\n")
        began = time.monotonic()
        await server.signal(number)
        assert (await stream.rest()).endswith(b"data: last\n\n\r\n0\r\n\r\n")
        assert await idle.rest() == b""
        assert await server.end() == (0, "ended\n", "")
        assert time.monotonic() - began < 3
        await stream.close()
        await idle.close()


@on_uvloop
async def test_a_request_that_takes_too_long_is_cut_without_a_traceback() -> None:
    async with process(drain_seconds=0.3) as server:
        line = await Line.open(server.port)
        await line.send(GET % b"wait")
        other = await Line.open(server.port)
        await other.send(GET % b"ok")
        await other.until(b"fine")  # so the first request has been seen as well
        began = time.monotonic()
        await server.signal(signal.SIGTERM)
        assert await line.rest() == b""
        code, out, err = await server.end()
        assert 0.25 < time.monotonic() - began < 3
        assert (code, out) == (0, "ended\n")
        assert "1 requests were not done after 0.3 s: their connections are cut" in err
        assert "Traceback" not in err
        await line.close()
        await other.close()


@on_uvloop
async def test_a_second_signal_ends_it_at_once() -> None:
    async with process(drain_seconds=60) as server:
        line = await Line.open(server.port)
        await line.send(GET % b"wait")
        other = await Line.open(server.port)
        await other.send(GET % b"ok")
        await other.until(b"fine")
        await server.signal(signal.SIGTERM)
        await eventually(server.refuses, "connections are still taken")
        began = time.monotonic()
        await server.signal(signal.SIGTERM)
        code, out, err = await server.end()
        assert time.monotonic() - began < 2
        assert (code, out) == (0, "ended\n")
        assert "when a second signal came" in err
        assert "Traceback" not in err
        await line.close()
        await other.close()


@on_uvloop
async def test_a_request_under_way_is_finished() -> None:
    async with serving() as served:
        line, idle = await Line.open(served.port), await Line.open(served.port)
        await line.send(b"POST /body HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na")
        await eventually(partial(saw, served, "body"), "the request is not seen")
        served.draining.set()
        assert await idle.rest() == b""
        await line.send(b"bc")
        answer = await line.rest()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"\r\nconnection: close\r\n" in answer
        await line.close()
        await idle.close()


async def saw(served: Served, what: str) -> bool:
    return what in served.seen


@on_uvloop
async def test_who_cancels_it_finds_nothing_left() -> None:
    served = Served()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(
            served.app(),
            host="127.0.0.1",
            port=0,
            draining=asyncio.Event(),
            on_listening=address.set_result,
        )
    )
    port = int((await address).rpartition(":")[2])
    line = await Line.open(port)
    await line.send(GET % b"wait")
    await eventually(partial(saw, served, "wait"), "the request is not seen")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await line.rest() == b""
    assert served.gone == ["wait"]
    with pytest.raises(ConnectionRefusedError):
        await Line.open(port)
    await line.close()


@on_uvloop
async def test_an_address_that_is_taken() -> None:
    async with serving() as served:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{served.port}: "):
            await serve(served.app(), host="127.0.0.1", port=served.port, draining=asyncio.Event())


@on_uvloop
async def test_an_application_that_does_not_start() -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        raise ValueError("no")
        yield

    with pytest.raises(RuntimeError, match="the application did not start"):
        await serve(
            Starlette(lifespan=lifespan), host="127.0.0.1", port=0, draining=asyncio.Event()
        )


@on_uvloop
async def test_a_socket_that_is_bound_already() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    served, listening = Served(), asyncio.Event()
    task = asyncio.create_task(
        serve(
            served.app(),
            host="",
            port=0,
            draining=served.draining,
            fd=os.dup(sock.fileno()),
            on_listening=lambda _: listening.set(),
        )
    )
    await asyncio.wait_for(listening.wait(), PATIENCE)
    port = sock.getsockname()[1]
    sock.close()
    assert (await says(port, (GET % b"ok")[:-2] + b"Connection: close\r\n\r\n")).endswith(b"fine")
    served.draining.set()
    await asyncio.wait_for(task, PATIENCE)


@on_uvloop
async def test_garbage_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving(ConnectionLimits(head_seconds=0.2)) as served:
        for _ in range(3):
            await says(served.port, b"garbage\r\n\r\n")
            await says(served.port, b"GET")
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("path", "status", "name"),
    [
        (b"things/dm-1", 200, "dm-1"),
        (b"things/a%2Fb", 200, "a/b"),
        (b"things/a%2fb", 200, "a/b"),
        (b"things/a%252Fb", 200, "a%2Fb"),
        (b"things/%C3%A9%20x", 200, "é x"),
        (b"things/.hidden", 200, ".hidden"),
        (b"things/...", 200, "..."),
        (b"%74hings/a", 200, "a"),
        (b"things/a/b", 404, None),
        (b"things%2Fa", 404, None),
        (b"things/", 404, None),
        (b"things/..", 404, None),
        (b"things/%2e%2E", 404, None),
        (b"things/../things/a", 404, None),
        (b"./things/a", 404, None),
        (b"things/a%00", 400, None),
        (b"things/%0d%0aX:y", 400, None),
        (b"things/%7F", 400, None),
        (b"things/%c2%85", 400, None),
        (b"things/%ff", 400, None),
        (b"things/%c0%ae%c0%ae", 400, None),
        (b"/evil/things", 404, None),
    ],
)
@on_uvloop
async def test_paths(path: bytes, status: int, name: str | None) -> None:
    async with serving() as served:
        answer = await says(served.port, (GET % path)[:-2] + b"Connection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        if name is not None:
            told = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert told == {"name": name, "raw": f"/{path.decode()}"}
