"""The OpenAPI document that the gateway serves keeps every promise of the published contract.

The contract itself is not a part of this repository: it is looked for beside the checkout, and the tests that need it
are skipped where it is not.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest.mock import Mock

import pytest

from machine_operator.gateway.app import build_app
from machine_operator.gateway.gateway import Gateway
from tests.support.openapi_contract import Report, compare, operations

_CONTRACT: Final = Path(__file__).parents[3] / "shared/reference/dcs-openapi.json"

SERVED: Final = frozenset(
    (
        "connectMachineTerminal",
        "createMachine",
        "createMachineExecution",
        "createMachinePreview",
        "createMachineSSHSession",
        "createMachineTerminal",
        "deleteMachine",
        "deleteMachineArtifact",
        "deleteMachineExecution",
        "deleteMachinePreview",
        "deleteMachineSSHSession",
        "deleteMachineTerminal",
        "getMachine",
        "getMachineArtifact",
        "getMachineExecution",
        "getMachineExecutionOutput",
        "getMachinePreview",
        "getMachineSSHSession",
        "getMachineTerminal",
        "listMachineArtifacts",
        "listMachineExecutionEvents",
        "listMachineExecutions",
        "listMachinePreviews",
        "listMachineSSHSessions",
        "listMachineTerminals",
        "listMachines",
        "patchMachine",
        "sleepMachine",
        "wakeMachine",
        "watchMachineStatus",
    )
)

_HOLD_WINDOW: Final = (
    "409 has no example SLEEP_HOLD_WINDOW_ACTIVE with retryable=True and ['effective_hold_window_ms', "
    "'hold_window_ms', 'jitter_ms', 'last_wake_at', 'next_sleep_eligible_at', 'remaining_ms']"
)
BROKEN_ON_PURPOSE: Final = {
    # DCS itself has given up the hold window after a wake; here it never was.
    f"patchMachine: {_HOLD_WINDOW}",
    f"sleepMachine: {_HOLD_WINDOW}",
}

ADDITIONS: Final = {
    # Newer clients do not send If-Match; some examples of theirs send no Idempotency-Key; none need give all sizes.
    "header parameter If-Match may be left out",
    "header parameter Idempotency-Key may be left out",
    "body.vcpu may be left out",
    "body.memory_mib may be left out",
    "body.storage_gib may be left out",
    # Members that DCS gained later.
    "body.autosleep",
    "body.autosleep_seconds",
    *(
        f"{answer}{member}"
        for answer in ("200", "202", "200.items[]")
        for member in (
            ".autosleep_seconds",
            ".created_at",
            ".phase",
            ".status.memory_configured_mib",
        )
        if answer + member != "200.items[].created_at"  # which has been there from the start
    ),
    # Bounds, which the contract leaves open.
    "header parameter Idempotency-Key minLength 1",
    "header parameter Idempotency-Key maxLength 255",
    "query parameter limit minimum 0",
    "body.vcpu minimum 0.25",
    "body.vcpu maximum 128.0",
    "body.vcpu multipleOf 0.25",
    "body.memory_mib minimum 128",
    "body.memory_mib maximum 4194304",
    "body.storage_gib minimum 1",
    "body.storage_gib maximum 65536",
    *(
        f"200{items}.connection.port {bound}"
        for items in ("", ".items[]")
        for bound in ("minimum 1", "maximum 65535")
    ),
    "body.command minItems 1",
    "body.command maxItems 1000",
    "body.height minimum 0",
    "body.height maximum 1000",
    "body.width minimum 0",
    "body.width maximum 1000",
    "body.port minimum 1",
    "body.port maximum 65535",
    "body.timeout_ms minimum 0",
    # Of executions, for newer clients; and what links carry.
    "200.log_capture",
    "200.items[].log_capture",
    "query parameter token",
    # A stream of a machine that is not there is a 404, and reads are limited.
    "429",
    "503",
    "default",
}

ADDED_OPERATIONS: Final = {
    "createMachineExecutionLogToken",
    "createMachinePort",
    "deleteMachinePort",
    "getMachineExecutionLogs",
    "getMachineNetwork",
    "getMachinePort",
    "getNetwork",
    "getUsage",
    "listMachineComputeUsage",
    "listMachinePorts",
    "listMachineStorageUsage",
    "reauthorizeMachineExecutionLogs",
    "rebootMachine",
}


@cache
def _contract() -> dict[str, Any]:
    if not _CONTRACT.is_file():
        pytest.skip("the published contract is not beside this checkout")
    document: dict[str, Any] = json.loads(_CONTRACT.read_text())
    return document


@cache
def _ours() -> dict[str, Any]:
    document: dict[str, Any] = build_app(Mock(spec=Gateway)).openapi()
    return json.loads(json.dumps(document))  # type: ignore[no-any-return]  # as clients see it


@cache
def _report() -> Report:
    return compare(_contract(), _ours(), only=SERVED)


def test_every_operation_of_the_contract_is_served() -> None:
    assert set(operations(_contract())) == SERVED
    assert set(operations(_ours())) >= SERVED


def test_every_promise_is_kept() -> None:
    assert set(_report().missing) == BROKEN_ON_PURPOSE


def test_additions_are_listed() -> None:
    found = set()
    for addition in _report().additions:
        operation, _, what = addition.partition(": ")
        found.add(operation if what.startswith("operation ") else what)
    assert found - ADDITIONS - ADDED_OPERATIONS == set(), "list them"
    assert (ADDITIONS | ADDED_OPERATIONS) - found == set(), "they are gone"


def test_callers_identify_themselves_as_in_the_contract() -> None:
    wanted, given = _contract()["components"]["securitySchemes"], _ours()["components"]
    for name, scheme in wanted.items():
        assert given["securitySchemes"][name] == scheme
    for alternative in _contract()["security"]:
        assert alternative in _ours()["security"]
    assert len(_ours()["security"]) == len(_contract()["security"])


def test_every_reference_of_our_document_leads_somewhere() -> None:
    schemas = _ours()["components"]["schemas"]
    references = set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            references.update([node["$ref"]] if isinstance(node.get("$ref"), str) else ())
            node = list(node.values())
        for inner in node if isinstance(node, list) else ():
            walk(inner)

    walk(_ours())
    assert references
    assert {one for one in references if one.rpartition("/")[2] not in schemas} == set()


def test_no_operation_of_ours_lets_the_framework_speak() -> None:
    """FastAPI adds a 422 of its own form, and an empty schema, where nobody has told it better."""
    text = json.dumps(_ours())
    assert "HTTPValidationError" not in text
    for name, (_, _, operation) in operations(_ours()).items():
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                assert content.get("schema"), (name, status, media_type)
