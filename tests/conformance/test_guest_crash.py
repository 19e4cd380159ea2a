"""kill -9 of the gateway while machines are used through it: the next one finishes everything, byte for byte."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.cluster.support import Cluster, Object
from tests.conformance.support import GatewayProcess, Rest, make_key

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300, func_only=True)]

EXECUTIONS, TERMINALS, LINES = 20, 5, 400
_RELEASE = "/tmp/released"
_ENDED = ("succeeded", "failed", "cancelled", "expired")
_PATIENCE = 120.0
_SIZES = {"vcpu": 1, "memory_mib": 512, "storage_gib": 1, "autosleep": "never"}


def lines(name: str, *, prefix: str = "") -> str:
    """A shell program that takes some seconds for its output, and ends when it is released: an emulated guest can take
    longer to begin the upload than these lines take."""
    return (
        f"i=0; while [ $i -lt {LINES} ]; do echo {prefix}{name} line $i; "
        "i=$((i+1)); sleep 0.03; done; "
        f"until [ -e {_RELEASE} ]; do sleep 0.5; done"
    )


def said(name: str) -> str:
    """Its output."""
    return "".join(f"{name} line {number}\n" for number in range(LINES))


async def eventually(look: Callable[[], Any], what: str) -> Any:
    """The first true value."""
    deadline = time.monotonic() + _PATIENCE
    while not (seen := await look()):
        assert time.monotonic() < deadline, f"waited {_PATIENCE:.0f} s for {what}"
        await asyncio.sleep(0.05)
    return seen


class Inside:
    """One machine, through one gateway that comes and goes."""

    def __init__(self, api: Rest, session: aiohttp.ClientSession, machine_id: str) -> None:
        self.api, self.session = api, session
        self.path = f"/v1/machines/{machine_id}"

    async def run(self, program: str) -> str:
        """The path of a new execution."""
        body = {"command": ["/bin/sh", "-c", program]}
        answer = await self.api.call("POST", f"{self.path}/executions", body)
        assert answer.status == 200, answer
        return f"{self.path}/executions/{answer.body['execution_id']}"

    async def get(self, path: str) -> Object:
        """What a GET answers."""
        answer = await self.api.call("GET", path)
        assert answer.status == 200, answer
        body: Object = answer.body
        return body

    async def ended(self, path: str) -> Object:
        """An execution, once it has ended."""

        async def look() -> Object | None:
            seen = await self.get(path)
            return seen if seen["status"] in _ENDED else None

        found: Object = await eventually(look, f"{path} to end")
        return found

    async def terminal(self) -> Object:
        """A new terminal."""
        answer = await self.api.call(
            "POST", f"{self.path}/terminals", {"width": 80, "height": 24, "shell": "/bin/sh"}
        )
        assert answer.status == 200, answer

        async def look() -> Object | None:
            seen = await self.get(f"{self.path}/terminals/{answer.body['terminal_id']}")
            return seen if seen["status"] == "ready" else None

        found: Object = await eventually(look, "a terminal to be ready")
        return found

    @asynccontextmanager
    async def attached(self, terminal: Object) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Its WebSocket."""
        async with self.session.ws_connect(terminal["stream_url"]) as socket:
            yield socket


async def type_into(socket: aiohttp.ClientWebSocketResponse, text: str) -> None:
    data = base64.b64encode(text.encode()).decode()
    await socket.send_str(json.dumps({"type": "input", "data": data}))


async def read_until(socket: aiohttp.ClientWebSocketResponse, mark: str) -> str:
    """What a terminal shows from now on, up to and with `mark`."""
    seen = b""
    async with asyncio.timeout(_PATIENCE):
        while mark.encode() not in seen:
            message = await socket.receive_json()
            assert message["type"] == "output", message
            seen += base64.b64decode(message["data"])
    return seen.decode().replace("\r\n", "\n")


@pytest.fixture(params=["portforward"])
def gateway(real_cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """A gateway of the test's own beside the cluster's; the parameter is the way that it goes."""
    settings = real_cluster.settings
    made = GatewayProcess(
        real_cluster,
        tmp_path / "gateway-killed.log",
        f"sqlite:///{tmp_path}/gateway.db",
        (
            f"--guest-dialer={request.param}",
            f"--credentials={real_cluster.paths.pki}",
            f"--guest-port={settings.ssh_port}",
            f"--artifacts=file://{tmp_path}/artifacts",
        ),
    )
    yield made
    made.stop()


def test_what_runs_when_the_gateway_is_killed_is_finished_by_the_next_one(
    real_cluster: Cluster, gateway: GatewayProcess, tmp_path: Path
) -> None:
    key = make_key(real_cluster, "default")
    gateway.up()

    async def story() -> None:
        async with (
            Rest.open(gateway.base, key) as api,
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        ):
            made = await api.call("POST", "/v1/machines", _SIZES)
            machine_id = made.body["machine_id"]
            await api.eventually(machine_id, "running")
            try:
                await survive(Inside(api, session, machine_id), gateway, tmp_path)
            finally:
                await api.call("DELETE", f"/v1/machines/{machine_id}")

    asyncio.run(story())
    assert gateway.complaints() == []


async def survive(inside: Inside, gateway: GatewayProcess, tmp_path: Path) -> None:
    prepared = await inside.run("head -c 12000000 /dev/urandom >big; sha256sum <big")
    digest = await inside.ended(prepared)
    assert digest["status"] == "succeeded", digest
    shells = [await inside.terminal() for _ in range(TERMINALS)]
    for number, shell in enumerate(shells):
        async with inside.attached(shell) as socket:
            mark = f"t{number}"
            # Quotes keep the typed line from looking like its own output.
            await type_into(socket, f"{lines(mark, prefix=chr(39) * 2)}; echo fin''ished\n")
            await read_until(socket, f"{mark} line 2\n".replace("\n", "\r\n"))
    runs = [await inside.run(lines(f"run {number}")) for number in range(EXECUTIONS)]
    upload = await inside.run('mv big "$DEDALUS_ARTIFACTS_DIR/"')

    async def uploading() -> bool:
        files = (tmp_path / "artifacts").rglob("*")
        return any(file.is_file() and file.stat().st_size for file in files)

    await eventually(uploading, "the upload to begin")
    seen = [await inside.get(path) for path in runs]
    # Beside the event loop, or it would not see before its next request that its connections are gone.
    await asyncio.to_thread(gateway.kill)
    await asyncio.to_thread(gateway.up)
    assert [one["status"] for one in seen] == ["running"] * EXECUTIONS
    released = await inside.ended(await inside.run(f"touch {_RELEASE}"))
    assert released["status"] == "succeeded", released

    for number, path in enumerate(runs):
        ended = await inside.ended(path)
        assert ended["status"] == "succeeded", ended
        output = await inside.get(f"{path}/output")
        assert output["stdout"] == said(f"run {number}")
        assert ended["stdout_bytes"] == len(output["stdout"])
        events = await inside.get(f"{path}/events?limit=200")
        chunks = "".join(event.get("chunk", "") for event in events["items"])
        assert chunks == output["stdout"]
        assert await once(inside, path)
    for number, shell in enumerate(shells):
        async with inside.attached(shell) as socket:
            shown = await read_until(socket, "\r\nfinished")
        found = re.findall(rf"^t{number} line \d+\n", shown, re.MULTILINE)
        assert "".join(found) == said(f"t{number}")
    told = (await inside.get(f"{prepared}/output"))["stdout"].split()[0]
    await check_upload(inside, upload, digest=told)


async def once(inside: Inside, path: str) -> bool:
    """Whether its life was told once, in order."""
    events = (await inside.get(f"{path}/events?limit=200"))["items"]
    told = [event["status"] for event in events if event["type"] == "lifecycle"]
    assert told.count("running") <= 1, told
    assert told[-1] == "succeeded", told
    return [event["sequence"] for event in events] == list(range(1, len(events) + 1))


async def check_upload(inside: Inside, path: str, *, digest: str) -> None:
    ended = await inside.ended(path)
    [ref] = ended["artifacts"]
    artifact = await inside.get(f"{inside.path}/artifacts/{ref['artifact_id']}")
    found = hashlib.sha256()
    async with inside.session.get(artifact["download_url"]) as response:
        async for chunk in response.content.iter_any():
            found.update(chunk)
    assert digest == artifact["sha256"] == found.hexdigest()


@pytest.mark.parametrize("gateway", ["address"], indirect=True)
def test_the_straight_way_leads_in_too(real_cluster: Cluster, gateway: GatewayProcess) -> None:
    key = make_key(real_cluster, "default")
    gateway.up()

    async def story() -> None:
        async with Rest.open(gateway.base, key) as api, aiohttp.ClientSession() as session:
            made = await api.call("POST", "/v1/machines", _SIZES)
            inside = Inside(api, session, made.body["machine_id"])
            try:
                path = await inside.run("echo straight; cat /etc/hostname")
                assert (await inside.ended(path))["status"] == "succeeded"
                output = await inside.get(f"{path}/output")
                assert output["stdout"] == f"straight\n{made.body['machine_id']}\n"
            finally:
                await api.call("DELETE", inside.path)

    asyncio.run(story())
    assert gateway.complaints() == []
