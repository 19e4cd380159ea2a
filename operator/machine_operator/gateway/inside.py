"""The services that lead into machines, put together once: what they share is the way there.

    guests ── access ─┬─ executions ── artifacts
                      ├─ terminals
                      ├─ sessions ── the SSH gateway
                      └─ previews

Without credentials there is no way there, and none of this.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from machine_operator.gateway.access import Access
from machine_operator.gateway.artifacts.artifacts import Artifacts
from machine_operator.gateway.changes import Changes
from machine_operator.gateway.credentials import Credentials
from machine_operator.gateway.executions.executions import Executions
from machine_operator.gateway.identity import Authenticator, Authorizer
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.previews.access import PreviewAccess
from machine_operator.gateway.previews.previews import Previews
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.ssh.certificates import SessionCertificates
from machine_operator.gateway.ssh.client import SshServices
from machine_operator.gateway.ssh.endpoint import listen_address, ssh_endpoint
from machine_operator.gateway.ssh.server import SshGateway
from machine_operator.gateway.ssh.sessions import SshSessions
from machine_operator.gateway.terminals.terminals import Terminals
from machine_operator.gateway.tokens import Tokens
from machine_operator.guest.dialer import AddressDialer, Dialer, PortForwardDialer
from machine_operator.guest.guests import Guests
from machine_operator.guest.places import Places
from machine_operator.kube.client import KubeClient
from machine_operator.store.database import Database
from machine_operator.store.ssh_sessions import SshSessionRecords
from machine_operator.store.terminals import TerminalRecords

__all__ = ["Inside", "Shared", "open_inside"]


@dataclass(frozen=True, slots=True)
class Shared:
    """What these services need of the rest of the gateway."""

    settings: GatewaySettings
    database: Database
    client: KubeClient
    machines: Machines
    changes: Changes
    authenticator: Authenticator
    authorizer: Authorizer
    draining: asyncio.Event


@dataclass(frozen=True, slots=True)
class Inside:
    """The services.

    Attributes:
        guests: warm connections.
        access: the way to machines, asleep or awake.
        executions, artifacts, terminals, sessions, previews: one for each kind of sub-resource.
        ssh: the SSH gateway; None where it has no address. Then there are no sessions either.
    """

    guests: Guests
    access: Access
    executions: Executions
    artifacts: Artifacts
    terminals: Terminals
    sessions: SshSessions | None
    previews: Previews
    ssh: SshGateway | None

    def counts(self) -> dict[str, int]:
        """What there is now, by kind."""
        return {
            "connections": len(self.guests),
            "executions": len(self.executions),
            "terminals": len(self.terminals.live),
            "wakes_waiting": self.access.wakes.waiting,
            "wakes_under_way": self.access.wakes.rising,
            "machines_in_use": len(self.access.activity),
        }

    def totals(self) -> dict[str, int]:
        """What has been done so far."""
        wakes, activity = self.access.wakes, self.access.activity
        return {
            "wakes_asked": wakes.asked,
            "wakes_coalesced": wakes.coalesced,
            "wakes_refused": wakes.refused,
            "wakes_failed": wakes.failures,
            "activity_writes": activity.writes,
            "activity_failures": activity.failures,
        }

    def tasks(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What has to run beside the server, by name; each ends only with the process."""
        tasks = {
            "access": self.access.run(),
            "executions": self.executions.run(),
            "artifacts": self.artifacts.run(),
            "terminals": self.terminals.run(),
            "previews": self.previews.run(),
        }
        if self.sessions is not None:
            tasks["SSH sessions"] = self.sessions.run()
        if self.ssh is not None:
            tasks["SSH gateway"] = self.ssh.run()
        return tasks


def open_inside(shared: Shared, credentials: Credentials) -> Inside:
    """Put them together; nothing runs yet."""
    settings, database, machines = shared.settings, shared.database, shared.machines
    guests = Guests(
        _dialer(shared),
        user_authority=credentials.user_authority,
        host_authority=credentials.host_authority,
        user=settings.guest_user,
        most=settings.guest_connections,
        places=Places(home=settings.guest_home.rstrip("/")),
    )
    replica = secrets.token_hex(4)
    access = Access(shared.client, machines, shared.changes, guests, settings, replica=replica)
    tokens = Tokens(credentials.token_key)
    artifacts = Artifacts(database, tokens, settings)
    sessions = _sessions(shared, access, credentials)
    return Inside(
        guests=guests,
        access=access,
        executions=Executions(database, machines, access, artifacts, settings),
        artifacts=artifacts,
        terminals=Terminals(TerminalRecords(database), access, machines, tokens, settings),
        sessions=sessions,
        previews=Previews(
            database,
            access,
            settings,
            machines=machines,
            gate=PreviewAccess(tokens, shared.authenticator, shared.authorizer),
        ),
        ssh=_ssh(shared, access, sessions, credentials),
    )


def _dialer(shared: Shared) -> Dialer:
    port = shared.settings.guest_port
    if shared.settings.guest_dialer == "address":
        return AddressDialer(port=port)
    return PortForwardDialer(shared.client, port=port)


def _sessions(shared: Shared, access: Access, credentials: Credentials) -> SshSessions | None:
    endpoint = ssh_endpoint(shared.settings)
    if endpoint is None:
        return None
    return SshSessions(
        SshSessionRecords(shared.database),
        access,
        certificates=SessionCertificates(credentials.session_authority),
        endpoint=endpoint,
        host_authority=credentials.host_authority.public,
        settings=shared.settings,
    )


def _ssh(
    shared: Shared, access: Access, sessions: SshSessions | None, credentials: Credentials
) -> SshGateway | None:
    address = listen_address(shared.settings)
    if address is None or sessions is None:
        return None
    return SshGateway(
        SshServices(sessions=sessions, access=access, machines=shared.machines),
        endpoint=sessions.endpoint,
        address=address,
        host_authority=credentials.host_authority,
        draining=shared.draining,
        drain_seconds=shared.settings.drain,
    )
