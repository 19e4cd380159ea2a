"""The way through kube-apiserver: a WebSocket as KubeVirt serves it, a real sshd behind it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from machine_operator.guest.dialer import AddressDialer, PortForwardDialer
from machine_operator.guest.errors import GuestRefused, GuestUnreachable
from machine_operator.guest.guests import Guests
from machine_operator.guest.target import GuestTarget
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import Connection
from tests.support.gateway import until
from tests.support.sshd import ssh_server

TARGET = GuestTarget("ns", "uid-1", "m-1", "boot-1")


@dataclass
class VirtApi:
    """What virt-api does: dial first, then upgrade; no close frame at the end."""

    backend: int
    status: int = 0
    hang: bool = False
    url: str = ""
    paths: list[str] = field(default_factory=list)
    open: set[web.WebSocketResponse] = field(default_factory=set)

    async def portforward(self, request: web.Request) -> web.StreamResponse:
        self.paths.append(request.path)
        if self.hang:
            await asyncio.sleep(3600)
        if self.status:
            return web.json_response({"kind": "Status", "message": "no"}, status=self.status)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.backend)
        stream = web.WebSocketResponse(protocols=("plain.kubevirt.io",), max_msg_size=0)
        await stream.prepare(request)
        self.open.add(stream)

        async def up() -> None:
            async for message in stream:
                if message.type is aiohttp.WSMsgType.BINARY:
                    writer.write(message.data)
                    await writer.drain()

        async def down() -> None:
            while data := await reader.read(65536):
                await stream.send_bytes(data)

        pumps = [asyncio.create_task(up()), asyncio.create_task(down())]
        with contextlib.suppress(ConnectionError):
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        writer.close()
        self.open.discard(stream)
        if request.transport is not None:
            request.transport.abort()
        return stream

    def drop(self) -> None:
        """As a roll-out of virt-api does."""
        for stream in list(self.open):
            transport = stream._req.transport if stream._req is not None else None
            if transport is not None:
                transport.abort()


@contextlib.asynccontextmanager
async def served(api: VirtApi) -> AsyncIterator[KubeClient]:
    app = web.Application()
    app.router.add_get("/{path:.*}", api.portforward)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with KubeClient(Connection(server=f"http://127.0.0.1:{port}")) as client:
            yield client
    finally:
        api.drop()
        await runner.cleanup()


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_ssh_over_the_api_server(tmp_path: object) -> None:
    async with ssh_server(tmp_path) as server:  # type: ignore[arg-type]
        api = VirtApi(backend=server.port)
        async with served(api) as client:
            guests = Guests(
                PortForwardDialer(client, port=2222),
                user_authority=server.user_authority,
                host_authority=server.host_authority,
                user=server.user,
                most=2,
                places=server.places,
            )
            guest = await guests.connect(server.target())
            done = await guest.connection.run(
                "head -c 3000000 /dev/zero", encoding=None, check=True
            )
            assert done.stdout == bytes(3_000_000)
            await guest.write(f"{server.home}/x", bytes(2_000_000))
            assert (server.home / "x").stat().st_size == 2_000_000
            api.drop()
            await asyncio.wait_for(guest.wait_closed(), 10)
            again = await guests.connect(server.target())
            assert not again.closed
            await guests.close()
            await until(lambda: not api.open)
    assert set(api.paths) == {
        "/apis/subresources.kubevirt.io/v1/namespaces/ns/virtualmachineinstances/m-1/portforward/2222"
    }


async def test_bytes_arrive_as_they_were_and_a_slow_side_is_waited_for() -> None:
    async with echo() as backend, served(VirtApi(backend=backend)) as client:
        dialer = PortForwardDialer(client, port=22)
        stream = await dialer.dial(TARGET)
        loop = asyncio.get_running_loop()
        piece, sent = bytes(range(256)) * 4096, 0
        while True:
            sending = asyncio.create_task(loop.sock_sendall(stream, piece))
            done, _ = await asyncio.wait([sending], timeout=0.5)
            sent += len(piece)
            if not done:
                break
            assert sent < 256 << 20, "nobody reads, and it fits all the same"
        received = bytearray()
        while len(received) < sent:
            received += await loop.sock_recv(stream, 1 << 20)
        assert received == piece * (sent // len(piece))
        await sending
        stream.close()
        await until(lambda: not dialer._bridges)
        await dialer.close()


async def test_the_end_of_either_side_is_the_end_of_both() -> None:
    async with echo() as backend:
        api = VirtApi(backend=backend)
        async with served(api) as client:
            dialer = PortForwardDialer(client, port=22)
            stream = await dialer.dial(TARGET)
            await until(lambda: len(api.open) == 1)
            api.drop()
            assert await asyncio.get_running_loop().sock_recv(stream, 1) == b""
            stream.close()
            stream = await dialer.dial(TARGET)
            stream.close()
            await until(lambda: not api.open and not dialer._bridges)
            stream = await dialer.dial(TARGET)
            await dialer.close()
            assert await asyncio.get_running_loop().sock_recv(stream, 1) == b""
            stream.close()


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (500, GuestUnreachable, "nobody listens on that port"),
        (404, GuestUnreachable, "no such VM running"),
        (409, GuestUnreachable, "paused or not running"),
        (403, GuestRefused, "not allowed"),
    ],
)
async def test_why_there_is_no_way(status: int, error: type[Exception], says: str) -> None:
    async with served(VirtApi(backend=1, status=status)) as client:
        dialer = PortForwardDialer(client, port=22)
        with pytest.raises(error, match=says):
            await dialer.dial(TARGET)
        await dialer.close()


async def test_a_port_behind_a_firewall_is_given_up() -> None:
    async with served(VirtApi(backend=1, hang=True)) as client:
        dialer = PortForwardDialer(client, port=22, timeout=0.2)
        with pytest.raises(GuestUnreachable, match="does not answer within"):
            await dialer.dial(TARGET)
        await until(lambda: not dialer._bridges)


async def test_who_stops_waiting_leaves_nothing_behind() -> None:
    async with served(VirtApi(backend=1, hang=True)) as client:
        dialer = PortForwardDialer(client, port=22)
        dialing = asyncio.create_task(dialer.dial(TARGET))
        await until(lambda: dialer._bridges)
        dialing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialing
        await until(lambda: not dialer._bridges)


async def test_no_api_server() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        async with KubeClient(Connection(server=url)) as client:
            with pytest.raises(GuestUnreachable):
                await PortForwardDialer(client, port=22).dial(TARGET)


async def test_an_address_that_refuses() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dialer = AddressDialer(port=unused.getsockname()[1])
        target = GuestTarget("ns", "uid-1", "m-1", "boot-1", ("127.0.0.1",))
        with pytest.raises(GuestUnreachable, match="refused"):
            await dialer.dial(target)
        await dialer.close()
