"""Previews: list, create, get, delete.

Newer clients know them as ports (`ports.py`): the same ones, under the same ids, private unless made as something
else. Reads wake nothing. A link that lets people in is told only to those who may see the preview.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from machine_operator.gateway.access import Access
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
from machine_operator.gateway.dcs.preview_models import (
    CreatePortRequest,
    CreatePreviewRequest,
    PreviewListResponse,
    PreviewResponse,
)
from machine_operator.gateway.dcs.requests import read_request, refuse_body
from machine_operator.gateway.failures import no_way_inside, store_unavailable
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.previews.previews import Previews
from machine_operator.gateway.problems import Problem, bounded
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.previews import Preview, PreviewStatus, Visibility

__all__ = ["Dialect", "preview_routes", "routes_of"]

T = TypeVar("T")
Members = dict[str, Any]

openapi.register(CreatePreviewRequest, PreviewListResponse, PreviewResponse)


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a generation of clients calls them.

    Attributes:
        plural: as in paths.
        id: the member and path parameter that has the id.
        operation: as in the ids of operations: `MachinePreview`.
        create, one, page: their models.
        visible: whether it knows of visibility.
    """

    plural: str
    id: str
    operation: str
    create: type[CreatePortRequest]
    one: type[BaseModel]
    page: type[BaseModel]
    visible: bool


_PREVIEWS: Final = Dialect(
    plural="previews",
    id="preview_id",
    operation="MachinePreview",
    create=CreatePreviewRequest,
    one=PreviewResponse,
    page=PreviewListResponse,
    visible=True,
)


def preview_routes(gateway: Gateway, previews: Previews | None) -> APIRouter:
    """The routes of machines' previews; without `previews` they say that there is no way into machines here."""
    return routes_of(_PREVIEWS, gateway, previews)


def routes_of(dialect: Dialect, gateway: Gateway, previews: Previews | None) -> APIRouter:
    """The routes of one dialect."""
    here = _Routes(SubResourceFrame(gateway, dialect.plural), previews, dialect)
    routes = MachineRoutes(dialect.plural, id=dialect.id, one=dialect.one)
    routes.list(here.list, f"list{dialect.operation}s", dialect.page)
    routes.create(here.create, f"create{dialect.operation}", dialect.create)
    routes.get(here.get, f"get{dialect.operation}")
    routes.delete(here.delete, f"delete{dialect.operation}")
    return routes.router


@dataclass(frozen=True, slots=True)
class _Routes:
    frame: SubResourceFrame
    previews: Previews | None
    dialect: Dialect

    async def list(self, request: Request) -> Response:
        """List a machine's, the newest first."""
        asked = await self.frame.read(request)
        limit, after = read_limit(request), read_place(request)
        found, more = await _stored(self._service().page(asked.view, after=after, limit=limit))
        items = [await self._body(preview, asked, request) for preview in found]
        return list_answer(items, None if more is None else write_place(more), age=asked.age)

    async def create(self, request: Request) -> Response:
        """Make one, and wake the machine for it. The same again is the one that is there."""
        asked = await self.frame.change(request)
        body = read_request(
            self.dialect.create, await read_body(request), request.headers.get("content-type")
        )
        visibility = body.visibility if isinstance(body, CreatePreviewRequest) else "private"
        service = self._service()

        async def make(key: str | None) -> Members:
            self.frame.refuse_ended(asked)
            hexadecimal = (
                secrets.token_hex(16) if key is None else self.frame.own_id(asked, key)[:16].hex()
            )
            preview = await _stored(
                service.create(
                    asked.view,
                    asked.caller,
                    id=f"pv-{hexadecimal}",
                    port=body.port,
                    protocol=body.protocol,
                    visibility=visibility,
                )
            )
            return await self._body(preview, asked, request)

        content = {
            "port": body.port,
            "protocol": body.protocol,
            "visibility": visibility,
            # What is private to one API key is nothing for another one.
            "by": asked.caller.subject,
        }
        return await self.frame.once(request, asked, content, make)

    async def get(self, request: Request) -> Response:
        """Get one."""
        asked = await self.frame.read(request)
        preview = await self._find(request, asked)
        return json_answer(
            200, orjson.dumps(await self._body(preview, asked, request)), age=asked.age
        )

    async def delete(self, request: Request) -> Response:
        """Close one: its address leads nowhere any more, and who is in it is cut."""
        asked = await self.frame.change(request)
        refuse_body(await read_body(request))
        preview = await self._find(request, asked)
        if preview.open:
            preview = await _stored(self._service().close(preview))
        return json_answer(
            200, orjson.dumps(await self._body(preview, asked, request)), age=asked.age
        )

    async def _find(self, request: Request, asked: Asked) -> Preview:
        spelled = request.path_params[self.dialect.id]
        preview = await _stored(self._service().get(asked.view, spelled))
        if preview is None:
            kind = self.dialect.plural.removesuffix("s")
            raise Problem(404, f"the machine has no {kind} {bounded(spelled)}")
        return preview

    async def _body(self, preview: Preview, asked: Asked, request: Request) -> Members:
        """One on the wire."""
        members: Members = {
            self.dialect.id: preview.id,
            "machine_id": asked.machine_id,
            "status": preview.status.value,
            "port": preview.port,
            "protocol": preview.protocol,
            "created_at": stamp(preview.created_at),
        }
        if self.dialect.visible:
            members["visibility"] = preview.visibility.value
        if preview.ready_at is not None:
            members["ready_at"] = stamp(preview.ready_at)
        if preview.error_code is not None:
            members["error_code"] = preview.error_code
            members["error_message"] = preview.error_message
        if preview.status is PreviewStatus.WAKING:
            members["retry_after_ms"] = Access.RETRY_MS
        if preview.status is PreviewStatus.READY:
            members["url"] = await self._url(preview, asked, request)
        return members

    async def _url(self, preview: Preview, asked: Asked, request: Request) -> str:
        service = self._service()
        base = service.settings.public_url or str(request.base_url).rstrip("/")
        token = (
            None
            if preview.visibility is Visibility.PUBLIC
            else await service.gate.link_token(preview, asked.caller)
        )
        return service.url(preview, base=base, token=token)

    def _service(self) -> Previews:
        if self.previews is None:
            raise no_way_inside()
        return self.previews


async def _stored(work: Awaitable[T]) -> T:
    try:
        return await work
    except StoreUnavailable as error:
        raise store_unavailable() from error
