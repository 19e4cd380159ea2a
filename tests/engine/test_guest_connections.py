"""Connections to guests, over real SSH: who is let in, who is trusted, how long they live, and how many there are."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest
from typing_extensions import override

from machine_operator.guest.dialer import AddressDialer
from machine_operator.guest.errors import GuestRefused, GuestUnreachable
from machine_operator.guest.guests import Guests
from machine_operator.guest.target import GuestTarget
from machine_operator.kubevirt.authority import Authority
from tests.support.gateway import until
from tests.support.sshd import SshServer, ssh_server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SshServer]:
    async with ssh_server(tmp_path) as running:
        yield running


@asynccontextmanager
async def connections(
    server: SshServer, *, most: int = 8, **options: object
) -> AsyncIterator[Guests]:
    settings = {
        "user_authority": server.user_authority,
        "host_authority": server.host_authority,
        "user": server.user,
        "places": server.places,
        **options,
    }
    guests = Guests(AddressDialer(port=server.port), most=most, **settings)  # type: ignore[arg-type]
    try:
        yield guests
    finally:
        await guests.close()


async def test_one_connection_is_shared_by_all_who_ask(server: SshServer) -> None:
    seconds: list[float] = []
    async with connections(server, on_connected=seconds.append) as guests:
        several = await asyncio.gather(*(guests.connect(server.target()) for _ in range(20)))
        assert len(set(map(id, several))) == 1
        guest = several[0]
        assert (await guest.connection.run("echo $HOME", check=True)).stdout == f"{server.home}\n"
        assert await guests.connect(server.target()) is guest
        assert server.log.count("Accepted publickey") == 1
        assert seconds == [guest.seconds]
        assert 0 < guest.seconds < 30
    assert guest.closed


async def test_one_who_stops_waiting_does_not_stop_the_others(server: SshServer) -> None:
    async with connections(server) as guests:
        first = asyncio.create_task(guests.connect(server.target()))
        await asyncio.sleep(0)
        second = asyncio.create_task(guests.connect(server.target()))
        await asyncio.sleep(0)
        first.cancel()
        guest = await second
        assert first.cancelled()
        assert not guest.closed


@pytest.mark.parametrize(
    "case", ["other authority", "other name", "no certificate", "our login", "the user"]
)
async def test_who_is_not_the_guest_or_does_not_know_us_is_refused(
    server: SshServer, case: str
) -> None:
    options: dict[str, object] = {}
    if case == "other authority":
        options = {"host_authority": Authority.generate()}
    elif case == "our login":
        options = {"user_authority": Authority.generate()}
    elif case == "the user":
        options = {"user": "nobody-at-all"}
    else:
        await server.stop()
        server.certify(server.host_authority, principal="m-2")
        if case == "no certificate":
            server.certificate.unlink()
        await server.start()
    async with connections(server, **options) as guests:
        with pytest.raises(GuestRefused):
            await guests.connect(server.target())


async def test_a_login_for_one_machine_is_none_for_another(tmp_path: Path) -> None:
    authority, hosts = Authority.generate(), Authority.generate()
    async with ssh_server(tmp_path, user_authority=authority, host_authority=hosts) as server:
        server.certify(hosts, principal="m-9")
        await server.stop()
        await server.start()
        target = GuestTarget("ns", "uid-9", "m-9", "boot-1", ("127.0.0.1",))
        async with connections(server) as guests:
            with pytest.raises(GuestRefused):
                await guests.connect(target)


async def test_nothing_of_the_gateways_own_user_is_read(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "user/.ssh"
    ssh.mkdir(parents=True)
    (ssh / "config").write_text("Host *\n  ProxyCommand false\n  User nobody\n  Port 1\n")
    (ssh / "known_hosts").write_text("* ssh-ed25519 nonsense\n")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "none"))
    async with connections(server) as guests:
        await guests.connect(server.target())


async def test_a_guest_whose_clock_is_behind_lets_us_in_and_a_late_one_does_not(
    server: SshServer,
) -> None:
    async with connections(server, clock=lambda: 4e9) as guests:
        await guests.connect(server.target())
    async with connections(server, clock=lambda: 1e9) as guests:
        with pytest.raises(GuestRefused):
            await guests.connect(server.target())


async def test_a_broken_connection_is_made_anew(server: SshServer) -> None:
    async with connections(server) as guests:
        guest = await guests.connect(server.target())
        server.cut()
        await asyncio.wait_for(guest.wait_closed(), 10)
        assert guest.closed
        again = await guests.connect(server.target())
        assert again is not guest
        await server.stop()
        await asyncio.wait_for(again.wait_closed(), 10)
        with pytest.raises(GuestUnreachable):
            await guests.connect(server.target())
        await server.start()
        await guests.connect(server.target())


async def test_another_boot_is_another_connection(server: SshServer) -> None:
    async with connections(server) as guests:
        first = await guests.connect(server.target(instance_uid="boot-1"))
        second = await guests.connect(server.target(instance_uid="boot-2"))
        assert second is not first
        await until(lambda: first.closed)
        guests.drop("uid-1")
        await until(lambda: second.closed)
        guests.drop("uid-1")


async def test_a_guest_that_is_silent_is_noticed(server: SshServer) -> None:
    async with connections(server, keepalive=0.1) as guests:
        guest = await guests.connect(server.target())
        with server.frozen():
            await asyncio.wait_for(guest.wait_closed(), 10)


async def test_an_attempt_has_an_end(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with listener:
        guests = Guests(
            AddressDialer(port=listener.sockets[0].getsockname()[1]),
            user_authority=Authority.generate(),
            host_authority=Authority.generate(),
            user="root",
            most=1,
            timeout=0.1,
        )
        target = GuestTarget("ns", "uid", "m-1", "boot", ("127.0.0.1",))
        with pytest.raises(GuestUnreachable, match=r"no login within 0\.1 s"):
            await guests.connect(target)
        await guests.close()


async def test_a_guest_without_an_address_is_not_there_yet() -> None:
    dialer = AddressDialer(port=22)
    with pytest.raises(GuestUnreachable, match="no address"):
        await dialer.dial(GuestTarget("ns", "uid", "m-1", "boot"))


async def test_the_one_that_was_not_used_for_longest_makes_room_but_none_in_use(
    server: SshServer,
) -> None:
    targets = [server.target(machine_uid=f"uid-{number}") for number in range(4)]
    async with connections(server, most=2) as guests:
        first = await guests.connect(targets[0])
        second = await guests.connect(targets[1])
        await guests.connect(targets[0])
        third = await guests.connect(targets[2])
        await until(lambda: second.closed)
        assert not first.closed
        assert not third.closed
        with first.hold():
            process = await third.connection.create_process("cat")
            await third.files.size("/")
            with pytest.raises(GuestUnreachable, match="in use"):
                await guests.connect(targets[3])
            process.close()
            await process.wait_closed()
            fourth = await guests.connect(targets[3])
            await until(lambda: third.closed)
            assert not first.closed
            assert not fourth.closed


async def test_files_and_scripts(server: SshServer) -> None:
    async with connections(server) as guests:
        guest = await guests.connect(server.target())
        file = server.home / "some file"
        path = str(file)
        data = os.urandom(700_000)
        await guest.write(path, data)
        assert file.read_bytes() == data
        assert await guest.read(path) == data
        assert await guest.read(path, 10, 5) == data[10:15]
        assert await guest.read(path, 699_999, 100) == data[-1:]
        assert await guest.read(path, 800_000) == b""
        with pytest.raises(FileNotFoundError):
            await guest.read(f"{server.home}/nothing")
        script = await guest.script("runner")
        found = list(server.scripts.iterdir())
        assert [str(path) for path in found] == [script]
        assert found[0].stat().st_mode & 0o111
        assert await guest.script("runner") == script
        leftovers = [p.name for p in server.home.iterdir() if p.name.endswith("~")]
        assert leftovers == []


async def test_no_secret_is_logged(server: SshServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    asyncssh.set_debug_level(1)
    async with connections(server) as guests:
        await guests.connect(server.target())
    assert "PRIVATE KEY" not in caplog.text


class _Slow(AddressDialer):
    @override
    async def dial(self, target: GuestTarget) -> object:  # type: ignore[override]
        await asyncio.sleep(3600)


async def test_closing_ends_what_is_under_way(server: SshServer) -> None:
    guests = Guests(
        _Slow(port=1),
        user_authority=server.user_authority,
        host_authority=server.host_authority,
        user="root",
        most=1,
    )
    waiting = asyncio.create_task(guests.connect(server.target()))
    await asyncio.sleep(0)
    await guests.close()
    with pytest.raises(GuestUnreachable, match="given up"):
        await waiting
    with pytest.raises(GuestUnreachable, match="ending"):
        await guests.connect(server.target())
