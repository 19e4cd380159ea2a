"""A hit on a sleeping machine: it wakes, people see a page, programs wait."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from machine_operator.api.phases import DesiredState
from machine_operator.gateway.previews.limits import PreviewLimits
from tests.support.gateway import until
from tests.support.previews import Site, preview_site, raw_service, service
from tests.support.raw import eventually

PERSON = {
    "Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
}


async def hello(request: web.Request) -> web.StreamResponse:
    return web.Response(text="hello")


def is_wanted(site: Site) -> bool:
    return site.view.desired_state is DesiredState.RUNNING


async def test_a_person_sees_a_page_and_the_machine_wakes(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(hello) as port:
        preview = await site.preview(port)
        await site.sleeps()
        assert not is_wanted(site)
        async with site.get(preview, headers=PERSON) as answer:
            assert (answer.status, answer.content_type) == (503, "text/html")
            assert answer.headers["Retry-After"] == "1"
            assert answer.headers["Cache-Control"] == "no-store"
            page = await answer.text()
        assert "Waking up" in page
        assert site.machine not in page
        assert "http" not in re.sub(r"http-equiv", "", page)
        async with site.get(preview, method="HEAD", headers=PERSON) as answer:
            assert (answer.status, await answer.read()) == (503, b"")
        await until(lambda: is_wanted(site))
        await site.runs()
        async with site.get(preview, headers=PERSON) as answer:
            assert (answer.status, await answer.text()) == (200, "hello")


async def test_a_program_is_held_until_the_machine_is_awake(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(hello) as port:
        preview = await site.preview(port)
        await site.sleeps()
        going = [asyncio.ensure_future(site.get(preview).__aenter__()) for _ in range(5)]
        posting = asyncio.ensure_future(
            site.get(preview, method="POST", data=b"x", headers=PERSON).__aenter__()
        )
        await until(lambda: is_wanted(site))
        assert not any(one.done() for one in (*going, posting))
        await site.runs()
        for one in (*going, posting):
            answer = await asyncio.wait_for(one, 10)
            assert (answer.status, await answer.text()) == (200, "hello")


async def test_what_is_held_keeps_its_body(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=await request.read())

    limits = PreviewLimits(long_seconds=0.05)
    async with preview_site(tmp_path, limits=limits) as site, service(handler) as port:
        preview = await site.preview(port)
        await site.sleeps()
        going = asyncio.ensure_future(site.get(preview, method="POST", data=b"mine").__aenter__())
        await until(lambda: is_wanted(site))
        await asyncio.sleep(0.2)  # longer than what is long here
        await site.runs()
        answer = await asyncio.wait_for(going, 10)
        assert await answer.read() == b"mine"


async def test_who_goes_away_while_held_is_not_asked_for(tmp_path: Path) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response()

    limits = PreviewLimits(long_seconds=0.05)
    async with preview_site(tmp_path, limits=limits) as site, service(handler) as port:
        preview = await site.preview(port)
        await site.sleeps()
        going = asyncio.ensure_future(site.get(preview, "/gone").__aenter__())
        await until(lambda: is_wanted(site))
        await asyncio.sleep(0.2)  # longer than what is long here
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
        async with site.client.get(f"http://127.0.0.1:{site.port}/v1/machines") as answer:
            assert answer.status == 401  # by then the server knows
        await site.runs()
        await until(lambda: len(site.previews.visits) == 0, within=10)
        async with site.get(preview, "/here") as answer:
            assert answer.status == 200
        assert asked == ["/here"]


async def test_a_program_is_not_held_for_ever(tmp_path: Path) -> None:
    async with preview_site(tmp_path, preview_wait=0.2) as site, service(hello) as port:
        preview = await site.preview(port)
        await site.sleeps()
        async with site.get(preview) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            told = await answer.json()
        assert (told["error_code"], told["retryable"]) == ("DEPENDENCY_UNAVAILABLE", True)


async def test_a_service_has_time_to_start(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        async with service(hello) as port:
            pass
        preview = await site.preview(port)
        await site.runs()
        async with site.get(preview, headers=PERSON) as answer:
            assert (answer.status, "Waking up" in await answer.text()) == (503, True)
        going = asyncio.ensure_future(site.get(preview).__aenter__())
        await until(lambda: len(site.previews.visits) == 1)
        async with raw_service(say_hello, port=port):
            answer = await asyncio.wait_for(going, 10)
            assert (answer.status, await answer.text()) == (200, "hello")


async def say_hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


async def is_believed(status: Callable[[], Awaitable[int]]) -> bool:
    return await status() == 502


@pytest.mark.parametrize("headers", [PERSON, {}], ids=["person", "program"])
async def test_after_a_while_a_closed_port_is_believed(tmp_path: Path, headers: Any) -> None:
    async with preview_site(tmp_path, limits=PreviewLimits(starting_seconds=2.0)) as site:
        async with service(hello) as port:
            pass
        preview = await site.preview(port)
        await site.runs()

        async def status() -> int:
            async with site.get(preview, headers=headers) as answer:
                return int(answer.status)

        if headers:
            assert await status() == 503
        await eventually(lambda: is_believed(status), "the closed port is not believed")


async def test_the_pages_own_question_does_not_reach_the_service(tmp_path: Path) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return web.Response()

    async with preview_site(tmp_path, preview_wait=0.2) as site, service(handler) as port:
        preview = await site.preview(port)
        check = {"X-Preview-Check": "1", "Accept": "*/*"}
        async with site.get(preview, headers=check) as answer:
            assert answer.status == 204
        await site.sleeps()
        async with site.get(preview, headers=check) as answer:
            assert answer.status == 503
        assert asked == []


async def test_a_machine_that_cannot_start(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(hello) as port:
        preview = await site.preview(port)
        await site.is_in("failed", reason="CrashLoop", retryable=False)
        for headers in (PERSON, {}):
            async with site.get(preview, headers=headers) as answer:
                assert answer.status == 502


async def test_a_machine_that_is_gone(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(hello) as port:
        preview = await site.preview(port)
        status, _ = await site.api("DELETE", "")
        assert status in (200, 202)
        async with site.get(preview) as answer:
            assert answer.status == 404
        _, shown = await site.api("GET", f"/previews/{preview['preview_id']}")
        assert shown["status"] == "closed"
        assert "url" not in shown


async def test_a_machine_whose_sshd_is_gone(tmp_path: Path) -> None:
    async with preview_site(tmp_path, preview_wait=0.2) as site, service(hello) as port:
        preview = await site.preview(port)
        async with site.get(preview) as answer:
            assert answer.status == 200
        await site.sshd.stop()
        await until(lambda: (site.previews.pool.sweep(), len(site.previews.pool))[1] == 0)
        async with site.get(preview) as answer:
            assert answer.status == 503


async def test_a_hit_is_a_use_and_a_miss_is_none(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site:
        async with service(hello) as port:
            preview = await site.preview(port)
            touched: list[str] = []
            site.access.touch = lambda view: touched.append(view.uuid)  # type: ignore[method-assign]
            async with site.get(preview) as answer:
                assert answer.status == 200
            assert touched == [site.view.uuid]
        site.previews.pool.close()
        async with site.get(preview) as answer:
            assert answer.status == 502
        assert len(touched) == 1


async def test_a_preview_of_somebody_who_is_not_let_in_wakes_nothing(tmp_path: Path) -> None:
    async with preview_site(tmp_path) as site, service(hello) as port:
        preview = await site.preview(port, visibility="private")
        await site.sleeps()
        knocks: list[str] = []
        site.access.knock = lambda view, *, by: knocks.append(by)  # type: ignore
        for headers in (PERSON, {}, {"Authorization": f"Bearer {site.keys[1]}"}):
            async with site.get(preview, headers=headers) as answer:
                assert answer.status in (401, 403)
        assert knocks == []
