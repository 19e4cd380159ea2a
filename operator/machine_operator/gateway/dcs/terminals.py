"""Terminals: list, create, get, delete, and the WebSocket of each.

Who connects comes with the link from the terminal's own answer, which needs no other permission, or with an API key
like everybody else. Everything that speaks against it is said before the upgrade, in ordinary answers; a request to
the same path that is no opening handshake gets the same answers, and 426 in the end.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket

from machine_operator.gateway.access import Access, NotUsable
from machine_operator.gateway.bodies import read_body
from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.frame import (
    Asked,
    SubResourceFrame,
    json_answer,
    list_answer,
    read_limit,
    read_place,
    write_place,
)
from machine_operator.gateway.dcs.machine_routes import MachineRoutes
from machine_operator.gateway.dcs.models import stamp
from machine_operator.gateway.dcs.requests import read_request, refuse_body
from machine_operator.gateway.dcs.terminal_models import (
    CreateTerminalRequest,
    TerminalListResponse,
    TerminalResponse,
)
from machine_operator.gateway.failures import (
    auth_invalid,
    no_way_inside,
    runtime_unavailable,
    store_unavailable,
    terminal_not_ready,
)
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.identity import Verb
from machine_operator.gateway.problems import Coded, Problem, Scope, bounded
from machine_operator.gateway.terminals.live import Live
from machine_operator.gateway.terminals.stream import serve_terminal
from machine_operator.gateway.terminals.terminals import NotReady, Terminals, Wanted
from machine_operator.gateway.tokens import TokenError
from machine_operator.gateway.views import MachineView
from machine_operator.guest.errors import GuestError
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.terminals import Terminal, TerminalStatus

__all__ = ["terminal_routes"]

log = logging.getLogger(__name__)

openapi.register(CreateTerminalRequest, TerminalListResponse, TerminalResponse)


def terminal_routes(gateway: Gateway, terminals: Terminals | None) -> APIRouter:
    """The routes of machines' terminals; without `terminals` they say that there is no way into machines."""
    here = _Terminals(SubResourceFrame(gateway, "terminals"), terminals)
    routes = MachineRoutes("terminals", id="terminal_id", one=TerminalResponse)
    routes.list(here.list, "listMachineTerminals", TerminalListResponse)
    routes.create(here.create, "createMachineTerminal", CreateTerminalRequest)
    routes.get(here.get, "getMachineTerminal")
    routes.delete(here.delete, "deleteMachineTerminal")
    stream = f"{routes.one_path}/stream"
    routes.router.add_api_route(
        stream,
        here.no_stream,
        methods=["GET"],
        operation_id="connectMachineTerminal",
        status_code=101,
        responses=openapi.RESPONSES_CONNECT,
        openapi_extra=openapi.parameters("machine_id", "terminal_id", "token"),
    )
    routes.router.add_api_websocket_route(stream, here.stream)
    return routes.router


@dataclass(frozen=True, slots=True)
class _Terminals:
    frame: SubResourceFrame
    terminals: Terminals | None

    async def list(self, request: Request) -> Response:
        """List a machine's terminals, the newest first."""
        asked = await self.frame.read(request)
        limit, after = read_limit(request), read_place(request)
        try:
            found, more = await self._service().page(asked.view, after=after, limit=limit)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        items = [self._body(request, terminal, asked) for terminal in found]
        return list_answer(items, None if more is None else write_place(more), age=asked.age)

    async def create(self, request: Request) -> Response:
        """Make a terminal, and wake the machine for it. Its shell starts when somebody connects."""
        asked = await self.frame.change(request)
        body = read_request(
            CreateTerminalRequest, await read_body(request), request.headers.get("content-type")
        )
        service = self._service()
        wanted = Wanted(body.width, body.height, body.shell, body.cwd, body.env)

        async def make(key: str | None) -> dict[str, Any]:
            self.frame.refuse_ended(asked)
            own_id = None if key is None else self.frame.own_id(asked, key)
            try:
                terminal = await service.create(
                    asked.view, wanted, by=asked.caller.subject, own_id=own_id
                )
            except NotUsable as error:
                raise runtime_unavailable() from error
            return self._body(request, terminal, asked)

        try:
            return await self.frame.once(request, asked, body.model_dump(exclude_none=True), make)
        except StoreUnavailable as error:
            raise store_unavailable() from error

    async def get(self, request: Request) -> Response:
        """Get a terminal."""
        asked = await self.frame.read(request)
        return await self._one(request, asked, closing=False)

    async def delete(self, request: Request) -> Response:
        """Close a terminal: its shell is ended, and so is the connection to it."""
        asked = await self.frame.change(request)
        refuse_body(await read_body(request))
        return await self._one(request, asked, closing=True)

    async def stream(self, socket: WebSocket) -> None:
        """Connect to a terminal."""
        # The checks are those of any request.
        request = Request({**socket.scope, "type": "http", "method": "GET"})
        service = self._service()
        try:
            terminal, view, by = await self._may_connect(request)
            live = await self._attach(service, view, terminal, by=by)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        try:
            await socket.accept()
        except BaseException:
            live.attachment.abort()
            await service.live.remove(live)
            raise
        del request, terminal, view  # this frame lives as long as the connection
        await serve_terminal(socket, service, live)

    async def no_stream(self, request: Request) -> Response:
        """Connect to a terminal by WebSocket: JSON messages of input and resize, of output, error and closed."""
        try:
            terminal, _, _ = await self._may_connect(request)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        if terminal.status is not TerminalStatus.READY:
            raise _not_ready(terminal.status)
        headers = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
        }
        raise Problem(426, "this path is for WebSockets of version 13", headers=headers)

    # ---- parts

    async def _may_connect(self, request: Request) -> tuple[Terminal, MachineView, str]:
        """The terminal that is meant, its machine, and who wants to connect, if they may."""
        service = self._service()
        machine_id = request.path_params["machine_id"]
        spelled = request.path_params["terminal_id"]
        token = request.query_params.get("token")
        if token:
            try:
                terminal, view = await service.by_token(token, machine_id, spelled)
            except TokenError as error:
                if not _has_key(request):
                    raise auth_invalid() from error
            else:
                await self.frame.gateway.limiter.check(terminal.org, Scope.READ)
                return terminal, view, terminal.created_by
        asked = await self.frame.read(request, verb=Verb.USE)
        found = await service.get(asked.view, spelled)
        if found is None:
            raise _no_terminal(spelled)
        return found, asked.view, asked.caller.subject

    async def _attach(
        self, service: Terminals, view: MachineView, terminal: Terminal, *, by: str
    ) -> Live:
        try:
            return await service.attach(view, terminal, by=by)
        except NotReady as error:
            raise _not_ready(error.status) from error
        except (NotUsable, GuestError) as error:
            log.info("terminal %s cannot be connected to: %s", terminal.id, error)
            raise runtime_unavailable() from error

    async def _one(self, request: Request, asked: Asked, *, closing: bool) -> Response:
        service = self._service()
        spelled = request.path_params["terminal_id"]
        work = service.close if closing else service.get
        try:
            terminal = await work(asked.view, spelled)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        if terminal is None:
            raise _no_terminal(spelled)
        body = orjson.dumps(self._body(request, terminal, asked))
        return json_answer(200, body, age=asked.age)

    def _service(self) -> Terminals:
        if self.terminals is None:
            raise no_way_inside()
        return self.terminals

    def _body(self, request: Request, terminal: Terminal, asked: Asked) -> dict[str, Any]:
        """A terminal on the wire."""
        members: dict[str, Any] = {
            "terminal_id": terminal.id,
            "machine_id": asked.machine_id,
            "status": terminal.status.value,
            "created_at": stamp(terminal.created_at),
            "width": terminal.width,
            "height": terminal.height,
            "ready_at": stamp(terminal.ready_at),
            "expires_at": stamp(terminal.expires_at),
            "error_code": terminal.error_code,
            "error_message": terminal.error_message,
        }
        if terminal.status is TerminalStatus.WAKING:
            members["retry_after_ms"] = Access.RETRY_MS
        if terminal.status is TerminalStatus.READY:
            members["protocol"] = "websocket"
            members["stream_url"] = self._url(request, terminal, asked)
        return {name: value for name, value in members.items() if value is not None}

    def _url(self, request: Request, terminal: Terminal, asked: Asked) -> str:
        public = self.frame.gateway.settings.public_url
        base = public or f"{request.url.scheme}://{request.url.netloc}"
        path = f"/v1/machines/{quote(asked.machine_id, safe='')}/terminals/{terminal.id}/stream"
        token = self._service().token(terminal)
        return f"ws{base.removeprefix('http')}{path}?token={quote(token, safe='')}"


def _has_key(request: Request) -> bool:
    return any(name in request.headers for name in ("authorization", "x-api-key"))


def _no_terminal(spelled: str) -> Problem:
    return Problem(404, f"the machine has no terminal {bounded(spelled)}")


def _not_ready(status: TerminalStatus) -> Coded:
    waking = status is TerminalStatus.WAKING
    retry = Access.RETRY_MS if waking else None
    return terminal_not_ready(status.value, retry_after_ms=retry)
