"""Programs in a guest whose connection, runner or gateway goes away, or whose disk is full."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from machine_operator.guest.dialer import AddressDialer
from machine_operator.guest.errors import GuestError, GuestLost
from machine_operator.guest.guest import Guest
from machine_operator.guest.guests import Guests
from machine_operator.guest.runner import Ended, Job, Runner
from tests.support.gateway import until
from tests.support.sshd import SshServer, ssh_server

SHELLS = {"dash": "/bin/dash", "bash": "/bin/bash", "busybox": "/bin/busybox sh"}


class Gateway:
    """One that can be replaced by another."""

    def __init__(self, server: SshServer, *, program: str) -> None:
        self.server = server
        self.guests = Guests(
            AddressDialer(port=server.port),
            user_authority=server.user_authority,
            host_authority=server.host_authority,
            user=server.user,
            most=8,
            places=replace(server.places, shell=program),
        )

    async def guest(self) -> Guest:
        return await self.guests.connect(self.server.target())

    async def runner(self, *, patience: int | None = None) -> Runner:
        guest = await self.guest()
        if patience is not None:
            guest.runner._talk._patience = patience
        return guest.runner

    async def close(self) -> None:
        await self.guests.close()


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    found = SHELLS[request.param]
    if not Path(found.split()[0]).exists():
        pytest.skip(f"there is no {found}")
    return found


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SshServer]:
    async with ssh_server(tmp_path) as running:
        yield running


@pytest.fixture
async def gateways(server: SshServer, shell: str) -> AsyncIterator[tuple[Gateway, Gateway]]:
    two = (Gateway(server, program=shell), Gateway(server, program=shell))
    yield two
    for gateway in two:
        await gateway.close()


def job(identity: str, script: str, *, timeout: float = 60.0, stdin: bytes = b"") -> Job:
    argv = ("/bin/sh", "-c", script)
    return Job(identity, argv, cwd="/", timeout=timeout, stdin=stdin, kept_bytes=1 << 20)


def waiting(gate: Path, before: str = "", after: str = "") -> str:
    return f"{before or ':'}; until [ -e {gate} ]; do sleep 0.02; done; {after or ':'}"


async def test_the_next_gateway_finishes_every_byte(
    server: SshServer, gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    first, second = gateways
    gates = [tmp_path / f"gate-{number}" for number in range(10)]
    runner = await first.runner()
    for number, gate in enumerate(gates):
        script = waiting(gate, f"echo begin {number}", "head -c 100000 /dev/zero; exit 5")
        await runner.start(job(f"j{number}", script))
    server.cut()
    runner = await second.runner()
    assert [await runner.state(f"j{number}") for number in range(10)] == ["running"] * 10
    ends = [asyncio.create_task(runner.ended(f"j{number}", timeout=30)) for number in range(10)]
    for gate in gates:
        gate.touch()
    for number, end in enumerate(ends):
        begin = b"begin %d\n" % number
        assert await end == Ended(5, None, None, stdout_bytes=100_000 + len(begin))
        pieces = runner.output(f"j{number}", "stdout", offset=0, limit=1 << 30)
        assert b"".join([piece async for piece in pieces]) == begin + bytes(100_000)


async def test_more_than_a_pipe_is_written_while_no_gateway_is_there(
    server: SshServer, gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    first, second = gateways
    runner = await first.runner()
    script = waiting(tmp_path / "gate", after=f"head -c 900000 /dev/zero; echo >{tmp_path}/done")
    await runner.start(job("j", script))
    await server.stop()
    (tmp_path / "gate").touch()
    await until((tmp_path / "done").exists, within=20)
    await server.start()
    runner = await second.runner()
    assert await runner.ended("j", timeout=20) == Ended(0, None, None, stdout_bytes=900_000)


async def test_waiting_goes_on_over_another_channel_when_the_runner_was_killed(
    server: SshServer, gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    runner = await gateways[0].runner()
    await runner.start(job("j", waiting(tmp_path / "gate", "echo 1", "echo 2; exit 4")))
    end = asyncio.create_task(runner.ended("j", timeout=30))
    await asyncio.sleep(0)
    channel = runner._talk.channel
    assert channel is not None
    for pid in server.runners():
        os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(channel.lost.wait(), 20)
    (tmp_path / "gate").touch()
    assert await end == Ended(4, None, None, stdout_bytes=4)
    await runner.start(job("k", "exit 3"))
    assert await runner.ended("k", timeout=20) == Ended(3, None, None)


async def test_a_cut_connection_is_an_error_for_whoever_waits(
    server: SshServer, gateways: tuple[Gateway, Gateway]
) -> None:
    first, second = gateways
    runner = await first.runner()
    await runner.start(job("j", "sleep 100"))
    end = asyncio.create_task(runner.ended("j", timeout=60))
    await asyncio.sleep(0)
    server.cut()
    with pytest.raises(GuestLost):
        await end
    for call in (runner.state("j"), runner.kill("j", 15), runner.start(job("k", "true"))):
        with pytest.raises(GuestLost):
            await call
    with pytest.raises(GuestLost):
        await anext(runner.output("never", "stdout", offset=0, limit=1))
    runner = await second.runner()
    await runner.kill("j", signal.SIGTERM)
    ended = await runner.ended("j", timeout=20)
    assert ended is not None
    assert ended.signal == signal.SIGTERM


async def test_a_program_is_ended_by_the_guest_when_nobody_else_does(
    server: SshServer, gateways: tuple[Gateway, Gateway], tmp_path: Path
) -> None:
    first, second = gateways
    runner = await first.runner(patience=0)
    await runner.start(job("j", "sleep 300", timeout=1))
    stubborn = "trap '' TERM; while :; do sleep 1; done"
    await runner.start(job("k", stubborn, timeout=1))
    await runner.start(job("l", f"sleep 4; echo done >{tmp_path}/done", timeout=60))
    server.cut()
    await until((tmp_path / "done").exists, within=40)
    runner = await second.runner()
    j, k = [await runner.ended(identity, timeout=30) for identity in ("j", "k")]
    assert j == Ended(None, signal.SIGTERM, None, overdue=True)
    assert k == Ended(None, signal.SIGKILL, None, overdue=True)
    assert await runner.ended("l", timeout=10) == Ended(0, None, None)


async def test_a_keeper_that_was_killed_is_no_job_that_runs_for_ever(
    server: SshServer, gateways: tuple[Gateway, Gateway]
) -> None:
    first, second = gateways
    await (await first.runner()).start(job("j", "sleep 100"))
    keeper = int((server.spool / "j.claim").read_text().split()[1])
    os.kill(keeper, signal.SIGKILL)
    ended = await (await second.runner()).ended("j", timeout=10)
    assert ended is not None
    assert "lost track" in (ended.failure or "")


async def test_what_is_left_of_slots_goes_with_the_connection(
    server: SshServer, gateways: tuple[Gateway, Gateway]
) -> None:
    runner = await gateways[0].runner()
    await runner.start(job("j", "true"))
    await runner.ended("j", timeout=20)
    artifacts = server.artifacts
    await until(lambda: len(list(artifacts.iterdir())) > 1)
    await gateways[0].close()
    await until(lambda: server.jobs() == [], within=20)
    assert len(list(artifacts.iterdir())) == 1
    assert len([path for path in server.spool.iterdir() if path.is_fifo()]) == 3


async def test_a_new_boot_knows_nothing_and_has_no_old_artifacts(
    server: SshServer, gateways: tuple[Gateway, Gateway]
) -> None:
    first, second = gateways
    runner = await first.runner()
    await runner.start(job("j", 'echo x >"$DEDALUS_ARTIFACTS_DIR/x"'))
    await runner.ended("j", timeout=20)
    old = next(server.artifacts.rglob("x"))
    await first.close()
    await until(lambda: server.jobs() == [], within=20)
    for path in server.spool.iterdir():
        path.unlink()
    server.spool.rmdir()
    runner = await second.runner()
    assert await runner.state("j") == "absent"
    await until(lambda: not old.exists() and list(server.home.glob(".machine/*")) == [])
    with pytest.raises(GuestError, match="no j in the guest"):
        await runner.ended("j", timeout=5)
    await runner.start(job("j", "exit 2"))
    assert await runner.ended("j", timeout=20) == Ended(2, None, None)


async def test_a_full_home_disk_keeps_nobody_from_making_room(
    server: SshServer, gateways: tuple[Gateway, Gateway]
) -> None:
    artifacts = server.artifacts
    artifacts.parent.mkdir()
    artifacts.write_text("a file, so that no directory can be made in it")
    server.spool.mkdir(parents=True)
    runner = await gateways[0].runner()
    await runner.start(job("j", 'echo x >"$DEDALUS_ARTIFACTS_DIR/x"; echo room'))
    ended = await runner.ended("j", timeout=20)
    assert ended == Ended(0, None, None, stdout_bytes=5, artifacts=True)
    assert [file.name for file in await runner.artifacts("j")] == ["x"]
    assert [piece async for piece in runner.read_artifact("j", "x")] == [b"x\n"]


async def test_a_spool_that_cannot_be_written_is_a_clear_failure(
    server: SshServer, gateways: tuple[Gateway, Gateway]
) -> None:
    server.spool.parent.mkdir(exist_ok=True, parents=True)
    server.spool.write_text("a file")
    runner = await gateways[0].runner()
    await runner.start(job("j", "true"))
    ended = await runner.ended("j", timeout=20)
    assert ended is not None
    assert ended.failure is not None
    assert ended.failure.startswith("exec_init_rejected: nothing can be written to")
    with pytest.raises(GuestError):
        await runner.start(job("k", "true", stdin=b"x"))


async def test_a_runner_of_another_version_is_brought_along(
    server: SshServer, gateways: tuple[Gateway, Gateway]
) -> None:
    runner = await gateways[0].runner()
    await runner.start(job("j", "true"))
    scripts = list(server.scripts.iterdir())
    assert [path.name.partition("-")[0] for path in scripts] == ["runner"]
    await (await gateways[1].runner()).start(job("k", "true"))
    assert list(server.scripts.iterdir()) == scripts


async def test_a_guest_that_cannot_run_the_runner_says_so(server: SshServer) -> None:
    gateway = Gateway(server, program="/no/such/shell")
    with pytest.raises(GuestError, match="does not start"):
        await (await gateway.runner()).start(job("j", "true"))
    await gateway.close()
