"""Who asks, for which org, and whether they may: three small interfaces, and the side of them that API keys need.

    headers ─ Authenticator ─> Caller ─ OrgResolver ─> org ─ Authorizer ─> the operation

Behind kube-apiserver the caller stands in other headers and rights come from RBAC; nothing but what implements these
interfaces knows the difference. The first two run on every request and must answer from memory, so they are plain
functions; rights may have to be asked for, so `allow` is awaited. (With API keys it awaits nothing.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

from starlette.datastructures import Headers
from typing_extensions import override

from machine_operator.gateway.failures import (
    auth_invalid,
    org_mismatch,
    scope_forbidden,
)

__all__ = [
    "EVERY_SCOPE",
    "NEEDED_SCOPES",
    "Authenticator",
    "Authorizer",
    "Caller",
    "Credentials",
    "KeyOrgs",
    "KeyScopes",
    "OrgResolver",
    "Verb",
]

EVERY_SCOPE: Final = "*"

_LONGEST: Final = 1024
"""Bytes of a credential. Ours are shorter; what is longer is not worth hashing."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who has shown who they are.

    Attributes:
        org: the org that they belong to.
        subject: who they are, for logs and records; never a secret.
        scopes: what they may do; `*` is everything.
        key_id: the API key that they came with, or None.
    """

    org: str
    subject: str
    scopes: frozenset[str]
    key_id: str | None = None


class Verb(StrEnum):
    """What somebody does to machines, one for each kind of operation."""

    LIST = "list"
    GET = "get"
    WATCH = "watch"
    USAGE = "usage"
    CREATE = "create"
    PATCH = "patch"
    DELETE = "delete"
    SLEEP = "sleep"
    WAKE = "wake"
    REBOOT = "reboot"
    USE = "use"


_READ: Final = "machines:read"
_WRITE: Final = "machines:write"

NEEDED_SCOPES: Final = {
    verb: _READ if verb in (Verb.LIST, Verb.GET, Verb.WATCH, Verb.USAGE) else _WRITE
    for verb in Verb
}
"""The scope that each verb needs."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request says about its sender. Values that are empty count as not sent.

    Attributes:
        bearer: from `Authorization: Bearer …`, the scheme in any case; other schemes are not for us.
        api_key: from `x-api-key`.
        org_id: from `X-Dedalus-Org-Id`. One that is sent several times with different values names no org:
            the values are joined by commas, and so equal none.
    """

    bearer: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)
    org_id: str | None = None

    @classmethod
    def from_headers(cls, headers: Headers) -> Credentials:
        """Take them from the headers of a request, whatever bytes those are.

        Raises:
            Coded: 401, a credential is far too long, or comes several times with different values.
        """
        bearers: list[bytes] = []
        api_keys: list[bytes] = []
        orgs: list[bytes] = []
        for name, value in headers.raw:
            if name == b"authorization":
                scheme, _, rest = value.strip().replace(b"\t", b" ", 1).partition(b" ")
                if scheme.lower() == b"bearer":
                    bearers.append(rest.strip())
            elif name == b"x-api-key":
                api_keys.append(value.strip())
            elif name == b"x-dedalus-org-id":
                orgs.append(value.strip())
        return cls(bearer=_only(bearers), api_key=_only(api_keys), org_id=_joined(orgs))

    @property
    def token(self) -> str | None:
        """The credential that counts: where both are there and differ, the bearer token."""
        return self.bearer or self.api_key


def _only(values: list[bytes]) -> str | None:
    if not values:
        return None
    first = values[0]
    if len(values) > 1 and any(value != first for value in values):
        # Which of them a proxy before us believed, nobody can tell.
        raise auth_invalid()
    if len(first) > _LONGEST:
        raise auth_invalid()
    return first.decode("latin-1") or None


def _joined(values: list[bytes]) -> str | None:
    return ",".join(dict.fromkeys(value.decode("latin-1") for value in values)) or None


class Authenticator(Protocol):
    """Finds out who asks. It is on the way of every request: no I/O."""

    def authenticate(self, headers: Headers) -> Caller:
        """The sender of a request with these headers.

        Raises:
            Coded: 401, nobody that we know; 503, who is known cannot be told now.
        """
        ...


class OrgResolver(Protocol):
    """Finds out for which org a request is. It is on the way of every request: no I/O."""

    def resolve(self, caller: Caller, asked: str | None) -> str:
        """The org that is meant where the request asks for `asked` (None: for none).

        Raises:
            Coded: 403, the caller has nothing to do with that org.
        """
        ...


class Authorizer(Protocol):
    """Decides what somebody may do."""

    async def allow(self, caller: Caller, org: str, verb: Verb) -> None:
        """Return if `caller` may do `verb` to machines of `org`.

        Raises:
            Coded: 403, they may not; 503, nobody can tell now.
        """
        ...


class KeyOrgs(OrgResolver):
    """A key belongs to one org, and a request can be for no other one. A blank name asks for none."""

    @override
    def resolve(self, caller: Caller, asked: str | None) -> str:
        wanted = asked.strip() if asked is not None else ""
        if wanted not in ("", caller.org):
            raise org_mismatch()
        return caller.org


class KeyScopes(Authorizer):
    """A key has scopes, and each verb needs one."""

    @override
    async def allow(self, caller: Caller, org: str, verb: Verb) -> None:
        if org != caller.org:
            raise org_mismatch()
        needed = NEEDED_SCOPES[verb]
        if needed not in caller.scopes and EVERY_SCOPE not in caller.scopes:
            raise scope_forbidden(needed)
