"""API keys: one Secret each, followed by an informer, so that whoever deletes one has revoked it within a moment.

A token is `dsk-<key id>-<secret>`. The Secret is named after the id, and keeps the SHA-256 of the whole token. A plain
fast hash is right for that: slow, salted ones make guessing a password that people chose costly, while the secret here
is 256 random bits, of which no computer ever guesses one; and each request pays for the hash.

    request ─ id ─> informer's cache ─> digests compared in constant time ─> expiry ─> Caller

When a key was last used is kept in memory and noted on its Secret at most once a minute, off the requests' way.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from starlette.datastructures import Headers
from typing_extensions import override

from machine_operator.api.names import GROUP, MANAGED_BY, MANAGED_BY_LABEL
from machine_operator.api.timestamps import format_timestamp, parse_timestamp
from machine_operator.gateway.failures import auth_invalid, auth_required, runtime_unavailable
from machine_operator.gateway.identity import EVERY_SCOPE, Authenticator, Caller, Credentials
from machine_operator.gateway.orgs import ORG_LABEL, org_fault
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import KubeError, NotFound
from machine_operator.kube.informer import Informer, Key
from machine_operator.kube.resources import SECRETS

__all__ = [
    "KEYS_NAMESPACE",
    "KEY_LABEL",
    "SCOPES",
    "ApiKey",
    "KeyRing",
    "NewKey",
    "UnreadableKeyError",
    "key_id",
    "new_key",
    "read_key",
    "secret_name",
]

log = logging.getLogger(__name__)

Object = dict[str, Any]

KEYS_NAMESPACE: Final = "machine-operator"
"""Where keys are, unless the gateway is told otherwise."""

KEY_LABEL: Final = f"{GROUP}/api-key"
KEY_TYPE: Final = f"{GROUP}/api-key"
"""Type of the Secrets. It never changes, so no other Secret becomes a key by a label."""

CREATED: Final = f"{GROUP}/created-at"
EXPIRES: Final = f"{GROUP}/expires-at"
LAST_USED: Final = f"{GROUP}/last-used-at"
DESCRIPTION: Final = f"{GROUP}/description"

SCOPES: Final[Mapping[str, str]] = {
    EVERY_SCOPE: "everything, also what comes in later versions",
    "machines:read": "see machines, their status and their usage",
    "machines:write": "create, change, delete, sleep, wake and reboot machines",
}
"""The scopes that exist, and what each is for."""

_ID = re.compile(r"[a-z0-9]{12}")
_TOKEN = re.compile(r"dsk-([a-z0-9]{12})-[A-Za-z0-9_-]{43,256}")
_SCOPE = re.compile(r"\*|[a-z]+:[a-z]+")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NOBODY: Final = bytes(32)
"""What the token of an unknown key is compared with."""

_NOTE_EVERY = 60.0
"""Seconds between two notes of the last use of one key."""
_ROUND = 5.0
_AFTER_FAILURE = 60.0
_DEAF_AFTER = 180.0
"""Seconds of silence, three bookmarks long, after which nobody can tell whether a key was revoked."""
_MOST_TOLD = 1_000


class UnreadableKeyError(ValueError):
    """A Secret is no API key; the message says why, and has nothing of its data."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the gateway knows it.

    Attributes:
        id: the public part of its token.
        org: whose it is.
        digest: SHA-256 of the token.
        scopes: what it may do; also ones of later versions.
        expires_at: seconds since 1970 from which on it is refused, or None.
        last_used_at: seconds since 1970, as noted on the Secret, or None.
    """

    id: str
    org: str
    digest: bytes = field(repr=False)
    scopes: frozenset[str]
    expires_at: float | None = None
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made.

    Attributes:
        id: the public part of the token.
        token: to be shown once; it can never be found again.
        secret: the Secret to create, without a namespace.
    """

    id: str
    token: str = field(repr=False)
    secret: Object = field(repr=False)


def new_key(
    org: str,
    *,
    scopes: Iterable[str] = (EVERY_SCOPE,),
    now: datetime,
    expires_at: datetime | None = None,
    description: str = "",
) -> NewKey:
    """Make a key for `org`; nothing is written anywhere.

    Raises:
        ValueError: `org` cannot be an org, or a scope does not exist.
    """
    fault = org_fault(org)
    if fault is not None:
        raise ValueError(f"{org!r} cannot be an org: {fault}")
    wanted = sorted(set(scopes))
    if not wanted:
        raise ValueError(f"a key without a scope is of no use; there are: {', '.join(SCOPES)}")
    if unknown := [scope for scope in wanted if scope not in SCOPES]:
        raise ValueError(f"there is no scope {unknown[0]!r}; there are: {', '.join(SCOPES)}")
    identity = base64.b32encode(secrets.token_bytes(8)).decode()[:12].lower()
    token = f"dsk-{identity}-{secrets.token_urlsafe(32)}"
    annotations = {CREATED: format_timestamp(now)}
    if expires_at is not None:
        annotations[EXPIRES] = format_timestamp(expires_at)
    if description:
        annotations[DESCRIPTION] = description
    data = {"sha256": hashlib.sha256(token.encode()).hexdigest(), "scopes": " ".join(wanted)}
    secret = {
        "metadata": {
            "name": secret_name(identity),
            "labels": {KEY_LABEL: "true", ORG_LABEL: org, MANAGED_BY_LABEL: MANAGED_BY},
            "annotations": annotations,
        },
        "type": KEY_TYPE,
        # Whoever may only note the last use cannot put another digest in.
        "immutable": True,
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in data.items()},
    }
    return NewKey(identity, token, secret)


def secret_name(identity: str) -> str:
    """The name of the Secret of a key."""
    return f"api-key-{identity}"


def key_id(text: str) -> str | None:
    """The id of a key that people name by its id, its Secret or its token; None where it is none of them."""
    token = _TOKEN.fullmatch(text)
    identity = token[1] if token is not None else text.removeprefix("api-key-")
    return identity if _ID.fullmatch(identity) else None


def read_key(secret: Mapping[str, Any]) -> ApiKey:
    """The key that is in a Secret.

    Raises:
        UnreadableKeyError: it is none, or was made by something else.
    """
    metadata = secret["metadata"]
    identity = str(metadata["name"]).removeprefix("api-key-")
    org = str((metadata.get("labels") or {}).get(ORG_LABEL) or "")
    if not _ID.fullmatch(identity) or metadata["name"] == identity:
        raise UnreadableKeyError("its name is not api-key- and a key id")
    if secret.get("type") != KEY_TYPE:
        raise UnreadableKeyError(f"its type is not {KEY_TYPE}")
    if org_fault(org) is not None:
        raise UnreadableKeyError(f"its label {ORG_LABEL} is missing, or names no possible org")
    digest = _datum(secret, "sha256").strip()
    if not _DIGEST.fullmatch(digest):
        raise UnreadableKeyError("its data has no sha256 of 64 lower-case hex digits")
    scopes = frozenset(_datum(secret, "scopes").split())
    if not scopes or not all(_SCOPE.fullmatch(scope) for scope in scopes):
        raise UnreadableKeyError("its data has no scopes, separated by blanks")
    annotations = metadata.get("annotations") or {}
    try:
        expires_at = _moment(annotations.get(EXPIRES))
    except ValueError:
        raise UnreadableKeyError(f"its annotation {EXPIRES} is no RFC 3339 time") from None
    try:
        last_used_at = _moment(annotations.get(LAST_USED))
    except ValueError:
        last_used_at = None  # only a note
    return ApiKey(identity, org, bytes.fromhex(digest), scopes, expires_at, last_used_at)


def _datum(secret: Mapping[str, Any], name: str) -> str:
    try:
        raw = (secret.get("data") or {}).get(name) or ""
        return base64.b64decode(raw, validate=True).decode("ascii")
    except (binascii.Error, ValueError, TypeError, AttributeError):
        raise UnreadableKeyError(f"its data has a {name} that is no text in base64") from None


def _moment(text: str | None) -> float | None:
    return None if text is None else parse_timestamp(text).timestamp()


class KeyRing(Authenticator):
    """All keys, and who comes with one. `run` must be running.

    Args:
        client: the connection and identity.
        namespace: where the keys are.
        now: the wall clock, in seconds since 1970.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str = KEYS_NAMESPACE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._now = now
        self._told: set[str] = set()
        self._used: dict[str, int] = {}
        """Uses that are to be noted, those that wait for longest first; only of keys that exist."""
        self._noted_at: dict[str, float] = {}
        self._keys: Informer[ApiKey] = Informer(
            client,
            SECRETS,
            project=self._project,
            on_change=self._changed,
            namespace=namespace,
            label_selector=f"{KEY_LABEL}=true",
        )

    @property
    def synced(self) -> asyncio.Event:
        """Set once all keys are known."""
        return self._keys.synced

    def __len__(self) -> int:
        return len(self._keys.cache)

    async def run(self) -> None:
        """Follow the keys, and note their use, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keys.run())
            tasks.create_task(self._note_uses())

    @override
    def authenticate(self, headers: Headers) -> Caller:
        token = Credentials.from_headers(headers).token
        if token is None:
            raise auth_required()
        form = _TOKEN.fullmatch(token)
        if form is None:
            raise auth_invalid()
        self._must_know()
        key = self._keys.get(self._namespace, secret_name(form[1]))
        # For an unknown key as well, so that the time of an answer does not tell which ids exist.
        expected = _NOBODY if key is None else key.digest
        same = hmac.compare_digest(hashlib.sha256(token.encode()).digest(), expected)
        if key is None or not same:
            raise auth_invalid()
        now = self._now()
        if key.expires_at is not None and now >= key.expires_at:
            raise auth_invalid()
        self._used[key.id] = int(now)
        return Caller(key.org, f"api-key:{key.id}", key.scopes, key.id)

    def _must_know(self) -> None:
        heard_at = self._keys.heard_at
        if not self._keys.synced.is_set() or heard_at is None:
            raise runtime_unavailable()
        if asyncio.get_running_loop().time() - heard_at > _DEAF_AFTER:
            raise runtime_unavailable()

    # ---- what the informer brings

    def _project(self, secret: Object) -> ApiKey | None:
        metadata = secret["metadata"]
        name = str(metadata["name"])
        if metadata.get("deletionTimestamp"):
            return None  # revoked, though something holds the object
        try:
            key = read_key(secret)
        except UnreadableKeyError as error:
            if name not in self._told:
                if len(self._told) >= _MOST_TOLD:
                    self._told.clear()
                self._told.add(name)
                log.error("Secret %s/%s is no API key: %s", self._namespace, name, error)
            return None
        self._told.discard(name)
        return key

    def _changed(self, _: Key, old: ApiKey | None, new: ApiKey | None) -> None:
        if old is not None and new is None:
            self._used.pop(old.id, None)
            self._noted_at.pop(old.id, None)
            log.info("API key %s of org %s is revoked", old.id, old.org)

    # ---- when keys were last used

    async def _note_uses(self) -> None:
        while True:
            went_well = await self._note_due()
            await asyncio.sleep(_ROUND if went_well else _AFTER_FAILURE)

    async def _note_due(self) -> bool:
        """Note what is due, one key after the other; the first failure ends the round."""
        for identity, used_at in list(self._used.items()):
            key = self._keys.get(self._namespace, secret_name(identity))
            last = None if key is None else key.last_used_at
            if key is None or (last is not None and last >= used_at):
                self._done(identity, used_at)  # another replica was first
                continue
            waited = self._now() - max(self._noted_at.get(identity, 0.0), last or 0.0)
            if 0 <= waited < _NOTE_EVERY:
                continue
            if not await self._note(identity, used_at):
                return False
        return True

    async def _note(self, identity: str, used_at: int) -> bool:
        text = format_timestamp(datetime.fromtimestamp(used_at, UTC))
        body = {"metadata": {"annotations": {LAST_USED: text}}}
        try:
            answer = await self._client.merge_patch(
                SECRETS, secret_name(identity), body, namespace=self._namespace
            )
        except NotFound:
            self._done(identity, used_at)  # revoked meanwhile
            return True
        except KubeError as error:
            log.warning(
                "the last use of API key %s could not be noted and will be later: %s",
                identity,
                error,
            )
            # To the end, so that one bad Secret does not hold up all others.
            self._used[identity] = self._used.pop(identity, used_at)
            return False
        self._keys.wrote(answer)
        self._noted_at[identity] = self._now()
        self._done(identity, used_at)
        return True

    def _done(self, identity: str, used_at: int) -> None:
        if self._used.get(identity, used_at) == used_at:
            self._used.pop(identity, None)
