"""The way to a guest's sshd: a connected stream socket.

Through kube-apiserver it is KubeVirt's WebSocket, bridged to one end of a socket pair, so that nobody else has to know.
Both directions wait for the slower side. There is no half-close: when either side ends, both do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import Protocol

import aiohttp
from typing_extensions import override

from machine_operator.guest.errors import GuestRefused, GuestUnreachable
from machine_operator.guest.target import GuestTarget
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import Forbidden, KubeError, Unauthorized
from machine_operator.kube.portforward import portforward

__all__ = ["AddressDialer", "Dialer", "PortForwardDialer"]

log = logging.getLogger(__name__)

_CHUNK = 65536


class Dialer(Protocol):
    """A way."""

    async def dial(self, target: GuestTarget) -> socket.socket:
        """A connected, non-blocking stream socket to the guest's sshd; the caller closes it.

        Raises:
            GuestUnreachable: nobody answers there now.
            GuestRefused: we may not go that way.
        """

    async def close(self) -> None:
        """End what still runs for sockets that were handed out."""


class AddressDialer(Dialer):
    """Straight to the machine's first address."""

    def __init__(self, *, port: int, timeout: float = 10.0) -> None:
        self._port = port
        self._timeout = timeout

    @override
    async def dial(self, target: GuestTarget) -> socket.socket:
        """Connect."""
        if not target.addresses:
            raise GuestUnreachable(f"{target.vm} has no address yet")
        address = target.addresses[0]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(
                loop.sock_connect(connection, (address, self._port)), self._timeout
            )
        except TimeoutError as error:
            connection.close()
            raise GuestUnreachable(
                f"{target.vm}: {address} port {self._port} does not answer within {self._timeout:g} s"
            ) from error
        except OSError as error:
            connection.close()
            raise GuestUnreachable(
                f"{target.vm}: {address} port {self._port}: {os.strerror(error.errno or 0)}"
            ) from error
        except BaseException:
            connection.close()
            raise
        return connection

    @override
    async def close(self) -> None:
        """Nothing runs."""


class PortForwardDialer(Dialer):
    """Through kube-apiserver and virt-api."""

    def __init__(self, client: KubeClient, *, port: int, timeout: float = 10.0) -> None:
        self._client = client
        self._port = port
        self._timeout = timeout
        self._bridges: set[asyncio.Task[None]] = set()

    @override
    async def dial(self, target: GuestTarget) -> socket.socket:
        """Connect, and keep the bridge going until either side ends."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[socket.socket] = loop.create_future()
        bridge = loop.create_task(self._bridge(target, opened), name=f"port-forward {target.vm}")
        self._bridges.add(bridge)
        bridge.add_done_callback(self._bridges.discard)
        try:
            # A port that a firewall hides would hold us for as long as virt-api's kernel tries.
            return await asyncio.wait_for(asyncio.shield(opened), self._timeout)
        except TimeoutError as error:
            raise GuestUnreachable(
                f"{target.vm}: port {self._port} does not answer within {self._timeout:g} s"
            ) from error
        finally:
            if not opened.done() or opened.cancelled() or opened.exception() is not None:
                bridge.cancel()
                opened.cancel()

    @override
    async def close(self) -> None:
        """End all bridges."""
        bridges = list(self._bridges)
        for bridge in bridges:
            bridge.cancel()
        await asyncio.gather(*bridges, return_exceptions=True)

    async def _bridge(self, target: GuestTarget, opened: asyncio.Future[socket.socket]) -> None:
        stream = portforward(
            self._client, namespace=target.org, instance=target.vm, port=self._port
        )
        try:
            async with stream as web:
                ours, theirs = socket.socketpair()
                ours.setblocking(False)
                theirs.setblocking(False)
                if opened.done():  # nobody waits any more
                    theirs.close()
                else:
                    opened.set_result(theirs)
                with ours:
                    await _pump(web, ours)
        except KubeError as error:
            if opened.done():
                log.debug("the way to %s ended: %s", target.vm, error)
            else:
                opened.set_exception(_as_guest_error(target, error))


def _as_guest_error(target: GuestTarget, error: KubeError) -> GuestRefused | GuestUnreachable:
    kind = GuestRefused if isinstance(error, Forbidden | Unauthorized) else GuestUnreachable
    return kind(f"{target.vm}: {error}")


async def _pump(web: aiohttp.ClientWebSocketResponse, ours: socket.socket) -> None:
    directions = [
        asyncio.create_task(_from_guest(web, ours)),
        asyncio.create_task(_to_guest(web, ours)),
    ]
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for direction in directions:
            direction.cancel()
        # Whatever broke the one end, for the other it is the end of the stream.
        await asyncio.gather(*directions, return_exceptions=True)


async def _from_guest(web: aiohttp.ClientWebSocketResponse, ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    async for message in web:
        if message.type is aiohttp.WSMsgType.BINARY:
            await loop.sock_sendall(ours, message.data)
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_RDWR)


async def _to_guest(web: aiohttp.ClientWebSocketResponse, ours: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(ours, _CHUNK):
        await web.send_bytes(data)
