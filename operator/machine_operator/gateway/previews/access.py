"""Who may see a preview, and what of their request is none of the guest's business.

    public   anybody
    private  who made it      ┐ by API key, or by a link with `?preview_token=`, which is exchanged for a cookie
    org      its organisation ┘

A link is good for an hour and its cookie for half a day, both for one preview only, and neither outlives it. The
first hit of a browser is redirected to the same address without the token, so the token does not get into the
guest's log, nor into a `Referer`. Cookies come along whatever page asks: a request that is more than a look, or a
WebSocket, has to come from the preview's own pages where a cookie is all that speaks for it.

API keys, our cookies and our tokens are taken out of what is passed on. A credential that is none of ours belongs to
the application in the guest, and goes there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers

from machine_operator.gateway.failures import auth_invalid, auth_required
from machine_operator.gateway.identity import Authenticator, Authorizer, Caller, Verb
from machine_operator.gateway.previews.http import Header
from machine_operator.gateway.problems import Coded, GatewayError, Problem
from machine_operator.gateway.tokens import TokenError, Tokens
from machine_operator.store.previews import Preview, Visibility

__all__ = ["Entry", "PreviewAccess", "no_such_preview"]

_PARAMETER: Final = b"preview_token"
_LINK_SECONDS: Final = 3600.0
_COOKIE_SECONDS: Final = 12 * 3600
_SAFE: Final = frozenset(("GET", "HEAD", "OPTIONS"))
_COOKIE: Final = re.compile(rb"(?:__Host-)?preview-pv-[0-9a-f]{32}")
_USUAL: Final = {"http": ":80", "https": ":443"}


def no_such_preview() -> Problem:
    """404: there is none of this id, or it is closed, or it is nobody's business."""
    return Problem(404, "there is no such preview")


@dataclass(frozen=True, slots=True)
class Entry:
    """Somebody who was let in.

    Attributes:
        by: who, for records; never a secret.
        headers: of the request, without what is ours.
        query: of the request, without what is ours.
        moved: True: the browser is to come again without the token.
        cookie: a `Set-Cookie` for them, or None.
    """

    by: str
    headers: list[Header] = field(repr=False)
    query: bytes = field(repr=False)
    moved: bool = False
    cookie: bytes | None = field(default=None, repr=False)


class PreviewAccess:
    """Decides that.

    Args:
        tokens: make and check links and cookies.
        authenticator, authorizer: know API keys, and what they may do.
    """

    def __init__(
        self, tokens: Tokens, authenticator: Authenticator, authorizer: Authorizer
    ) -> None:
        self._tokens = tokens
        self._authenticator = authenticator
        self._authorizer = authorizer

    async def link_token(self, preview: Preview, caller: Caller) -> str | None:
        """What is to be added to a link for `caller`: None where nothing is needed, or would be given."""
        if preview.visibility is Visibility.PUBLIC or await self._refusal(preview, caller):
            return None
        return self._tokens.sign("preview", preview.id, seconds=_LINK_SECONDS)

    async def enter(self, preview: Preview, scope: Any, *, path: str, secure: bool) -> Entry:
        """Let the sender of a request in.

        Args:
            preview: to which one.
            scope: the request.
            path: where the preview's addresses begin: `/`, or the path of the preview.
            secure: whether it comes over https.

        Raises:
            GatewayError: 401, 403 or 404, they are not let in; 503, nobody can tell now.
        """
        query, token = _without_token(scope["query_string"])
        name = _cookie_name(preview, secure=secure and path == "/")
        headers, cookies = _without_cookies(scope["headers"], name)
        headers, caller = self._without_keys(headers)
        if preview.visibility is Visibility.PUBLIC:
            return Entry("anybody", headers, scope["query_string"])
        refusal: GatewayError | None = None
        if caller is not None and (refusal := await self._refusal(preview, caller)) is None:
            return Entry(caller.subject, headers, query)
        plain = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        if token is not None and self._is_good(token, "preview", preview):
            if not plain:
                return Entry("link", headers, query)
            cookie = self._cookie(preview, name, path=path, secure=secure)
            return Entry("link", headers, query, moved=True, cookie=cookie)
        if any(self._is_good(one, "preview-cookie", preview) for one in cookies):
            if token is not None and plain:
                return Entry("link", headers, query, moved=True)
            if scope["type"] == "websocket" or scope["method"] not in _SAFE:
                _from_own_pages(scope, secure=secure)
            return Entry("link", headers, query)
        if refusal is not None:
            raise refusal
        raise auth_required() if token is None else auth_invalid()

    # ---- API keys

    async def _refusal(self, preview: Preview, caller: Caller) -> GatewayError | None:
        if caller.org != preview.org:
            return no_such_preview()
        if preview.visibility is Visibility.PRIVATE and caller.subject != preview.created_by:
            message = "this preview is private to the API key that made it"
            return Coded(403, "AUTH_SCOPE_FORBIDDEN", message, retryable=False)
        try:
            # A hit may wake the machine, and makes something run in it.
            await self._authorizer.allow(caller, preview.org, Verb.USE)
        except Coded as error:
            return error
        return None

    def _without_keys(self, headers: list[Header]) -> tuple[list[Header], Caller | None]:
        """The headers without API keys, and whose those are: the Bearer's where both are there."""
        kept: list[Header] = []
        callers: dict[bytes, Caller | None] = {}
        for name, value in headers:
            if name in (b"authorization", b"x-api-key"):
                try:
                    callers[name] = self._authenticator.authenticate(Headers(raw=[(name, value)]))
                    continue
                except Coded as error:
                    if error.status != 401:
                        # It cannot be told now whether it is ours, so it goes nowhere.
                        callers.setdefault(name, None)
                        continue
            kept.append((name, value))
        return kept, callers.get(b"authorization") or callers.get(b"x-api-key")

    # ---- links and cookies

    def _is_good(self, token: str, purpose: str, preview: Preview) -> bool:
        try:
            self._tokens.check(token, purpose, preview.id)
        except TokenError:
            return False
        return True

    def _cookie(self, preview: Preview, name: bytes, *, path: str, secure: bool) -> bytes:
        value = self._tokens.sign("preview-cookie", preview.id, seconds=_COOKIE_SECONDS)
        parts = [
            b"%s=%s" % (name, value.encode()),
            b"Path=" + path.encode(),
            b"Max-Age=%d" % _COOKIE_SECONDS,
            b"HttpOnly",
            b"SameSite=Lax",
        ]
        return b"; ".join([*parts, b"Secure"] if secure else parts)


def _cookie_name(preview: Preview, *, secure: bool) -> bytes:
    # Browsers take a cookie of such a name from its own host only, over https, for all of its paths: other previews
    # of the domain cannot plant one.
    return b"%spreview-%s" % (b"__Host-" if secure else b"", preview.id.encode())


def _without_token(query: bytes) -> tuple[bytes, str | None]:
    """A query without the token, and the token."""
    if _PARAMETER not in query:
        return query, None
    kept, token = [], None
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name == _PARAMETER:
            token = unquote_to_bytes(value).decode("latin-1")
        else:
            kept.append(part)
    return b"&".join(kept), token


def _without_cookies(headers: list[Header], name: bytes) -> tuple[list[Header], list[str]]:
    """The headers without our cookies, and the values of the one that is looked for."""
    kept: list[Header] = []
    values: list[str] = []
    for header in headers:
        if header[0] != b"cookie" or b"preview-pv-" not in header[1]:
            kept.append(header)
            continue
        others = []
        for pair in header[1].split(b";"):
            key, _, value = pair.strip().partition(b"=")
            if not _COOKIE.fullmatch(key):
                others.append(pair.strip())
            elif key == name:
                values.append(value.decode("latin-1"))
        if others:
            kept.append((b"cookie", b"; ".join(others)))
    return kept, values


def _from_own_pages(scope: Any, *, secure: bool) -> None:
    """Refuse what a page of somebody else asks for with a cookie.

    Raises:
        Coded: 403.
    """
    sent = {name: value.decode("latin-1").lower() for name, value in scope["headers"]}
    origin, host = sent.get(b"origin"), sent.get(b"host", "")
    # A page without an origin of its own is another site to the browser, so no cookie came from there.
    if origin is None or origin == "null":
        return
    scheme, _, authority = origin.partition("://")
    own = host.removesuffix(_USUAL["https" if secure else "http"])
    if authority.removesuffix(_USUAL.get(scheme, "")) != own:
        message = "the request comes from a page that is not the preview's own"
        raise Coded(403, "AUTH_SCOPE_FORBIDDEN", message, retryable=False)
