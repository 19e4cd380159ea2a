"""Links that carry their own permission: a purpose, what it is for, and until when, signed.

`<expiry>.<signature>`, where the signature covers purpose and subject too: a token for one terminal opens no other
one, and no artifact. Nothing is kept: all replicas have the same key.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable

__all__ = ["TokenError", "Tokens"]

_LONGEST = 128


class TokenError(ValueError):
    """A token is none of ours, is for something else, or has expired."""


class Tokens:
    """Makes and checks them.

    Args:
        key: at least 32 bytes.
        clock: seconds since 1970.
    """

    def __init__(self, key: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self._key = key
        self._clock = clock

    def sign(self, purpose: str, *subject: str, seconds: float) -> str:
        """A token that is good for `seconds`."""
        expiry = str(int(self._clock() + seconds))
        return f"{expiry}.{self._signature(purpose, subject, expiry)}"

    def check(self, token: str, purpose: str, *subject: str) -> None:
        """Return if the token permits that.

        Raises:
            TokenError: it does not.
        """
        expiry, _, signature = token[: _LONGEST + 1].partition(".")
        right = self._signature(purpose, subject, expiry)
        if len(token) > _LONGEST or not hmac.compare_digest(signature.encode(), right.encode()):
            raise TokenError("the token is not valid for this")
        if int(expiry) < self._clock():
            raise TokenError("the token has expired")

    def _signature(self, purpose: str, subject: tuple[str, ...], expiry: str) -> str:
        parts = (purpose, *subject, expiry)
        message = b"".join(len(part.encode()).to_bytes(4) + part.encode() for part in parts)
        digest = hmac.new(self._key, message, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")
