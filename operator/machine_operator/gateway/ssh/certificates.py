"""The certificates that people log in to the SSH gateway with.

Each is for the key that somebody brought, names one session, and is signed by the session authority, which no guest
knows. asyncssh signs them: it knows keys on security tokens (`sk-…`), where the user's touch is asked for as usual.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import asyncssh
from asyncssh.public_key import SSHOpenSSHCertificate

from machine_operator.kubevirt.authority import Authority

__all__ = ["Claim", "PublicKeyError", "SessionCertificates", "read_public_key"]

_TYPES: Final = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_LEAST_RSA, _MOST_RSA = 2048, 8192
"""Bits. Each login with a larger key would keep everybody else waiting while it is checked."""
_LONGEST: Final = 8192
_LINE: Final = re.compile(r"(?P<type>[a-z0-9@.-]+)[ \t]+(?P<key>[A-Za-z0-9+/]+={0,2})(?:[ \t].*)?")
_BACKDATED: Final = timedelta(seconds=60)
"""Clocks of clients may be behind ours."""


class PublicKeyError(ValueError):
    """A text is no public key that may log in; the message says why, as a clause."""


def read_public_key(text: str) -> str:
    """The key of a line as it stands in `id_ed25519.pub`: type and key, without the comment.

    Raises:
        PublicKeyError: it is none, or one that is too weak, or too large.
    """
    line = text.strip(" \t\r\n")
    if len(line) > _LONGEST:
        raise PublicKeyError(f"must have at most {_LONGEST} characters")
    if "PRIVATE KEY" in line:
        raise PublicKeyError("is a private key: send the public one, and make a new pair")
    if not line or "\n" in line or "\r" in line:
        raise PublicKeyError("must be one line, as in id_ed25519.pub")
    found = _LINE.fullmatch(line)
    if found is None or found["type"] not in _TYPES:
        raise PublicKeyError(f"must begin with its type, one of {', '.join(_TYPES)}, then the key")
    return _checked(found["type"], found["key"])


def _checked(kind: str, key: str) -> str:
    plain = f"{kind} {key}"
    try:
        public = asyncssh.import_public_key(plain)
        size = public.pyca_key.key_size if kind == "ssh-rsa" else None  # type: ignore[union-attr]
    except (asyncssh.KeyImportError, ValueError) as error:
        raise PublicKeyError(f"is no {kind} key") from error
    # Of an ECDSA key the curve is told three times, and the type in front of it is not compared by all readers.
    if public.export_public_key("openssh").decode().split()[:2] != [kind, _canonical(key)]:
        raise PublicKeyError(f"is no {kind} key")
    if size is not None and not _LEAST_RSA <= size <= _MOST_RSA:
        raise PublicKeyError(
            f"is an RSA key of {size} bits: it must have {_LEAST_RSA} to {_MOST_RSA}"
        )
    return f"{kind} {_canonical(key)}"


def _canonical(key: str) -> str:
    return base64.b64encode(base64.b64decode(key)).decode()


@dataclass(frozen=True, slots=True)
class Claim:
    """What a certificate of ours says.

    Attributes:
        session: id of the session.
        username: whom its bearer may log in as.
    """

    session: str
    username: str


class SessionCertificates:
    """Makes and reads them.

    Args:
        authority: the session authority.
    """

    def __init__(self, authority: Authority) -> None:
        self._key = asyncssh.import_private_key(authority.private_bytes())
        self._public = self._key.public_data

    def sign(
        self, public_key: str, *, session: str, username: str, since: datetime, until: datetime
    ) -> str:
        """A certificate for that key, one line.

        Args:
            public_key: as `read_public_key` gives it.
            session: id of the session, whose digits are the serial number too.
            username: the principal.
            since: from when on it is good; a minute is added in front, for clocks that are behind.
            until: its end.
        """
        certificate = self._key.generate_user_certificate(
            asyncssh.import_public_key(public_key),
            session,
            serial=int(session.rpartition("-")[2][:16], 16),
            principals=[username],
            valid_after=(since - _BACKDATED).timestamp(),
            valid_before=until.timestamp(),
            permit_x11_forwarding=False,
            permit_agent_forwarding=False,
            permit_port_forwarding=True,
            permit_pty=True,
            permit_user_rc=False,
            comment=session,
        )
        return certificate.export_certificate("openssh").decode().strip()

    def read(self, blob: bytes) -> Claim | None:
        """What the certificate that a client presents claims; None where it is none of ours.

        Whether it is for a user, and for now, and whether the client has the key, is not looked at.
        """
        kind = blob[4 : 4 + int.from_bytes(blob[:4])]
        try:
            certificate = asyncssh.import_certificate(kind + b" " + base64.b64encode(blob))
        except (asyncssh.KeyImportError, ValueError):
            return None
        if not isinstance(certificate, SSHOpenSSHCertificate):
            return None
        # One without principals would be good for every name.
        if certificate.signing_key.public_data != self._public or len(certificate.principals) != 1:
            return None
        return Claim(certificate._key_id, certificate.principals[0])
