"""The ASGI application: the DCS dialect, its OpenAPI document, and one place where failures become answers."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from machine_operator import __version__
from machine_operator.gateway import answers
from machine_operator.gateway.accounting import Accounting
from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.artifacts import artifact_routes
from machine_operator.gateway.dcs.executions import execution_routes
from machine_operator.gateway.dcs.machines import machine_routes
from machine_operator.gateway.dcs.network import network_routes
from machine_operator.gateway.dcs.ports import port_routes
from machine_operator.gateway.dcs.previews import preview_routes
from machine_operator.gateway.dcs.ssh import ssh_routes
from machine_operator.gateway.dcs.terminals import terminal_routes
from machine_operator.gateway.dcs.usage import usage_routes
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.paths import PathRules
from machine_operator.telemetry.gateway import GatewayMetrics

__all__ = ["build_app"]


def build_app(gateway: Gateway, metrics: GatewayMetrics | None = None) -> FastAPI:
    """What the server serves; requests are counted in `metrics`."""
    app = FastAPI(
        title="Dedalus Cloud Services API",
        version=__version__,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    for router in _routers(gateway):
        # Not included but taken over: an included router stays one, and looks through its routes once more.
        app.router.routes.extend(router.routes)
    app.add_route("/healthz", _healthz, methods=["GET"], include_in_schema=False)
    openapi.install(app)
    app.add_middleware(PathRules)
    answers.install(app)
    if metrics is not None:
        app.add_middleware(Accounting, metrics=metrics)
    return app


def _routers(gateway: Gateway) -> list[APIRouter]:
    inside = gateway.inside
    return [
        machine_routes(gateway),
        execution_routes(gateway, inside.executions if inside else None),
        artifact_routes(gateway, inside.artifacts if inside else None),
        terminal_routes(gateway, inside.terminals if inside else None),
        ssh_routes(gateway, inside.sessions if inside else None),
        preview_routes(gateway, inside.previews if inside else None),
        port_routes(gateway, inside.previews if inside else None),
        network_routes(gateway),
        usage_routes(gateway, gateway.ledger),
    ]


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("ok")
