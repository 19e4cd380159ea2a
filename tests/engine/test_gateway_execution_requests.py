"""What may be asked for: the bodies, paths and cursors of executions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.executions import Node, Scene

MIB = 1024 * 1024


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    await scene.world.close()


@pytest.fixture
async def node(scene: Scene) -> AsyncIterator[Node]:
    async with scene.node() as node:
        yield node


@pytest.fixture
async def path(scene: Scene, node: Node) -> str:
    return f"/v1/machines/{await scene.machine(node)}/executions"


@pytest.mark.parametrize(
    ("body", "location"),
    [
        ({}, "body.command"),
        ({"command": None}, "body.command"),
        ({"command": []}, "body.command"),
        ({"command": "true"}, "body.command"),
        ({"command": [""]}, "body.command"),
        ({"command": ["x"] * 1001}, "body.command"),
        ({"command": ["x", 1]}, "body.command[1]"),
        ({"command": ["a\0b"]}, "body.command[0]"),
        ({"command": ["x" * 131072]}, "body.command[0]"),
        ({"command": ["x" * 100_000] * 3}, "body.command"),
        ({"command": ["true"], "cwd": "tmp"}, "body.cwd"),
        ({"command": ["true"], "cwd": "/a\0"}, "body.cwd"),
        ({"command": ["true"], "env": {"A=B": "x"}}, "body.env"),
        ({"command": ["true"], "env": {"": "x"}}, "body.env"),
        ({"command": ["true"], "env": {"1A": "x"}}, "body.env"),
        ({"command": ["true"], "env": {"A": "\0"}}, "body.env"),
        ({"command": ["true"], "env": {"A": "x" * 131072}}, "body.env"),
        ({"command": ["true"], "env": ["A"]}, "body.env"),
        ({"command": ["true"], "stdin": None}, "body.stdin"),
        ({"command": ["true"], "timeout_ms": -1}, "body.timeout_ms"),
        ({"command": ["true"], "timeout_ms": 1.5}, "body.timeout_ms"),
        ({"command": ["true"], "timeout_ms": True}, "body.timeout_ms"),
        ({"command": ["true"], "timeout_ms": 86_400_001}, "body.timeout_ms"),
        ({"command": ["true"], "shell": True}, "body.shell"),
    ],
)
async def test_what_is_refused(node: Node, path: str, body: Any, location: str) -> None:
    answer = await node.call("POST", path, json=body, key="k")
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")
    assert [one["location"] for one in answer.json()["errors"]] == [location]


async def test_secrets_are_not_told_back(node: Node, path: str) -> None:
    for env in ({"A": "s3cret\0"}, {"s3cret=": "s3cret"}, {"A": 5}):
        answer = await node.call("POST", path, json={"command": ["true"], "env": env})
        assert answer.status == 422
        assert b"s3cret" not in answer.body


@pytest.mark.parametrize(
    "body",
    [
        {"command": ["true"], "timeout_ms": 0},
        {"command": ["true"], "timeout_ms": 86_400_000},
        {"command": ["true"], "timeout_ms": 1000.0, "cwd": "/", "env": {}, "stdin": ""},
        {"command": ["true", *["x"] * 999]},
        {"command": ["true"], "env": {f"NAME_{n}": "v" * 500 for n in range(1000)}},
        {"command": ["true"], "env": {f"N{n}": "v" for n in range(1000)}, "stdin": "x" * MIB},
    ],
)
async def test_what_is_fine(node: Node, path: str, body: Any) -> None:
    answer = await node.call("POST", path, json=body, key="k")
    assert answer.status == 200, answer.body[:500]
    ended = await node.ended(answer.json())
    assert ended["status"] == "succeeded"
    assert ended.get("env_keys", []) == sorted(body.get("env", {}))


async def test_more_than_two_mib_is_too_much(node: Node, path: str) -> None:
    answer = await node.call("POST", path, json={"command": ["true"], "stdin": "x" * 2 * MIB})
    assert answer.status == 413


async def test_ids_are_answered_as_they_were_spelled(node: Node, path: str) -> None:
    bare = path.replace("/dm-", "/")
    answer = await node.call("POST", bare, json={"command": ["true"]}, key="k")
    assert answer.json()["machine_id"] == bare.split("/")[3]
    assert (await node.call("POST", path, json={"command": ["true"]}, key="k")).json()[
        "execution_id"
    ] == answer.json()["execution_id"]


async def test_cursors_and_limits(node: Node, path: str) -> None:
    asked = (await node.call("POST", path, json={"command": ["true"]})).json()
    events = f"{path}/{asked['execution_id']}/events"
    for target in (
        f"{path}?cursor=cursor",
        f"{path}?limit=-1",
        f"{events}?cursor=cursor",
        f"{events}?cursor=-1",
        f"{events}?cursor={'9' * 30}",
        f"{events}?limit=x",
    ):
        assert (await node.call("GET", target)).status == 422, target
    assert (await node.call("GET", f"{path}?limit=0")).status == 200
    beyond = await node.call("GET", f"{events}?cursor=999999999999999999")
    assert beyond.json()["items"] == []


async def test_ids_that_are_none(node: Node, path: str) -> None:
    for id in ("x", "a%2Fb", "wexec-" + "0" * 40, "%E2%82%AC"):
        for method, part in (("GET", ""), ("GET", "/output"), ("GET", "/events"), ("DELETE", "")):
            answer = await node.call(method, f"{path}/{id}{part}")
            assert (answer.status, answer.headers["content-type"]) == (
                404,
                "application/problem+json",
            )


async def test_logs_that_there_are_none_of(node: Node, path: str) -> None:
    asked = (await node.call("POST", path, json={"command": ["true"]})).json()
    one = f"{path}/{asked['execution_id']}"
    assert (await node.call("GET", f"{one}/logs")).json() == {
        "execution_id": asked["execution_id"],
        "capture": {"state": "unavailable"},
    }
    for action in ("token", "reauthorize"):
        answer = await node.call("POST", f"{one}/logs/{action}", json={})
        assert (answer.status, answer.json()["error_code"]) == (409, "INVALID_STATE")
        assert answer.headers["x-should-retry"] == "false"
