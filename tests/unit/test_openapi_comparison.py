"""The comparison of OpenAPI documents notices each way to break a promise, and only those."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Final

import pytest

from tests.support.openapi_contract import Report, compare

_LITTLE: Final[dict[str, Any]] = {
    "paths": {
        "/things/{id}": {
            "patch": {
                "operationId": "patchThing",
                "parameters": [
                    {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}},
                    {
                        "name": "limit",
                        "in": "query",
                        "schema": {"type": "integer", "format": "int64"},
                    },
                ],
                "requestBody": {
                    "content": {"application/json": {"schema": {"$ref": "#/c/schemas/Change"}}}
                },
                "responses": {
                    "200": {
                        "headers": {"ETag": {"schema": {"type": "string"}}},
                        "content": {"application/json": {"schema": {"$ref": "#/c/schemas/Thing"}}},
                    },
                    "409": {
                        "content": {
                            "application/json": {
                                "schema": {"type": "object"},
                                "examples": {
                                    "stale": {
                                        "value": {
                                            "error_code": "STALE",
                                            "retryable": True,
                                            "details": {"now": "2"},
                                        }
                                    }
                                },
                            }
                        }
                    },
                },
            }
        }
    },
    "components": {
        "schemas": {
            "Change": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"size": {"type": "number"}},
                "required": ["size"],
            },
            "Thing": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "state": {"type": "string", "enum": ["on", "off"]},
                    "at": {"type": "string", "format": "date-time"},
                    "tags": {"type": ["array", "null"], "items": {"type": "string"}},
                    "note": {"type": "string"},
                    "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                },
                "required": ["state", "at", "tags"],
            },
        }
    },
}


def _operation(document: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = document["paths"]["/things/{id}"]["patch"]
    return operation


def _change(document: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = document["components"]["schemas"]["Change"]
    return schema


def _thing(document: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = document["components"]["schemas"]["Thing"]
    return schema


def _ok(document: dict[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = _operation(document)["responses"]["200"]
    return response


def _compared(change: Callable[[dict[str, Any]], object]) -> Report:
    changed = copy.deepcopy(_LITTLE)
    change(changed)
    return compare(_LITTLE, changed, only=["patchThing"])


_BREAKS: Final[dict[str, tuple[Callable[[dict[str, Any]], object], str]]] = {
    "no operation": (
        lambda d: _operation(d).update(operationId="other"),
        "patchThing: there is no such operation",
    ),
    "another path": (
        lambda d: d["paths"].update({"/stuff": d["paths"].pop("/things/{id}")}),
        "patchThing: is ('patch', '/stuff'), not ('patch', '/things/{id}')",
    ),
    "no parameter": (
        lambda d: _operation(d)["parameters"].pop(),
        "patchThing: query parameter limit is missing",
    ),
    "a parameter that must be": (
        lambda d: _operation(d)["parameters"][1].update(required=True),
        "patchThing: query parameter limit must not be required",
    ),
    "a new parameter that must be": (
        lambda d: _operation(d)["parameters"].append(
            {"name": "x", "in": "query", "required": True, "schema": {"type": "string"}}
        ),
        "patchThing: query parameter x must not be required",
    ),
    "a parameter of another type": (
        lambda d: _operation(d)["parameters"][1].update(schema={"type": "string"}),
        "patchThing: query parameter limit is ['string'], not ['integer']",
    ),
    "no body": (
        lambda d: _operation(d).pop("requestBody"),
        "patchThing: the request body is missing",
    ),
    "a body of another media type": (
        lambda d: _operation(d)["requestBody"].update(content={}),
        "patchThing: body cannot be application/json",
    ),
    "a narrower request": (
        lambda d: _change(d)["properties"]["size"].update(type="integer"),
        "patchThing: body.size is ['integer'], not ['number']",
    ),
    "an enum in a request": (
        lambda d: _change(d)["properties"]["size"].update(enum=[1, 2]),
        "patchThing: body.size has [1, 2], not None",
    ),
    "a request without a member": (
        lambda d: _change(d)["properties"].clear(),
        "patchThing: body.size is missing",
    ),
    "a request that asks for more": (
        lambda d: _change(d).update(required=["size", "x"]),
        "patchThing: body.x must not be required",
    ),
    "an open request": (
        lambda d: _change(d).pop("additionalProperties"),
        "patchThing: body is not closed",
    ),
    "no status": (
        lambda d: _operation(d)["responses"].pop("409"),
        "patchThing: 409 is missing",
    ),
    "no header": (lambda d: _ok(d).pop("headers"), "patchThing: 200 has no header ETag"),
    "another media type": (
        lambda d: _ok(d).update(content={"text/plain": {}}),
        "patchThing: 200 is not application/json but ['text/plain']",
    ),
    "an answer without a schema": (
        lambda d: _operation(d)["responses"]["409"]["content"]["application/json"].pop("schema"),
        "patchThing: 409 is [], not ['object']",
    ),
    "an answer without a member": (
        lambda d: _thing(d)["properties"].pop("note"),
        "patchThing: 200.note is missing",
    ),
    "a member that may be absent": (
        lambda d: _thing(d).update(required=["state", "tags"]),
        "patchThing: 200.at may be absent",
    ),
    "a wider answer": (
        lambda d: _thing(d)["properties"]["note"].update(type=["string", "null"]),
        "patchThing: 200.note is ['null', 'string'], not ['string']",
    ),
    "a wider item": (
        lambda d: _thing(d)["properties"]["tags"].update(items={"type": "integer"}),
        "patchThing: 200.tags[] is ['integer'], not ['string']",
    ),
    "a wider map": (
        lambda d: _thing(d)["properties"]["labels"].update(additionalProperties={}),
        "patchThing: 200.labels.* is [], not ['string']",
    ),
    "one more state": (
        lambda d: _thing(d)["properties"]["state"].update(enum=["on", "off", "broken"]),
        "patchThing: 200.state may be more than ['on', 'off']: ['on', 'off', 'broken']",
    ),
    "one state less": (
        lambda d: _thing(d)["properties"]["state"].update(enum=["on"]),
        "patchThing: 200.state has ['on'], not ['on', 'off']",
    ),
    "any state": (
        lambda d: _thing(d)["properties"]["state"].pop("enum"),
        "patchThing: 200.state may be more than ['on', 'off']: None",
    ),
    "no format": (
        lambda d: _thing(d)["properties"]["at"].pop("format"),
        "patchThing: 200.at lacks the format date-time",
    ),
    "another format": (
        lambda d: _thing(d)["properties"]["at"].update(format="date"),
        "patchThing: 200.at has the format date",
    ),
    "no example": (
        lambda d: _operation(d)["responses"]["409"]["content"]["application/json"].pop("examples"),
        "patchThing: 409 has no example STALE with retryable=True and ['now']",
    ),
}


def test_a_document_keeps_its_own_promises() -> None:
    assert _compared(lambda d: None) == Report()


@pytest.mark.parametrize("name", _BREAKS)
def test_a_broken_promise_is_found(name: str) -> None:
    change, sentence = _BREAKS[name]
    assert _compared(change).missing == [sentence]


def test_wider_requests_and_narrower_answers_are_additions() -> None:
    def change(document: dict[str, Any]) -> None:
        _operation(document)["parameters"][1]["schema"]["minimum"] = 0
        _change(document).update(required=[])
        _change(document)["properties"]["name"] = {"anyOf": [{"type": "string"}, {"type": "null"}]}
        _thing(document)["properties"]["tags"]["type"] = "array"
        _thing(document)["properties"]["more"] = {"type": "integer"}
        _thing(document)["required"].append("note")
        _ok(document)["headers"]["Age"] = {}
        _ok(document)["content"]["text/plain"] = {}
        _operation(document)["responses"]["500"] = {}

    report = _compared(change)
    assert report.missing == []
    assert set(report.additions) == {
        "patchThing: query parameter limit minimum 0",
        "patchThing: body.size may be left out",
        "patchThing: body.name",
        "patchThing: 200 header age",
        "patchThing: 200 as text/plain",
        "patchThing: 200.more",
        "patchThing: 500",
    }
