"""WebSockets through previews: a real client, a real server, a real service in the guest."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from tests.support.gateway import until
from tests.support.previews import DOMAIN, Site, preview_site, raw_service, service
from tests.support.raw import Line

PATIENCE = 10.0


async def echo(request: web.Request) -> web.StreamResponse:
    socket = web.WebSocketResponse(protocols=("chat", "graphql-ws"), max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT and message.data.startswith("close "):
            code, _, reason = message.data.removeprefix("close ").partition(" ")
            await socket.close(code=int(code), message=reason.encode())
        elif message.type is WSMsgType.TEXT and message.data == "headers":
            await socket.send_json({k.lower(): v for k, v in request.headers.items()})
        elif message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)
    return socket


def connect(site: Site, preview: Any, path: str = "/", *, by: str = "host", **options: Any) -> Any:
    """A WebSocket to a preview; to be entered."""
    headers = dict(options.pop("headers", {}))
    if by == "host":
        headers["Host"] = f"{preview['preview_id']}.{DOMAIN}"
    else:
        path = f"/previews/{preview['preview_id']}{path}"
    options.setdefault("max_msg_size", 0)
    url = f"http://127.0.0.1:{site.port}{path}"
    return site.client.ws_connect(url, headers=headers, **options)


@pytest.mark.parametrize("by", ["host", "path"])
async def test_messages_go_both_ways(tmp_path: Path, by: str) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        async with connect(site, preview, "/ws?x=1", by=by, headers={"X-Mine": "1"}) as socket:
            await socket.send_str("hallo \u00e4\u20ac")
            assert await socket.receive_str(timeout=PATIENCE) == "hallo \u00e4\u20ac"
            await socket.send_bytes(bytes(range(256)))
            assert await socket.receive_bytes(timeout=PATIENCE) == bytes(range(256))
            await socket.send_str("")
            assert await socket.receive_str(timeout=PATIENCE) == ""
            await socket.ping(b"x")
            await socket.send_str("headers")
            headers = await socket.receive_json(timeout=PATIENCE)
            assert headers["x-mine"] == "1"
            assert headers["x-forwarded-for"] == "127.0.0.1"
            assert "sec-websocket-extensions" not in headers
            assert ("x-forwarded-prefix" in headers) == (by == "path")
        await until(lambda: len(site.previews.visits) == 0)


async def test_the_subprotocol_is_the_services_choice(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        for offered, chosen in ((("x", "graphql-ws"), "graphql-ws"), ((), None)):
            async with connect(site, preview, protocols=offered) as socket:
                assert socket.protocol == chosen


async def test_large_messages(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        content = bytes(range(256)) * 4000
        async with connect(site, preview) as socket:
            for _ in range(5):
                await socket.send_bytes(content)
                assert await socket.receive_bytes(timeout=PATIENCE) == content


async def test_many_messages_at_once(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        async with connect(site, preview) as socket:

            async def send() -> None:
                for number in range(2000):
                    await socket.send_str(str(number))

            sending = asyncio.ensure_future(send())
            for number in range(2000):
                assert await socket.receive_str(timeout=PATIENCE) == str(number)
            await sending


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, ""), (1001, "away"), (1011, "x"), (4321, "why")]
)
async def test_the_services_closing_comes_through(tmp_path: Path, code: int, reason: str) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        async with connect(site, preview) as socket:
            await socket.send_str(f"close {code} {reason}")
            message = await socket.receive(timeout=PATIENCE)
            assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, code, reason)


@pytest.mark.parametrize("code", [1000, 4000])
async def test_the_clients_closing_comes_through(tmp_path: Path, code: int) -> None:
    closed: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        closed.set_result(socket.close_code)
        return socket

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        async with connect(site, preview) as socket:
            await socket.close(code=code)
        assert await asyncio.wait_for(closed, PATIENCE) == code


async def test_a_client_that_vanishes(tmp_path: Path) -> None:
    closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for _ in socket:
            pass
        closed.set_result(None)
        return socket

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        async with connect(site, preview) as socket:
            socket._response.connection.transport.abort()
            await asyncio.wait_for(closed, PATIENCE)
        await until(lambda: len(site.previews.visits) == 0)


async def test_a_service_that_vanishes_closes_with_1011(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        async with connect(site, preview) as socket:
            await socket.send_str("x")
            await socket.receive_str(timeout=PATIENCE)
            site.sshd.cut()
            message = await socket.receive(timeout=PATIENCE)
            assert (message.type, message.data) == (WSMsgType.CLOSE, 1011)


async def test_deleting_a_preview_closes_its_sockets(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        async with connect(site, preview) as socket:
            await site.api("DELETE", f"/previews/{preview['preview_id']}")
            message = await socket.receive(timeout=PATIENCE)
            assert message.type is WSMsgType.CLOSE


async def test_a_refusal_is_the_services_own(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=418, text="no socket here", headers={"X-Why": "tea"})

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connect(site, preview):
                pass
        assert refused.value.status == 418
        assert refused.value.headers is not None
        assert refused.value.headers["X-Why"] == "tea"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: wrong\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 100_000,
    ],
    ids=lambda raw: repr(raw[:40]),
)
async def test_an_answer_that_is_none(tmp_path: Path, raw: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()

    async with preview_site(tmp_path) as site, raw_service(talk) as port:
        preview = await site.preview(port)
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with connect(site, preview):
                pass
        assert refused.value.status == 502


async def test_who_gets_in(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port, visibility="private")
        token = preview["url"].partition("?")[2]
        async with site.get(preview, f"/?{token}") as answer:
            cookie = answer.headers["Set-Cookie"].partition(";")[0]
        own = f"http://{preview['preview_id']}.{DOMAIN}"
        good: tuple[dict[str, Any], ...] = (
            {"path": f"/?{token}"},
            {"headers": {"Cookie": cookie}},
            {"headers": {"Cookie": cookie, "Origin": own}},
            {"headers": {"Authorization": f"Bearer {site.keys[0]}"}},
        )
        for options in good:
            async with connect(site, preview, **options) as socket:
                await socket.send_str("headers")
                headers = await socket.receive_json(timeout=PATIENCE)
                assert {"cookie", "authorization"}.isdisjoint(headers)
        bad: tuple[tuple[int, dict[str, Any]], ...] = (
            (401, {}),
            (403, {"headers": {"Cookie": cookie, "Origin": "http://evil.test"}}),
            (403, {"headers": {"Authorization": f"Bearer {site.keys[1]}"}}),
            (401, {"path": "/?preview_token=old"}),
        )
        for status, options in bad:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with connect(site, preview, **options):
                    pass
            assert refused.value.status == status


async def test_a_socket_is_held_until_the_machine_is_awake(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        await site.sleeps()
        going = asyncio.ensure_future(connect(site, preview).__aenter__())
        await until(lambda: len(site.previews.visits) == 1)
        await site.runs()
        socket = await asyncio.wait_for(going, PATIENCE)
        await socket.send_str("x")
        assert await socket.receive_str(timeout=PATIENCE) == "x"
        await socket.close()


async def test_a_client_that_does_not_read_holds_the_service_up(tmp_path: Path) -> None:
    sent = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with contextlib.suppress(OSError, aiohttp.ClientConnectionError):
            while True:
                await socket.send_bytes(bytes(65536))
                sent += 65536
        return socket

    async with preview_site(tmp_path) as site, service(handler) as port:
        preview = await site.preview(port)
        line = await Line.open(site.port)
        await line.send(
            f"GET / HTTP/1.1\r\nHost: {preview['preview_id']}.{DOMAIN}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        await line.until(b"\r\n\r\n")
        last = -1
        while sent != last:
            last = sent
            await asyncio.sleep(0.3)
        assert 0 < sent < 32 * 2**20
        await line.close()


async def test_frames_that_break_the_rules(tmp_path: Path) -> None:
    """What the guest sends after the handshake: a masked frame, invalid UTF-8, and one that is too long."""
    for frame, code in (
        (b"\x81\x81abcd\x00", 1002),
        (b"\x81\x01\xff", 1007),
        (b"\x82\x7f" + (2**40).to_bytes(8), 1009),
        (b"\xff\x00", 1002),
    ):

        async def handler(request: web.Request, frame: bytes = frame) -> web.StreamResponse:
            socket = web.WebSocketResponse(autoclose=False)
            await socket.prepare(request)
            assert request.transport is not None
            request.transport.write(frame)
            await socket.receive()
            return socket

        async with preview_site(tmp_path) as site, service(handler) as port:
            preview = await site.preview(port)
            async with connect(site, preview) as socket:
                message = await socket.receive(timeout=PATIENCE)
                assert (message.type, message.data) == (WSMsgType.CLOSE, code)
