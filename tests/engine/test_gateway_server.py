"""The HTTP server against clients that mean no good, or do not know better."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from machine_operator.gateway.serving.protocol import ConnectionLimits
from tests.support.raw import Line, eventually, on_uvloop, says
from tests.support.served import Served, resident, serving

MIB = 1024 * 1024
GET = b"GET /ok HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /body HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
SHORT = ConnectionLimits(
    head_seconds=0.3,
    idle_seconds=0.3,
    stalled_seconds=0.3,
    linger_seconds=0.3,
    linger_bytes=4 * MIB,
)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def problem(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    told: dict[str, object] = json.loads(body)
    assert told["status"] == status(answer)
    return told


@asynccontextmanager
async def line(served: Served) -> AsyncIterator[Line]:
    opened = await Line.open(served.port)
    try:
        yield opened
    finally:
        await opened.close()


async def lets_in(served: Served) -> bool:
    return status(await says(served.port, GET + b"Connection: close\r\n\r\n")) == 200


async def flooded(served: Served) -> bool:
    return "flood" in served.gone


async def healthy(served: Served) -> None:
    """The server still serves."""
    async with line(served) as client:
        await client.send(GET + b"\r\n")
        assert status(await client.answer()) == 200


@on_uvloop
async def test_answers_have_a_date_and_no_server() -> None:
    async with serving() as served, line(served) as client:
        for _ in range(3):
            await client.send(GET + b"\r\n")
            answer = await client.answer()
            assert answer.endswith(b"fine")
            assert b"\r\ndate: " in answer
            assert b"server:" not in answer.lower()


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (GET + b"".join(b"X-%d: a\r\n" % n for n in range(98)) + b"\r\n", 200),
        (GET + b"".join(b"X-%d: a\r\n" % n for n in range(101)) + b"\r\n", 431),
        (GET + b"X: " + b"a" * 30_000 + b"\r\n\r\n", 200),
        (GET + b"X: " + b"a" * 40_000 + b"\r\n\r\n", 431),
        (GET + b"X: " + b"a" * 4_000_000, 431),
        (GET + b"X" * 4_000_000, 431),
        (b"GET /ok?" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET /ok?" + b"a" * 4_000_000, 431),
        (b"\r\n" * 500_000, 431),
        (CHUNKED + b"0\r\nX: " + b"a" * 4_000_000, 431),
        (CHUNKED + b"5;" + b"a" * 4_000_000, 431),
    ],
)
@on_uvloop
async def test_header_bombs(head: bytes, expected: int) -> None:
    async with serving(SHORT) as served:
        began = time.monotonic()
        answer = await says(served.port, head)
        assert status(answer) == expected, answer[:200]
        assert time.monotonic() - began < 5
        if expected == 431:
            assert "too long" in str(problem(answer)["detail"])
            assert not served.seen or served.seen == ["body"]
        await healthy(served)


@pytest.mark.parametrize("pause", [0.05, 5.0])
@on_uvloop
async def test_slow_loris(pause: float) -> None:
    async with serving(SHORT) as served, line(served) as client:
        began = time.monotonic()
        answers = asyncio.create_task(client.rest())
        for byte in GET * 100:
            client.writer.write(bytes([byte]))
            done, _ = await asyncio.wait([answers], timeout=pause)
            if done:
                break
        assert status(await answers) == 408
        assert 0.25 < time.monotonic() - began < 3


@on_uvloop
async def test_a_slow_second_request_of_a_connection() -> None:
    async with serving(SHORT) as served, line(served) as client:
        await client.send(GET + b"\r\n")
        assert status(await client.answer()) == 200
        await client.send(b"GET /o")
        assert status(await client.rest()) == 408


@pytest.mark.parametrize("first", [b"", GET + b"\r\n", GET + b"\r\n\r\n\r\n"])
@on_uvloop
async def test_connections_that_say_nothing_end(first: bytes) -> None:
    async with serving(SHORT) as served:
        began = time.monotonic()
        answer = await says(served.port, first)
        assert 0.25 < time.monotonic() - began < 3
        assert status(answer) == (200 if first else 0)


@on_uvloop
async def test_a_thousand_idle_connections() -> None:
    async with serving(ConnectionLimits(connections=1000)) as served:
        idle = [await Line.open(served.port) for _ in range(999)]
        await healthy(served)
        idle.append(await Line.open(served.port))
        answer = await says(served.port, GET + b"\r\n")
        assert status(answer) == 503
        assert b"\r\nretry-after: 1\r\n" in answer
        problem(answer)
        for client in idle[:500]:
            await client.close()
        await eventually(partial(lets_in, served), "nobody is let in after others have gone")
        for client in idle[500:]:
            await client.close()


SMUGGLED = b"0\r\n\r\nDELETE /ok HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 60\r\n\r\n", 400),
        (POST + b"Content-Length: 5, 60\r\n\r\n", 400),
        (POST + b"Content-Length: +5\r\n\r\n", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: xchunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", 400),
        (POST + b"X: a\r\n Transfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"X: a\rTransfer-Encoding: chunked\r\n\r\n", 400),
        (POST + b"X: a\0b\r\n\r\n", 400),
        (b"GET /ok HTTP/1.1\nHost: a\n\n", 400),
        (CHUNKED + b"zz\r\n", 400),
        (CHUNKED + b"-1\r\n", 400),
        (CHUNKED + b"0x1\r\na\r\n", 400),
        (CHUNKED + b"5\nhello\n", 400),
        (CHUNKED + b"1\r\nabc\r\n", 400),
        (CHUNKED + b"ffffffffffffffffffff\r\n", 400),
        (b"GET /ok HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /ok HTTP/1.2\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"FETCH /ok HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (bytes(range(256)) * 50, 400),
    ],
)
@on_uvloop
async def test_what_is_no_request(request_: bytes, expected: int) -> None:
    async with serving(SHORT) as served:
        answer = await says(served.port, request_ + SMUGGLED)
        assert status(answer) == expected, answer[:200]
        problem(answer)
        assert answer.count(b"\r\n\r\n") == 1
        assert "DELETE /ok" not in served.seen
        await healthy(served)


@on_uvloop
async def test_an_answer_under_way_is_not_cut_by_what_follows_it() -> None:
    async with serving(SHORT) as served, line(served) as client:
        await client.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
        await client.until(b"first\n\n")
        await client.send(b"garbage\r\n\r\n" + GET + b"\r\n")
        served.draining.set()
        assert await client.rest() == b"\r\nc\r\ndata: last\n\n\r\n0\r\n\r\n"
        assert not served.seen


@on_uvloop
async def test_pipelined_requests_are_few() -> None:
    async with serving(SHORT) as served:
        answer = await says(served.port, (GET + b"\r\n") * 5000)
        assert 8 <= answer.count(b"HTTP/1.1 200") <= 10
        assert len(served.seen) <= 10


@on_uvloop
async def test_trailers_are_no_headers() -> None:
    async with serving(SHORT) as served:
        request = CHUNKED + b"2\r\nab\r\n0\r\n" + b"Authorization: a\r\n" * 101 + b"\r\n"
        answer = await says(served.port, request + GET + b"\r\n")
        assert answer.count(b"HTTP/1.1 200") == 2  # as headers they would be too many


@on_uvloop
async def test_another_protocol_is_offered() -> None:
    async with serving(SHORT) as served:
        upgrade = (
            b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n"
        )
        answer = await says(served.port, GET + upgrade + GET + b"\r\n")
        assert answer.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("declared", [True, False])
@on_uvloop
async def test_a_body_of_two_gibibytes(declared: bool) -> None:
    async with serving(SHORT) as served, line(served) as client:
        before = resident(os.getpid())
        length = b"Content-Length: %d\r\n\r\n" % (2 * 1024 * MIB)
        await client.send(POST + length if declared else CHUNKED)
        block = b"x" * MIB if declared else b"100000\r\n" + b"x" * MIB + b"\r\n"
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 2048:
                await client.send(block)
                sent += 1
        assert sent < 64
        assert status(await client.rest()) in (413, 0)  # 0: the reset was faster
        assert resident(os.getpid()) - before < 24 * MIB
        await healthy(served)


@pytest.mark.parametrize("declared", [True, False])
@on_uvloop
async def test_the_answer_to_a_long_body_arrives(declared: bool) -> None:
    async with serving(SHORT) as served:
        body = b"x" * (2 * MIB)
        framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        length = b"Content-Length: %d\r\n\r\n" % len(body)
        answer = await says(served.port, POST + length + body if declared else CHUNKED + framed)
        assert status(answer) == 413
        problem(answer)


@pytest.mark.parametrize("size", [0, 1, 70_000, MIB])
@on_uvloop
async def test_bodies_within_the_limit(size: int) -> None:
    async with serving(SHORT) as served, line(served) as client:
        for _ in range(2):
            await client.send(POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
            answer = await client.answer()
            assert answer.endswith(b"\r\n\r\n%d" % size)
            await client.send(CHUNKED + (b"%x\r\n%s\r\n" % (size, b"x" * size) if size else b""))
            await client.send(b"0\r\n\r\n")
            assert (await client.answer()).endswith(b"\r\n\r\n%d" % size)


@on_uvloop
async def test_a_body_that_does_not_come() -> None:
    async with serving(SHORT) as served:
        answer = await says(served.port, POST + b"Content-Length: 10\r\n\r\nabc")
        assert status(answer) == 408
        problem(answer)


@on_uvloop
async def test_a_body_is_asked_for_only_if_it_is_wanted() -> None:
    async with serving(SHORT) as served, line(served) as client:
        expect = b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        await client.send(POST + expect % 3)
        assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(b"abc")
        assert (await client.answer()).endswith(b"3")
        await client.send(POST + expect % (5 * MIB))
        assert status(await client.rest()) == 413


@on_uvloop
async def test_a_body_that_nobody_reads() -> None:
    async with serving(SHORT) as served:
        head = b"POST /ok HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        answer = await says(served.port, head % (100 * MIB) + b"x" * 1000)
        assert status(answer) == 200
        assert b"connection: close" in answer
        assert status(await says(served.port, head % 5 + b"hello" + GET + b"\r\n")) == 200


@on_uvloop
async def test_a_client_that_never_reads() -> None:
    async with serving(SHORT) as served:
        before = resident(os.getpid())
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1)
        writer.write(b"GET /flood HTTP/1.1\r\nHost: a\r\n\r\n")
        await eventually(partial(flooded, served), "the client is waited for")
        assert resident(os.getpid()) - before < 24 * MIB
        writer.transport.abort()
        assert reader is not None
