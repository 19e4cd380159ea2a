"""Counts requests, outermost of all: by the route that took them, so that nobody's path becomes a label."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from machine_operator.telemetry.gateway import GatewayMetrics

__all__ = ["Accounting"]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_NO_ROUTE = "none"
_CODES = {"websocket.accept": 101, "websocket.close": 403}
_STARTS = ("http.response.start", "websocket.http.response.start", *_CODES)


class Accounting:
    """Tells `metrics` of each answer.

    Args:
        app: the application around which it stands.
        metrics: where it is counted.
    """

    def __init__(self, app: ASGIApp, metrics: GatewayMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        metrics = self._metrics

        answered = False

        async def counted(message: Message) -> None:
            nonlocal answered
            if not answered and message["type"] in _STARTS:
                answered = True
                route = getattr(scope.get("route"), "path", _NO_ROUTE)
                asked = scope.get("method", "GET")
                method = asked if asked in _METHODS else "other"
                status = message.get("status") or _CODES[message["type"]]
                metrics.answered(route, method, status, seconds=time.perf_counter() - began)
            await send(message)

        metrics.under_way += 1
        try:
            await self._app(scope, receive, counted)
        finally:
            metrics.under_way -= 1
