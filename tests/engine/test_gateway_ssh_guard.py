"""Who is not let in through the SSH gateway, who is cut, and who waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import asyncssh
import pytest

from machine_operator.gateway.access import NotUsable, Readiness
from machine_operator.gateway.ssh.certificates import SessionCertificates
from machine_operator.kubevirt.authority import Authority
from machine_operator.store.moments import utc_now
from machine_operator.store.ssh_sessions import SshSessionRecords
from tests.support.gateway import until
from tests.support.ssh import Client, Ended, SshWorld, inside, log_in, ssh_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SshWorld]:
    async with ssh_world(tmp_path) as made:
        yield made


def refused(ended: Ended) -> bool:
    return ended.status == 255 and "Permission denied (publickey)" in ended.err


# ---- who is not let in


async def test_wrong_username(world: SshWorld) -> None:
    client = await world.client(user="somebody")
    assert refused(await client.ssh("true"))


async def test_no_certificate(world: SshWorld) -> None:
    client = await world.client()
    (client.directory / "key-cert.pub").unlink()
    assert refused(await client.ssh("true"))


async def test_stolen_certificate(world: SshWorld) -> None:
    """A certificate is public: without its key it is of no use."""
    owner, thief = await world.client(), await world.client()
    stolen = (owner.directory / "key-cert.pub").read_text()
    (thief.directory / "key-cert.pub").write_text(stolen)
    assert refused(await thief.ssh("true"))
    assert (await owner.ssh("echo mine")).out == b"mine\n"


async def test_certificate_of_another_authority(world: SshWorld) -> None:
    client = await world.client()
    forged = _certificate(client, world, authority=Authority.generate())
    (client.directory / "key-cert.pub").write_text(forged)
    assert refused(await client.ssh("true"))


@pytest.mark.parametrize("change", ["session", "username"])
async def test_certificate_that_names_no_session(world: SshWorld, change: str) -> None:
    """As if our own authority had signed it."""
    client = await world.client()
    changed = {change: "ssh-" + "0" * 32 if change == "session" else "somebody"}
    forged = _certificate(client, world, authority=world.session_authority, **changed)
    (client.directory / "key-cert.pub").write_text(forged)
    assert refused(await client.ssh("true"))


async def test_expired_certificate(world: SshWorld) -> None:
    client = await world.client()
    process = await client.start("echo in; read x; echo $x")
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readline() == b"in\n"
    world.later += timedelta(minutes=10, seconds=1)
    assert refused(await client.ssh("true"))
    # Who is in already stays in.
    await world.gateway.round()
    process.stdin.write(b"still\n")
    assert await process.stdout.readline() == b"still\n"


async def test_host_certificate_of_another_authority(world: SshWorld) -> None:
    client = await world.client()
    (client.directory / "known_hosts").write_text(
        f"@cert-authority * {Authority.generate().public}\n"
    )
    ended = await client.ssh("true")
    assert (ended.status, "Host key verification failed" in ended.err) == (255, True)


async def test_store_that_does_not_answer(world: SshWorld) -> None:
    client = await world.client()
    process = await client.start("echo in; read x; echo $x")
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readline() == b"in\n"
    database = world.replica.database
    assert database is not None
    database.down = True
    ended = await client.ssh("true")
    await world.gateway.round()
    database.down = False
    assert (ended.status, "cannot be looked up now" in ended.err) == (255, True)
    process.stdin.write(b"still\n")
    assert await process.stdout.readline() == b"still\n"


async def test_too_many_tries(world: SshWorld) -> None:
    keys = [asyncssh.generate_private_key("ssh-ed25519") for _ in range(20)]
    with pytest.raises(asyncssh.DisconnectError, match="too many failed tries"):
        await log_in(world, keys)


# ---- who is cut


async def test_closed_while_connected(world: SshWorld) -> None:
    client, other = await world.client(), await world.client()
    process, spared = await inside(client), await inside(other)
    began = asyncio.get_running_loop().time()
    answer = await world.replica.call("DELETE", f"{world.path}/{client.session['session_id']}")
    assert (answer.status, answer.json()["status"]) == (200, "closed")
    assert process.stderr is not None
    assert b"the SSH session was closed" in await process.stderr.read()
    assert await process.wait() == 255
    assert asyncio.get_running_loop().time() - began < 3
    assert refused(await client.ssh("true"))
    assert spared.returncode is None


async def test_closed_by_another_replica(world: SshWorld) -> None:
    client = await world.client()
    process = await inside(client)
    async with world.cluster.gateway() as other:
        records = SshSessionRecords(other.records._database)
        closed = await records.change(client.session["session_id"], {"status": "closed"})
    assert closed is not None
    assert process.stderr is not None
    assert b"the SSH session was closed" in await process.stderr.read()


async def test_machine_goes_to_sleep(world: SshWorld) -> None:
    client = await world.client()
    process = await inside(client)
    await world.replica.call("POST", f"/v1/machines/{world.machine_id}/sleep")
    await world.phase("stopping")
    assert process.stderr is not None
    assert b"the machine went to sleep" in await process.stderr.read()
    assert await process.wait() == 255
    await until(lambda: world.access.ended_uses == 1)


async def test_machine_is_destroyed(world: SshWorld) -> None:
    client = await world.client()
    process = await inside(client)
    await world.replica.call("DELETE", f"/v1/machines/{world.machine_id}")
    await world.phase("destroying")
    assert process.stderr is not None
    assert b"the machine has been destroyed" in await process.stderr.read()
    assert await process.wait() == 255


async def test_guest_dies(world: SshWorld) -> None:
    client = await world.client()
    process = await inside(client)
    world.server.cut()
    assert process.stderr is not None
    assert b"the connection to the machine was lost" in await process.stderr.read()
    assert await process.wait() == 255
    assert (await client.ssh("echo again")).out == b"again\n"


async def test_the_gateway_ends(tmp_path: Path) -> None:
    async with ssh_world(tmp_path, drain=0.3) as world:
        client = await world.client()
        process = await client.start("echo in; read x; echo $x; read y", more=("-tt",))
        assert process.stdout is not None
        assert await process.stdout.readline() == b"in\r\n"
        world.replica.gateway.draining.set()
        assert process.stderr is not None
        told = await process.stderr.read()
        assert told.index(b"the gateway is about to end") < told.index(b"the gateway has ended")
        await world.gateway.ended.wait()
        assert "Connection refused" in (await client.ssh("true")).err


# ---- machines that sleep


async def test_sleeping_machine_is_waited_for(world: SshWorld) -> None:
    await world.phase("sleeping")
    directory = await world.key()
    session = await world.post((directory / "key.pub").read_text())
    assert session["status"] == "wake_in_progress"
    await world.phase("running")
    answer = await world.replica.call("GET", f"{world.path}/{session['session_id']}")
    client = world.client_of(directory, answer.json())
    # It goes to sleep again before they log in.
    await world.phase("sleeping")
    process = await client.start("echo $LC_X; cat", more=("-o", "SetEnv=LC_X=here"))
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"early")
    process.stdin.close()
    await until(lambda: len(world.access.knocks) == 2)
    await world.phase("running")
    assert await process.stdout.read() == b"\nearly"
    assert await process.wait() == 0


async def test_machine_that_does_not_wake(world: SshWorld) -> None:
    client = await world.client()
    world.access.refuse = NotUsable(Readiness.WAKING, "machine_not_routable", "secret cause")
    ended = await client.ssh("true")
    assert ended.status == 255
    assert ended.err == "machine-operator: the machine did not wake in time: try again later\r\n"
    ended = await client.ssh(more=("-W", "127.0.0.1:22"))
    assert "did not wake in time" in ended.err


async def test_client_that_leaves_while_it_waits(world: SshWorld) -> None:
    client = await world.client()
    await world.phase("sleeping")
    process = await client.start("true")
    await until(lambda: world.access.uses)
    process.kill()
    await until(lambda: world.access.ended_uses == 1, within=20)


def _certificate(client: Client, world: SshWorld, *, authority: Authority, **changed: str) -> str:
    named = {"session": client.session["session_id"], "username": client.user, **changed}
    key = (client.directory / "key.pub").read_text().rpartition(" ")[0]
    now = utc_now()
    until = now + timedelta(minutes=5)
    return SessionCertificates(authority).sign(key, since=now, until=until, **named)
