"""Machines: list, create, get, patch, delete, sleep, wake, reboot and the status stream.

The checks come in the order that clients can rely on: who, which organisation, how often, is the request well-formed,
does the machine exist, was this request answered before, is the revision the one that was seen, does the state allow
it. So a repetition whose If-Match has become stale gets the answer of the first time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeVar

import orjson
from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from machine_operator.api.phases import Power
from machine_operator.gateway.bodies import read_body
from machine_operator.gateway.changes import Guard, match_guard
from machine_operator.gateway.cursors import CursorError, read_cursor, write_cursor
from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.frame import json_answer, read_limit
from machine_operator.gateway.dcs.models import (
    CreateMachineRequest,
    LifecycleResponse,
    MachineListResponse,
    UpdateMachineRequest,
)
from machine_operator.gateway.dcs.requests import read_request, refuse_body
from machine_operator.gateway.dcs.sizes import created_spec, updated_spec
from machine_operator.gateway.failures import unprocessable
from machine_operator.gateway.gateway import Admitted, Gateway
from machine_operator.gateway.idempotency import Answer, read_key
from machine_operator.gateway.idempotency import Request as Repeatable
from machine_operator.gateway.identity import Verb
from machine_operator.gateway.machine_ids import PREFIX, new_name
from machine_operator.gateway.machines import Place
from machine_operator.gateway.problems import Fault, Scope
from machine_operator.gateway.streams import status_stream
from machine_operator.gateway.views import MachineView

__all__ = ["machine_routes"]

_PATH: Final = "/v1/machines"
_ONE: Final = f"{_PATH}/{{machine_id:segment}}"

Model = TypeVar("Model", bound=BaseModel)
Work = Callable[[MachineView, Guard], Awaitable[MachineView]]


def machine_routes(gateway: Gateway) -> APIRouter:
    """The routes of `/v1/machines`."""
    here, router = _Machines(gateway), APIRouter(tags=["machines"])
    add = router.add_api_route
    changed = openapi.mutation_responses(LifecycleResponse)
    # Routes are tried in this order: first what is asked for most.
    add(
        _ONE,
        here.get,
        methods=["GET"],
        operation_id="getMachine",
        responses={**openapi.read_responses(LifecycleResponse), **openapi.RESPONSES_READ},
        openapi_extra=openapi.parameters("machine_id"),
    )
    add(
        _PATH,
        here.list,
        methods=["GET"],
        operation_id="listMachines",
        responses={
            **openapi.read_responses(MachineListResponse, etag=False),
            **openapi.RESPONSES_READ,
        },
        openapi_extra=openapi.parameters("limit", "cursor"),
    )
    add(
        _PATH,
        here.create,
        methods=["POST"],
        operation_id="createMachine",
        status_code=202,
        responses={**changed, **openapi.RESPONSES_WRITE},
        openapi_extra=openapi.parameters("Idempotency-Key", body=CreateMachineRequest),
    )
    add(
        _ONE,
        here.patch,
        methods=["PATCH"],
        operation_id="patchMachine",
        status_code=202,
        responses={**changed, **openapi.RESPONSES_PATCH},
        openapi_extra=openapi.parameters(
            "machine_id", "Idempotency-Key", "If-Match", body=UpdateMachineRequest
        ),
    )
    for path, endpoint, method, operation, responses in (
        (_ONE, here.delete, "DELETE", "deleteMachine", openapi.RESPONSES_WRITE),
        (f"{_ONE}/sleep", here.sleep, "POST", "sleepMachine", openapi.RESPONSES_SLEEP),
        (f"{_ONE}/wake", here.wake, "POST", "wakeMachine", openapi.RESPONSES_WRITE),
        (f"{_ONE}/reboot", here.reboot, "POST", "rebootMachine", openapi.RESPONSES_WRITE),
    ):
        extra = ("force",) if endpoint == here.reboot else ()
        add(
            path,
            endpoint,
            methods=[method],
            operation_id=operation,
            status_code=202,
            responses={**changed, **responses},
            openapi_extra=openapi.parameters("machine_id", "Idempotency-Key", "If-Match", *extra),
        )
    add(
        f"{_ONE}/status/stream",
        here.stream,
        methods=["GET"],
        operation_id="watchMachineStatus",
        responses=openapi.RESPONSES_STREAM,
        openapi_extra=openapi.parameters("machine_id", "Last-Event-ID"),
    )
    return router


@dataclass(slots=True)
class _Machines:
    gateway: Gateway

    # ---- reads

    async def list(self, request: Request) -> Response:
        """List machines, the newest first. Those that are destroyed are left out."""
        admitted = await self._admit(request, Verb.LIST, Scope.READ)
        limit, after = read_limit(request), _after(request)
        age = await self._fresh(admitted.org)
        views, more = self.gateway.machines.page(admitted.org, after=after, limit=limit)
        items = b",".join(view.rendered for view in views)
        tail = b',"next_cursor":"%s"' % write_cursor(more).encode() if more is not None else b""
        return json_answer(200, b'{"items":[%s]%s}' % (items, tail), age=age)

    async def get(self, request: Request) -> Response:
        """Get a machine."""
        admitted = await self._admit(request, Verb.GET, Scope.READ)
        view, short, age = await self._find(request, admitted)
        tag = request.headers.get("if-none-match")
        if tag is not None and view.revision in (one.strip(' W/"') for one in tag.split(",")):
            return Response(status_code=304, headers={"ETag": view.etag})
        return json_answer(200, view.as_json(short=short), etag=view.etag, age=age)

    async def stream(self, request: Request) -> Response:
        """Follow a machine's status until it is what was asked for."""
        admitted = await self._admit(request, Verb.WATCH, Scope.READ)
        view, short, _ = await self._find(request, admitted)
        return status_stream(
            self.gateway.machines,
            view,
            last_event_id=request.headers.get("last-event-id"),
            short=short,
            draining=self.gateway.draining,
        )

    # ---- changes

    async def create(self, request: Request) -> Response:
        """Create a machine."""
        admitted = await self._admit(request, Verb.CREATE, Scope.MUTATE)
        key = self._key(request)
        body = await _body(request, CreateMachineRequest)
        spec = created_spec(body, self.gateway.settings)
        # What was asked for, not what it came to: defaults may change before the repetition.
        asked = orjson.dumps(body.model_dump(exclude_none=True), option=orjson.OPT_SORT_KEYS)
        repeatable = Repeatable(admitted.org, "POST", _PATH, key, asked)

        async def work() -> Answer:
            view = await self.gateway.create(
                admitted.org,
                new_name(admitted.org, key),
                spec,
                request_hash=repeatable.hash if key is not None else None,
            )
            return _answer(view, short=False)

        return await self._once(repeatable, work)

    async def patch(self, request: Request) -> Response:
        """Change a machine's sizes or its autosleep."""
        admitted = await self._admit(request, Verb.PATCH, Scope.MUTATE, Scope.SLEEP)
        body = await _body(request, UpdateMachineRequest)
        changes = updated_spec(body, self.gateway.settings)

        async def work(view: MachineView, guard: Guard) -> MachineView:
            return await self.gateway.changes.resize(view, changes, guard=guard)

        content = orjson.dumps(changes, option=orjson.OPT_SORT_KEYS)
        return await self._change(request, admitted, work, content=content)

    async def delete(self, request: Request) -> Response:
        """Destroy a machine, its disk included."""
        admitted = await self._admit(request, Verb.DELETE, Scope.MUTATE)
        refuse_body(await read_body(request))

        async def work(view: MachineView, guard: Guard) -> MachineView:
            return await self.gateway.changes.destroy(view, guard=guard)

        return await self._change(request, admitted, work)

    async def sleep(self, request: Request) -> Response:
        """Put a machine to sleep."""
        admitted = await self._admit(request, Verb.SLEEP, Scope.SLEEP)
        refuse_body(await read_body(request))
        return await self._change(request, admitted, self._power(Power.SLEEPING, admitted))

    async def wake(self, request: Request) -> Response:
        """Wake a machine."""
        admitted = await self._admit(request, Verb.WAKE, Scope.MUTATE)
        refuse_body(await read_body(request))
        return await self._change(request, admitted, self._power(Power.RUNNING, admitted))

    async def reboot(self, request: Request) -> Response:
        """Stop a running machine's VM and start it again; its disk stays."""
        admitted = await self._admit(request, Verb.REBOOT, Scope.MUTATE)
        refuse_body(await read_body(request))
        force = _flag(request, "force")

        async def work(view: MachineView, guard: Guard) -> MachineView:
            return await self.gateway.changes.reboot(view, force=force, guard=guard)

        return await self._change(request, admitted, work, content=b"force" if force else b"")

    # ---- what they share

    async def _admit(self, request: Request, verb: Verb, *scopes: Scope) -> Admitted:
        return await self.gateway.admit(request, verb=verb, scopes=scopes)

    async def _fresh(self, org: str) -> float:
        """Seconds by which an answer may be out of date."""
        await self.gateway.freshness.of(org)
        return self.gateway.machines.age

    async def _find(self, request: Request, admitted: Admitted) -> tuple[MachineView, bool, float]:
        """The machine of the path, whether its id was spelled without `dm-`, and how old the news may be."""
        age = await self._fresh(admitted.org)
        spelled = request.path_params["machine_id"]
        return (
            self.gateway.machines.find(admitted.org, spelled),
            not spelled.startswith(PREFIX),
            age,
        )

    def _power(self, to: Power, admitted: Admitted) -> Work:
        async def work(view: MachineView, guard: Guard) -> MachineView:
            by = admitted.caller.subject
            return await self.gateway.changes.power(view, to, by=by, guard=guard)

        return work

    def _key(self, request: Request) -> str | None:
        required = self.gateway.settings.strict_idempotency
        return read_key(request.headers.get("idempotency-key"), required=required)

    async def _change(
        self, request: Request, admitted: Admitted, work: Work, *, content: bytes = b""
    ) -> Response:
        """One change of one machine."""
        key, if_match = self._key(request), request.headers.get("if-match") or None
        if if_match is None and self.gateway.settings.strict_if_match:
            raise unprocessable(Fault("header.If-Match", "this header is required"))
        view, short, _ = await self._find(request, admitted)
        action = request.url.path.rstrip("/").rpartition("/")[2]
        path = f"{_PATH}/{view.uuid}/{action if action in _ACTIONS else ''}"
        repeatable = Repeatable(admitted.org, request.method, path, key, content)

        async def do() -> Answer:
            return _answer(await work(view, match_guard(if_match)), short=short)

        return await self._once(repeatable, do)

    async def _once(
        self, repeatable: Repeatable, work: Callable[[], Awaitable[Answer]]
    ) -> Response:
        answer = await self.gateway.idempotency.once(repeatable, work)
        if repeatable.key is None:
            await self.gateway.freshness.wrote(repeatable.org, answer.version)
        return json_answer(answer.status, answer.body, etag=answer.etag, headers=answer.headers)


_ACTIONS: Final = ("sleep", "wake", "reboot")


def _answer(view: MachineView, *, short: bool) -> Answer:
    status = HTTPStatus.OK if view.converged else HTTPStatus.ACCEPTED
    return Answer(status, view.as_json(short=short), view.etag, view.version)


async def _body(request: Request, model: type[Model]) -> Model:
    return read_request(model, await read_body(request), request.headers.get("content-type"))


def _after(request: Request) -> Place | None:
    text = request.query_params.get("cursor")
    if not text:
        return None
    try:
        return read_cursor(text)
    except CursorError as error:
        raise unprocessable(Fault("query.cursor", str(error), text)) from error


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false").lower()
    if text not in ("true", "false"):
        raise unprocessable(Fault(f"query.{name}", "use true or false", text))
    return text == "true"
