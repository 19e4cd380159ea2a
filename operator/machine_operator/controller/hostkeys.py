"""New SSH host keys."""

from __future__ import annotations

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from machine_operator.kubevirt.seed import HostKey

__all__ = ["new_host_key"]


def new_host_key() -> HostKey:
    """An ed25519 key pair in OpenSSH's forms."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return HostKey(private=private.decode(), public=public.decode())
