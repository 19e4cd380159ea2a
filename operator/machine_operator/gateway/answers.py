"""Failures on their way out: every answer that is no success is made here, and every answer carries its request's id.

    RequestIds          outermost: takes or makes the id, and puts it on whatever is answered
    └── LastResort      what nobody foresaw: 500 with the id and nothing else; the log has the rest
        └── routes      raise GatewayError, or FastAPI raises for them; the handlers answer

The id is the one thing of an unforeseen failure that leaves the process.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected

from machine_operator.gateway import failures
from machine_operator.gateway.faults import faults_of
from machine_operator.gateway.problems import GatewayError, Problem
from machine_operator.telemetry.logs import fields

__all__ = ["LastResort", "RequestIds", "answer_of", "install", "request_id_of"]

log = logging.getLogger(__name__)

_HEADER = "X-Request-Id"
_KEY = "request_id"
_USABLE = re.compile(r"[\x21-\x7e]{1,128}")
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_STARTS = ("http.response.start", "websocket.http.response.start", "websocket.accept")


def answer_of(error: GatewayError, *, request_id: str) -> Response:
    """The answer that `error` is."""
    return Response(
        orjson.dumps(error.body()),
        status_code=error.status,
        headers={**error.headers(), _HEADER: request_id},
        media_type=error.media_type,
    )


def request_id_of(scope: Scope) -> str:
    """The id of the request; "" outside of RequestIds."""
    return str(scope.get("state", {}).get(_KEY, ""))


def install(app: FastAPI) -> None:
    """Answer all failures of `app` in the formats of DCS.

    To be called when all other middlewares have been added: the last one is the outermost.
    """
    for kind in (GatewayError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _handle)
    app.router.default = _nothing_there
    app.add_middleware(LastResort)
    app.add_middleware(RequestIds)


class RequestIds:
    """Gives each request an id: the client's `X-Request-Id` if it is 1 to 128 visible ASCII characters, or a new one.

    Args:
        app: the application around which it stands.
        new_id: makes ids.
    """

    def __init__(
        self, app: ASGIApp, *, new_id: Callable[[], str] = lambda: os.urandom(16).hex()
    ) -> None:
        self._app = app
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        offered = Headers(scope=scope).get(_HEADER, "")
        request_id = offered if _USABLE.fullmatch(offered) else self._new_id()
        scope.setdefault("state", {})[_KEY] = request_id

        async def told(message: Message) -> None:
            if message["type"] in _STARTS:
                message.setdefault("headers", [])
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, told)


class LastResort:
    """Answers 500 to what nobody foresaw, and logs it under the request's id. A WebSocket ends with 1011."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        started = accepted = False

        async def watched(message: Message) -> None:
            nonlocal started, accepted
            started = started or message["type"] in _STARTS
            accepted = accepted or message["type"] == "websocket.accept"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except (ClientDisconnect, ClientDisconnected):
            return  # nobody is left to be answered, and nothing is wrong here
        except GatewayError as error:
            # From a middleware, where FastAPI's handlers do not reach.
            if started:
                raise
            await answer_of(error, request_id=request_id_of(scope))(scope, receive, send)
        except Exception as error:
            request_id = request_id_of(scope)
            log.error(
                f"a request failed unexpectedly: {type(error).__name__}",
                exc_info=True,
                extra=fields(
                    request_id=request_id, method=scope.get("method", "GET"), path=scope["path"]
                ),
            )
            if accepted:
                await send({"type": "websocket.close", "code": 1011})
                return
            if started:
                raise  # the server must break the connection, or the client takes the half for the whole
            await answer_of(failures.internal(request_id), request_id=request_id)(
                scope, receive, send
            )


async def _nothing_there(scope: Scope, receive: Receive, send: Send) -> None:
    """Starlette tells WebSockets that they are forbidden where there is nothing."""
    raise HTTPException(404)


async def _handle(request: Request, error: Exception) -> Response:
    return answer_of(_as_answer(request, error), request_id=request_id_of(request.scope))


def _as_answer(request: Request, error: Exception) -> GatewayError:
    match error:
        case GatewayError():
            return error
        case RequestValidationError():
            return failures.unprocessable(*faults_of(error.errors()))
        case HTTPException(status_code=404):
            return failures.no_such_route()
        case HTTPException(status_code=405):
            return failures.method_not_allowed(_methods(request))
        case HTTPException():
            return Problem(error.status_code, str(error.detail), headers=error.headers)
        case _:
            raise error


def _methods(request: Request) -> set[str]:
    """All methods of the path: routes of one path are many, and Starlette's own answer names the first one's only."""
    return {
        method
        for method in _METHODS
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    }
