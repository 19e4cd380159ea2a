"""The seam: lines out of chunks, the real transport's answers and failures, and the transport that breaks things."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import (
    ApiError,
    Conflict,
    Expired,
    KubeError,
    ServerError,
    TooManyRequests,
    Unreachable,
)
from machine_operator.kube.resources import SECRETS
from machine_operator.kube.transport import AiohttpTransport, Transport, WireRequest, lines
from tests.support.apiserver import FakeApi
from tests.support.client import FakeClient, FakeTransport, parse_wire
from tests.support.faults import (
    Answer,
    Cut,
    Delay,
    Die,
    End,
    Fault,
    FaultyTransport,
    Garbage,
    Hold,
    Refuse,
    Repeat,
    StreamFault,
    TimeOut,
)
from tests.support.virtual import run_virtual

# ---- lines


async def flow(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@given(whole=st.lists(st.binary(max_size=6)), cuts=st.lists(st.integers(0, 60)), rest=st.booleans())
def test_lines_do_not_depend_on_the_chunks(whole: list[bytes], cuts: list[int], rest: bool) -> None:
    raw = b"".join(line.replace(b"\n", b"") + b"\n" for line in whole) + b"half" * rest
    edges = sorted({min(cut, len(raw)) for cut in cuts} | {0, len(raw)})
    chunks = [raw[a:b] for a, b in itertools.pairwise(edges)]

    async def collect() -> list[bytes]:
        return [line async for line in lines(flow(chunks))]

    complete = raw.split(b"\n")[:-1]
    assert asyncio.run(collect()) == [line for line in complete if line]


# ---- the real one

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def real(handler: Handler) -> AsyncIterator[AiohttpTransport]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    connection = Connection(server=f"http://{host}:{port}")
    transport = AiohttpTransport(connection, session=aiohttp.ClientSession)
    await transport.open()
    try:
        yield transport
    finally:
        await transport.close()
        await runner.cleanup()


async def test_an_answer_comes_as_it_is() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == "Bearer x"
        return web.Response(status=418, body=await request.read(), headers={"Retry-After": "3"})

    async with real(handler) as transport:
        request = WireRequest("POST", "/a b", {"q": "1 2"}, {"Authorization": "Bearer x"}, b"tea")
        answer = await transport.send(request)
    assert (answer.status, answer.body) == (418, b"tea")
    assert answer.headers.get("retry-after") == "3", "names of headers have no case"


async def test_a_stream_is_closed_by_leaving_it() -> None:
    closed = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one\n")
        try:
            while True:
                await asyncio.sleep(0.01)
                await response.write(b"more\n")
        except OSError:
            closed.set()
        return response

    async with real(handler) as transport:
        async with transport.stream(WireRequest("GET", "/x")) as answer:
            assert await anext(lines(answer.chunks)) == b"one"
        await asyncio.wait_for(closed.wait(), 5.0)


async def test_an_error_of_the_consumer_is_not_taken_for_one_of_the_network() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"one\n")

    async with real(handler) as transport:
        with pytest.raises(KeyError):
            async with transport.stream(WireRequest("GET", "/x")):
                raise KeyError


async def test_a_body_that_is_cut_is_no_answer() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"{")
        assert request.transport is not None
        request.transport.close()
        return response

    async with real(handler) as transport:
        with pytest.raises(Unreachable, match=r"GET /x: no answer from http://127\.0\.0\.1"):
            await transport.send(WireRequest("GET", "/x"))
        with pytest.raises(Unreachable):
            async with transport.stream(WireRequest("GET", "/x")) as answer:
                assert [chunk async for chunk in answer.chunks] == [b"{"]


async def test_an_unopened_transport_is_a_mistake() -> None:
    transport = AiohttpTransport(Connection(server="http://x"), session=aiohttp.ClientSession)
    with pytest.raises(RuntimeError, match="async with"):
        await transport.send(WireRequest("GET", "/x"))


async def test_a_client_opens_and_closes_its_transport() -> None:
    class Door(FakeTransport):
        said: list[str] = []  # noqa: RUF012 - one instance

        async def open(self) -> None:
            self.said.append("open")

        async def close(self) -> None:
            self.said.append("close")

    door: Transport = Door(FakeApi())
    async with KubeClient(Connection(server="http://fake"), transport=door) as client:
        assert Door.said == ["open"]
        with pytest.raises(RuntimeError, match="without an HTTP session"):
            _ = client.session
    assert Door.said == ["open", "close"]


# ---- the one that breaks things


def secret(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": {}}


FAULTS: list[tuple[Fault, type[KubeError] | None, int]] = [
    (Answer(409, "Conflict"), Conflict, 0),
    (Answer(410, "Expired"), Expired, 0),
    (Answer(429, retry_after="7"), TooManyRequests, 0),
    (Answer(500), ServerError, 0),
    (Answer(503, after=True), ServerError, 1),
    (TimeOut(), Unreachable, 0),
    (TimeOut(after=True), Unreachable, 1),
    (Delay(3.0), None, 1),
    (Delay(31.0), Unreachable, 0),
]


@pytest.mark.parametrize(("fault", "kind", "effect"), FAULTS, ids=str)
def test_a_write_that_breaks(fault: Fault, kind: type[KubeError] | None, effect: int) -> None:
    async def scenario() -> None:
        client = FakeClient(FakeApi())
        client.faults.at_write(2, fault)
        await client.create(SECRETS, secret("a"), namespace="ns")
        await client.list(SECRETS)
        began = asyncio.get_running_loop().time()
        if kind is None:
            await client.create(SECRETS, secret("b"), namespace="ns")
        else:
            with pytest.raises(kind) as caught:
                await client.create(SECRETS, secret("b"), namespace="ns")
            if isinstance(caught.value, ApiError) and caught.value.status == 429:
                assert caught.value.retry_after == 7.0
        took = asyncio.get_running_loop().time() - began
        if isinstance(fault, TimeOut | Delay):
            assert 3.0 <= took <= 30.1
        await client.create(SECRETS, secret("c"), namespace="ns")
        assert len(client.api.all("secrets")) == 2 + effect
        assert client.written == 3

    run_virtual(scenario())


@pytest.mark.parametrize("after", [False, True])
def test_a_process_that_dies_does_nothing_any_more(after: bool) -> None:
    async def scenario() -> None:
        client = FakeClient(FakeApi(), die_at=2, lost_answer=after)
        await client.create(SECRETS, secret("a"), namespace="ns")
        last = asyncio.ensure_future(client.create(SECRETS, secret("b"), namespace="ns"))
        await client.dead.wait()
        reading = asyncio.ensure_future(client.list(SECRETS))
        done, pending = await asyncio.wait({last, reading}, timeout=100.0)
        assert done == set()
        assert len(client.api.all("secrets")) == 1 + after
        for task in pending:
            task.cancel()

    run_virtual(scenario())


EVENTS: list[tuple[StreamFault, list[str], type[KubeError] | None]] = [
    (Repeat(), ["a", "b", "b", "c"], None),
    (Repeat(after=1), ["a", "b", "c", "b"], None),
    (Hold(9.0), ["a", "b", "c"], None),
    (Hold(71.0), ["a"], Unreachable),
    (Cut(), ["a"], Unreachable),
    (Cut(delivered=True), ["a", "b"], Unreachable),
    (End(), ["a"], None),
    (Refuse(410, "Expired"), ["a"], Expired),
    (Refuse(500), ["a"], ServerError),
    (Garbage(), ["a"], Unreachable),
]


@pytest.mark.parametrize(("fault", "names", "error"), EVENTS, ids=str)
def test_a_watch_that_breaks(
    fault: StreamFault, names: list[str], error: type[KubeError] | None
) -> None:
    async def scenario() -> None:
        client = FakeClient(FakeApi())
        for name in "abc":
            await client.create(SECRETS, secret(name), namespace="ns")
        client.faults.stream_rules.append(lambda _, number: fault if number == 2 else None)
        seen: list[str] = []
        began = asyncio.get_running_loop().time()

        async def read() -> None:
            async for event in client.watch(SECRETS, resource_version="100"):
                if event["type"] == "BOOKMARK":
                    return
                seen.append(event["object"]["metadata"]["name"])

        if error is None:
            await read()
        else:
            with pytest.raises(error):
                await read()
        assert seen == names
        if isinstance(fault, Hold):
            assert asyncio.get_running_loop().time() - began >= min(fault.seconds, 70.0)

    run_virtual(scenario())


@pytest.mark.parametrize("fault", [Answer(503), TimeOut(), Delay(100.0)], ids=str)
def test_a_watch_that_does_not_even_begin(fault: Fault) -> None:
    async def scenario() -> None:
        client = FakeClient(FakeApi())
        client.faults.next(fault, when=lambda asked: asked.verb == "watch")
        with pytest.raises((ServerError, Unreachable)):
            await anext(client.watch(SECRETS, resource_version="100"))

    run_virtual(scenario())


async def test_it_wraps_the_real_one_as_well() -> None:
    async def handler(_: web.Request) -> web.StreamResponse:
        return web.json_response({"ok": True})

    async with real(handler) as inner:
        faulty = FaultyTransport(inner, parse=parse_wire)
        faulty.next(Die(after=True), when=lambda asked: asked.name == "last")
        client = KubeClient(Connection(server="http://x"), transport=faulty)
        assert await client.get(SECRETS, "first", namespace="ns") == {"ok": True}
        last = asyncio.ensure_future(client.get(SECRETS, "last", namespace="ns"))
        await asyncio.wait_for(faulty.dead.wait(), 5.0)
        assert not last.done()
        last.cancel()
