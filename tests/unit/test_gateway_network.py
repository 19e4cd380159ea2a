"""Networks: where a machine is, and the one network that an organisation has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI

from machine_operator.gateway import answers
from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.models import MachineNetworkResponse, NetworkResponse
from machine_operator.gateway.dcs.network import network_id_of, network_routes
from tests.support.gateway import ORG, Cluster, Replica

NOBODY = "dm-00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    async with Cluster().gateway() as replica:
        app = FastAPI()
        app.include_router(network_routes(replica.gateway))
        openapi.install(app)
        answers.install(app)
        replica.machines_app, replica.app = replica.app, app  # type: ignore[attr-defined]
        yield replica


async def machine(replica: Replica, **status: Any) -> str:
    """A new machine; its name, which is its id."""
    app, replica.app = replica.app, replica.machines_app  # type: ignore[attr-defined]
    name = (await replica.create())["machine_id"]
    replica.app = app
    replica.cluster.report(name, "running", **status)
    await replica.caught_up()
    return str(name)


@pytest.mark.parametrize(
    ("addresses", "ipv4", "ipv6"),
    [
        ([], "", ""),
        (["10.1.2.3"], "10.1.2.3", ""),
        (["fd00::7", "10.1.2.3", "10.9.9.9", "fd00::8"], "10.1.2.3", "fd00::7"),
        (["127.0.0.1", "::1", "fe80::1", "169.254.1.1", "10.1.2.3"], "10.1.2.3", ""),
        (["what the guest says", "0.0.0.0", "fd00::7"], "", "fd00::7"),
    ],
)
async def test_a_machine_tells_its_first_usable_addresses(
    replica: Replica, addresses: list[str], ipv4: str, ipv6: str
) -> None:
    name = await machine(replica, addresses=addresses)
    answer = await replica.call("GET", f"/v1/machines/{name}/network")
    assert answer.status == 200, answer.body
    assert answer.json() == {
        "machine_id": name,
        "network_id": network_id_of(ORG),
        "network_name": ORG,
        "private_ipv4": ipv4,
        "private_ipv6": ipv6,
        "hostname": name,
    }
    MachineNetworkResponse.model_validate(answer.json())


async def test_an_id_is_answered_as_it_was_spelled(replica: Replica) -> None:
    name = await machine(replica)
    bare = name.removeprefix("dm-")
    answer = await replica.call("GET", f"/v1/machines/{bare}/network")
    assert (answer.json()["machine_id"], answer.json()["hostname"]) == (bare, name)


async def test_the_network_of_an_organisation(replica: Replica) -> None:
    for spelled in (network_id_of(ORG), network_id_of(ORG).removeprefix("dn-")):
        answer = await replica.call("GET", f"/v1/networks/{spelled}")
        assert answer.status == 200
        assert answer.json() == {"network_id": spelled, "name": ORG, "gateways": []}
        NetworkResponse.model_validate(answer.json())


def test_each_organisation_has_another_network() -> None:
    ids = {network_id_of(f"org-{number}") for number in range(100)}
    assert len(ids) == 100
    assert network_id_of("acme") == network_id_of("acme")
    assert all(len(one) == len("dn-") + 36 for one in ids)


async def test_what_is_not_there_or_another_s_is_not_found(replica: Replica) -> None:
    name = await machine(replica)
    for org, target in (
        (ORG, f"/v1/machines/{NOBODY}/network"),
        (ORG, "/v1/machines/no-id/network"),
        ("other", f"/v1/machines/{name}/network"),
        (ORG, f"/v1/networks/{network_id_of('other')}"),
        (ORG, "/v1/networks/dn-%00"),
        ("other", f"/v1/networks/{network_id_of(ORG)}"),
    ):
        answer = await replica.call("GET", target, org=org)
        assert (answer.status, answer.headers["content-type"]) == (
            404,
            "application/problem+json",
        ), target
        assert set(answer.json()) == {"type", "title", "status", "detail"}


async def test_nobody_asks_without_a_key(replica: Replica) -> None:
    for target in (f"/v1/machines/{NOBODY}/network", f"/v1/networks/{network_id_of(ORG)}"):
        answer = await replica.call("GET", target, org=None)
        assert (answer.status, answer.json()["error_code"]) == (401, "AUTH_REQUIRED")


async def test_the_document_has_both_operations(replica: Replica) -> None:
    answer = await replica.call("GET", "/openapi.json", org=None)
    operations = {
        one["operationId"] for path in answer.json()["paths"].values() for one in path.values()
    }
    assert operations == {"getMachineNetwork", "getNetwork"}
