"""Previews as clients see them: in front of the API, by host name or by path.

    PREVIEW-ID.<preview domain>   ┐
    <API>/previews/PREVIEW-ID/…   ┴ found? ── let in? ── reached? ── passed on

Whatever else is asked for goes to the API, after one look at the path and the host. The guest gets the request as it
came: its path byte for byte (without the preview's own), its `Host`, and in `X-Forwarded-For`, `-Proto`, `-Host` and
`-Prefix` what is known of the client's side. What the guest says of itself, such as `Location`, is left alone. An
application that has to know its own addresses can do without the path form where there is a preview domain. With the
path form all previews share the origin of the API; people who do not trust each other need the domain.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from machine_operator.gateway.failures import internal
from machine_operator.gateway.previews.access import no_such_preview
from machine_operator.gateway.previews.hits import Finder, Hit
from machine_operator.gateway.previews.http import Header
from machine_operator.gateway.previews.pages import failure_answer, waiting_answer, wants_page
from machine_operator.gateway.previews.passage import Passage, send_answer, with_query
from machine_operator.gateway.previews.previews import Previews
from machine_operator.gateway.previews.reach import Waking
from machine_operator.gateway.previews.sockets import SocketBudget
from machine_operator.gateway.problems import GatewayError
from machine_operator.telemetry.gateway import GatewayMetrics
from machine_operator.telemetry.logs import fields

__all__ = ["PreviewHost"]

log = logging.getLogger(__name__)

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class PreviewHost:
    """The application with previews in front of it.

    Args:
        app: the API.
        previews: the previews.
        metrics: where their requests are counted, if anywhere.
    """

    def __init__(
        self, app: ASGIApp, previews: Previews, *, metrics: GatewayMetrics | None = None
    ) -> None:
        self._app = app
        self._previews = previews
        self._metrics = metrics
        self._budget = SocketBudget()
        self._finder = Finder(previews.settings.preview_domain)
        url = previews.settings.public_url
        self._secure = None if url is None else url.startswith("https:")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] in ("http", "websocket"):
            try:
                hit = self._finder.find(scope)
            except GatewayError as error:
                await _refuse(scope, send, error)
                return
            if hit is not None:
                await self._counted(hit, scope, receive, send)
                return
        await self._app(scope, receive, send)

    # ---- one request

    async def _counted(self, hit: Hit, scope: Scope, receive: Receive, send: Send) -> None:
        metrics = self._metrics
        if metrics is None or scope["type"] != "http":
            await self._serve(hit, scope, receive, send)
            return
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in _METHODS else "other"
                seconds = time.perf_counter() - began
                metrics.answered("previews", method, message["status"], seconds=seconds)
            await send(message)

        metrics.under_way += 1
        try:
            await self._serve(hit, scope, receive, counted)
        finally:
            metrics.under_way -= 1

    async def _serve(self, hit: Hit, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._enter(hit, scope, receive, watched)
        except Waking:
            await send_answer(scope, send, *waiting_answer())
        except GatewayError as error:
            await _refuse(scope, send, error)
        except Exception as error:
            request_id = os.urandom(16).hex()
            log.error(
                f"a request to a preview failed unexpectedly: {type(error).__name__}",
                exc_info=True,
                extra=fields(request_id=request_id, preview=hit.id),
            )
            if started:
                raise
            await _refuse(scope, send, internal(request_id), request_id=request_id)

    async def _enter(self, hit: Hit, scope: Scope, receive: Receive, send: Send) -> None:
        previews = self._previews
        if not hit.target.startswith((b"/", b"*")):
            if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
                location = with_query(hit.path.encode(), scope["query_string"])
                await send_answer(scope, send, 307, _moved(location), b"")
                return
            raise no_such_preview()
        preview = await previews.open_one(hit.id)
        secure = self._is_secure(scope)
        entry = await previews.gate.enter(preview, scope, path=hit.path, secure=secure)
        if entry.moved:
            headers = _moved(with_query(_local(hit.prefix + hit.target), entry.query))
            if entry.cookie is not None:
                headers.append((b"set-cookie", entry.cookie))
            await send_answer(scope, send, 302, headers, b"")
            return
        with previews.visits.enter(preview.id) as visit:
            passage = Passage(
                previews, preview, hit, entry, scope, secure=secure, budget=self._budget
            )
            if scope["type"] == "http":
                await passage.request(receive, send, visit)
            else:
                await passage.socket(receive, send, visit)

    def _is_secure(self, scope: Scope) -> bool:
        if self._secure is not None:
            return self._secure
        return bool(scope.get("scheme") in ("https", "wss"))


def _local(path: bytes) -> bytes:
    """A path as an address of the same host: `//name` would be another host, to browsers with a backslash as well."""
    return b"/." + path if path[1:2] in (b"/", b"\\") else path


def _moved(location: bytes) -> list[Header]:
    return [
        (b"location", location),
        (b"content-length", b"0"),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
    ]


async def _refuse(
    scope: Scope, send: Send, error: GatewayError, *, request_id: str | None = None
) -> None:
    told = request_id or os.urandom(16).hex()
    await send_answer(scope, send, *failure_answer(error, page=wants_page(scope), request_id=told))
