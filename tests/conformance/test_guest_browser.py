"""A real browser on a preview of a machine that really sleeps: the waiting page, the site, and a WebSocket in it.

The site is served on this computer and comes into the machine by `ssh -R`, through the SSH gateway, once it is awake.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cluster.support import Cluster
from tests.conformance.support import Rest
from tests.conformance.test_previews_browser import browser, site_in_guest
from tests.support.previews import service

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium"),
]

_SIZES = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1, "autosleep": "never"}
_PORT = 8080
_PATIENCE = 60_000.0


@asynccontextmanager
async def brought_in(api: Rest, machine_id: str, port: int, directory: Path) -> AsyncIterator[None]:
    """A port of this computer as port 8080 of the machine."""
    key = directory / "key"
    await run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    public = {"public_key": key.with_suffix(".pub").read_text()}
    path = f"/v1/machines/{machine_id}/ssh"
    session = (await api.call("POST", path, public)).body
    deadline = time.monotonic() + 60
    while session["status"] != "ready":
        assert time.monotonic() < deadline, session
        await asyncio.sleep(0.2)
        session = (await api.call("GET", f"{path}/{session['session_id']}")).body
    there, trust = session["connection"], session["connection"]["host_trust"]
    certificate, hosts = directory / "cert", directory / "hosts"
    certificate.write_text(there["user_certificate"] + "\n")
    hosts.write_text(f"@cert-authority {trust['host_pattern']} {trust['public_key']}\n")
    options = (
        *("-o", f"CertificateFile={certificate}", "-o", f"UserKnownHostsFile={hosts}"),
        *("-o", "StrictHostKeyChecking=yes", "-o", "ExitOnForwardFailure=yes"),
        *("-R", f"127.0.0.1:{_PORT}:127.0.0.1:{port}", "-p", str(there["port"])),
    )
    target = f"{there['ssh_username']}@{there['endpoint']}"
    process = await asyncio.create_subprocess_exec(
        "ssh", "-F", "none", "-N", "-i", str(key), *options, target
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def run(*argv: str) -> None:
    process = await asyncio.create_subprocess_exec(*argv)
    assert await process.wait() == 0, argv


async def test_the_waiting_page_the_site_and_its_websocket(
    real_cluster: Cluster, real_env: dict[str, str], tmp_path: Path
) -> None:
    async with (
        Rest.open(real_env["DEDALUS_BASE_URL"], real_env["DEDALUS_API_KEY"]) as api,
        service(site_in_guest) as port,
        browser() as chromium,
    ):
        machine_id = (await api.call("POST", "/v1/machines", _SIZES)).body["machine_id"]
        path = f"/v1/machines/{machine_id}"
        try:
            await api.eventually(machine_id, "running")
            asked = {"port": _PORT, "visibility": "private"}
            preview = (await api.call("POST", f"{path}/previews", asked)).body
            assert preview["status"] == "ready"
            await api.call("POST", f"{path}/sleep")
            await api.eventually(machine_id, "sleeping")

            page = await (await chromium.new_context()).new_page()
            answer = await page.goto(preview["url"], timeout=_PATIENCE)
            assert answer.status == 503
            assert await page.title() == "Waking up"
            await api.eventually(machine_id, "running")
            async with brought_in(api, machine_id, port, tmp_path):
                await page.wait_for_selector("#greeting", timeout=_PATIENCE)
                assert await page.title() == "The site"
                await page.wait_for_function(
                    "document.getElementById('said').textContent === 'ping pong'",
                    timeout=_PATIENCE,
                )
        finally:
            await api.call("DELETE", path)
