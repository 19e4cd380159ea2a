"""One connection to the SSH gateway: who it is, and what they may have.

    TCP ── key exchange ── certificate of a session ── the way to the machine (`way.py`) ── channels

The certificate is the only way in. It names the session, and the session the machine: what the client types as host
or user decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import asyncssh
from asyncssh.channel import SSHServerChannel
from typing_extensions import override

from machine_operator.gateway.access import Access
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.ssh.channels import Channels
from machine_operator.gateway.ssh.relay import MAX_PACKET, WINDOW
from machine_operator.gateway.ssh.sessions import SshSessions
from machine_operator.gateway.ssh.shell import ShellChannel
from machine_operator.gateway.ssh.way import Way
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.ssh_sessions import SshSession

__all__ = ["Hall", "SshClient", "SshConnection", "SshServices"]

log = logging.getLogger(__name__)

_TRIES: Final = 12
"""Failed tries to log in. `ssh` with an agent full of keys makes six."""
_LINGER: Final = 0.5
"""Seconds in which who was told to go may read why."""
_REQUESTS: Final = 64
"""Requests that may wait for a machine to wake."""


class Hall(Protocol):
    """Where clients come in; `sshd.py`."""

    def arrived(self, client: SshClient) -> None:
        """Somebody has connected."""

    def entered(self, client: SshClient) -> None:
        """They have shown who they are."""

    def left(self, client: SshClient) -> None:
        """They are gone."""


@dataclass(frozen=True, slots=True)
class SshServices:
    """What clients are served with."""

    sessions: SshSessions
    access: Access
    machines: Machines


class SshConnection(asyncssh.SSHServerConnection):
    """asyncssh's connection, which asks for the session of a certificate, and counts."""

    _failures = 0

    @override
    async def validate_public_key(
        self, username: str, key_data: bytes, msg: bytes, signature: bytes
    ) -> bool:
        """Whether that certificate lets them in; `msg` is empty as long as they only ask."""
        client = self.get_owner()
        if not isinstance(client, SshClient):
            return False
        session = await client.recognise(username, key_data)
        if session is None:
            return False
        good = await super().validate_public_key(username, key_data, msg, signature)
        if good and msg:
            client.session = session
        return good

    @override
    def send_userauth_failure(self, partial_success: bool) -> None:
        """They were not let in; those who go on trying are cut."""
        super().send_userauth_failure(partial_success)
        self._failures += 1
        if self._failures >= _TRIES:
            self.disconnect(
                asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "too many failed tries to log in"
            )

    @override
    def _force_close(self, exc: Exception | None) -> None:
        """The connection ends. asyncssh aborts it, and the reset would overtake the reason that was just sent."""
        transport = self._transport
        if transport is None or not isinstance(exc, asyncssh.DisconnectError):
            super()._force_close(exc)
            return
        self._transport = None
        with contextlib.suppress(OSError):  # they have gone themselves
            transport.write_eof()
        loop = asyncio.get_running_loop()
        loop.call_later(_LINGER, transport.abort)
        loop.call_soon(self._cleanup, exc)

    @override
    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """Something came. asyncssh lets requests wait behind one that takes its time, without end."""
        if self._transport is None:
            return  # they have been told to go
        super().data_received(data, datatype)
        if len(self._global_request_queue) > _REQUESTS:
            self.disconnect(asyncssh.DISC_PROTOCOL_ERROR, "too many requests at once")

    @override
    def create_server_channel(
        self,
        encoding: str | None = "",
        errors: str = "",
        window: int = 0,
        max_pktsize: int = 0,
    ) -> SSHServerChannel[bytes]:
        loop = asyncio.get_running_loop()
        return ShellChannel(
            self, loop, True, False, False, 0, 0, None, "strict", WINDOW, MAX_PACKET
        )


class SshClient(asyncssh.SSHServer):
    """One client. asyncssh calls what has no underscore.

    Args:
        services: see there.
        hall: is told of them.

    Attributes:
        connection: once it is made.
        session: what they logged in with; None before.
    """

    connection: SshConnection

    def __init__(self, services: SshServices, hall: Hall) -> None:
        self.session: SshSession | None = None
        self._services, self._hall = services, hall
        self._way: Way | None = None
        self._channels: Channels | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._reason = "not logged in"

    @property
    def farewell(self) -> str | None:
        """Why they have to go: the machine, which they had reached, has ended; None where it has not."""
        return None if self._way is None else self._way.ended

    def tell(self, text: str) -> None:
        """Say something on all terminals."""
        if self._channels is not None:
            self._channels.tell(text)

    def cut(self, reason: str) -> None:
        """End the connection; `ssh` shows the reason."""
        if self._leaving is None:
            self._reason = reason
            self._leaving = self.connection.create_task(_disconnect(reason))

    # ---- the connection

    @override
    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = cast("SshConnection", conn)  # `sshd.py` makes no others
        self._hall.arrived(self)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._channels is not None:
            self._channels.close()
        if self._way is not None:
            self._way.close()
        self._hall.left(self)

    async def recognise(self, username: str, certificate: bytes) -> SshSession | None:
        """The session of a certificate of ours, if it lets somebody in under this name now."""
        try:
            return await self._services.sessions.admit(certificate, username=username)
        except StoreUnavailable as error:
            log.warning("an SSH session could not be looked up: %s", error)
            raise asyncssh.ServiceNotAvailable("the session cannot be looked up now") from error

    @override
    def begin_auth(self, username: str) -> bool:
        return True

    @override
    def public_key_auth_supported(self) -> bool:
        return True

    @override
    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return True  # `recognise` has seen that it is ours before anybody asks

    @override
    def auth_completed(self) -> None:
        self._hall.entered(self)
        if self.session is None or self._leaving is not None:
            return
        self._way = Way(self.session, self._services.access, self._services.machines)
        self._channels = Channels(self.connection, self._way)
        self._way.start()

    # ---- what they want

    @override
    def session_requested(self) -> Any:
        if self._channels is None:
            # What they ask for may be answered before they are told to go, and is the last thing that `ssh` shows then.
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, self._reason)
        return self._channels.session()

    @override
    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> Any:
        if self._channels is None:
            return False
        return self._channels.tcp(dest_host, dest_port, orig_host, orig_port)

    @override
    def unix_connection_requested(self, dest_path: str) -> Any:
        return False if self._channels is None else self._channels.unix(dest_path)

    @override
    async def server_requested(self, listen_host: str, listen_port: int) -> Any:
        return self._channels is not None and await self._channels.listen(listen_host, listen_port)


async def _disconnect(reason: str) -> None:
    # Not `disconnect()`, which closes the channels first: `ssh` may end on that, and never read the reason.
    raise asyncssh.DisconnectError(asyncssh.DISC_BY_APPLICATION, reason)
