"""The OpenAPI document of the DCS surface: what route decorators say, and what is added around it.

Routes read and write bytes by themselves, so FastAPI sees neither bodies nor answers. They are told by `responses=` and
`openapi_extra=` with the pieces below, which refer to schemas by name; `install` adds those schemas, and how callers
identify themselves, to the document. Examples are made by the functions that make the real answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from machine_operator.gateway import failures
from machine_operator.gateway.dcs import models, usage_models
from machine_operator.gateway.problems import Coded, Scope

__all__ = [
    "RESPONSES_CONNECT",
    "RESPONSES_MAKE",
    "RESPONSES_PATCH",
    "RESPONSES_READ",
    "RESPONSES_REMOVE",
    "RESPONSES_SLEEP",
    "RESPONSES_STREAM",
    "RESPONSES_WRITE",
    "install",
    "mutation_responses",
    "parameters",
    "read_responses",
    "register",
]

Responses = dict[int | str, dict[str, Any]]

_REF: Final = "#/components/schemas/{model}"

_SCHEMAS: Final[list[type[BaseModel]]] = [
    models.CodedError,
    models.CreateMachineRequest,
    models.ErrorModel,
    models.LifecycleResponse,
    models.MachineListResponse,
    models.MachineNetworkResponse,
    models.NetworkResponse,
    models.UpdateMachineRequest,
    usage_models.ComputeUsageResponse,
    usage_models.StorageUsageResponse,
    usage_models.UsageResponse,
]

_SECURITY_SCHEMES: Final = {
    "BearerAuth": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "Dedalus API key",
        "description": "Dedalus API key in Authorization: Bearer <key>.",
    },
    "ApiKeyAuth": {
        "type": "apiKey",
        "in": "header",
        "name": "x-api-key",
        "description": "Dedalus API key. Alternative to Bearer token.",
    },
}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)}


def _coded(description: str, **examples: Coded) -> dict[str, Any]:
    content = {
        "schema": _schema(models.CodedError),
        "examples": {name: {"value": error.body()} for name, error in examples.items()},
    }
    return {"description": description, "content": {"application/json": content}}


def _caller_errors() -> Responses:
    return {
        401: _coded(
            "Authentication required",
            missing_key=failures.auth_required(),
            invalid_key=failures.auth_invalid(),
        ),
        403: _coded(
            "Forbidden",
            org_mismatch=failures.org_mismatch(),
            scope_forbidden=failures.scope_forbidden("machines:write"),
        ),
        "default": {
            "description": "Error",
            "content": {"application/problem+json": {"schema": _schema(models.ErrorModel)}},
        },
    }


def _errors(scopes: Mapping[str, Scope], **conflicts: Coded) -> Responses:
    """What can go wrong where the limiters of `scopes` stand before; a name is that of its examples."""
    limited = {
        f"{name}_rate_limited": failures.rate_limited(scope, retry_after_ms=84)
        for name, scope in scopes.items()
    }
    unavailable = {
        f"{name}_limiter_unavailable": failures.limiter_unavailable(scope, backend="redis")
        for name, scope in scopes.items()
    }
    responses = _caller_errors() | {
        429: _coded("Rate limited", idempotency_in_flight=failures.key_in_flight(), **limited),
        503: _coded(
            "Dependency unavailable",
            runtime_unavailable=failures.runtime_unavailable(),
            **unavailable,
        ),
    }
    if conflicts:
        reused = failures.idempotency_reused(expected="9ad5f2ad", provided="a2b7e8d4")
        responses[409] = _coded("Conflict", idempotency_key_reused=reused, **conflicts)
    return responses


def _wrong_state(now: str, *, observed: str, needed: str, target: str) -> Coded:
    return failures.invalid_state(
        current_desired=now, current_observed=observed, expected_observed=needed, target=target
    )


_STALE: Final = failures.revision_mismatch(expected="43", provided="42")
_DESTROYED: Final = _wrong_state(
    "destroyed", observed="destroyed", needed="running", target="running"
)
_NOT_RUNNING: Final = _wrong_state("running", observed="error", needed="running", target="sleeping")
_NOT_ASLEEP: Final = _wrong_state("sleeping", observed="error", needed="sleeping", target="running")
_MUTATE: Final = {"mutation": Scope.MUTATE}
_SLEEP: Final = {"sleep": Scope.SLEEP}

RESPONSES_READ: Final = _errors({"mutation": Scope.READ})
RESPONSES_WRITE: Final = _errors(_MUTATE, fence_conflict=_STALE, invalid_state=_NOT_ASLEEP)
RESPONSES_PATCH: Final = _errors(_MUTATE | _SLEEP, fence_conflict=_STALE, invalid_state=_DESTROYED)
RESPONSES_SLEEP: Final = _errors(_SLEEP, fence_conflict=_STALE, invalid_state=_NOT_RUNNING)
RESPONSES_STREAM: Final[Responses] = RESPONSES_READ | {
    200: {
        "description": "Events: each `status` event carries the whole machine.",
        "content": {"text/event-stream": {"schema": _schema(models.LifecycleResponse)}},
    }
}

_ETAG: Final = {
    "description": "The machine's revision, quoted.",
    "schema": {"type": "string"},
}
_STORAGE_OPERATION: Final = {
    "description": "The change of the home disk that this has begun; absent without one.",
    "schema": {"type": "string"},
}


RESPONSES_MAKE: Final = _errors(_MUTATE, unfit=_DESTROYED)
"""Of a POST that makes a sub-resource of a machine."""
RESPONSES_REMOVE: Final = _errors(_MUTATE)
"""Of a DELETE of one."""
RESPONSES_CONNECT: Final[Responses] = RESPONSES_READ | {
    101: {"description": "Switching Protocols to WebSocket"},
    409: _coded(
        "Terminal is not ready for streaming",
        terminal_closed=failures.terminal_not_ready("closed"),
        terminal_not_ready=failures.terminal_not_ready("wake_in_progress", retry_after_ms=1000),
    ),
}
"""Of a terminal's stream."""


def register(*models: type[BaseModel]) -> None:
    """Have the document tell of more schemas, to be referred to by the names of their classes."""
    _SCHEMAS.extend(model for model in models if model not in _SCHEMAS)


def read_responses(model: type[BaseModel], *, etag: bool = True) -> Responses:
    """200 with a body; `etag` where the answer carries a machine's revision."""
    response = _success(model, description="OK")
    return {200: response | {"headers": {"ETag": _ETAG}} if etag else response}


def mutation_responses(
    model: type[BaseModel], *, accepted: str = "Mutation accepted or in-progress"
) -> Responses:
    """200 where the machine is as asked already, 202 (`accepted`) where it is on its way."""
    headers = {"ETag": _ETAG, "X-Dedalus-Storage-Operation-Id": _STORAGE_OPERATION}
    return {
        status: _success(model, description=description) | {"headers": headers}
        for status, description in ((200, "OK"), (202, accepted))
    }


def _success(model: type[BaseModel], *, description: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": _schema(model)}},
    }


def _parameter(
    name: str, place: str, description: str, *, type: str = "string", **schema: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": {"type": type, **schema},
    }


_ORG: Final = _parameter(
    "X-Dedalus-Org-Id", "header", "The organisation; the caller's own if absent."
)

_PARAMETERS: Final[Mapping[str, dict[str, Any]]] = {
    "machine_id": _parameter("machine_id", "path", "Id of the machine, with or without `dm-`."),
    "network_id": _parameter("network_id", "path", "Id of the network."),
    "execution_id": _parameter("execution_id", "path", "Id of the execution."),
    "artifact_id": _parameter("artifact_id", "path", "Id of the artifact."),
    "preview_id": _parameter("preview_id", "path", "Id of the preview."),
    "port_id": _parameter("port_id", "path", "Id of the port."),
    "session_id": _parameter("session_id", "path", "Id of the SSH session."),
    "terminal_id": _parameter("terminal_id", "path", "Id of the terminal."),
    "token": _parameter("token", "query", "The permission that the link came with."),
    "limit": _parameter(
        "limit",
        "query",
        "Longest page; 0 is the default length, and what is too long is cut.",
        type="integer",
        format="int64",
        minimum=0,
    ),
    "cursor": _parameter("cursor", "query", "`next_cursor` of the page before."),
    "force": _parameter(
        "force", "query", "Do not wait for the guest to shut down.", type="boolean"
    ),
    "granularity": _parameter("granularity", "query", "Length of a bucket.", enum=["hour", "day"]),
    "of_machine": _parameter("machine_id", "query", "Only this machine."),
    "period_start": _parameter("period_start", "query", "From when on.", format="date-time"),
    "period_end": _parameter("period_end", "query", "Until when.", format="date-time"),
    "Idempotency-Key": _parameter(
        "Idempotency-Key",
        "header",
        "Makes repetitions harmless: for 24 h, the same key with the same request gets the same answer.",
        minLength=1,
        maxLength=255,
    ),
    "If-Match": _parameter(
        "If-Match", "header", "Only if the machine still has this revision, quoted or bare."
    ),
    "Last-Event-ID": _parameter("Last-Event-ID", "header", "Only what is newer than this event."),
}


def parameters(*names: str, body: type[BaseModel] | None = None) -> dict[str, Any]:
    """The `openapi_extra` of an operation: its parameters, to which the organisation's header is added, and its body.

    A query parameter `machine_id` is called `of_machine` here.
    """
    extra: dict[str, Any] = {"parameters": [_ORG, *(_PARAMETERS[name] for name in names)]}
    if body is not None:
        content = {"application/json": {"schema": _schema(body)}}
        extra["requestBody"] = {"required": True, "content": content}
    return extra


def install(app: FastAPI) -> None:
    """Let `app.openapi()` tell the whole document. It is made once, when it is first asked for."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    summary=app.summary,
                    description=app.description,
                    routes=app.routes,
                    tags=app.openapi_tags,
                )
            )
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    _, definitions = models_json_schema(
        [(model, "serialization") for model in _SCHEMAS], ref_template=_REF
    )
    for operations in document["paths"].values():
        for operation in operations.values():
            for response in operation["responses"].values():
                _drop_blank(response.get("content", {}))
    components = document.setdefault("components", {})
    components["schemas"] = {**components.get("schemas", {}), **definitions["$defs"]}
    components["securitySchemes"] = _SECURITY_SCHEMES
    document["security"] = [{name: []} for name in _SECURITY_SCHEMES]
    return document


def _drop_blank(content: dict[str, Any]) -> None:
    """FastAPI's guess that an answer is some JSON, where a route has said what it really is."""
    if len(content) > 1 and content.get("application/json") == {"schema": {}}:
        del content["application/json"]
