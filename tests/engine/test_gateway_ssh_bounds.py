"""What nobody can make the SSH gateway keep: memory, channels, connections, places at its door."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from machine_operator.gateway.ssh import server as sshd
from tests.support.gateway import until
from tests.support.ssh import SshWorld, inside, log_in, own_key, ssh_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SshWorld]:
    async with ssh_world(tmp_path) as made:
        yield made


async def test_channels_are_bounded(world: SshWorld) -> None:
    client = await world.client()
    async with await log_in(world, [own_key(client)]) as connection:
        opened = await asyncio.gather(
            *(connection.create_process("cat", encoding=None) for _ in range(1000)),
            return_exceptions=True,
        )
        refusals = [each for each in opened if isinstance(each, BaseException)]
        assert {type(each) for each in refusals} == {asyncssh.ChannelOpenError}
        assert len(refusals) == 1000 - 64
        for each in opened:
            if not isinstance(each, BaseException):
                each.stdin.write_eof()
                await each.wait()
        assert (await connection.run("echo room")).stdout == "room\n"


async def test_clients_of_one_session_are_bounded(world: SshWorld) -> None:
    client = await world.client()
    made = [await log_in(world, [own_key(client)]) for _ in range(32)]
    late = await client.ssh("true")
    assert late.status == 255
    assert "at most 32 connections" in late.err, late.err
    for connection in made:
        connection.abort()
        await connection.wait_closed()


@pytest.mark.parametrize("greedy", [False, True], ids=["usual window", "endless window"])
async def test_client_that_does_not_read(world: SshWorld, greedy: bool) -> None:
    """`yes` for a stopped client: it has to wait, whatever window the client has promised."""
    client = await world.client()
    window = 2**31 - 1 if greedy else 2**20
    async with await log_in(world, [own_key(client)]) as connection:
        process = await connection.create_process("yes 0123456789", encoding=None, window=window)
        assert await process.stdout.readline() == b"0123456789\n"
        transport: Any = connection._transport
        transport.pause_reading()
        held = await _settled(world)
        assert held < 8 * 2**20
        transport.resume_reading()
        process.close()
        connection.abort()


async def test_guest_that_does_not_read(world: SshWorld) -> None:
    client = await world.client()
    process = await client.start("echo in; exec sleep 1000")
    assert process.stdout is not None
    assert process.stdin is not None
    assert await process.stdout.readline() == b"in\n"
    tracemalloc.start()
    try:
        process.stdin.write(b"x" * 64 * 2**20)
        await _quiet(process.stdin.transport.get_write_buffer_size)  # type: ignore[union-attr]
        gc.collect()
        ours = sum(
            trace.size
            for trace in tracemalloc.take_snapshot().statistics("filename")
            if "asyncssh" in trace.traceback[0].filename
        )
        assert process.stdin.transport.get_write_buffer_size() > 48 * 2**20
        assert ours < 8 * 2**20
    finally:
        tracemalloc.stop()
        process.kill()


async def test_garbage_and_slow_ones_before_the_login(world: SshWorld) -> None:
    address = ("127.0.0.1", world.gateway.port)
    idle = [socket.create_connection(address) for _ in range(150)]
    for noise in (
        b"GET / HTTP/1.1\r\n\r\n",
        os.urandom(4096),
        b"SSH-2.0-x\r\n" + b"\xff" * 64,
        b"",
    ):
        with socket.create_connection(address) as one:
            one.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(one, noise)
            one.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(10):
                try:
                    while await loop.sock_recv(one, 65536):
                        pass
                except ConnectionResetError:
                    pass
    client = await world.client()
    assert (await client.ssh("echo in")).out == b"in\n"
    for each in idle:
        each.close()
    await until(lambda: len(world.gateway._door) == 0)


async def test_those_who_only_stand_there_have_to_go(world: SshWorld) -> None:
    world.gateway._door._places = 3
    address = ("127.0.0.1", world.gateway.port)
    first, *others = [socket.create_connection(address) for _ in range(3)]
    client = await world.client()
    assert (await client.ssh("echo in")).out == b"in\n"
    first.setblocking(False)
    async with asyncio.timeout(5):
        loop = asyncio.get_running_loop()
        try:
            while await loop.sock_recv(first, 65536):
                pass
        except ConnectionResetError:
            pass
    for each in (first, *others):
        each.close()


async def test_those_who_do_not_log_in_have_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sshd, "_LOGIN", 0.2)
    async with ssh_world(tmp_path) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.gateway.port)
        async with asyncio.timeout(5):
            assert (await reader.read()).startswith(b"SSH-2.0-MachineOperator\r\n")
        writer.close()
        await writer.wait_closed()
        assert len(world.gateway._door) == 0


async def test_requests_that_wait_are_bounded(world: SshWorld) -> None:
    client = await world.client()
    await world.phase("sleeping")
    connection = await log_in(world, [own_key(client)])
    wanted = [
        asyncio.ensure_future(connection.forward_remote_port("", 0, "127.0.0.1", 1))
        for _ in range(200)
    ]
    async with asyncio.timeout(10):
        await connection.wait_closed()
    results = await asyncio.gather(*wanted, return_exceptions=True)
    assert all(isinstance(each, BaseException) for each in results)


async def test_variables_are_bounded(tmp_path: Path) -> None:
    async with ssh_world(tmp_path, settings=("AcceptEnv LC_*",)) as world:
        client = await world.client()
        async with await log_in(world, [own_key(client)]) as connection:
            many = {f"LC_{number}": "x" for number in range(400)}
            ended = await connection.run("env | grep -c ^LC_", env=many)
            assert int(str(ended.stdout)) == 128


async def test_stopped_client_is_noticed(world: SshWorld) -> None:
    client = await world.client()
    process = await inside(client)
    (one,) = world.gateway._clients
    one.connection.set_keepalive(0.1, 3)
    process.send_signal(signal.SIGSTOP)
    await until(lambda: world.access.ended_uses == 1, within=10)
    process.send_signal(signal.SIGCONT)


async def _quiet(measure: Any) -> int:
    """What is measured once it does not change for a while."""
    last, since = -1, 0
    while since < 25:
        value = measure()
        since = since + 1 if value == last else 0
        last = value
        await asyncio.sleep(0.02)
    return last


async def _settled(world: SshWorld) -> int:
    """Bytes that the gateway holds for its only client once nothing moves any more."""

    def held() -> int:
        client: Any
        (client,) = world.gateway._clients
        transport: Any = client.connection._transport
        total: int = transport.get_write_buffer_size()
        for front in client._channels._fronts:
            peer: Any = front._peer
            total += front.channel.get_write_buffer_size() if front.channel else 0
            total += sum(len(data) for data, _ in peer.channel._recv_buf)
        return total

    return await _quiet(held)
