"""Networks: each organisation has one, its namespace, in which its machines reach each other and nobody else does.

A network has no object of its own: its id is made of the organisation's name. The way into it from outside is the SSH
gateway, where there is one.
"""

from __future__ import annotations

import hashlib
import ipaddress
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.models import MachineNetworkResponse, NetworkResponse
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.identity import Verb
from machine_operator.gateway.machine_ids import PREFIX as MACHINE_PREFIX
from machine_operator.gateway.problems import Problem, Scope, bounded
from machine_operator.gateway.ssh.endpoint import ssh_endpoint

__all__ = ["network_id_of", "network_routes"]

_PREFIX: Final = "dn-"


def network_id_of(org: str) -> str:
    """The id of an organisation's network: `dn-` and a UUID (of version 8: made here, in a way of our own)."""
    digest = bytearray(hashlib.sha256(f"network\0{org}".encode()).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return f"{_PREFIX}{uuid.UUID(bytes=bytes(digest))}"


def network_routes(gateway: Gateway) -> APIRouter:
    """The routes of machines' networks."""
    here, router = _Networks(gateway), APIRouter(tags=["networks"])
    router.add_api_route(
        "/v1/machines/{machine_id}/network",
        here.of_machine,
        methods=["GET"],
        operation_id="getMachineNetwork",
        responses={
            **openapi.read_responses(MachineNetworkResponse, etag=False),
            **openapi.RESPONSES_READ,
        },
        openapi_extra=openapi.parameters("machine_id"),
    )
    router.add_api_route(
        "/v1/networks/{network_id}",
        here.get,
        methods=["GET"],
        operation_id="getNetwork",
        responses={
            **openapi.read_responses(NetworkResponse, etag=False),
            **openapi.RESPONSES_READ,
        },
        openapi_extra=openapi.parameters("network_id"),
    )
    return router


@dataclass(frozen=True, slots=True)
class _Networks:
    gateway: Gateway

    async def of_machine(self, request: Request) -> Response:
        """Get where a machine is in its network."""
        org = await self._admit(request)
        await self.gateway.freshness.of(org)
        age = self.gateway.machines.age
        spelled = request.path_params["machine_id"]
        view = self.gateway.machines.find(org, spelled)
        prefix = MACHINE_PREFIX if spelled.startswith(MACHINE_PREFIX) else ""
        addresses = () if view.gone else view.machine.status.addresses
        body = {
            "machine_id": prefix + view.uuid,
            "network_id": network_id_of(org),
            "network_name": org,
            "private_ipv4": _first(addresses, version=4),
            "private_ipv6": _first(addresses, version=6),
            "hostname": view.machine.metadata.name,
        }
        return _json(body, age=age)

    async def get(self, request: Request) -> Response:
        """Get a network."""
        org = await self._admit(request)
        spelled, known = request.path_params["network_id"], network_id_of(org)
        if spelled.removeprefix(_PREFIX) != known.removeprefix(_PREFIX):
            raise Problem(404, f"there is no network {bounded(spelled)}")
        return _json({"network_id": spelled, "name": org, "gateways": self._gateways()})

    def _gateways(self) -> list[dict[str, Any]]:
        """The ways into the network."""
        endpoint = ssh_endpoint(self.gateway.settings)
        if endpoint is None:
            return []
        way = {"kind": "ssh", "protocol": "ssh", "hostname": endpoint.host, "port": endpoint.port}
        return [way]

    async def _admit(self, request: Request) -> str:
        admitted = await self.gateway.admit(request, verb=Verb.GET, scopes=(Scope.READ,))
        return admitted.org


def _first(addresses: Iterable[str], *, version: int) -> str:
    """The first address of an IP version that other machines can use, or "".

    A guest reports all that it has: its loopback's and link-local ones, and those of its containers.
    """
    for text in addresses:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            continue  # the guest says what it wants; this is no reason to tell nothing
        usable = not (address.is_loopback or address.is_link_local or address.is_unspecified)
        if address.version == version and usable:
            return str(address)
    return ""


def _json(body: dict[str, Any], *, age: float = 0.0) -> Response:
    headers = {"Age": str(round(age))} if age else {}
    return Response(orjson.dumps(body), media_type="application/json", headers=headers)
