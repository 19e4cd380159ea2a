"""Clients and guests that mean no good: clear answers, bounded memory, and nothing smuggled past anybody."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

from machine_operator.gateway.previews.limits import PreviewLimits
from tests.support.gateway import until
from tests.support.previews import body_of, host, preview_site, raw_service, service
from tests.support.raw import Line, says

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def echo(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    headers = [[k.lower(), v] for k, v in request.headers.items()]
    return web.json_response(
        {"target": request.raw_path, "headers": headers, "body": body.decode()}
    )


# ---- clients


@pytest.mark.parametrize(
    "shape",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
        "Content-Length: 3\r\nContent-Length: 30\r\n\r\nabc",
        "Content-Length: 3, 30\r\n\r\nabc",
        "Content-Length: +3\r\n\r\nabc",
        "Content-Length: -1\r\n\r\nabc",
        "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "X-A: 1\r\n folded\r\n\r\n",
        "X-A: 1\nX-B: 2\r\n\r\n",
        "X-A: 1\r\r\n\r\n",
        "X-A: a\0b\r\n\r\n",
        "X A: 1\r\n\r\n",
        "Host: other.test\r\n\r\n",
        "X-Huge: " + "x" * 40_000 + "\r\n\r\n",
        "".join(f"X-{n}: 1\r\n" for n in range(200)) + "\r\n",
    ],
    ids=str,
)
async def test_what_is_no_clear_request_reaches_no_guest(tmp_path: Path, shape: str) -> None:
    seen: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(65536))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    async with preview_site(tmp_path) as site, raw_service(talk) as port:
        preview = await site.preview(port)
        head = f"POST / HTTP/1.1\r\nHost: {host(preview)}\r\nConnection: close\r\n{shape}"
        said = await says(site.port, head.encode())
        status = int(said.split(b" ")[1])
        assert 400 <= status < 600, said
        assert seen == []


@pytest.mark.parametrize(
    "line",
    ["GET http://other.test/x HTTP/1.1", "GET https://HOST/x HTTP/1.1"],
)
async def test_an_absolute_target_is_a_path_of_the_host(tmp_path: Path, line: str) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        head = f"{line.replace('HOST', host(preview))}\r\nHost: {host(preview)}\r\nConnection: close\r\n\r\n"
        told = json.loads(body_of(await says(site.port, head.encode())))
        assert told["target"] == "/x"
        assert dict(told["headers"])["host"] == host(preview)


@pytest.mark.parametrize("target", ["CONNECT other.test:443", "CONNECT /"])
async def test_a_preview_is_no_proxy(tmp_path: Path, target: str) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        said = await says(
            site.port,
            f"{target} HTTP/1.1\r\nHost: {host(preview)}\r\nConnection: close\r\n\r\n".encode(),
        )
        assert said.split(b" ")[1] in (b"400", b"404", b"405")


async def test_what_clients_say_of_themselves_is_not_believed(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(echo) as port:
        preview = await site.preview(port)
        sent = {
            "X-Forwarded-For": "10.0.0.1",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "bank.test",
            "X-Forwarded-Prefix": "/evil",
            "Forwarded": "for=10.0.0.1",
            "Connection": "close, X-Secret, Host, Content-Length",
            "X-Secret": "1",
            "TE": "trailers",
            "Proxy-Authorization": "Basic eDp5",
            "Upgrade": "h2c",
        }
        async with site.get(preview, headers=sent, method="POST", data=b"abc") as answer:
            told = await answer.json()
        headers = dict(told["headers"])
        assert headers["x-forwarded-for"] == "10.0.0.1, 127.0.0.1"
        assert headers["x-forwarded-proto"] == "http"
        assert headers["x-forwarded-host"] == headers["host"] == host(preview)
        assert headers["content-length"] == "3"
        assert told["body"] == "abc"
        unwanted = {
            "x-forwarded-prefix",
            "forwarded",
            "x-secret",
            "te",
            "proxy-authorization",
            "upgrade",
        }
        assert unwanted.isdisjoint(headers)


async def test_a_client_that_stops_in_the_middle_of_a_body(tmp_path: Path) -> None:
    async with (
        preview_site(tmp_path, limits=PreviewLimits(body_seconds=0.3)) as site,
        service(echo) as port,
    ):
        preview = await site.preview(port)
        said = await says(
            site.port,
            f"POST / HTTP/1.1\r\nHost: {host(preview)}\r\nContent-Length: 10\r\n\r\nabc".encode(),
        )
        assert b" 408 " in said.partition(b"\r\n")[0]
        await until(lambda: len(site.previews.visits) == 0)


# ---- guests


def answers_with(*pieces: bytes) -> Talk:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return talk


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"HTTP/1.1 200",
        OK + b"X-A: 1",
        b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 999 High\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nraw",
        b"HTTP/2.0 200 OK\r\n\r\n",
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\nabcd",
        OK + b"Transfer-Encoding: gzip\r\n\r\nabcd",
        OK + b"X-A: a\x01b\r\nContent-Length: 0\r\n\r\n",
        OK + b"X-A: 1\r\n folded\r\nContent-Length: 0\r\n\r\n",
        OK + b"X-A: 1\nX-B: 2\r\nContent-Length: 0\r\n\r\n",
        OK + b"X A: 1\r\nContent-Length: 0\r\n\r\n",
        OK + b"".join(b"X-%d: 1\r\n" % n for n in range(300)) + b"\r\n",
        OK + b"X-A: " + b"x" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 5000,
    ],
    ids=lambda raw: repr(raw[:60]),
)
async def test_an_answer_that_is_none(tmp_path: Path, raw: bytes) -> None:
    async with preview_site(tmp_path) as site, raw_service(answers_with(raw)) as port:
        preview = await site.preview(port)
        async with site.get(preview) as answer:
            assert answer.status == 502
            told = await answer.json(content_type=None)
            assert told["title"] == "Bad Gateway"
        await until(lambda: len(site.previews.visits) == 0)
        assert len(site.previews.pool) == 0


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"Content-Length: 10\r\n\r\nabc",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzzz\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3;" + b"x" * 200_000,
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-A: " + b"x" * 200_000,
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nfffffffffffffffffffff\r\n",
    ],
    ids=lambda raw: repr(raw[:80]),
)
async def test_a_body_that_ends_wrongly_is_not_taken_for_whole(tmp_path: Path, raw: bytes) -> None:
    async with preview_site(tmp_path) as site, raw_service(answers_with(raw)) as port:
        preview = await site.preview(port)
        request = f"GET / HTTP/1.1\r\nHost: {host(preview)}\r\nConnection: close\r\n\r\n"
        said = await says(site.port, request.encode())
        head, _, body = said.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 502"))
        if head.startswith(b"HTTP/1.1 200"):
            length = b"content-length: 10" in head
            assert (len(body) < 10) if length else not body.endswith(b"0\r\n\r\n")


async def test_bytes_after_an_answer_are_no_answer_to_the_next_request(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            asked.append(head.split(b" ")[1])
            writer.write(
                OK + b"Content-Length: 2\r\n\r\nok" + OK + b"Content-Length: 4\r\n\r\nevil"
            )
            await writer.drain()

    async with preview_site(tmp_path) as site, raw_service(talk) as port:
        preview = await site.preview(port)
        for number in range(5):
            async with site.get(preview, f"/{number}") as answer:
                assert await answer.read() == b"ok"
        assert asked == [b"/%d" % number for number in range(5)]


async def test_an_answer_to_head_with_a_body_is_not_mistaken(tmp_path: Path) -> None:
    raw = OK + b"Content-Length: 37\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    async with preview_site(tmp_path) as site, raw_service(answers_with(raw)) as port:
        preview = await site.preview(port)
        for _ in range(3):
            async with site.get(preview, method="HEAD") as answer:
                assert (answer.status, answer.headers["Content-Length"]) == (200, "37")
            assert len(site.previews.pool) == 0


async def test_a_guest_that_never_answers(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with (
        preview_site(tmp_path, limits=PreviewLimits(head_seconds=0.3)) as site,
        raw_service(talk) as port,
    ):
        preview = await site.preview(port)
        for method in ("GET", "POST"):
            async with site.get(preview, method=method, data=b"") as answer:
                assert answer.status == 504
        await until(lambda: len(site.previews.visits) == 0)


async def test_a_guest_that_drips_a_head(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        for number in range(10_000):
            writer.write(b"X-%d: 1\r\n" % number)
            await writer.drain()
            await asyncio.sleep(0.05)

    async with (
        preview_site(tmp_path, limits=PreviewLimits(head_seconds=0.5)) as site,
        raw_service(talk) as port,
    ):
        preview = await site.preview(port)
        async with site.get(preview) as answer:
            assert answer.status == 504


async def test_a_body_without_an_end_takes_no_memory(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"1\r\nx\r\n" * 20_000
        while True:
            writer.write(piece)
            await writer.drain()

    async with preview_site(tmp_path) as site, raw_service(talk) as port:
        preview = await site.preview(port)
        line = await Line.open(site.port)
        await line.send(f"GET / HTTP/1.1\r\nHost: {host(preview)}\r\n\r\n".encode())
        await line.until(b"\r\n\r\n")
        tracemalloc.start()
        try:
            for _ in range(50):
                assert await line.reader.read(65536)
            assert tracemalloc.get_traced_memory()[1] < 24 * 2**20
        finally:
            tracemalloc.stop()
        await line.close()
        await until(lambda: len(site.previews.visits) == 0)


async def test_by_path_a_guest_registers_no_worker_for_the_api(tmp_path: Path) -> None:
    raw = OK + b"Service-Worker-Allowed: /\r\nContent-Length: 0\r\n\r\n"
    async with preview_site(tmp_path) as site, raw_service(answers_with(raw)) as port:
        preview = await site.preview(port)
        async with site.get(preview, by="path") as answer:
            assert "Service-Worker-Allowed" not in answer.headers
        async with site.get(preview, by="host") as answer:
            assert answer.headers["Service-Worker-Allowed"] == "/"
