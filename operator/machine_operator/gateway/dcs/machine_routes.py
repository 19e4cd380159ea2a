"""The routes of what belongs to a machine: /v1/machines/MACHINE/KIND, and below it one by its id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from machine_operator.gateway.dcs import openapi

__all__ = ["MachineRoutes"]

Endpoint = Callable[[Request], Awaitable[Response]]


class MachineRoutes:
    """The routes of one kind of sub-resource, with what the OpenAPI document says of each.

    Args:
        plural: of the kind, as in paths: `executions`.
        id: the path parameter that has the id of one.
        one: the model of one.

    Attributes:
        path, one_path: of all of a machine's, and of one.
        router: has the routes.
    """

    def __init__(self, plural: str, *, id: str, one: type[BaseModel]) -> None:
        self.path = f"/v1/machines/{{machine_id:segment}}/{plural}"
        self.one_path = f"{self.path}/{{{id}:segment}}"
        self.router = APIRouter(tags=[plural])
        self._id = id
        self._one = one

    def list(self, endpoint: Endpoint, operation: str, model: type[BaseModel]) -> None:
        """GET of all, in pages."""
        self._read(self.path, endpoint, operation, model, "limit", "cursor")

    def get(
        self,
        endpoint: Endpoint,
        operation: str,
        model: type[BaseModel] | None = None,
        *,
        below: str = "",
        paged: bool = False,
    ) -> None:
        """GET of one, or of what is `below` it."""
        names = (self._id, "limit", "cursor") if paged else (self._id,)
        self._read(self.one_path + below, endpoint, operation, model or self._one, *names)

    def create(self, endpoint: Endpoint, operation: str, body: type[BaseModel]) -> None:
        """POST of a new one."""
        self.router.add_api_route(
            self.path,
            endpoint,
            methods=["POST"],
            operation_id=operation,
            responses={
                **openapi.read_responses(self._one, etag=False),
                **openapi.RESPONSES_MAKE,
            },
            openapi_extra=openapi.parameters("machine_id", "Idempotency-Key", body=body),
        )

    def delete(self, endpoint: Endpoint, operation: str) -> None:
        """DELETE of one."""
        self.router.add_api_route(
            self.one_path,
            endpoint,
            methods=["DELETE"],
            operation_id=operation,
            responses={
                **openapi.read_responses(self._one, etag=False),
                **openapi.RESPONSES_REMOVE,
            },
            openapi_extra=openapi.parameters("machine_id", self._id),
        )

    def _read(
        self, path: str, endpoint: Endpoint, operation: str, model: type[BaseModel], *names: str
    ) -> None:
        self.router.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            operation_id=operation,
            responses={**openapi.read_responses(model, etag=False), **openapi.RESPONSES_READ},
            openapi_extra=openapi.parameters("machine_id", *names),
        )
