"""A real browser on a preview: Debian's Chromium, driven by Playwright, on a real gateway and a real sshd."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import playwright.async_api as playwright
import pytest
from aiohttp import WSMsgType, web

from machine_operator.api.phases import DesiredState
from tests.support.gateway import until
from tests.support.previews import Site, preview_site, service

_CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
_DOMAIN = "previews.localhost"
"""Browsers take every name below localhost for this computer."""
_PATIENCE = 60_000.0

_PAGE = """<!doctype html><title>The site</title><h1 id=greeting>Hello from the machine</h1>
<form method=post action=form><input name=word value=told><button>Send</button></form>
<p id=said></p>
<script>
const socket = new WebSocket(new URL('ws', location.href.replace(/^http/, 'ws')))
socket.onopen = () => socket.send('ping')
socket.onmessage = event => { document.getElementById('said').textContent = event.data }
</script>"""

pytestmark = pytest.mark.skipif(not os.access(_CHROMIUM, os.X_OK), reason="there is no Chromium")


async def site_in_guest(request: web.Request) -> web.StreamResponse:
    if request.path.endswith("/ws"):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(f"{message.data} pong")
        return socket
    if request.method == "POST":
        word = (await request.post())["word"]
        return web.Response(text=f"<title>Posted</title>{word}", content_type="text/html")
    return web.Response(text=_PAGE, content_type="text/html")


@asynccontextmanager
async def browser() -> AsyncIterator[Any]:
    async with playwright.async_playwright() as driver:
        chromium = await driver.chromium.launch(
            executable_path=_CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield chromium
        finally:
            await chromium.close()


def address(site: Site, preview: Any, by: str) -> str:
    """Where a browser finds a preview: as the API says, with the port of the test's server."""
    query = preview["url"].partition("?")[2]
    id = preview["preview_id"]
    base = f"http://{id}.{_DOMAIN}:{site.port}/"
    if by == "path":
        base = f"http://127.0.0.1:{site.port}/previews/{id}/"
    return f"{base}?{query}" if query else base


@pytest.mark.parametrize("by", ["host", "path"])
async def test_a_sleeping_machine_its_site_and_a_websocket(tmp_path: Path, by: str) -> None:
    async with (
        preview_site(tmp_path, domain=_DOMAIN) as site,
        service(site_in_guest) as port,
        browser() as chromium,
    ):
        preview = await site.preview(port, visibility="private")
        await site.sleeps()
        context = await chromium.new_context()
        page = await context.new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        answer = await page.goto(address(site, preview, by), timeout=_PATIENCE)
        assert answer.status == 503
        assert await page.title() == "Waking up"
        assert await page.get_by_role("status").is_visible()
        assert "preview_token" not in page.url
        await until(lambda: site.view.desired_state is DesiredState.RUNNING)
        await site.runs()

        await page.wait_for_selector("#greeting", timeout=_PATIENCE)
        assert await page.title() == "The site"
        await page.wait_for_function(
            "document.getElementById('said').textContent === 'ping pong'", timeout=_PATIENCE
        )
        await page.get_by_role("button").click()
        await page.wait_for_function("document.title === 'Posted'", timeout=_PATIENCE)
        (cookie,) = await context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
        assert faults == []

        # Somebody else, without the link.
        stranger = await (await chromium.new_context()).new_page()
        answer = await stranger.goto(address(site, preview, by).partition("?")[0])
        assert answer.status == 401
        assert await stranger.get_by_role("status").is_visible()


async def test_without_scripts_the_waiting_page_reloads_by_itself(tmp_path: Path) -> None:
    async with (
        preview_site(tmp_path, domain=_DOMAIN) as site,
        service(site_in_guest) as port,
        browser() as chromium,
    ):
        preview = await site.preview(port)
        await site.sleeps()
        page = await (await chromium.new_context(java_script_enabled=False)).new_page()
        answer = await page.goto(address(site, preview, "host"), timeout=_PATIENCE)
        assert answer.status == 503
        await until(lambda: site.view.desired_state is DesiredState.RUNNING)
        await site.runs()
        await page.wait_for_selector("#greeting", timeout=_PATIENCE)


async def test_one_previews_page_reaches_no_other_preview(tmp_path: Path) -> None:
    """A page in one preview, with the cookie of another one: it may neither read nor change anything there."""
    changed: list[str] = []

    async def victim(request: web.Request) -> web.StreamResponse:
        changed.append(request.method)
        if request.path == "/ws":
            return await site_in_guest(request)
        return web.Response(text="<title>Victim</title>secret", content_type="text/html")

    async with (
        preview_site(tmp_path, domain=_DOMAIN) as site,
        service(site_in_guest) as port,
        service(victim) as victim_port,
        browser() as chromium,
    ):
        evil = await site.preview(port)
        good = await site.preview(victim_port, visibility="private")
        context = await chromium.new_context()
        page = await context.new_page()
        await page.goto(address(site, good, "host"), timeout=_PATIENCE)
        assert await page.title() == "Victim"
        changed.clear()
        await page.goto(address(site, evil, "host"), timeout=_PATIENCE)
        target = address(site, good, "host").partition("?")[0]
        outcome = await page.evaluate(_ATTACK, target)
        assert outcome == {"read": "blocked", "socket": "blocked"}
        assert "POST" not in changed


_ATTACK = """async target => {
  const read = await fetch(target, {credentials: 'include'}).then(a => a.text()).catch(() => 'blocked')
  await fetch(target, {method: 'POST', mode: 'no-cors', credentials: 'include', body: 'x'}).catch(() => 0)
  const socket = await new Promise(done => {
    const one = new WebSocket(target.replace(/^http/, 'ws') + 'ws')
    one.onopen = () => done('open')
    one.onerror = () => done('blocked')
  })
  return {read, socket}
}"""
