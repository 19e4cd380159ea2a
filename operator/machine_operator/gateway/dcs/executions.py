"""Executions: list, create, get, cancel or remove, their output and events.

Creating one on a machine that sleeps wakes it. Reads are answered from the store: they wake nothing, and can be had for
as long as the machine is known.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from machine_operator.gateway.access import Access
from machine_operator.gateway.bodies import read_body
from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.execution_models import (
    CreateExecutionRequest,
    ExecutionEventsResponse,
    ExecutionListResponse,
    ExecutionLogsResponse,
    ExecutionOutputResponse,
    ExecutionResponse,
)
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
from machine_operator.gateway.executions.executions import Executions
from machine_operator.gateway.failures import no_way_inside, store_unavailable, unprocessable
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.idempotency import Answer
from machine_operator.gateway.idempotency import Request as Repeatable
from machine_operator.gateway.problems import Coded, Fault, Problem, bounded
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.executions import Event, Execution, ExecutionInputs

__all__ = ["execution_routes"]

_LARGEST_BODY: Final = 2 * 1024 * 1024
_LONGEST_CURSOR: Final = 18
_CAPTURE: Final = {"state": "unavailable"}

T = TypeVar("T")
Body = dict[str, Any]

openapi.register(
    CreateExecutionRequest,
    ExecutionEventsResponse,
    ExecutionListResponse,
    ExecutionLogsResponse,
    ExecutionOutputResponse,
    ExecutionResponse,
)


def execution_routes(gateway: Gateway, executions: Executions | None) -> APIRouter:
    """The routes of machines' executions; without `executions` they say that there is no way into machines."""
    here = _Executions(SubResourceFrame(gateway, "executions"), executions)
    routes = MachineRoutes("executions", id="execution_id", one=ExecutionResponse)
    routes.get(here.get, "getMachineExecution")
    routes.get(here.output, "getMachineExecutionOutput", ExecutionOutputResponse, below="/output")
    routes.get(
        here.events,
        "listMachineExecutionEvents",
        ExecutionEventsResponse,
        below="/events",
        paged=True,
    )
    routes.get(here.logs, "getMachineExecutionLogs", ExecutionLogsResponse, below="/logs")
    routes.list(here.list, "listMachineExecutions", ExecutionListResponse)
    routes.create(here.create, "createMachineExecution", CreateExecutionRequest)
    routes.delete(here.delete, "deleteMachineExecution")
    for action, operation in (
        ("token", "createMachineExecutionLogToken"),
        ("reauthorize", "reauthorizeMachineExecutionLogs"),
    ):
        routes.router.add_api_route(
            f"{routes.one_path}/logs/{action}",
            here.no_logs,
            methods=["POST"],
            operation_id=operation,
            status_code=409,
            responses={**openapi.RESPONSES_MAKE},
            openapi_extra=openapi.parameters("machine_id", "execution_id"),
        )
    return routes.router


@dataclass(frozen=True, slots=True)
class _Executions:
    frame: SubResourceFrame
    service: Executions | None

    @property
    def executions(self) -> Executions:
        if self.service is None:
            raise no_way_inside()
        return self.service

    # ---- reads

    async def list(self, request: Request) -> Response:
        """List a machine's executions, the newest first."""
        asked = await self.frame.read(request)
        limit, after = read_limit(request), read_place(request)
        found, more = await _stored(
            self.executions.records.page(asked.org, asked.view.uuid, after=after, limit=limit)
        )
        items = [_body(execution, asked) for execution in found]
        return list_answer(items, None if more is None else write_place(more), age=asked.age)

    async def get(self, request: Request) -> Response:
        """Get an execution."""
        asked = await self.frame.read(request)
        execution = await self._find(request, asked)
        return json_answer(200, orjson.dumps(_body(execution, asked)), age=asked.age)

    async def output(self, request: Request) -> Response:
        """Get what an execution's program has written so far."""
        asked = await self.frame.read(request)
        # In this order: what is written between the two is missing in the counts, not in the text.
        execution = await self._find(request, asked)
        stdout, stderr = await _stored(self.executions.records.output(execution.id))
        body = {
            "execution_id": execution.id,
            "stdout": stdout.decode(errors="replace"),
            "stderr": stderr.decode(errors="replace"),
            "stdout_bytes": max(execution.stdout_bytes, len(stdout)),
            "stderr_bytes": max(execution.stderr_bytes, len(stderr)),
            "stdout_truncated": execution.stdout_truncated,
            "stderr_truncated": execution.stderr_truncated,
        }
        return json_answer(200, orjson.dumps(_without_nothing(body)), age=asked.age)

    async def events(self, request: Request) -> Response:
        """List what has happened to an execution, the oldest first."""
        asked = await self.frame.read(request)
        limit, after = read_limit(request), _read_sequence(request)
        execution = await self._find(request, asked)
        found = await _stored(
            self.executions.records.events(execution.id, after=after, limit=limit + 1)
        )
        page = found[:limit]
        last = page[-1].sequence if page else after
        # For as long as it is active there may be more: who follows it goes on from there.
        more = str(last) if len(found) > limit or execution.completed_at is None else None
        return list_answer([_event(event) for event in page], more, age=asked.age)

    async def logs(self, request: Request) -> Response:
        """Tell that there is no log besides the output."""
        asked = await self.frame.read(request)
        execution = await self._find(request, asked)
        body = {"execution_id": execution.id, "capture": _CAPTURE}
        return json_answer(200, orjson.dumps(body), age=asked.age)

    # ---- changes

    async def create(self, request: Request) -> Response:
        """Run a program on a machine, which is woken for it."""
        asked = await self.frame.change(request)
        raw = await read_body(request, limit=_LARGEST_BODY)
        body = read_request(CreateExecutionRequest, raw, request.headers.get("content-type"))
        del raw
        timeout_ms = self._timeout(body)
        values = {
            "command": body.command,
            "cwd": body.cwd or None,
            "env_keys": sorted(body.env) if body.env else None,
            "timeout_ms": timeout_ms,
            "created_by": asked.caller.subject,
        }
        inputs = ExecutionInputs(body.env or {}, (body.stdin or "").encode())

        async def make(key: str | None) -> Body:
            self.frame.refuse_ended(asked)
            id = secrets.token_bytes(20) if key is None else self.frame.own_id(asked, key)
            execution = await self.executions.create(
                asked.view, f"wexec-{id.hex()}", values, inputs
            )
            return _body(execution, asked)

        return await _stored(
            self.frame.once(request, asked, body.model_dump(exclude_none=True), make)
        )

    async def delete(self, request: Request) -> Response:
        """Cancel an execution that is active; remove one that has ended, with what it left."""
        asked = await self.frame.change(request)
        refuse_body(await read_body(request))

        async def do() -> Answer:
            execution = await self._find(request, asked)
            if execution.completed_at is None:
                cancelled = await self.executions.cancel(execution)
                if cancelled is not None:
                    return Answer(200, orjson.dumps(_body(cancelled, asked)))
                execution = await self._find(request, asked)
            await self.executions.remove(execution)
            return Answer(200, orjson.dumps(_body(execution, asked)))

        path = f"/v1/machines/{asked.view.uuid}/executions/{request.path_params['execution_id']}"
        repeatable = Repeatable(asked.org, "DELETE", path, self.frame.key(request), b"")
        answer = await _stored(self.frame.gateway.idempotency.once(repeatable, do))
        return json_answer(answer.status, answer.body, headers=answer.headers)

    async def no_logs(self, request: Request) -> Response:
        """Refuse access to a log that there is not."""
        asked = await self.frame.change(request)
        await read_body(request)
        await self._find(request, asked)
        raise Coded(
            409,
            "INVALID_STATE",
            "there is no log besides the execution's output",
            retryable=False,
            details={"current_status": "unavailable", "expected_status": "active"},
        )

    # ---- parts

    async def _find(self, request: Request, asked: Asked) -> Execution:
        spelled = request.path_params["execution_id"]
        found = await _stored(self.executions.records.readable(asked.org, asked.view.uuid, spelled))
        if found is None:
            raise Problem(404, f"the machine has no execution {bounded(spelled)}")
        return found

    def _timeout(self, body: CreateExecutionRequest) -> int:
        settings = self.frame.gateway.settings
        longest = round(settings.execution_longest * 1000)
        if (body.timeout_ms or 0) > longest:
            message = f"must be at most {longest}"
            raise unprocessable(Fault("body.timeout_ms", message, body.timeout_ms))
        return body.timeout_ms or min(round(settings.execution_timeout * 1000), longest)


async def _stored(work: Awaitable[T]) -> T:
    try:
        return await work
    except StoreUnavailable as error:
        raise store_unavailable() from error


def _read_sequence(request: Request) -> int:
    text = request.query_params.get("cursor")
    if not text:
        return 0
    if not (text.isascii() and text.isdigit()) or len(text) > _LONGEST_CURSOR:
        fault = Fault("query.cursor", "the cursor is none that this server made", text)
        raise unprocessable(fault)
    return int(text)


def _body(execution: Execution, asked: Asked) -> Body:
    """An execution on the wire."""
    moments = {
        name: stamp(moment)
        for name in ("started_at", "completed_at", "expires_at")
        if (moment := getattr(execution, name)) is not None
    }
    waiting = execution.status == "wake_in_progress"
    body = {
        "execution_id": execution.id,
        "machine_id": asked.machine_id,
        "status": execution.status,
        "created_at": stamp(execution.created_at),
        **moments,
        "cwd": execution.cwd,
        "env_keys": execution.env_keys,
        "signal": execution.signal,
        "error_code": execution.error_code,
        "error_message": execution.error_message,
        "retry_after_ms": Access.RETRY_MS if waiting else None,
        "stdout_bytes": execution.stdout_bytes,
        "stderr_bytes": execution.stderr_bytes,
        "stdout_truncated": execution.stdout_truncated,
        "stderr_truncated": execution.stderr_truncated,
        "artifacts": execution.artifacts,
        "log_capture": _CAPTURE,
    }
    shown = _without_nothing(body) | {"command": execution.command}
    return shown if execution.exit_code is None else shown | {"exit_code": execution.exit_code}


def _event(event: Event) -> Body:
    body = {
        "sequence": event.sequence,
        "type": event.type,
        "at": stamp(event.at),
        "chunk": None if event.chunk is None else event.chunk.decode(errors="replace"),
        "status": event.status,
        "signal": event.signal,
        "error_code": event.error_code,
        "error_message": event.error_message,
    }
    shown = _without_nothing(body)
    return shown if event.exit_code is None else shown | {"exit_code": event.exit_code}


def _without_nothing(body: Body) -> Body:
    """Without what is None, zero, false or empty."""
    return {name: value for name, value in body.items() if value}
