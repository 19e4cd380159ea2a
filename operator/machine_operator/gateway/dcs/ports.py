"""Ports: what newer clients call previews. The same ones, under the same ids, without a word of visibility."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter

from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.preview_models import (
    CreatePortRequest,
    PortListResponse,
    PortResponse,
)
from machine_operator.gateway.dcs.previews import Dialect, routes_of
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.previews.previews import Previews

__all__ = ["port_routes"]

openapi.register(CreatePortRequest, PortListResponse, PortResponse)

_PORTS: Final = Dialect(
    plural="ports",
    id="port_id",
    operation="MachinePort",
    create=CreatePortRequest,
    one=PortResponse,
    page=PortListResponse,
    visible=False,
)


def port_routes(gateway: Gateway, previews: Previews | None) -> APIRouter:
    """The routes of machines' ports."""
    return routes_of(_PORTS, gateway, previews)
