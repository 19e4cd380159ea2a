"""WebSockets through the gateway's server: the handshake, messages, and what a hostile or a dead client can do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from machine_operator.gateway import answers
from machine_operator.gateway.accounting import Accounting
from machine_operator.gateway.problems import Problem
from machine_operator.gateway.serving.protocol import ConnectionLimits
from machine_operator.gateway.serving.server import serve
from machine_operator.gateway.serving.sockets import SocketLimits
from machine_operator.telemetry.gateway import GatewayMetrics
from machine_operator.telemetry.registry import new_registry
from tests.support.raw import PATIENCE, Line, eventually, on_uvloop, says
from tests.support.served import resident

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = (
    b"GET /%s HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"
)
SHORT = SocketLimits(ping_seconds=0.1, stalled_seconds=0.3, close_seconds=0.3)


@dataclass(slots=True)
class Sockets:
    """A server of WebSockets, and what has become of them."""

    port: int = 0
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    codes: list[int] = field(default_factory=list)
    taken: int = 0
    go: asyncio.Event = field(default_factory=asyncio.Event)
    metrics: GatewayMetrics = field(default_factory=lambda: GatewayMetrics(new_registry()))

    def app(self) -> Starlette:
        app = Starlette(
            routes=[
                WebSocketRoute("/echo", self._echo),
                WebSocketRoute("/flood", self._flood),
                WebSocketRoute("/lazy", self._lazy),
                WebSocketRoute("/refused", self._refused),
                WebSocketRoute("/closed", self._closed),
                WebSocketRoute("/broken", self._broken),
                WebSocketRoute("/bad", self._bad),
                WebSocketRoute("/quiet", self._quiet),
                Route("/ok", _fine),
            ],
        )
        answers.install(app)  # type: ignore[arg-type]
        app.add_middleware(Accounting, metrics=self.metrics)
        return app

    async def _echo(self, socket: WebSocket) -> None:
        await socket.accept(subprotocol=next(iter(socket.scope["subprotocols"]), None))
        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    self.codes.append(message["code"])
                    return
                await socket.send({**message, "type": "websocket.send"})
        except WebSocketDisconnect as gone:
            self.codes.append(gone.code)

    async def _flood(self, socket: WebSocket) -> None:
        await socket.accept()
        try:
            while True:
                await socket.send_bytes(bytes(64 * 1024))
                self.taken += 1
        except (OSError, WebSocketDisconnect):
            self.codes.append(0)

    async def _lazy(self, socket: WebSocket) -> None:
        await socket.accept()
        await self.go.wait()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await socket.receive_bytes()
                self.taken += 1

    async def _refused(self, socket: WebSocket) -> None:
        raise Problem(404, "there is nothing")

    async def _closed(self, socket: WebSocket) -> None:
        await socket.close()

    async def _broken(self, socket: WebSocket) -> None:
        await socket.accept()
        raise ValueError("a fault of ours")

    async def _bad(self, socket: WebSocket) -> None:
        raise ValueError("a fault of ours")

    async def _quiet(self, socket: WebSocket) -> None:
        await socket.accept()
        await self.go.wait()


async def _fine(request: Request) -> Response:
    return PlainTextResponse("fine")


@asynccontextmanager
async def serving(
    limits: SocketLimits | None = None, *, drain_seconds: float = 5
) -> AsyncIterator[Sockets]:
    sockets = Sockets()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(
            sockets.app(),
            host="127.0.0.1",
            port=0,
            draining=sockets.draining,
            on_listening=address.set_result,
            drain_seconds=drain_seconds,
            limits=ConnectionLimits(sockets=limits or SocketLimits()),
        )
    )
    try:
        sockets.port = int((await asyncio.wait_for(address, 10)).rpartition(":")[2])
        yield sockets
    finally:
        sockets.draining.set()
        await asyncio.wait_for(task, 20)


def client(served: Sockets, path: str, **options: object) -> connect:
    return connect(f"ws://127.0.0.1:{served.port}/{path}", proxy=None, compression=None, **options)  # type: ignore[arg-type]


async def ended(socket: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012
        async with asyncio.timeout(PATIENCE):
            while True:
                await socket.recv()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


@on_uvloop
async def test_messages_go_both_ways() -> None:
    async with (
        serving() as served,
        client(served, "echo", subprotocols=["one", "two"]) as socket,
    ):
        assert socket.response is not None
        assert socket.response.headers["X-Request-Id"]
        assert socket.subprotocol == "one"
        for message in ("text ✓", b"\0\xff", "", b"", "x" * 200_000):
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send(["in ", "frag", "", "ments"])
        assert await socket.recv() == "in fragments"
        await (await socket.ping())
        await socket.close(4001, "enough")
        await eventually(lambda: _true(served.codes == [4001]), "the application hears the code")


@on_uvloop
async def test_the_upgrade_carries_the_id_of_the_request_and_is_counted() -> None:
    async with serving() as served:
        async with client(served, "echo", additional_headers={"X-Request-Id": "mine"}) as socket:
            assert socket.response is not None
            assert socket.response.headers["X-Request-Id"] == "mine"
            assert served.metrics.under_way == 1
        with pytest.raises(InvalidStatus):
            await client(served, "refused")
        await eventually(lambda: _true(served.metrics.under_way == 0), "requests end")
        assert sorted(code for _, _, code in served.metrics._counters) == [101, 404]


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        ("refused", 404, "there is nothing"),
        ("nowhere", 404, "nothing is served at this path"),
        ("closed", 403, "this WebSocket is not for you"),
        ("bad", 500, "went wrong on our side"),
    ],
)
@on_uvloop
async def test_failures_before_the_upgrade_are_answers(path: str, status: int, detail: str) -> None:
    async with serving() as served:
        with pytest.raises(InvalidStatus) as refused:
            await client(served, path)
    response = refused.value.response
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["connection"] == "close"
    assert detail in response.body.decode()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Version: 13", b"Version: 8"),
        (KEY, b"c2hvcnQ="),
        (KEY, b"no base64"),
        (b"GET", b"POST"),
        (b"HTTP/1.1\r\n", b"HTTP/1.0\r\n"),
        (b"Host: a\r\n", b"Host: a\r\nContent-Length: 1\r\n"),
        (b"Upgrade: WebSocket\r\n", b"Upgrade: websocket, h2c\r\n"),
    ],
)
@on_uvloop
async def test_no_handshake_is_no_websocket(old: bytes, new: bytes) -> None:
    request = (HANDSHAKE % b"echo").replace(old, new)
    assert request != HANDSHAKE % b"echo"
    async with serving() as served:
        answer = await says(served.port, request + b"x")
    assert answer.startswith(b"HTTP/1.1 404 "), answer


@on_uvloop
async def test_an_upgrade_waits_for_its_turn_and_loses_nothing() -> None:
    early = b"\x81\x82\0\0\0\0hi"
    async with serving() as served:
        line = await Line.open(served.port)
        await line.send(b"GET /ok HTTP/1.1\r\nHost: a\r\n\r\n" + HANDSHAKE % b"echo" + early)
        assert (await line.answer()).endswith(b"fine")
        head = await line.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert await line.until(b"hi") == b"\x81\x02hi"
        await line.send(early)
        assert await line.until(b"hi") == b"\x81\x02hi"
        await line.close()
        await eventually(lambda: _true(served.codes == [1006]), "the application hears of the end")


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        (b"\x81\x02hi", 1002),  # not masked
        (b"\x81\x82\0\0\0\0\xff\xff", 1007),
        (b"\x82\xff\0\0\0\0\x7f\0\0\0\0\0\0\0", 1009),
        (b"\x83\x80\0\0\0\0", 1002),  # an opcode that there is not
        (b"\x80\x80\0\0\0\0", 1002),  # a continuation of nothing
        (b"\xc1\x82\0\0\0\0hi", 1002),  # compressed, which was not agreed upon
    ],
)
@on_uvloop
async def test_broken_frames_end_the_connection(frames: bytes, code: int) -> None:
    async with serving() as served:
        line = await Line.open(served.port)
        await line.send(HANDSHAKE % b"echo")
        await line.until(b"\r\n\r\n")
        await line.send(frames)
        rest = await line.rest()
        await line.close()
        assert rest[0] == 0x88
        assert int.from_bytes(rest[2:4]) == code
        await eventually(lambda: _true(served.codes == [code]), "the application hears the code")


@on_uvloop
async def test_messages_longer_than_allowed_end_the_connection_in_fragments_too() -> None:
    async with (
        serving(SocketLimits(message_bytes=1000)) as served,
        client(served, "echo") as socket,
    ):
        await socket.send(["x" * 400, "x" * 400])
        assert len(await socket.recv()) == 800
        with contextlib.suppress(ConnectionClosed):
            await socket.send(["x" * 400, "x" * 400, "x" * 400])
        assert (await ended(socket))[0] == 1009


@on_uvloop
async def test_a_flood_waits_in_the_kernel() -> None:
    """What the application does not take is not read, and all of it comes when it does."""
    frame = b"\x82\x84\0\0\0\0data"
    count = 2_000_000
    async with serving() as served:
        line = await Line.open(served.port)
        await line.send(HANDSHAKE % b"lazy")
        await line.until(b"\r\n\r\n")
        before = resident(os.getpid())
        with pytest.raises(TimeoutError):  # noqa: PT012
            async with asyncio.timeout(1):
                while True:  # until the kernel takes no more
                    line.writer.write(frame * 1000)
                    count -= 1000
                    await line.writer.drain()
        assert count > 0
        assert resident(os.getpid()) - before < 16 * 2**20
        sent = 2_000_000 - count
        served.go.set()
        await eventually(lambda: _true(served.taken == sent), "every message comes")
        await line.close()


@on_uvloop
async def test_who_takes_nothing_is_sent_nothing_and_ends() -> None:
    async with serving(SHORT) as served:
        line = await Line.open(served.port)
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await line.send(HANDSHAKE % b"flood")
        await eventually(lambda: _true(served.codes == [0]), "the application is told")
        assert served.taken < 200  # what the kernel's buffers hold
        await line.close()


@on_uvloop
async def test_pings_are_not_answered_to_who_takes_no_answers() -> None:
    ping = b"\x89\xfd\0\0\0\0" + bytes(125)
    async with serving(SocketLimits(stalled_seconds=0.5)) as served:
        line = await Line.open(served.port)
        line.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await line.send(HANDSHAKE % b"echo")
        before = resident(os.getpid())
        with pytest.raises((OSError, TimeoutError)):  # noqa: PT012
            async with asyncio.timeout(PATIENCE):
                while True:
                    line.writer.write(ping * 500)
                    await line.writer.drain()
        assert resident(os.getpid()) - before < 32 * 2**20
        await eventually(lambda: _true(served.codes == [1006]), "it is ended")
        await line.close()


@on_uvloop
async def test_a_dead_client_is_noticed() -> None:
    async with serving(SHORT) as served:
        line = await Line.open(served.port)
        await line.send(HANDSHAKE % b"echo")
        await line.until(b"\r\n\r\n")
        assert await line.until(b"\x89\x00") == b"\x89\x00"
        assert b"\x03\xf3no answer to a ping" in await line.rest()  # 1011
        await line.close()
        assert served.codes == [1006]


@on_uvloop
async def test_a_living_client_stays_and_so_does_one_that_is_not_read() -> None:
    async with (
        serving(SHORT) as served,
        client(served, "echo") as one,
        client(served, "lazy") as other,
    ):
        for _ in range(17):
            await other.send(bytes(8192))  # so that it is not read, and neither are its pongs
        await asyncio.sleep(5 * SHORT.ping_seconds)
        await one.send("there")
        assert await one.recv() == "there"
        served.go.set()
        await eventually(lambda: _true(served.taken == 17), "it was only waiting")


@on_uvloop
async def test_a_failure_of_ours_ends_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as served, client(served, "broken") as socket:
        assert (await ended(socket))[0] == 1011
    assert [
        record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR
    ] == ["a request failed unexpectedly: ValueError"]


@on_uvloop
async def test_the_end_of_the_server_is_told() -> None:
    async with serving(drain_seconds=5) as served, client(served, "echo") as socket:
        served.draining.set()
        assert (await ended(socket))[0] == 1012
        await eventually(lambda: _true(served.codes == [1012]), "the application is told too")


@on_uvloop
async def test_who_does_not_close_is_cut_at_the_end() -> None:
    async with serving(SocketLimits(close_seconds=0.2)) as served:
        line = await Line.open(served.port)
        await line.send(HANDSHAKE % b"echo")
        await line.until(b"\r\n\r\n")
        served.draining.set()
        assert (await line.rest())[:4] == b"\x88\x02\x03\xf4"
        await line.close()


@on_uvloop
async def test_an_application_that_returns_has_said_goodbye() -> None:
    async with serving() as served, client(served, "quiet") as socket:
        served.go.set()
        assert (await ended(socket))[0] == 1000


async def _true(value: bool) -> bool:
    return value
