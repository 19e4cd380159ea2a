"""SSH sessions: list, create, get, delete.

A session that is asked for while its machine sleeps wakes it, and is `wake_in_progress` until a read finds it running.
Reads themselves wake nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

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
from machine_operator.gateway.dcs.ssh_models import (
    CreateSSHSessionRequest,
    SSHSessionListResponse,
    SSHSessionResponse,
)
from machine_operator.gateway.failures import runtime_unavailable, store_unavailable, unprocessable
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.problems import Fault, Problem, bounded
from machine_operator.gateway.ssh.certificates import PublicKeyError, read_public_key
from machine_operator.gateway.ssh.sessions import SshSessions
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.ssh_sessions import SshSession, SshStatus

__all__ = ["ssh_routes"]

_NONE: Final = "there is no SSH gateway here: its administrator sets ssh_address, or ssh_endpoint"

openapi.register(CreateSSHSessionRequest, SSHSessionListResponse, SSHSessionResponse)


def ssh_routes(gateway: Gateway, sessions: SshSessions | None) -> APIRouter:
    """The routes of machines' SSH sessions; without `sessions` they say that there is no SSH gateway."""
    here = _Sessions(SubResourceFrame(gateway, "ssh"), sessions)
    routes = MachineRoutes("ssh", id="session_id", one=SSHSessionResponse)
    routes.list(here.list, "listMachineSSHSessions", SSHSessionListResponse)
    routes.create(here.create, "createMachineSSHSession", CreateSSHSessionRequest)
    routes.get(here.get, "getMachineSSHSession")
    routes.delete(here.delete, "deleteMachineSSHSession")
    return routes.router


@dataclass(frozen=True, slots=True)
class _Sessions:
    frame: SubResourceFrame
    sessions: SshSessions | None

    async def list(self, request: Request) -> Response:
        """List a machine's SSH sessions, the newest first."""
        asked = await self.frame.read(request)
        limit, after = read_limit(request), read_place(request)
        service = self._service()
        try:
            found, more = await service.page(asked.view, after=after, limit=limit)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        items = [_body(session, asked, service) for session in found]
        return list_answer(items, None if more is None else write_place(more), age=asked.age)

    async def create(self, request: Request) -> Response:
        """Make an SSH session, and wake the machine for it."""
        asked = await self.frame.change(request)
        body = read_request(
            CreateSSHSessionRequest, await read_body(request), request.headers.get("content-type")
        )
        # Not told back: people send their private keys by mistake.
        try:
            public_key = read_public_key(body.public_key)
        except PublicKeyError as error:
            raise unprocessable(Fault("body.public_key", str(error))) from None
        service = self._service()

        async def make(key: str | None) -> dict[str, Any]:
            self.frame.refuse_ended(asked)
            own_id = None if key is None else self.frame.own_id(asked, key)
            try:
                session = await service.create(
                    asked.view, public_key, by=asked.caller.subject, own_id=own_id
                )
            except NotUsable as error:  # too many machines wait to be woken
                raise runtime_unavailable() from error
            return _body(session, asked, service)

        try:
            return await self.frame.once(request, asked, {"public_key": public_key}, make)
        except StoreUnavailable as error:
            raise store_unavailable() from error

    async def get(self, request: Request) -> Response:
        """Get an SSH session."""
        asked = await self.frame.read(request)
        service = self._service()
        return await self._one(request, asked, service, closing=False)

    async def delete(self, request: Request) -> Response:
        """Close an SSH session: nobody logs in with it any more, and its connections are cut."""
        asked = await self.frame.change(request)
        refuse_body(await read_body(request))
        return await self._one(request, asked, self._service(), closing=True)

    async def _one(
        self, request: Request, asked: Asked, service: SshSessions, *, closing: bool
    ) -> Response:
        spelled = request.path_params["session_id"]
        work = service.close if closing else service.get
        try:
            session = await work(asked.view, spelled)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        if session is None:
            raise Problem(404, f"the machine has no SSH session {bounded(spelled)}")
        body = orjson.dumps(_body(session, asked, service))
        return json_answer(200, body, age=asked.age)

    def _service(self) -> SshSessions:
        if self.sessions is None:
            raise Problem(501, _NONE)
        return self.sessions


def _body(session: SshSession, asked: Asked, service: SshSessions) -> dict[str, Any]:
    """A session on the wire."""
    expired = session.status is SshStatus.READY and service.expired(session)
    members: dict[str, Any] = {
        "session_id": session.id,
        "machine_id": asked.machine_id,
        "status": "expired" if expired else session.status.value,
        "created_at": stamp(session.created_at),
        "ready_at": stamp(session.ready_at),
        "expires_at": stamp(session.expires_at),
        "error_code": session.error_code,
        "error_message": session.error_message,
    }
    if session.status is SshStatus.WAKING:
        members["retry_after_ms"] = Access.RETRY_MS
    if session.status is SshStatus.READY and not expired:
        members["connection"] = _connection(session, service)
    return {name: value for name, value in members.items() if value is not None}


def _connection(session: SshSession, service: SshSessions) -> dict[str, Any]:
    endpoint = service.endpoint
    return {
        "endpoint": endpoint.host,
        "port": endpoint.port,
        "ssh_username": service.username,
        "user_certificate": session.certificate,
        "host_trust": {
            "kind": "cert_authority",
            "host_pattern": endpoint.host_pattern,
            "public_key": service.host_authority,
        },
    }
