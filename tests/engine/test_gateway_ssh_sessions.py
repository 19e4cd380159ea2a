"""SSH sessions over the API: what becomes of them, and who may have which."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from fastapi import FastAPI

from machine_operator.gateway.access import NotUsable, Readiness
from machine_operator.gateway.dcs.ssh import ssh_routes
from machine_operator.gateway.dcs.ssh_models import SSHSessionListResponse, SSHSessionResponse
from tests.support.ssh import SshWorld, ssh_world

KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
OTHER = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SshWorld]:
    async with ssh_world(tmp_path) as made:
        yield made


async def get(world: SshWorld, session: Any) -> Any:
    answer = await world.replica.call("GET", f"{world.path}/{session['session_id']}")
    assert answer.status == 200
    SSHSessionResponse.model_validate_json(answer.body)
    return answer.json()


async def test_ready_at_once(world: SshWorld) -> None:
    session = await world.post(KEY)
    SSHSessionResponse.model_validate(session)
    assert set(session) == {
        *("session_id", "machine_id", "status", "created_at", "ready_at", "expires_at"),
        "connection",
    }
    assert session["status"] == "ready"
    assert session["machine_id"] == world.machine_id
    assert session["session_id"].startswith("ssh-")
    assert len(session["session_id"]) == 36
    ready, expires = (datetime.fromisoformat(session[name]) for name in ("ready_at", "expires_at"))
    assert expires - ready == timedelta(minutes=10)
    connection = session["connection"]
    port = connection["port"]
    assert connection == {
        "endpoint": "127.0.0.1",
        "port": port,
        "ssh_username": world.server.user,
        "user_certificate": connection["user_certificate"],
        "host_trust": {
            "kind": "cert_authority",
            "host_pattern": f"127.0.0.1,[127.0.0.1]:{port}",
            "public_key": world.host_authority.public,
        },
    }
    assert await get(world, session) == session


async def test_spelling_of_the_machine(world: SshWorld) -> None:
    bare = world.machine_id.removeprefix("dm-")
    answer = await world.replica.call("POST", f"/v1/machines/{bare}/ssh", json={"public_key": KEY})
    assert answer.json()["machine_id"] == bare


async def test_waits_for_a_machine_that_sleeps(world: SshWorld) -> None:
    await world.phase("sleeping")
    session = await world.post(KEY)
    assert session == {
        "session_id": session["session_id"],
        "machine_id": world.machine_id,
        "status": "wake_in_progress",
        "created_at": session["created_at"],
        "retry_after_ms": 1000,
    }
    assert len(world.access.knocks) == 1
    assert await get(world, session) == session
    assert len(world.access.knocks) == 1  # reads wake nothing
    world.later += timedelta(minutes=5)
    await world.phase("running")
    ready = await get(world, session)
    assert ready["status"] == "ready"
    # All of its time is left.
    expires = datetime.fromisoformat(ready["expires_at"])
    assert expires - datetime.fromisoformat(ready["created_at"]) >= timedelta(minutes=15)
    assert await get(world, session) == ready


async def test_list_settles_too(world: SshWorld) -> None:
    await world.phase("sleeping")
    made = [(await world.post(KEY))["session_id"] for _ in range(3)]
    await world.phase("running")
    answer = await world.replica.call("GET", f"{world.path}?limit=2")
    SSHSessionListResponse.model_validate_json(answer.body)
    page = answer.json()
    assert {item["status"] for item in page["items"]} == {"ready"}
    rest = await world.replica.call("GET", f"{world.path}?cursor={page['next_cursor']}")
    ids = [item["session_id"] for item in page["items"] + rest.json()["items"]]
    assert sorted(ids) == sorted(made)
    assert "next_cursor" not in rest.json()


async def test_machine_that_has_failed(world: SshWorld) -> None:
    await world.phase("failed")
    session = await world.post(KEY)
    assert (session["status"], session["error_code"]) == ("failed", "machine_not_routable")
    assert session["error_message"]


async def test_machine_that_fails_to_wake(world: SshWorld) -> None:
    await world.phase("sleeping")
    session = await world.post(KEY)
    await world.phase("failed")
    assert (await get(world, session))["error_code"] == "machine_not_routable"
    await world.phase("running")
    assert (await get(world, session))["status"] == "failed"


async def test_machine_that_never_wakes(world: SshWorld) -> None:
    await world.phase("sleeping")
    session = await world.post(KEY)
    world.later += timedelta(minutes=11)
    failed = await get(world, session)
    assert (failed["status"], failed["error_code"]) == ("failed", "wake_timeout")


async def test_machine_that_is_destroyed(world: SshWorld) -> None:
    session = await world.post(KEY)
    await world.replica.call("DELETE", f"/v1/machines/{world.machine_id}")
    answer = await world.replica.call("POST", world.path, json={"public_key": KEY})
    assert (answer.status, answer.json()["error_code"]) == (409, "INVALID_STATE")
    assert (await get(world, session))["session_id"] == session["session_id"]


async def test_too_many_machines_wait(world: SshWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(view: Any, *, by: str) -> Readiness:
        raise NotUsable(Readiness.WAKING, "machine_not_routable", "full", retryable=True)

    monkeypatch.setattr(world.access, "knock", full)
    answer = await world.replica.call("POST", world.path, json={"public_key": KEY})
    assert (answer.status, answer.json()["retryable"]) == (503, True)


async def test_expires(world: SshWorld) -> None:
    session = await world.post(KEY)
    world.later += timedelta(minutes=10, seconds=1)
    expired = await get(world, session)
    assert expired["status"] == "expired"
    assert expired["expires_at"] == session["expires_at"]
    assert "connection" not in expired


async def test_close(world: SshWorld) -> None:
    session = await world.post(KEY)
    for _ in range(2):
        answer = await world.replica.call(
            "DELETE", f"{world.path}/{session['session_id']}", key="k"
        )
        assert (answer.status, answer.json()["status"]) == (200, "closed")
        assert "connection" not in answer.json()
    assert (await get(world, session))["status"] == "closed"
    # One that waits can be closed too, and stays so.
    await world.phase("sleeping")
    waiting = await world.post(KEY)
    await world.replica.call("DELETE", f"{world.path}/{waiting['session_id']}")
    await world.phase("running")
    assert (await get(world, waiting))["status"] == "closed"


async def test_repetition_makes_no_second_one(world: SshWorld) -> None:
    first = await world.post(KEY, key="k")
    assert await world.post(KEY, key="k") == first
    # The line's comment and its end are no part of what was asked for.
    assert await world.post(KEY.strip() + " me\n", key="k") == first
    answer = await world.replica.call("POST", world.path, json={"public_key": OTHER}, key="k")
    assert answer.json()["error_code"] == "IDEMPOTENCY_KEY_REUSED"
    assert len((await world.replica.call("GET", world.path)).json()["items"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"public_key": None},
        {"public_key": 7},
        {"public_key": ""},
        {"public_key": "ssh-ed25519 AAAA"},
        {"public_key": f"{KEY}{KEY}"},
        {"public_key": f"from=10.0.0.1 {KEY}"},
    ],
)
async def test_bad_keys(world: SshWorld, body: Any) -> None:
    answer = await world.replica.call("POST", world.path, json=body)
    assert answer.status == 422
    assert [fault["location"] for fault in answer.json()["errors"]] == ["body.public_key"]


async def test_private_key_is_not_told_back(world: SshWorld) -> None:
    private = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    answer = await world.replica.call("POST", world.path, json={"public_key": private})
    assert answer.status == 422
    assert private.splitlines()[1][:40].encode() not in answer.body


async def test_other_organisation(world: SshWorld) -> None:
    session = await world.post(KEY)
    one = f"{world.path}/{session['session_id']}"
    for method, path in (("GET", one), ("DELETE", one), ("GET", world.path)):
        assert (await world.replica.call(method, path, org="other")).status == 404
    answer = await world.replica.call("POST", world.path, json={"public_key": KEY}, org="other")
    assert answer.status == 404
    assert (await get(world, session))["status"] == "ready"


async def test_session_of_another_machine(world: SshWorld) -> None:
    session = await world.post(KEY)
    other = (await world.replica.create())["machine_id"]
    path = f"/v1/machines/{other}/ssh/{session['session_id']}"
    assert (await world.replica.call("GET", path)).status == 404
    assert (await world.replica.call("DELETE", path)).status == 404
    assert (await world.replica.call("GET", f"{world.path}/ssh-nothing")).status == 404


async def test_store_that_does_not_answer(world: SshWorld) -> None:
    session = await world.post(KEY)
    database = world.replica.database
    assert database is not None
    database.down = True
    one = f"{world.path}/{session['session_id']}"
    for method, path, body in (
        ("GET", one, None),
        ("GET", world.path, None),
        ("DELETE", one, None),
        ("POST", world.path, {"public_key": KEY}),
    ):
        answer = await world.replica.call(method, path, json=body)
        assert (answer.status, answer.json()["error_code"]) == (503, "DEPENDENCY_UNAVAILABLE")
    database.down = False


async def test_without_an_ssh_gateway(world: SshWorld) -> None:
    assert isinstance(world.replica.app, FastAPI)
    world.replica.app.router.routes[:0] = ssh_routes(world.replica.gateway, None).routes
    answer = await world.replica.call("POST", world.path, json={"public_key": KEY})
    assert (answer.status, "ssh_address" in answer.json()["detail"]) == (501, True)


async def test_network_tells_of_the_gateway(world: SshWorld) -> None:
    machine = await world.replica.call("GET", f"/v1/machines/{world.machine_id}/network")
    network = await world.replica.call("GET", f"/v1/networks/{machine.json()['network_id']}")
    port = int((world.replica.gateway.settings.ssh_address or "").rpartition(":")[2])
    assert network.json()["gateways"] == [
        {"kind": "ssh", "protocol": "ssh", "hostname": "127.0.0.1", "port": port}
    ]


async def test_old_sessions_are_forgotten_unless_they_are_used(world: SshWorld) -> None:
    old, used = await world.post(KEY), await world.post(KEY)
    records = world.sessions._records
    world.later += timedelta(hours=20)
    await world.sessions.used([used["session_id"]])
    assert await records.sweep(world.now() - timedelta(days=1)) == 0
    world.later += timedelta(hours=5)
    assert await records.sweep(world.now() - timedelta(days=1)) == 1
    answer = await world.replica.call("GET", world.path)
    assert [item["session_id"] for item in answer.json()["items"]] == [used["session_id"]]
    assert await world.sessions.still_open([old["session_id"], used["session_id"]]) == {
        used["session_id"]
    }
