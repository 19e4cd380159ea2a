"""Artifacts: list, get, delete; and their content, for whoever has a link to it.

A link is all that is asked for with content: no key comes along, as with a browser. What comes back is a file to be
saved, of whatever kind a program has made it: nothing in it may act in the name of this server.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from machine_operator.gateway.artifacts.artifacts import Artifacts
from machine_operator.gateway.artifacts.files import FilesError
from machine_operator.gateway.artifacts.ranges import NotSatisfiable, read_range
from machine_operator.gateway.bodies import read_body
from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.artifact_models import ArtifactListResponse, ArtifactResponse
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
from machine_operator.gateway.dcs.requests import refuse_body
from machine_operator.gateway.failures import no_way_inside, store_unavailable
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.idempotency import Answer
from machine_operator.gateway.idempotency import Request as Repeatable
from machine_operator.gateway.problems import Problem, bounded
from machine_operator.gateway.tokens import TokenError
from machine_operator.store.artifacts import Artifact
from machine_operator.store.errors import StoreUnavailable

__all__ = ["artifact_routes"]

_CONTENT: Final = "/v1/artifacts/{artifact_id:segment}/content"
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ -]")
_SAFE_TYPE: Final = re.compile(r"[a-z0-9.+-]+/[a-z0-9.+-]+")

openapi.register(ArtifactListResponse, ArtifactResponse)


def artifact_routes(gateway: Gateway, artifacts: Artifacts | None) -> APIRouter:
    """The routes of machines' artifacts; without `artifacts` they say that there is no way into machines."""
    here = _Artifacts(SubResourceFrame(gateway, "artifacts"), artifacts)
    routes = MachineRoutes("artifacts", id="artifact_id", one=ArtifactResponse)
    routes.list(here.list, "listMachineArtifacts", ArtifactListResponse)
    routes.get(here.get, "getMachineArtifact")
    routes.delete(here.delete, "deleteMachineArtifact")
    routes.router.add_route(
        _CONTENT, here.content, methods=["GET", "HEAD"], include_in_schema=False
    )
    return routes.router


@dataclass(frozen=True, slots=True)
class _Artifacts:
    frame: SubResourceFrame
    service: Artifacts | None

    @property
    def artifacts(self) -> Artifacts:
        if self.service is None:
            raise no_way_inside()
        return self.service

    async def list(self, request: Request) -> Response:
        """List a machine's artifacts, the newest first."""
        asked = await self.frame.read(request)
        limit, after = read_limit(request), read_place(request)
        try:
            found, more = await self.artifacts.records.page(
                asked.org, asked.view.uuid, after=after, limit=limit
            )
        except StoreUnavailable as error:
            raise store_unavailable() from error
        items = [self._body(artifact, asked, request) for artifact in found]
        return list_answer(items, None if more is None else write_place(more), age=asked.age)

    async def get(self, request: Request) -> Response:
        """Get an artifact."""
        asked = await self.frame.read(request)
        try:
            artifact = await self._find(request, asked)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        body = orjson.dumps(self._body(artifact, asked, request))
        return json_answer(200, body, age=asked.age)

    async def delete(self, request: Request) -> Response:
        """Remove an artifact."""
        asked = await self.frame.change(request)
        refuse_body(await read_body(request))

        async def do() -> Answer:
            artifact = await self._find(request, asked)
            await self.artifacts.remove([artifact])
            body = self._body(artifact, asked, request)
            del body["download_url"]  # it leads nowhere any more
            return Answer(200, orjson.dumps(body))

        path = f"/v1/machines/{asked.view.uuid}/artifacts/{request.path_params['artifact_id']}"
        repeatable = Repeatable(asked.org, "DELETE", path, self.frame.key(request), b"")
        try:
            answer = await self.frame.gateway.idempotency.once(repeatable, do)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        return json_answer(answer.status, answer.body, headers=answer.headers)

    async def content(self, request: Request) -> Response:
        """An artifact's content, or a part of it."""
        id = request.path_params["artifact_id"]
        try:
            self.artifacts.check(id, request.query_params.get("token", ""))
        except TokenError as error:
            raise Problem(403, f"{error}: get the artifact again for a new link") from error
        try:
            artifact = await self.artifacts.records.by_id(id)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        if artifact is None:
            raise Problem(404, f"there is no artifact {bounded(id)}")
        return await self._download(request, artifact)

    async def _download(self, request: Request, artifact: Artifact) -> Response:
        size, etag = artifact.size_bytes, f'"{artifact.sha256}"'
        headers = _headers(artifact, etag)
        if etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
            return Response(status_code=304, headers=headers)
        status, start, end = 200, 0, size
        if request.headers.get("if-range", etag) == etag:
            try:
                asked = read_range(request.headers.get("range"), size=size)
            except NotSatisfiable:
                range_ = f"bytes */{size}"
                detail = f"the artifact has {size} bytes"
                raise Problem(416, detail, headers={"Content-Range": range_}) from None
            if asked is not None:
                status, start, end = 206, asked.start, asked.end
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        headers["Content-Length"] = str(end - start)
        if request.method == "HEAD" or start == end:
            return Response(status_code=status, headers=headers)
        pieces = self.artifacts.content(artifact, start=start, end=end)
        try:
            # Before the head is sent, or nobody would hear that it is gone.
            first = await anext(pieces)
        except FilesError as error:
            raise store_unavailable() from error
        return StreamingResponse(_after(first, pieces), status_code=status, headers=headers)

    async def _find(self, request: Request, asked: Asked) -> Artifact:
        spelled = request.path_params["artifact_id"]
        found = await self.artifacts.records.readable(asked.org, asked.view.uuid, spelled)
        if found is None:
            raise Problem(404, f"the machine has no artifact {bounded(spelled)}")
        return found

    def _body(self, artifact: Artifact, asked: Asked, request: Request) -> dict[str, Any]:
        base = self.frame.gateway.settings.public_url or str(request.base_url).rstrip("/")
        return {
            "artifact_id": artifact.id,
            "machine_id": asked.machine_id,
            "execution_id": artifact.execution_id,
            "name": artifact.name,
            "size_bytes": artifact.size_bytes,
            "mime_type": artifact.mime_type,
            "sha256": artifact.sha256,
            "created_at": stamp(artifact.created_at),
            "expires_at": stamp(artifact.expires_at),
            "download_url": self.artifacts.link(artifact, base=base.rstrip("/")),
        }


async def _after(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in pieces:
        yield piece


def _headers(artifact: Artifact, etag: str) -> dict[str, str]:
    kind = artifact.mime_type
    return {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Type": kind if _SAFE_TYPE.fullmatch(kind) else "application/octet-stream",
        "Content-Disposition": _disposition(artifact.name),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-store",
        "Referrer-Policy": "no-referrer",
    }


def _disposition(name: str) -> str:
    """`Content-Disposition` with a name that is a path nowhere: in ASCII for all, and as it is (RFC 8187)."""
    last = name.rstrip("/").rpartition("/")[2] or "artifact"
    plain = _UNSAFE.sub("_", last).strip(" .") or "artifact"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(last, safe='')}"
