"""The bodies of the operations on SSH sessions, under the names that they have in the contract."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from machine_operator.gateway.dcs.models import Body, Int64

__all__ = [
    "CreateSSHSessionRequest",
    "SSHConnection",
    "SSHHostTrust",
    "SSHSessionListResponse",
    "SSHSessionResponse",
]


class CreateSSHSessionRequest(Body):
    """A new SSH session."""

    public_key: str = Field(
        strict=True,
        description="The key to log in with, as one line of OpenSSH: ed25519, ECDSA, RSA from 2048 bits, or sk-.",
    )


class SSHHostTrust(Body):
    """How to know the SSH gateway: a line `@cert-authority <host_pattern> <public_key>` of known_hosts."""

    kind: Literal["cert_authority"]
    host_pattern: str = Field(description="One word.")
    public_key: str = Field(description="Of the authority that signs the SSH gateway's host key.")


class SSHConnection(Body):
    """How to log in."""

    endpoint: str = Field(description="A host name or an address.")
    port: Int64 = Field(ge=1, le=65535)
    ssh_username: str
    user_certificate: str | None = Field(
        default=None, description="An OpenSSH certificate over the key, one line."
    )
    host_trust: SSHHostTrust | None = None


class SSHSessionResponse(Body):
    """An SSH session."""

    session_id: str
    machine_id: str
    status: Literal["wake_in_progress", "ready", "closed", "expired", "failed"]
    created_at: datetime
    ready_at: datetime | None = None
    expires_at: datetime | None = Field(
        default=None, description="Until when one can log in; connections go on after that."
    )
    retry_after_ms: Int64 | None = Field(default=None, description="When to ask again.")
    error_code: str | None = None
    error_message: str | None = None
    connection: SSHConnection | None = Field(default=None, description="There once it is ready.")


class SSHSessionListResponse(Body):
    """One page of SSH sessions, the newest first."""

    items: list[SSHSessionResponse]
    next_cursor: str | None = Field(default=None, description="Where the next page begins, if any.")
