"""What the gateway signs with: a directory of files, in a cluster a mounted Secret.

ssh-user-ca      signs the gateway's own logins to guests
ssh-host-ca      signs machines' host keys (the controller has it too), and that of the gateway's SSH server
ssh-session-ca   signs the certificates of SSH sessions
token-key        at least 32 bytes, for links that carry their own permission
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from machine_operator.kube.errors import ConfigurationError
from machine_operator.kubevirt.authority import Authority, AuthorityError

__all__ = ["Credentials", "load_credentials"]

_SHORTEST = 32


@dataclass(frozen=True, slots=True)
class Credentials:
    """The same for all replicas."""

    user_authority: Authority
    host_authority: Authority
    session_authority: Authority
    token_key: bytes = field(repr=False)


def load_credentials(directory: Path) -> Credentials:
    """Read them.

    Raises:
        ConfigurationError: a file is missing, or is not what it should be.
    """
    key = _read(directory / "token-key")
    if len(key) < _SHORTEST:
        raise ConfigurationError(
            f"credentials: {directory / 'token-key'} has {len(key)} bytes: at least {_SHORTEST} are needed"
        )
    return Credentials(
        user_authority=_authority(directory / "ssh-user-ca"),
        host_authority=_authority(directory / "ssh-host-ca"),
        session_authority=_authority(directory / "ssh-session-ca"),
        token_key=key,
    )


def _authority(path: Path) -> Authority:
    try:
        return Authority.load(_read(path))
    except AuthorityError as error:
        raise ConfigurationError(f"credentials: {path}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"credentials: {path}: {error.strerror or error}") from error
