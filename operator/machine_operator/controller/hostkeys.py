"""SSH host keys of machines: new ones, those that they have, and the certificates by which they are known."""

from __future__ import annotations

from dataclasses import replace

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from machine_operator.kubevirt.authority import Authority
from machine_operator.kubevirt.seed import HostKey

__all__ = ["certified", "kept_host_key", "new_host_key"]


def new_host_key() -> HostKey:
    """An ed25519 key pair in OpenSSH's forms."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    return HostKey(private=private.decode(), public=_public(key))


def kept_host_key(private: bytes) -> HostKey | None:
    """The pair of a private key that was stored; None where it is no ed25519 key: none such is made here."""
    try:
        key = serialization.load_ssh_private_key(private, password=None)
    except (ValueError, TypeError):
        return None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        return None
    return HostKey(private=private.decode(), public=_public(key))


def certified(key: HostKey, *, vm: str, authority: Authority | None) -> HostKey:
    """The key with the authority's certificate for the VM of that name; without one where there is no authority."""
    if authority is None:
        return key
    certificate = authority.certify_host(key.public, key_id=vm, principals=[vm])
    return replace(key, certificate=certificate)


def _public(key: ed25519.Ed25519PrivateKey) -> str:
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return public.decode()
