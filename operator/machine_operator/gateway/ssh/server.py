"""The SSH gateway: plain `ssh`, `scp` and `sftp` into machines, with the certificate of an SSH session.

    listening ── draining ── ends
        │           └─ nobody new is let in; terminals are told; what still runs after the drain time is cut
        └─ once a second: who has been closed, or whose machine has ended, is cut

Each start has a host key of its own, signed by the host authority for the names that clients may use, so clients trust
the authority and never see a key change. Any replica serves any session: what it has to know stands in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from typing import Final

import asyncssh

from machine_operator.gateway.ssh.client import SshClient, SshConnection, SshServices
from machine_operator.gateway.ssh.door import Door
from machine_operator.gateway.ssh.endpoint import SshEndpoint
from machine_operator.kubevirt.authority import Authority
from machine_operator.store.errors import StoreUnavailable

__all__ = ["SshGateway"]

log = logging.getLogger(__name__)

# On INFO it tells of each command, on DEBUG of each variable: neither is ours to know.
logging.getLogger("asyncssh").setLevel(logging.WARNING)

_ROUND: Final = 1.0
_SAY_USED: Final = 60
"""Rounds after which the sessions in use are said to be."""
_BACKLOG: Final = 512
_LOGIN: Final = 30.0
"""Seconds to log in."""
_ALIVE, _MISSED = 15.0, 4
"""A client that has not answered for so many times so many seconds is gone."""
_GONE_MS: Final = 60_000
_MOMENT: Final = 1.0
"""Seconds for a cut client to be gone."""
_CLIENTS, _PER_SESSION = 1000, 32
_KEX: Final = ("curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256")
"""What every client of the last ten years has one of. Others would cost us more than the client."""


class SshGateway:
    """See the module.

    Args:
        services: what clients are served with.
        endpoint: how clients reach it: the names in its host certificate.
        address: host and port to listen on; "" is all hosts, port 0 any port.
        host_authority: signs its host key.
        draining: ends it.
        drain_seconds: how long connections may go on after that.

    Attributes:
        port: where it listens, once it does.
        ended: set once all connections are gone after `draining`.
    """

    def __init__(
        self,
        services: SshServices,
        *,
        endpoint: SshEndpoint,
        address: tuple[str, int],
        host_authority: Authority,
        draining: asyncio.Event,
        drain_seconds: float,
    ) -> None:
        self.port = 0
        self.ended = asyncio.Event()
        self._services, self._endpoint, self._address = services, endpoint, address
        self._host_authority = host_authority
        self._draining, self._drain_seconds = draining, drain_seconds
        self._door: Door[SshClient] = Door()
        self._clients: set[SshClient] = set()
        self._per_session: Counter[str] = Counter()
        self._empty = asyncio.Event()
        self._empty.set()
        self._rounds = 0
        self._blind = False

    async def run(self) -> None:
        """Serve until cancelled; after `draining` nobody new.

        Raises:
            OSError: the address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        options = self._options()
        sock = _listen(*self._address)
        try:
            server = await loop.create_server(
                lambda: SshConnection(loop, options), sock=sock, backlog=_BACKLOG
            )
        except BaseException:
            sock.close()
            raise
        self.port = sock.getsockname()[1]
        log.info("SSH gateway: listening on port %d as %s", self.port, self._endpoint.host)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch())
                tasks.create_task(self._drain(server))
        finally:
            server.close()
            await self._cut_all()

    def _options(self) -> asyncssh.SSHServerConnectionOptions:
        key = asyncssh.generate_private_key("ssh-ed25519")
        certificate = self._host_authority.certify_host(
            key.export_public_key().decode().strip(),
            key_id=f"ssh-gateway {socket.gethostname()}/{os.getpid()}",
            principals=self._endpoint.names,
        )
        return asyncssh.SSHServerConnectionOptions(
            server_factory=lambda: SshClient(self._services, self),
            # Clients that know no certificates and take what comes get the bare key.
            server_host_keys=[(key, asyncssh.import_certificate(certificate))],
            server_version="MachineOperator",
            gss_host=None,
            host_based_auth=False,
            password_auth=False,
            kbdint_auth=False,
            agent_forwarding=False,
            x11_forwarding=False,
            line_editor=False,
            encoding=None,
            kex_algs=_KEX,
            # A packet of a few kilobytes may unpack to megabytes.
            compression_algs=None,
            login_timeout=_LOGIN,
            keepalive_interval=_ALIVE,
            keepalive_count_max=_MISSED,
        )

    # ---- who comes and goes

    def arrived(self, client: SshClient) -> None:
        """Somebody has connected."""
        evicted = self._door.come(client, now=asyncio.get_running_loop().time())
        if evicted is not None:
            evicted.connection.abort()

    def entered(self, client: SshClient) -> None:
        """They have shown who they are."""
        self._door.leave(client)
        if client.session is None:
            return
        id = client.session.id
        self._clients.add(client)
        self._empty.clear()
        self._per_session[id] += 1
        if self._draining.is_set():
            client.cut("the gateway is about to end: connect again")
        elif self._per_session[id] > _PER_SESSION:
            client.cut(f"at most {_PER_SESSION} connections of one session at a time")
        elif len(self._clients) > _CLIENTS:
            client.cut("too many connections: try again later")
        else:
            log.info("SSH session %s: connected", id)

    def left(self, client: SshClient) -> None:
        """They are gone."""
        self._door.leave(client)
        if client in self._clients and client.session is not None:
            id = client.session.id
            self._clients.remove(client)
            self._per_session[id] -= 1
            if not self._per_session[id]:
                del self._per_session[id]
            log.info("SSH session %s: disconnected", id)
            if not self._clients:
                self._empty.set()

    # ---- who has to go

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_ROUND)
            await self.round()

    async def round(self) -> None:
        """Cut those who have no business here any more."""
        for client in list(self._clients):
            if (reason := client.farewell) is not None:
                client.cut(reason)
        clients = list(self._clients)
        ids = list(self._per_session)
        if not ids:
            return
        self._rounds += 1
        try:
            still_open = await self._services.sessions.still_open(ids)
            if self._rounds % _SAY_USED == 1:
                await self._services.sessions.used(ids)
        except StoreUnavailable as error:
            # Whoever is in stays in: that is better than to throw all out because nobody can be asked.
            if not self._blind:
                log.warning("SSH sessions cannot be looked up: %s", error)
            self._blind = True
            return
        self._blind = False
        for client in clients:
            if client.session is not None and client.session.id not in still_open:
                client.cut("the SSH session was closed")

    # ---- the end

    async def _drain(self, server: asyncio.Server) -> None:
        await self._draining.wait()
        server.close()
        for client in list(self._clients):
            client.tell(
                f"the gateway is about to end: in {self._drain_seconds:g} s connections are cut; "
                "connect again then"
            )
        await self._until_empty(self._drain_seconds)
        await self._cut_all()
        self.ended.set()

    async def _cut_all(self) -> None:
        for client in list(self._clients):
            client.cut("the gateway has ended: connect again")
        for client in self._door:
            client.connection.abort()
        await self._until_empty(_MOMENT)

    async def _until_empty(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._empty.wait()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(
            error.errno or 0,
            f"ssh_address: cannot listen on {host or '*'}:{port}: {error.strerror or error}",
        ) from error
    sock.setblocking(False)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Inherited by the connections. Without it a client whose computer is gone stays for a quarter of an hour.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS)
    return sock
