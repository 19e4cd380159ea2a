"""A gateway that dies at any step of an execution: the next one finishes it, once, with every byte and the same end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from machine_operator.store.artifacts import artifacts
from machine_operator.store.executions import execution_inputs, executions
from tests.support.executions import QUICK, Death, Node, Scene
from tests.support.gateway import until
from tests.support.guests import Spooled
from tests.support.tally import count

LEFT = {"a.bin": bytes(range(256)) * 20, "b/é.txt": b"text"}
BODY = {"command": ["work"], "env": {"A": "1"}, "stdin": "given"}
TOLD = ("status", "exit_code", "stdout_bytes", "stderr_bytes", "stdout_truncated")


async def work(spooled: Spooled) -> int:
    spooled.stdout += spooled.job.stdin + b"\xff\xe2\x82"
    await asyncio.sleep(0.06)
    spooled.stdout += b"\xac" + b"x" * 300_000
    spooled.stderr += spooled.job.env["A"].encode()
    spooled.artifacts.update(LEFT)
    return 7


@asynccontextmanager
async def new_scene(directory: Path) -> AsyncIterator[Scene]:
    await asyncio.to_thread(directory.mkdir)
    scene = Scene(directory)
    scene.world.programs["work"] = work
    try:
        yield scene
    finally:
        await scene.world.close()


async def settled(node: Node, machine: str) -> None:
    """Return once nothing is left to be done."""
    boot = node.scene.boot(machine)

    async def left() -> int:
        async with node.database.reading() as connection:
            owned = executions.c.owner.is_not(None)
            statement = select(func.count()).select_from(executions).where(owned)
            return int(await connection.scalar(statement))

    deadline = asyncio.get_running_loop().time() + 5
    while await left() or boot.jobs:
        assert asyncio.get_running_loop().time() < deadline, boot.jobs
        await asyncio.sleep(0.01)


async def outcome(node: Node, machine: str, execution: Any) -> dict[str, Any]:
    """All that a client can see of it."""
    ended = await node.ended(execution)
    events = (await node.get(execution, "/events?limit=200"))["items"]
    output = await node.get(execution, "/output")
    chunks = {
        s: "".join(e["chunk"] for e in events if e["type"] == s) for s in ("stdout", "stderr")
    }
    assert [e["sequence"] for e in events] == list(range(1, len(events) + 1))
    assert chunks == {stream: output[stream] for stream in chunks}
    files = {}
    for reference in ended["artifacts"]:
        path = f"/v1/machines/{machine}/artifacts/{reference['artifact_id']}"
        found = (await node.call("GET", path)).json()
        content = await node.call("GET", found["download_url"].removeprefix("http://localhost"))
        files[found["name"]] = (content.body, found["sha256"], found["size_bytes"])
    listed = (await node.call("GET", f"/v1/machines/{machine}/artifacts")).json()["items"]
    assert len(listed) == len(files)
    async with node.database.reading() as connection:
        given = await connection.scalar(select(func.count()).select_from(execution_inputs))
        rows = await connection.scalar(select(func.count()).select_from(artifacts))
    assert (given, rows) == (0, len(files)), "nothing is left of earlier attempts"
    statuses = [e["status"] for e in events if e["type"] == "lifecycle"]
    return {
        **{name: ended.get(name) for name in TOLD},
        "output": {name: output[name] for name in output if name != "execution_id"},
        "files": files,
        "statuses": [statuses[0], statuses[-1]],
    }


async def lived(scene: Scene, machine: str, node: Node, death: Death) -> dict[str, Any]:
    """The whole of it with a gateway that lives."""
    path = f"/v1/machines/{machine}/executions"
    answer = await node.call("POST", path, json=BODY, key="k")
    found = await _counting(node, machine, answer.json(), death)
    assert await scene.starts(answer.json()) == 1
    return found


async def _counting(node: Node, machine: str, execution: Any, death: Death) -> dict[str, Any]:
    await until(lambda: death.steps.count("forget done") == 1, state=lambda: death.steps)
    return await outcome(node, machine, execution)


@pytest.mark.timeout(300)
async def test_death_at_any_step(tmp_path: Path) -> None:
    async with new_scene(tmp_path / "alive") as scene:
        death = Death()
        async with scene.node(death=death) as node:
            machine = await scene.machine(node)
            death.steps.clear()
            expected = await lived(scene, machine, node, death)
            steps = death.steps[: death.steps.index("forget done") + 6]
    assert {"start", "output done", "artifacts", "read_artifact", "transaction"} <= set(steps)
    for number, name in enumerate(steps):
        async with new_scene(tmp_path / f"dead-{number}") as scene:
            found = await _died(scene, number)
        assert found == expected, (number, name)
        count("crash points of executions")


async def _died(scene: Scene, number: int) -> dict[str, Any]:
    death = Death()
    async with scene.node(death=death) as first:
        machine = await scene.machine(first)
        await settled(first, machine)
        death.steps.clear()
        death.at = number
        path = f"/v1/machines/{machine}/executions"
        request = asyncio.create_task(first.call("POST", path, json=BODY, key="k"))
        over = asyncio.create_task(death.dead.wait())
        # A round more or less: the last steps need not come in every run.
        await asyncio.wait({over}, timeout=2)
        over.cancel()
        request.cancel()
        await first.kill()
        with suppress(asyncio.CancelledError):
            await request
    scene.cluster.later_by(QUICK.lease + 1)
    async with scene.node() as second:
        await second.replica.caught_up()
        answer = await second.call("POST", path, json=BODY, key="k")
        assert answer.status == 200, answer.body
        found = await outcome(second, machine, answer.json())
        assert await scene.starts(answer.json()) == 1
        await settled(second, machine)
        return found


async def test_twenty_at_once_under_a_gateway_that_dies(tmp_path: Path) -> None:
    async with new_scene(tmp_path / "scene") as scene:
        async with scene.node() as first:
            machines = [await scene.machine(first) for _ in range(4)]
            asked = [
                await first.post(machines[n % 4], "wait", "gate", f"{n} ", "é" * 40_000)
                for n in range(20)
            ]
            for one in asked[:10]:
                await first.sees(one, lambda now: now["status"] == "running")
            await first.kill()
        scene.world.gate("gate").set()
        scene.cluster.later_by(QUICK.lease + 1)
        async with scene.node() as second:
            await second.replica.caught_up()
            for number, one in enumerate(asked):
                ended = await second.ended(one)
                assert ended["status"] == "succeeded"
                output = await second.get(one, "/output")
                assert output["stdout"] == f"{number} " + "é" * 40_000
                assert await scene.starts(one) == 1


async def test_a_gateway_that_ends_as_it_should_hands_over_at_once(tmp_path: Path) -> None:
    async with new_scene(tmp_path / "scene") as scene:
        async with scene.node() as first:
            machine = await scene.machine(first)
            asked = await first.post(machine, "wait", "gate", "a", "b")
        scene.world.gate("gate").set()
        async with scene.node() as second:
            await second.replica.caught_up()
            assert (await second.ended(asked, within=2))["status"] == "succeeded"
            assert await scene.starts(asked) == 1


@pytest.mark.parametrize("notices", ["at once", "at the end"])
async def test_a_gateway_that_was_only_slow_writes_nothing_over(
    tmp_path: Path, notices: str
) -> None:
    async with new_scene(tmp_path / "scene") as scene, scene.node() as slow:
        machine = await scene.machine(slow)
        asked = await slow.post(machine, "wait", "gate", "one ", "two")
        await slow.sees(asked, lambda now: now.get("stdout_bytes") == 4)
        slow.database.down = True
        scene.cluster.later_by(QUICK.lease + 1)
        async with scene.node() as other:
            await other.replica.caught_up()
            await until(lambda: bool(other.executions._crew.runs))
            slow.database.down = False
            if notices == "at once":
                # It has something to write, and learns that it is not its own any more.
                scene.boot(machine).jobs[asked["execution_id"]].stderr += b"!"
                await until(lambda: not slow.executions._crew.runs)
                await asyncio.sleep(5 * QUICK.round)
                assert scene.boot(machine).forgotten == []
            scene.world.gate("gate").set()
            ended = await other.ended(asked)
            assert (ended["status"], ended["exit_code"]) == ("succeeded", 0)
            events = (await other.get(asked, "/events"))["items"]
            assert [e["sequence"] for e in events] == list(range(1, len(events) + 1))
            assert [e["status"] for e in events if e["type"] == "lifecycle"] == [
                "queued",
                "running",
                "succeeded",
            ]
            output = await other.get(asked, "/output")
            said = "!done" if notices == "at once" else "done"
            assert (output["stdout"], output["stderr"]) == ("one two", said)
            assert await scene.starts(asked) == 1


async def test_in_another_boot_it_is_not_begun_again(tmp_path: Path) -> None:
    async with new_scene(tmp_path / "scene") as scene:
        async with scene.node() as first:
            machine = await scene.machine(first)
            asked = await first.post(machine, "wait", "gate", "said")
            await first.sees(asked, lambda now: now.get("stdout_bytes") == 4)
            await first.kill()
        scene.boot(machine).stop()
        scene.start(machine)
        scene.cluster.later_by(QUICK.lease + 1)
        async with scene.node() as second:
            await second.replica.caught_up()
            ended = await second.ended(asked)
            assert (ended["status"], ended["error_code"]) == (
                "failed",
                "execution_runner_interrupted",
            )
            assert (await second.get(asked, "/output"))["stdout"] == "said"
            assert await scene.starts(asked) == 1


async def test_what_waited_for_a_dead_gateway_is_woken_and_begun_by_the_next(
    tmp_path: Path,
) -> None:
    async with new_scene(tmp_path / "scene") as scene:
        async with scene.node() as first:
            machine = await scene.machine(first, phase="starting")
            asked = await first.post(machine, "echo", "x")
            await first.kill()
        scene.cluster.later_by(QUICK.lease + 1)
        async with scene.node() as second:
            await second.replica.caught_up()
            await until(lambda: second.executions._crew.lines[_uid(scene, machine)].waiting)
            scene.start(machine)
            assert (await second.ended(asked))["status"] == "succeeded"
            assert await scene.starts(asked) == 1


def _uid(scene: Scene, machine: str) -> str:
    return str(scene.cluster.machine(machine)["metadata"]["uid"])
