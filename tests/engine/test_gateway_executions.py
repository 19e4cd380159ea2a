"""Executions over REST: what is answered, what runs, and how each of them ends."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from machine_operator.gateway.dcs.execution_models import (
    ExecutionEventsResponse,
    ExecutionOutputResponse,
    ExecutionResponse,
)
from machine_operator.guest.errors import GuestError, GuestRefused
from machine_operator.store.executions import execution_inputs
from tests.support.executions import Node, Scene
from tests.support.gateway import until
from tests.support.guests import Spooled

MIB = 1024 * 1024
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


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
async def machine(scene: Scene, node: Node) -> str:
    return await scene.machine(node)


async def run(node: Node, machine: str, *command: str, **body: Any) -> Any:
    return await node.ended(await node.post(machine, *command, **body))


# ---- the whole of it


async def test_a_program_that_says_nothing(node: Node, machine: str) -> None:
    asked = await node.post(machine, "true", cwd="/tmp", env={"B": "2", "A": "1"})
    assert asked == {
        "execution_id": asked["execution_id"],
        "machine_id": machine,
        "status": "queued",
        "command": ["true"],
        "cwd": "/tmp",
        "env_keys": ["A", "B"],
        "created_at": asked["created_at"],
        "log_capture": {"state": "unavailable"},
    }
    assert re.fullmatch(r"wexec-[0-9a-f]{40}", asked["execution_id"])
    ended = await node.ended(asked)
    moments = {name: ended[name] for name in ("started_at", "completed_at", "expires_at")}
    assert ended == {**asked, **moments, "status": "succeeded", "exit_code": 0}
    assert all(STAMP.fullmatch(text) for text in (*moments.values(), asked["created_at"]))
    ExecutionResponse.model_validate(ended)
    # As the real service answers it, to the letter.
    assert await node.get(ended, "/output") == {"execution_id": asked["execution_id"]}
    events = await node.get(ended, "/events")
    assert [(e["sequence"], e["type"], e["status"]) for e in events["items"]] == [
        (1, "lifecycle", "queued"),
        (2, "lifecycle", "running"),
        (3, "lifecycle", "succeeded"),
    ]
    assert events["items"][-1]["exit_code"] == 0
    assert "next_cursor" not in events
    ExecutionEventsResponse.model_validate(events)


async def test_what_a_program_is_given_and_what_it_says(node: Node, machine: str) -> None:
    assert (await node.get(await run(node, machine, "echo", "a b", "$HOME"), "/output"))[
        "stdout"
    ] == "a b $HOME\n"
    ended = await run(node, machine, "printenv", "A", env={"A": "é\n'\"$x"})
    assert (await node.get(ended, "/output"))["stdout"] == "é\n'\"$x\n"
    ended = await run(node, machine, "pwd")
    assert (await node.get(ended, "/output"))["stdout"] == "/root"
    ended = await run(node, machine, "cat", stdin="x" * MIB)
    output = await node.get(ended, "/output")
    assert (output["stdout"], output["stdout_bytes"]) == ("x" * MIB, MIB)
    assert "stdout_truncated" not in output
    ExecutionOutputResponse.model_validate(output)


async def test_what_it_was_given_is_nowhere_once_it_has_ended(
    scene: Scene, node: Node, machine: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "tell-nobody"
    asked = await node.post(
        machine, "wait", "gate", env={"TOKEN": secret}, stdin=secret, key="secret"
    )
    assert secret not in str(asked)
    await node.sees(asked, lambda now: now["status"] == "running")
    scene.world.gate("gate").set()
    ended = await node.ended(asked)
    assert secret not in str(ended)
    async with node.database.reading() as connection:
        assert await connection.scalar(select(func.count()).select_from(execution_inputs)) == 0
    assert secret not in caplog.text


@pytest.mark.parametrize(
    ("program", "exit_code", "code"),
    [("false", 1, None), ("no-such-program", None, "host_agent_execute_failed")],
)
async def test_programs_that_fail_and_that_cannot_be_started(
    node: Node, machine: str, program: str, exit_code: int | None, code: str
) -> None:
    ended = await run(node, machine, program)
    assert (ended["status"], ended.get("exit_code"), ended.get("error_code")) == (
        "failed",
        exit_code,
        code,
    )
    if code:
        assert "exec_init_rejected" in ended["error_message"]


async def test_over_time_it_is_ended_with_all_that_it_has_said(
    scene: Scene, node: Node, machine: str
) -> None:
    ended = await run(node, machine, "wait", "never", "so far", timeout_ms=50)
    assert (ended["status"], ended["error_code"], ended["error_message"]) == (
        "expired",
        "execution_timed_out",
        "execution exceeded timeout_ms",
    )
    assert "exit_code" not in ended
    assert (await node.get(ended, "/output"))["stdout"] == "so far"
    ended = await run(node, machine, "stubborn", timeout_ms=50)
    assert ended["status"] == "expired"


async def test_a_signal_that_was_not_ours_is_told(scene: Scene, node: Node, machine: str) -> None:
    asked = await node.post(machine, "hang")
    await node.sees(asked, lambda now: now["status"] == "running")
    scene.boot(machine).jobs[asked["execution_id"]].kill(9)
    ended = await node.ended(asked)
    assert (ended["status"], ended["exit_code"], ended["signal"], ended["error_code"]) == (
        "failed",
        137,
        9,
        "signal: 9",
    )


# ---- output


async def test_output_is_there_while_it_runs_and_events_can_be_followed(
    scene: Scene, node: Node, machine: str
) -> None:
    asked = await node.post(machine, "wait", "gate", "before ", "after")
    await node.sees(asked, lambda now: now.get("stdout_bytes") == 7)
    assert (await node.get(asked, "/output"))["stdout"] == "before "
    first = await node.get(asked, "/events?limit=2")
    second = await node.get(asked, f"/events?limit=9&cursor={first['next_cursor']}")
    assert [e["sequence"] for e in first["items"] + second["items"]] == [1, 2, 3]
    tail = await node.get(asked, f"/events?cursor={second['next_cursor']}")
    assert (tail["items"], tail["next_cursor"]) == ([], second["next_cursor"])
    scene.world.gate("gate").set()
    await node.ended(asked)
    rest = await node.get(asked, f"/events?cursor={tail['next_cursor']}")
    assert [e.get("chunk") or e["status"] for e in rest["items"]] == ["after", "done", "succeeded"]
    assert "next_cursor" not in rest
    output = await node.get(asked, "/output")
    assert (output["stdout"], output["stderr"]) == ("before after", "done")


async def test_of_64_mib_the_first_is_kept_and_all_is_counted(
    scene: Scene, node: Node, machine: str
) -> None:
    async def much(spooled: Spooled) -> int:
        spooled.stdout += b"0123456789abcdef" * (4 * MIB)
        spooled.stderr += "é".encode() * MIB
        return 0

    scene.world.programs["much"] = much
    ended = await run(node, machine, "much")
    assert (ended["stdout_bytes"], ended["stderr_bytes"]) == (64 * MIB, 2 * MIB)
    assert ended["stdout_truncated"]
    assert ended["stderr_truncated"]
    output = await node.get(ended, "/output")
    assert output["stdout"] == "0123456789abcdef" * (MIB // 16)
    assert output["stderr"] == "é" * (MIB // 2)
    events, cursor = [], ""
    while True:
        page = await node.get(ended, f"/events?limit=5&cursor={cursor}")
        events += page["items"]
        if "next_cursor" not in page:
            break
        cursor = page["next_cursor"]
    assert [e["sequence"] for e in events] == list(range(1, len(events) + 1))
    assert all(len(e.get("chunk", "").encode()) <= 64 * 1024 for e in events)
    told = "".join(e["chunk"] for e in events if e["type"] == "stdout")
    assert told == output["stdout"]


async def test_output_that_is_no_text(scene: Scene, node: Node, machine: str) -> None:
    data = bytes(range(256)) * 3 + b"\xe2\x82"

    async def odd(spooled: Spooled) -> int:
        for byte in data:
            spooled.stdout.append(byte)
            if byte % 64 == 0:
                await asyncio.sleep(0.01)
        return 0

    scene.world.programs["odd"] = odd
    ended = await run(node, machine, "odd")
    output = await node.get(ended, "/output")
    assert output["stdout"] == data.decode(errors="replace")
    assert output["stdout_bytes"] == len(data)
    events = await node.get(ended, "/events?limit=200")
    assert "".join(e.get("chunk", "") for e in events["items"]) == output["stdout"]


async def test_a_cut_in_the_midst_of_a_character_shows_no_half_of_it(
    scene: Scene, node: Node, machine: str
) -> None:
    async def wide(spooled: Spooled) -> int:
        spooled.stdout += b"x" + "é".encode() * MIB
        return 0

    scene.world.programs["wide"] = wide
    ended = await run(node, machine, "wide")
    output = await node.get(ended, "/output")
    assert output["stdout"] == "x" + "é" * (MIB // 2 - 1)
    assert output["stdout_truncated"]


# ---- many


async def test_a_repeated_request_runs_once(scene: Scene, node: Node, machine: str) -> None:
    asked = [await node.post(machine, "echo", "x", key="k") for _ in range(3)]
    assert asked[0] == asked[1] == asked[2]
    other = await node.post(machine, "echo", "x", key="k2")
    assert other["execution_id"] != asked[0]["execution_id"]
    ended = await node.ended(asked[0])
    assert await scene.starts(ended) == 1
    path = f"/v1/machines/{machine}/executions"
    answer = await node.call("POST", path, json={"command": ["echo", "y"]}, key="k")
    assert (answer.status, answer.json()["error_code"]) == (409, "IDEMPOTENCY_KEY_REUSED")


async def test_fifty_at_once_on_one_machine(scene: Scene, node: Node, machine: str) -> None:
    asked = await asyncio.gather(*(node.post(machine, "echo", str(n)) for n in range(50)))
    for number, execution in enumerate(asked):
        ended = await node.ended(execution)
        assert ended["status"] == "succeeded"
        assert (await node.get(ended, "/output"))["stdout"] == f"{number}\n"
    boot = scene.boot(machine)
    assert set(boot.starts.values()) == {1}
    await until(lambda: not boot.jobs, state=lambda: list(boot.jobs))
    assert len(boot.forgotten) == 50


async def test_so_many_run_so_many_wait_and_the_rest_is_refused(scene: Scene) -> None:
    async with scene.node(execution_limit=3, execution_queue=4) as node:
        machine = await scene.machine(node)
        asked = [await node.post(machine, "wait", "gate") for _ in range(7)]
        path = f"/v1/machines/{machine}/executions"
        answer = await node.call("POST", path, json={"command": ["true"]}, key="late")
        body = answer.json()
        assert (answer.status, body["error_code"], body["retryable"]) == (429, "RATE_LIMITED", True)
        assert body["details"]["execution_queue"] == "4"
        assert int(answer.headers["retry-after-ms"]) == body["retry_after_ms"] > 0
        other = await scene.machine(node)
        assert (await run(node, other, "true"))["status"] == "succeeded"
        boot = scene.boot(machine)
        await until(lambda: len(boot.jobs) == 3)
        scene.world.gate("gate").set()
        assert {(await node.ended(one))["status"] for one in asked} == {"succeeded"}
        assert scene.world.most_running[boot.instance_uid] == 3
        assert (await run(node, machine, "true"))["status"] == "succeeded"


async def test_pages_newest_first_stay_valid(node: Node, machine: str) -> None:
    asked = [await node.post(machine, "true") for _ in range(5)]
    path = f"/v1/machines/{machine}/executions"
    first = (await node.call("GET", f"{path}?limit=2")).json()
    await node.post(machine, "true")
    rest = (await node.call("GET", f"{path}?limit=200&cursor={first['next_cursor']}")).json()
    found = [one["execution_id"] for one in first["items"] + rest["items"]]
    assert sorted(found) == sorted(one["execution_id"] for one in asked)
    created = [one["created_at"] for one in first["items"] + rest["items"]]
    assert created == sorted(created, reverse=True)
    assert "next_cursor" not in rest


# ---- cancelling and removing


async def test_deleted_while_it_runs_it_is_cancelled(
    scene: Scene, node: Node, machine: str
) -> None:
    for program in ("hang", "stubborn"):
        asked = await node.post(machine, program)
        await node.sees(asked, lambda now: now["status"] == "running")
        answer = await node.delete(asked, key=f"delete-{program}")
        body = answer.json()
        assert (answer.status, body["status"]) == (200, "cancelled")
        assert "exit_code" not in body
        assert "error_code" not in body
        signals = {"hang": [15], "stubborn": [15, 9]}[program]
        boot = scene.boot(machine)
        spooled = boot.jobs.get(asked["execution_id"])
        assert spooled is None or spooled.signals == signals
        again = await node.delete(asked, key=f"delete-{program}")
        assert again.body == answer.body
        assert (await node.get(asked))["status"] == "cancelled"


async def test_deleted_before_it_begins_it_never_runs(scene: Scene) -> None:
    async with scene.node(execution_limit=1) as node:
        machine = await scene.machine(node)
        running = await node.post(machine, "wait", "gate")
        waiting = await node.post(machine, "true")
        assert (await node.delete(waiting)).json()["status"] == "cancelled"
        scene.world.gate("gate").set()
        await node.ended(running)
        assert (await run(node, machine, "true"))["status"] == "succeeded"
        assert await scene.starts(waiting) == 0


async def test_deleted_after_its_end_it_is_gone(node: Node, machine: str) -> None:
    ended = await run(node, machine, "echo", "x")
    answer = await node.delete(ended)
    assert (answer.status, answer.json()) == (200, ended)
    for part in ("", "/output", "/events", "/logs"):
        path = f"/v1/machines/{machine}/executions/{ended['execution_id']}{part}"
        assert (await node.call("GET", path)).status == 404
    assert (await node.delete(ended)).status == 404


async def test_cancelled_by_way_of_another_replica(scene: Scene, node: Node, machine: str) -> None:
    asked = await node.post(machine, "hang")
    await node.sees(asked, lambda now: now["status"] == "running")
    async with scene.node() as other:
        await other.replica.caught_up()
        answer = await other.delete(asked)
        assert answer.json()["status"] == "cancelled"
    assert (await node.get(asked))["status"] == "cancelled"


# ---- machines


async def test_asleep_it_is_woken_and_then_the_program_runs(scene: Scene, node: Node) -> None:
    machine = await scene.machine(node, phase="sleeping")
    scene.cluster.api.edit(
        "machines", machine, lambda m: m["status"].update(power_request=_sleep_request())
    )
    await node.replica.caught_up()
    asked = await asyncio.gather(*(node.post(machine, "echo", str(n)) for n in range(5)))
    for one in asked:
        assert (one["status"], one["retry_after_ms"]) == ("wake_in_progress", 1000)

    def request() -> Any:
        return scene.cluster.machine(machine)["status"]["power_request"]

    await until(lambda: request()["state"] == "running", state=request)
    assert request()["sequence"] == 2, "five knocks make one wake"
    scene.cluster.report(machine, "starting")
    scene.start(machine)
    for one in asked:
        ended = await node.ended(one)
        assert ended["status"] == "succeeded"
        assert "retry_after_ms" not in ended
    events = (await node.get(asked[0], "/events"))["items"]
    assert events[0]["status"] == "wake_in_progress"


def _sleep_request() -> dict[str, Any]:
    return {
        "state": "sleeping",
        "by": "ada",
        "at": "2026-03-01T10:00:00Z",
        "sequence": 1,
        "spec_desired_state": "running",
    }


@pytest.mark.parametrize(
    ("phase", "code"),
    [("failed", "machine_not_routable"), ("destroyed", "machine_not_found")],
)
@pytest.mark.parametrize("begun", [True, False])
async def test_a_machine_that_fails_or_goes_under_it(
    scene: Scene, node: Node, phase: str, code: str, begun: bool
) -> None:
    machine = await scene.machine(node, phase="running" if begun else "starting")
    asked = await node.post(machine, "hang")
    if begun:
        await node.sees(asked, lambda now: now["status"] == "running")
        scene.stop(machine, phase=phase)
    else:
        scene.cluster.report(machine, phase)
    ended = await node.ended(asked)
    assert (ended["status"], ended["error_code"]) == ("failed", code)
    assert "exit_code" not in ended


async def test_on_a_machine_that_has_failed_it_is_accepted_and_fails(
    scene: Scene, node: Node
) -> None:
    machine = await scene.machine(node, phase="failed")
    ended = await node.ended(await node.post(machine, "true"))
    assert (ended["status"], ended["error_code"], ended["error_message"]) == (
        "failed",
        "machine_not_routable",
        "machine is not routable for execution",
    )


async def test_on_a_machine_that_is_destroyed_it_is_refused_but_history_can_be_read(
    scene: Scene, node: Node, machine: str
) -> None:
    ended = await run(node, machine, "echo", "x")
    answer = await node.call("DELETE", f"/v1/machines/{machine}")
    assert answer.status == 202
    path = f"/v1/machines/{machine}/executions"
    answer = await node.call("POST", path, json={"command": ["true"]}, key="late")
    assert (answer.status, answer.json()["error_code"]) == (409, "INVALID_STATE")
    assert (await node.get(ended, "/output"))["stdout"] == "x\n"


@pytest.mark.parametrize("way", ["sleep", "reboot"])
async def test_put_to_sleep_or_restarted_under_it_it_is_interrupted(
    scene: Scene, node: Node, machine: str, way: str
) -> None:
    asked = await node.post(machine, "wait", "never", "said before")
    await node.sees(asked, lambda now: now.get("stdout_bytes") == 11)
    if way == "sleep":
        answer = await node.call("POST", f"/v1/machines/{machine}/sleep")
        assert answer.status == 202
    else:
        scene.boot(machine).stop()
        scene.start(machine)
    ended = await node.ended(asked)
    assert (ended["status"], ended["error_code"]) == ("failed", "execution_runner_interrupted")
    assert (await node.get(ended, "/output"))["stdout"] == "said before"
    assert await scene.starts(ended) == 1


async def test_put_to_sleep_while_it_waits_it_does_not_wait_for_ever(
    scene: Scene, node: Node
) -> None:
    machine = await scene.machine(node, phase="starting")
    asked = await node.post(machine, "true")
    assert asked["status"] == "wake_in_progress"
    answer = await node.call("POST", f"/v1/machines/{machine}/sleep")
    assert answer.status == 202
    ended = await node.ended(asked)
    assert (ended["status"], ended["error_code"]) == ("failed", "execution_runner_interrupted")


# ---- guests in trouble


@pytest.mark.parametrize("operation", ["start", "ended", "output", "state", "forget"])
async def test_a_connection_that_breaks_changes_nothing(
    scene: Scene, node: Node, machine: str, operation: str
) -> None:
    node.guests.cut[operation] = 3
    asked = await node.post(machine, "wait", "gate", "one ", "two")
    scene.world.gate("gate").set()
    ended = await node.ended(asked)
    assert ended["status"] == "succeeded"
    assert (await node.get(ended, "/output"))["stdout"] == "one two"
    assert await scene.starts(ended) == 1


async def test_a_guest_out_of_reach(scene: Scene, node: Node, machine: str) -> None:
    asked = await node.post(machine, "hang")
    await node.sees(asked, lambda now: now["status"] == "running")
    node.guests.unreachable = True
    ended = await node.ended(asked)
    assert (ended["status"], ended["error_code"]) == ("failed", "machine_not_routable")


async def test_a_guest_that_is_not_who_it_should_be(node: Node, machine: str) -> None:
    node.guests.trouble.append(GuestRefused("its host certificate is another one's"))
    ended = await run(node, machine, "true")
    assert (ended["status"], ended["error_code"]) == ("failed", "machine_not_routable")


async def test_a_guest_whose_home_disk_is_full(
    scene: Scene, node: Node, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise GuestError("/root: no space left on device")

    monkeypatch.setattr(scene.world, "start", full)
    ended = await run(node, machine, "true")
    assert (ended["status"], ended["error_code"], ended["error_message"]) == (
        "failed",
        "execution_runner_prepare_failed",
        "/root: no space left on device",
    )


async def test_the_machine_is_held_awake_while_it_runs(
    scene: Scene, node: Node, machine: str
) -> None:
    def holds() -> list[str]:
        activity = scene.cluster.machine(machine)["status"].get("activity") or {}
        return [hold["kind"] for hold in activity.get("holds", ())]

    asked = await node.post(machine, "wait", "gate")
    await until(lambda: holds() == ["execution"], state=holds)
    scene.world.gate("gate").set()
    await node.ended(asked)
    await until(lambda: holds() == [], state=holds)


# ---- the store in trouble


async def test_a_store_that_is_away_for_a_while(scene: Scene, node: Node, machine: str) -> None:
    asked = await node.post(machine, "wait", "gate", "one ", "two")
    await node.sees(asked, lambda now: now.get("stdout_bytes") == 4)
    node.database.down = True
    scene.world.gate("gate").set()
    await until(lambda: scene.boot(machine).jobs[asked["execution_id"]].ended is not None)
    await asyncio.sleep(0.1)
    node.database.down = False
    ended = await node.ended(asked)
    assert (ended["status"], ended["exit_code"]) == ("succeeded", 0)
    assert (await node.get(ended, "/output"))["stdout"] == "one two"


async def test_without_the_store_nothing_begins(scene: Scene, node: Node, machine: str) -> None:
    node.database.down = True
    path = f"/v1/machines/{machine}/executions"
    answer = await node.call("POST", path, json={"command": ["true"]}, key="k")
    assert (answer.status, answer.json()["error_code"]) == (503, "DEPENDENCY_UNAVAILABLE")
    node.database.down = False
    asked = await node.post(machine, "true", key="k")
    assert (await node.ended(asked))["status"] == "succeeded"
    assert sum(scene.boot(machine).starts.values()) == 1
