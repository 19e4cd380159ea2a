"""How clients reach the SSH gateway, and what they may take its host certificate for."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from machine_operator.gateway.settings import GatewaySettings

__all__ = ["SshEndpoint", "listen_address", "ssh_endpoint"]

_ALL: Final = ("", "0.0.0.0", "::")  # noqa: S104
_USUAL_PORT: Final = 22


@dataclass(frozen=True, slots=True)
class SshEndpoint:
    """Where clients go to.

    Attributes:
        host: a name or an address.
        port: 1 to 65535.
        names: the principals of the host certificate: `host`, and what else it may be called by.
    """

    host: str
    port: int
    names: tuple[str, ...]

    @property
    def host_pattern(self) -> str:
        """What stands after `@cert-authority`, one word: OpenSSH looks up `host` on port 22, else `[host]:port`."""
        return f"{self.host},[{self.host}]:{self.port}"


def ssh_endpoint(settings: GatewaySettings) -> SshEndpoint | None:
    """What the settings say; None where there is no SSH gateway.

    One that listens on all addresses, and whose `ssh_endpoint` nobody has set, is looked for where the API is.
    """
    listening = listen_address(settings)
    if settings.ssh_endpoint is not None:
        host, port = _split(settings.ssh_endpoint)
    elif listening is not None:
        host, port = listening
        if host in _ALL:
            public = urlsplit(settings.public_url).hostname if settings.public_url else None
            host = public or "localhost"
    else:
        return None
    names = [host]
    if listening is not None:
        here = (socket.gethostname(), "localhost") if listening[0] in _ALL else (listening[0],)
        names += [*here, *(["localhost"] if _loopback(listening[0]) else [])]
    return SshEndpoint(host, port or _USUAL_PORT, tuple(dict.fromkeys(names)))


def listen_address(settings: GatewaySettings) -> tuple[str, int] | None:
    """Host and port of `ssh_address`; the host is without brackets, and "" for all addresses."""
    return None if settings.ssh_address is None else _split(settings.ssh_address)


def _split(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
