"""Terminals over the API: their states, and who may have which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.exceptions import InvalidStatus

from machine_operator.gateway.dcs.terminal_models import TerminalListResponse, TerminalResponse
from machine_operator.guest.errors import GuestRefused
from machine_operator.kubevirt.scripts import guest_script
from tests.support.gateway import Cluster
from tests.support.terminal_guest import terminal_guest
from tests.support.terminals import Gateway, World, gateway


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with terminal_guest(tmp_path) as guest:
        yield World(Cluster(tmp_path), guest)


@pytest.fixture
async def gate(world: World) -> AsyncIterator[Gateway]:
    async with gateway(world, public_url="https://api.example.com") as made:
        yield made


async def refused(gate: Gateway, url: str, **options: Any) -> tuple[int, Any, Any]:
    """What an upgrade is answered with."""
    with pytest.raises(InvalidStatus) as error:
        await gate.connect_to(url, **options)
    response = error.value.response
    return response.status_code, orjson.loads(response.body or b"null"), response.headers


async def test_ready_at_once(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine, env={"SECRET": "hush"})
    TerminalResponse.model_validate(terminal)
    url = terminal["stream_url"]
    assert terminal == {
        "terminal_id": terminal["terminal_id"],
        "machine_id": machine,
        "status": "ready",
        "created_at": terminal["created_at"],
        "ready_at": terminal["ready_at"],
        "expires_at": terminal["expires_at"],
        "width": 80,
        "height": 24,
        "protocol": "websocket",
        "stream_url": url,
    }
    assert terminal["terminal_id"].startswith("term-")
    assert len(terminal["terminal_id"]) == 37
    assert url.startswith(
        f"wss://api.example.com/v1/machines/{machine}/terminals/{terminal['terminal_id']}/stream?token="
    )
    assert (await gate.get(terminal))["status"] == "ready"
    answer = await gate.replica.call("GET", f"/v1/machines/{machine}/terminals")
    TerminalListResponse.model_validate_json(answer.body)
    assert [item["terminal_id"] for item in answer.json()["items"]] == [terminal["terminal_id"]]
    assert b"hush" not in answer.body


async def test_the_link_is_to_where_the_request_went_unless_set(world: World) -> None:
    async with gateway(world) as gate:
        machine = await gate.machine()
        answer = await gate.replica.call(
            "POST",
            f"/v1/machines/{machine.removeprefix('dm-')}/terminals",
            json={"width": 0, "height": 0},
            headers={"host": "here:8000"},
        )
        terminal = answer.json()
        assert (terminal["width"], terminal["height"]) == (80, 24)
        assert terminal["machine_id"] == machine.removeprefix("dm-")
        assert terminal["stream_url"].startswith("ws://here:8000/v1/machines/")
        async with gate.connect(terminal):
            pass


async def test_what_asleep_means(gate: Gateway) -> None:
    machine = await gate.machine("sleeping")
    terminal = await gate.make(machine)
    assert terminal == {
        "terminal_id": terminal["terminal_id"],
        "machine_id": machine,
        "status": "wake_in_progress",
        "created_at": terminal["created_at"],
        "expires_at": terminal["expires_at"],
        "width": 80,
        "height": 24,
        "retry_after_ms": 1000,
    }
    path = f"/v1/machines/{machine}/terminals/{terminal['terminal_id']}/stream"
    key = {"Authorization": f"Bearer {gate.world.cluster.tokens['ns']}"}
    url = f"ws://127.0.0.1:{gate.port}{path}"
    status, body, headers = await refused(gate, url, additional_headers=key)
    assert (status, body) == (
        409,
        {
            "error_code": "INVALID_STATE",
            "message": "terminal is not ready for streaming",
            "retryable": True,
            "retry_after_ms": 1000,
            "details": {"current_status": "wake_in_progress", "expected_status": "ready"},
        },
    )
    assert headers["Retry-After-Ms"] == "1000"
    await gate.phase(machine, "running")
    assert (await gate.get(terminal))["status"] == "ready"
    async with gate.connect_to(url, additional_headers=key):
        pass


async def test_a_terminal_that_nobody_used_survives_a_sleep(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    await gate.phase(machine, "sleeping")
    assert (await gate.get(terminal))["status"] == "ready"
    status, body, _ = await refused(gate, gate.url(terminal))
    assert (status, body["details"]["current_status"]) == (409, "wake_in_progress")
    assert (await gate.get(terminal))["status"] == "wake_in_progress"
    await gate.phase(machine, "running", boot="boot-2")
    assert (await gate.get(terminal))["status"] == "ready"
    async with gate.connect(terminal):
        pass


@pytest.mark.parametrize("reading", [True, False])
async def test_a_shell_does_not_survive_a_sleep(gate: Gateway, reading: bool) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    async with gate.connect(terminal):
        pass
    await gate.phase(machine, "sleeping")
    if reading:
        assert (await gate.get(terminal))["status"] == "closed"
    await gate.phase(machine, "running", boot="boot-2")
    status, body, _ = await refused(gate, gate.url(terminal))
    assert (status, body["retryable"]) == (409, False)
    assert body["details"] == {"current_status": "closed", "expected_status": "ready"}
    assert "retry_after_ms" not in body
    assert (await gate.get(terminal))["status"] == "closed"


async def test_a_machine_that_fails_to_wake(gate: Gateway) -> None:
    machine = await gate.machine("sleeping")
    terminal = await gate.make(machine)
    await gate.phase(machine, "failed")
    failed = await gate.get(terminal)
    assert (failed["status"], failed["error_code"]) == ("failed", "machine_not_routable")
    assert failed["error_message"]
    assert "retry_after_ms" not in failed


async def test_a_destroyed_machine_has_no_new_ones(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    answer = await gate.replica.call("DELETE", f"/v1/machines/{machine}")
    assert answer.status in (200, 202)
    answer = await gate.replica.call(
        "POST", f"/v1/machines/{machine}/terminals", json={"width": 1, "height": 1}
    )
    assert (answer.status, answer.json()["error_code"]) == (409, "INVALID_STATE")
    assert (await gate.get(terminal))["status"] == "closed"


async def test_made_once(gate: Gateway) -> None:
    machine = await gate.machine()
    first = await gate.make(machine, key="k", env={"A": "1"})
    assert await gate.make(machine, key="k", env={"A": "1"}) == first
    answer = await gate.replica.call(
        "POST",
        f"/v1/machines/{machine}/terminals",
        json={"width": 80, "height": 24, "shell": "/bin/sh", "env": {"A": "2"}},
        key="k",
    )
    assert (answer.status, answer.json()["error_code"]) == (409, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize(
    ("body", "location"),
    [
        ({"height": 24}, "body.width"),
        ({"width": -1, "height": 24}, "body.width"),
        ({"width": 80, "height": 1001}, "body.height"),
        ({"width": True, "height": 24}, "body.width"),
        ({"width": "80", "height": 24}, "body.width"),
        ({"width": 80, "height": 24, "shell": "a\0b"}, "body.shell"),
        ({"width": 80, "height": 24, "shell": "x" * 5000}, "body.shell"),
        ({"width": 80, "height": 24, "cwd": "a\nb"}, "body.cwd"),
        ({"width": 80, "height": 24, "env": {"A=B": "c"}}, "body.env"),
        ({"width": 80, "height": 24, "env": {"A": "\0"}}, "body.env"),
        ({"width": 80, "height": 24, "env": None}, "body.env"),
        ({"width": 80, "height": 24, "more": 1}, "body.more"),
    ],
)
async def test_bad_requests(gate: Gateway, body: Any, location: str) -> None:
    machine = await gate.machine()
    answer = await gate.replica.call("POST", f"/v1/machines/{machine}/terminals", json=body)
    assert answer.status == 422, answer.body
    assert answer.json()["errors"][0]["location"].startswith(location)


async def test_pages(gate: Gateway) -> None:
    machine = await gate.machine()
    made = [(await gate.make(machine))["terminal_id"] for _ in range(3)]
    first = (await gate.replica.call("GET", f"/v1/machines/{machine}/terminals?limit=2")).json()
    path = f"/v1/machines/{machine}/terminals?limit=2&cursor={first['next_cursor']}"
    second = (await gate.replica.call("GET", path)).json()
    ids = [item["terminal_id"] for item in first["items"] + second["items"]]
    assert sorted(ids) == sorted(made)
    assert "next_cursor" not in second


async def test_other_organisations_have_no_part(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    one = f"/v1/machines/{machine}/terminals/{terminal['terminal_id']}"
    for method, path in (
        ("GET", one),
        ("DELETE", one),
        ("GET", f"/v1/machines/{machine}/terminals"),
        ("GET", f"{one}/stream"),
    ):
        answer = await gate.replica.call(method, path, org="other")
        assert answer.status == 404, (method, path)
    other = {"Authorization": f"Bearer {gate.world.cluster.tokens['other']}"}
    plain = gate.url(terminal).partition("?")[0]
    assert (await refused(gate, plain, additional_headers=other))[0] == 404


async def test_permissions_of_the_stream(gate: Gateway) -> None:
    machine, another = await gate.machine(), await gate.machine()
    terminal, second = await gate.make(machine), await gate.make(machine)
    url = gate.url(terminal)
    plain, _, token = url.partition("?token=")
    key = gate.world.cluster.tokens["ns"]
    status, body, headers = await refused(gate, plain)
    assert (status, body["error_code"]) == (401, "AUTH_REQUIRED")
    assert headers["X-Request-Id"]
    assert headers["content-type"] == "application/json"
    for bad in (
        f"{plain}?token=1.x",
        f"{plain}?token={token}x",
        f"{plain}?token={gate.url(second).partition('?token=')[2]}",
        url.replace(machine, another),
        url.replace(terminal["terminal_id"], "term-none"),
    ):
        status, body, _ = await refused(gate, bad)
        assert (status, body.get("error_code")) in ((401, "AUTH_INVALID"), (404, None)), bad
    mismatch = {"x-api-key": key, "X-Dedalus-Org-Id": "other"}
    status, body, _ = await refused(gate, plain, additional_headers=mismatch)
    assert (status, body["error_code"]) == (403, "AUTH_ORG_MISMATCH")
    nowhere = plain.replace(terminal["terminal_id"], "term-none")
    status, body, headers = await refused(gate, nowhere, additional_headers={"x-api-key": key})
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    for good in (
        {"Authorization": f"Bearer {key}"},
        {"x-api-key": key},
    ):
        async with gate.connect_to(plain, additional_headers=good):
            pass
        async with gate.connect_to(f"{plain}?token=1.x", additional_headers=good):
            pass


async def test_the_literal_braces_of_an_old_client(gate: Gateway) -> None:
    key = {"x-api-key": gate.world.cluster.tokens["ns"]}
    for path in (
        "/v1/machines/{machine_id}/terminals/{terminal_id}/stream",
        "/v1/machines/%7Bmachine_id%7D/terminals/%7Bterminal_id%7D/stream",
    ):
        url = f"ws://127.0.0.1:{gate.port}{path}"
        assert (await refused(gate, url, additional_headers=key))[0] == 404


async def test_no_websocket_at_the_stream(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    path = f"/v1/machines/{machine}/terminals/{terminal['terminal_id']}/stream"
    answer = await gate.replica.call("GET", path)
    assert answer.status == 426
    assert answer.headers["Upgrade"] == "websocket"
    assert (await gate.replica.call("GET", path, org=None)).status == 401
    await gate.delete(terminal)
    assert (await gate.replica.call("GET", path)).json()["error_code"] == "INVALID_STATE"


async def test_delete(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    closed = await gate.delete(terminal)
    assert closed["status"] == "closed"
    assert "stream_url" not in closed
    assert await gate.delete(terminal) == closed
    assert await gate.get(terminal) == closed
    status, body, _ = await refused(gate, gate.url(terminal))
    assert (status, body["details"]["current_status"]) == (409, "closed")
    answer = await gate.replica.call("DELETE", f"/v1/machines/{machine}/terminals/term-none")
    assert answer.status == 404


async def test_the_end_of_its_time(world: World) -> None:
    async with gateway(world, terminal_lifetime=3600.0) as gate:
        machine = await gate.machine()
        terminal = await gate.make(machine)
        world.later += timedelta(seconds=3601)
        expired = await gate.get(terminal)
        assert expired["status"] == "expired"
        status, body, _ = await refused(gate, gate.url(terminal))
        assert (status, body["error_code"]) == (401, "AUTH_INVALID")  # and so has its link
        key = {"x-api-key": world.cluster.tokens["ns"]}
        plain = gate.url(terminal).partition("?")[0]
        status, body, _ = await refused(gate, plain, additional_headers=key)
        assert body["details"]["current_status"] == "expired"
        world.later += timedelta(days=2)
        await gate.terminals._sweep()
        path = f"/v1/machines/{machine}/terminals/{terminal['terminal_id']}"
        assert (await gate.replica.call("GET", path)).status == 404


async def test_a_guest_that_cannot_be_reached(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    gate.guests.trouble = GuestRefused("the host certificate of m-1 is not right")
    status, body, _ = await refused(gate, gate.url(terminal))
    assert (status, body["message"], body["retryable"]) == (503, "runtime unavailable", True)
    gate.guests.trouble = None
    async with gate.connect(terminal):
        pass


async def test_an_image_without_terminals(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    script = guest_script("terminal")
    path = Path(gate.world.guest.server.places.scripts) / Path(script.path).name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script.content.replace("in script ", "in scriptx "))
    status, body, _ = await refused(gate, gate.url(terminal))
    assert (status, body["details"]["current_status"]) == (409, "failed")
    failed = await gate.get(terminal)
    assert failed["error_code"] == "terminal_unavailable"
    assert "scriptx" in failed["error_message"]


async def test_the_store_is_down(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    assert gate.replica.database is not None
    gate.replica.database.down = True
    status, body, _ = await refused(gate, gate.url(terminal))
    assert (status, body["error_code"]) == (503, "DEPENDENCY_UNAVAILABLE")
    path = f"/v1/machines/{machine}/terminals"
    assert (await gate.replica.call("GET", path)).status == 503
    gate.replica.database.down = False
    await asyncio.sleep(0)
