"""The published clients inside machines that really boot: asleep when they come, and awake.

Each story is told twice. A machine that sleeps is woken by the first request, which says so, and then all is as if it
had been awake.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support import Cluster, Object
from tests.conformance.environments import CLIENTS
from tests.conformance.support import Rest, one, steps, tell_story

pytestmark = pytest.mark.cluster

_SIZES = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1, "autosleep": "never"}


def rest(env: dict[str, str], call: Any) -> Any:
    """What a coroutine makes of the API."""

    async def go() -> Any:
        async with Rest.open(env["DEDALUS_BASE_URL"], env["DEDALUS_API_KEY"]) as api:
            return await call(api)

    return asyncio.run(go())


@pytest.fixture(scope="module")
def machine_id(real_cluster: Cluster, real_env: dict[str, str]) -> Iterator[str]:
    """A machine that runs."""

    async def make(api: Rest) -> str:
        answer = await api.call("POST", "/v1/machines", _SIZES)
        assert answer.status in (200, 202), answer
        made: str = answer.body["machine_id"]
        await api.eventually(made, "running")
        return made

    made = rest(real_env, make)
    yield made
    rest(real_env, lambda api: api.call("DELETE", f"/v1/machines/{made}"))


@pytest.fixture(params=["awake", "asleep"])
def found(request: pytest.FixtureRequest, real_env: dict[str, str], machine_id: str) -> str:
    """How the story finds the machine."""
    state: str = request.param

    async def settle(api: Rest) -> None:
        verb, phase = ("wake", "running") if state == "awake" else ("sleep", "sleeping")
        answer = await api.call("POST", f"/v1/machines/{machine_id}/{verb}")
        assert answer.status in (200, 202), answer
        await api.eventually(machine_id, phase)

    rest(real_env, settle)
    return state


def begun_as(found: str) -> str:
    """The status of the first execution right after its creation."""
    return "queued" if found == "awake" else "wake_in_progress"


def test_executions_by_the_client_that_checks_every_answer(
    sdk_010: Path, real_env: dict[str, str], machine_id: str, found: str
) -> None:
    lines = tell_story(
        sdk_010, CLIENTS / "guest_010.py", "executions", "sync", env=real_env, machine_id=machine_id
    )
    hello = one(lines, "hello")
    assert hello["begun"]["status"] == begun_as(found)
    assert found == "awake" or hello["begun"]["retry_after_ms"] > 0
    assert hello["ended"]["status"] == "succeeded"
    assert hello["ended"]["exit_code"] == 0
    assert hello["output"]["stdout"] == "hello from inside\n"
    assert hello["ended"]["stdout_bytes"] == 18
    assert re.fullmatch(r"wexec-[0-9a-f]{40}", hello["ended"]["execution_id"])

    events = one(lines, "events")["events"]
    assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["status"] == "succeeded"
    assert "".join(event.get("chunk") or "" for event in events) == "hello from inside\n"

    whole = one(lines, "whole")
    assert whole["output"]["stdout"] == "from outside\nsalve in /tmp\n"
    assert whole["output"]["stderr"] == "aside\n"
    assert (whole["ended"]["status"], whole["ended"]["exit_code"]) == ("failed", 3)
    assert whole["ended"]["env_keys"] == ["GREETING"]

    assert outcome(lines, "signal")["signal"] == 9
    missing = outcome(lines, "missing")
    assert missing["error_code"] == "host_agent_execute_failed"
    assert "exec_init_rejected" in missing["error_message"]
    assert missing.get("exit_code") is None
    late = outcome(lines, "late")
    assert (late["status"], late["error_code"]) == ("expired", "execution_timed_out")
    assert outcome(lines, "cancelled")["status"] == "cancelled"
    assert len(one(lines, "list")["found"]) >= 6


def outcome(lines: list[Object], name: str) -> Object:
    """How an execution ended."""
    ended: Object = one(lines, name)["ended"]
    return ended


def test_executions_by_the_client_with_bare_ids(
    sdk_060: Path, real_env: dict[str, str], machine_id: str, found: str
) -> None:
    lines = tell_story(
        sdk_060,
        CLIENTS / "guest_060.py",
        "executions",
        "async",
        env=real_env,
        machine_id=machine_id,
    )
    hello = one(lines, "hello")
    assert hello["begun"]["status"] == begun_as(found)
    assert hello["output"]["stdout"] == "hello from inside\n"
    assert hello["ended"]["machine_id"] == machine_id.removeprefix("dm-")
    assert outcome(lines, "failed")["exit_code"] == 3
    assert one(lines, "deleted")["gone"]["status"] == "succeeded"


def test_artifacts_come_out_byte_for_byte(
    sdk_010: Path, real_env: dict[str, str], machine_id: str, found: str
) -> None:
    lines = tell_story(
        sdk_010, CLIENTS / "guest_010.py", "artifacts", "async", env=real_env, machine_id=machine_id
    )
    told = one(lines, "artifact")
    assert told["artifact"]["sha256"] == told["told"] == told["found"]
    assert told["artifact"]["size_bytes"] == 300_000
    assert told["part"] == [206, True]
    assert one(lines, "removed")["after"] == 404


def test_the_system_s_own_ssh_and_scp_log_in(
    sdk_010: Path, real_env: dict[str, str], machine_id: str, found: str
) -> None:
    lines = tell_story(
        sdk_010, CLIENTS / "guest_010.py", "ssh", "sync", env=real_env, machine_id=machine_id
    )
    told = one(lines, "ssh")
    assert told["said"] == "over ssh\n"
    assert told["same"]
    assert told["after"] == "closed"


def test_an_ssh_session_of_the_client_with_bare_ids(
    sdk_060: Path, real_env: dict[str, str], machine_id: str, found: str, tmp_path: Path
) -> None:
    key = (
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ3uQJ7bCmZ5Cq6kOZ0wqgVbNqRFcRr2fP2l0aM1fV2v somebody"
    )
    lines = tell_story(
        sdk_060,
        CLIENTS / "guest_060.py",
        "ssh",
        "sync",
        env=real_env,
        machine_id=machine_id,
        public_key=key,
    )
    session = one(lines, "ready")["session"]
    assert session["status"] == "ready"
    assert session["connection"]["host_trust"]["kind"] == "cert_authority"
    assert one(lines, "closed")["session"]["status"] == "closed"


def test_a_terminal_is_left_and_found_again(
    sdk_010: Path, real_env: dict[str, str], machine_id: str, found: str
) -> None:
    lines = tell_story(
        sdk_010, CLIENTS / "guest_010.py", "terminals", "sync", env=real_env, machine_id=machine_id
    )
    told = one(lines, "terminal")
    assert told["terminal"]["protocol"] == "websocket"
    assert "inside at 30 100" in told["replayed"]
    assert told["last"] == {"type": "closed"}
    assert told["code"] == 1000
    assert one(lines, "ended")["status"] == "closed"


def test_a_preview_shows_what_a_server_inside_says(
    sdk_010: Path, real_env: dict[str, str], machine_id: str, found: str
) -> None:
    serve_inside(real_env, machine_id)
    lines = tell_story(
        sdk_010,
        CLIENTS / "guest_010.py",
        "previews",
        "async",
        env=real_env,
        machine_id=machine_id,
        port=8080,
    )
    told = one(lines, "preview")
    assert (told["status"], told["text"]) == (200, "it works\n")
    assert told["preview"]["status"] == "ready"
    assert steps(lines, "closed")[0]["after"] == 404


def serve_inside(env: dict[str, str], machine_id: str) -> None:
    """A web server in the machine, on its loopback only; it goes on when the command has ended."""
    program = (
        "mkdir -p /srv/site; echo 'it works' >/srv/site/index.html; "
        "busybox httpd -p 127.0.0.1:8080 -h /srv/site"
    )

    async def run(api: Rest) -> None:
        path = f"/v1/machines/{machine_id}/executions"
        answer = await api.call("POST", path, {"command": ["/bin/sh", "-c", program]})
        assert answer.status == 200, answer
        which = f"{path}/{answer.body['execution_id']}"
        for _ in range(300):
            seen = (await api.call("GET", which)).body
            if seen["status"] in _ENDED:
                break
            await asyncio.sleep(0.1)
        assert seen["status"] == "succeeded", seen

    rest(env, run)


_ENDED = ("succeeded", "failed", "cancelled", "expired")
