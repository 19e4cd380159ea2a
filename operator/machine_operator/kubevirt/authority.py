"""An SSH certificate authority: who may log in to machines, and which machine is which.

Three are in use. The *user* authority signs what the gateway (and `local ssh`) logs in to guests with, for one machine
each: a guest accepts only certificates whose principal is the name of its VM. The *host* authority signs the machines'
host keys, and that of the gateway's own SSH server. The *session* authority signs what people log in to that server
with; no guest knows it.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

__all__ = ["Authority", "AuthorityError"]

_FOREVER = 2**64 - 1


class AuthorityError(ValueError):
    """A file is no private key of an authority, or a text is no public key."""


class Authority:
    """A key that signs keys. Made by `Authority.load`.

    Attributes:
        public: its public key, one line in OpenSSH's form, without a comment.
    """

    def __init__(self, key: ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        self.public = (
            key.public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode()
        )

    @classmethod
    def generate(cls) -> Authority:
        """A new one."""
        return cls(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, private: bytes) -> Authority:
        """Take an ed25519 key in OpenSSH's form, without a passphrase.

        Raises:
            AuthorityError: it is none.
        """
        try:
            key = serialization.load_ssh_private_key(private, password=None)
        except (ValueError, TypeError) as error:
            raise AuthorityError("it is no OpenSSH private key without a passphrase") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise AuthorityError("it is no ed25519 key")
        return cls(key)

    def private_bytes(self) -> bytes:
        """The private key in OpenSSH's form."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )

    def certify_host(self, public: str, *, key_id: str, principals: Iterable[str]) -> str:
        """A host certificate for the key of that line, valid for ever: a machine lives as long as it likes."""
        builder = self._builder(public, key_id=key_id, principals=principals)
        builder = builder.type(serialization.SSHCertificateType.HOST)
        return builder.valid_after(0).valid_before(_FOREVER).sign(self._key).public_bytes().decode()

    def certify_user(
        self,
        public: str,
        *,
        key_id: str,
        principals: Iterable[str],
        valid_after: int,
        valid_before: int,
        serial: int = 0,
        extensions: Iterable[str] = (),
    ) -> str:
        """A user certificate for the key of that line.

        Args:
            public: the public key, one line.
            key_id: what the log of the one who accepts it will say.
            principals: the names that it is good for.
            valid_after: seconds since 1970.
            valid_before: seconds since 1970.
            serial: a number of the signer's choice.
            extensions: such as `permit-pty`.
        """
        builder = self._builder(public, key_id=key_id, principals=principals, serial=serial)
        builder = builder.type(serialization.SSHCertificateType.USER)
        for extension in sorted(extensions):
            builder = builder.add_extension(extension.encode(), b"")
        builder = builder.valid_after(valid_after).valid_before(valid_before)
        return builder.sign(self._key).public_bytes().decode()

    def _builder(
        self, public: str, *, key_id: str, principals: Iterable[str], serial: int = 0
    ) -> serialization.SSHCertificateBuilder:
        try:
            key = serialization.load_ssh_public_key(public.encode())
        except (ValueError, TypeError) as error:
            raise AuthorityError("it is no public key") from error
        if not isinstance(
            key, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey
        ):
            raise AuthorityError("it is no ed25519, ECDSA or RSA public key")
        return (
            serialization.SSHCertificateBuilder()
            .public_key(key)
            .serial(serial)
            .key_id(key_id.encode())
            .valid_principals([name.encode() for name in principals])
        )
