"""What can go wrong inside a machine that really boots: each has a clear answer, and nothing is lost or left over."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.cluster.support import Cluster, Machine, Object
from tests.conformance.support import Rest

pytestmark = pytest.mark.cluster

_SIZES = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1, "autosleep": "never"}
_ENDED = ("succeeded", "failed", "cancelled", "expired")
_PATIENCE = 120.0


class Inside:
    """One machine over REST."""

    def __init__(self, api: Rest, id: str) -> None:
        self.api, self.id = api, id
        self.path = f"/v1/machines/{id}"

    async def begin(self, *command: str, **more: Any) -> str:
        """The path of a new execution."""
        body = {"command": list(command), **more}
        answer = await self.api.call("POST", f"{self.path}/executions", body)
        assert answer.status == 200, answer
        return f"{self.path}/executions/{answer.body['execution_id']}"

    async def is_in(self, path: str, *statuses: str) -> Object:
        """The execution, once it has one of these statuses."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            seen: Object = (await self.api.call("GET", path)).body
            if seen["status"] in statuses:
                return seen
            assert time.monotonic() < deadline, seen
            await asyncio.sleep(0.3)

    async def run(self, *command: str, **more: Any) -> tuple[Object, Object]:
        """An execution once it has ended, and its output."""
        path = await self.begin(*command, **more)
        ended = await self.is_in(path, *_ENDED)
        return ended, (await self.api.call("GET", f"{path}/output")).body

    async def shell(self, program: str, **more: Any) -> tuple[Object, Object]:
        """The same for a shell."""
        return await self.run("/bin/sh", "-c", program, **more)


@asynccontextmanager
async def machine(env: dict[str, str]) -> AsyncIterator[Inside]:
    async with Rest.open(env["DEDALUS_BASE_URL"], env["DEDALUS_API_KEY"]) as api:
        made = await api.call("POST", "/v1/machines", _SIZES)
        inside = Inside(api, made.body["machine_id"])
        try:
            await api.eventually(inside.id, "running")
            yield inside
        finally:
            await api.call("DELETE", inside.path)


async def test_much_of_everything(real_env: dict[str, str]) -> None:
    async with machine(real_env) as inside:
        ended, output = await inside.shell("head -c 67108864 /dev/zero | tr '\\0' x; echo >&2 done")
        assert (ended["status"], ended["stdout_bytes"]) == ("succeeded", 64 * 2**20)
        assert ended["stdout_truncated"] is True
        assert output["stdout"] == "x" * 2**20
        assert output["stderr"] == "done\n"

        # What is no text comes as the replacement character.
        _, output = await inside.shell("printf 'a\\377b\\000c\\303'")
        assert output["stdout"] == "a�b\x00c�"
        assert output["stdout_bytes"] == 6

        env = {f"VARIABLE_{number}": "x" * 20 for number in range(1000)}
        ended, output = await inside.shell("env | grep -c ^VARIABLE_", env=env)
        assert output["stdout"] == "1000\n", ended
        text = "0123456789abcde\n" * 65536
        ended, output = await inside.shell("wc -c", stdin=text)
        assert output["stdout"].strip() == str(2**20), ended


async def test_a_hundred_at_once_and_one_that_leaves_a_child(real_env: dict[str, str]) -> None:
    async with machine(real_env) as inside:
        paths = []
        for number in range(100):
            answer = await inside.api.call(
                "POST", f"{inside.path}/executions", {"command": ["echo", f"number {number}"]}
            )
            while answer.status == 429:  # twenty a second are what an organisation may change
                await asyncio.sleep(answer.body["retry_after_ms"] / 1000)
                answer = await inside.api.call(
                    "POST", f"{inside.path}/executions", {"command": ["echo", f"number {number}"]}
                )
            assert answer.status == 200, answer
            paths.append(f"{inside.path}/executions/{answer.body['execution_id']}")
        for number, path in enumerate(paths):
            ended = await inside.is_in(path, *_ENDED)
            assert ended["status"] == "succeeded", ended
            output = (await inside.api.call("GET", f"{path}/output")).body
            assert output["stdout"] == f"number {number}\n"

        began = time.monotonic()
        ended, output = await inside.shell("(sleep 30; touch later) & echo at once")
        assert (ended["status"], output["stdout"]) == ("succeeded", "at once\n")
        assert time.monotonic() - began < 20
        _, output = await inside.shell("pgrep -fx 'sleep 30' | wc -l")
        assert output["stdout"].strip() == "1"


async def test_a_full_home_disk_keeps_nobody_out(real_env: dict[str, str]) -> None:
    async with machine(real_env) as inside:
        ended, output = await inside.shell("dd if=/dev/zero of=/root/fill bs=1M; echo full")
        assert output["stdout"] == "full\n", ended
        ended, output = await inside.shell("echo words >/root/more")
        assert (ended["status"], ended["exit_code"]) == ("failed", 1)
        assert "No space left on device" in output["stderr"]
        ended, _ = await inside.shell("rm /root/fill; echo words >/root/more")
        assert ended["status"] == "succeeded"


async def test_sleep_under_a_running_execution(real_env: dict[str, str]) -> None:
    async with machine(real_env) as inside:
        path = await inside.begin("/bin/sh", "-c", "echo begun; sleep 300")
        await inside.is_in(path, "running")
        await inside.api.call("POST", f"{inside.path}/sleep")
        ended = await inside.is_in(path, *_ENDED)
        assert (ended["status"], ended["error_code"]) == ("failed", "execution_runner_interrupted")
        await inside.api.eventually(inside.id, "sleeping")
        # And then it can be used again, by waking it.
        ended, output = await inside.shell("echo again")
        assert output["stdout"] == "again\n", ended


async def test_a_guest_that_is_killed_under_a_running_execution(
    real_cluster: Cluster, real_env: dict[str, str]
) -> None:
    async with machine(real_env) as inside:
        path = await inside.begin("sleep", "300")
        await inside.is_in(path, "running")
        [pid] = Machine(real_cluster, "default", inside.id).guests()
        os.kill(pid, signal.SIGKILL)
        ended = await inside.is_in(path, *_ENDED)
        assert (ended["status"], ended["error_code"]) == ("failed", "execution_runner_interrupted")
        ended, output = await inside.shell("echo up again")
        assert output["stdout"] == "up again\n", ended


async def test_destruction_under_a_running_execution(real_env: dict[str, str]) -> None:
    async with machine(real_env) as inside:
        path = await inside.begin("sleep", "300")
        await inside.is_in(path, "running")
        await inside.api.call("DELETE", inside.path)
        ended = await inside.is_in(path, *_ENDED)
        assert (ended["status"], ended["error_code"]) == ("failed", "machine_not_found")
        again = await inside.api.call("POST", f"{inside.path}/executions", {"command": ["true"]})
        assert again.status == 409, again


async def test_a_guest_without_sshd_is_said_to_be_out_of_reach(real_env: dict[str, str]) -> None:
    async with machine(real_env) as inside:
        # Its init would start it again; and this session is the last one's child.
        program = "mv /usr/sbin/sshd /usr/sbin/gone; (sleep 1; pkill -9 sshd) >/dev/null 2>&1 &"
        ended, _ = await inside.shell(program)
        assert ended["status"] == "succeeded", ended
        await asyncio.sleep(2)
        path = await inside.begin("true")
        seen = (await inside.api.call("GET", path)).body
        assert seen["status"] in ("queued", "wake_in_progress", "running"), seen
        gone = await inside.api.call("DELETE", path)
        assert gone.status == 200
        await inside.is_in(path, "cancelled")
