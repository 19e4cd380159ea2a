"""Request bodies: each kind of wrongness has its own status and its own location; nothing else ever comes out."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from machine_operator.api import rules
from machine_operator.api.durations import MAX_SECONDS, parse_autosleep
from machine_operator.api.machine import MachineSpec
from machine_operator.gateway.dcs.models import (
    CreateMachineRequest,
    LifecycleResponse,
    MachineListItem,
    MachineListResponse,
    UpdateMachineRequest,
)
from machine_operator.gateway.dcs.requests import read_request, refuse_body
from machine_operator.gateway.problems import GatewayError

_GOOD = b'{"vcpu":1,"memory_mib":2048,"storage_gib":10}'


def _create(body: bytes | dict[str, Any], content_type: str | None = None) -> CreateMachineRequest:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return read_request(CreateMachineRequest, raw, content_type)


def _refusal(body: bytes | dict[str, Any], content_type: str | None = None) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        _create(body, content_type)
    assert caught.value.media_type == "application/problem+json"
    orjson.dumps(caught.value.body())  # can be told
    return caught.value


# --- content type


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        " application/json ",
        "application/json; profile=x",
    ],
)
def test_json_in_all_spellings_is_fine(content_type: str | None) -> None:
    assert _create(_GOOD, content_type).vcpu == 1


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/merge-patch+json",
        "application/json; charset=latin-1",
        "application/jsonx",
        "json",
        ";",
        "application/json, text/plain",
        "text/plain\r\nX: application/json",
    ],
)
def test_what_says_it_is_something_else_is_415(content_type: str) -> None:
    refusal = _refusal(_GOOD, content_type)
    assert refusal.status == 415
    assert refusal.body()["errors"][0]["location"] == "header.Content-Type"


def test_the_content_type_is_looked_at_first() -> None:
    assert _refusal(b"{", "text/plain").status == 415


# --- JSON


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" \n",
        b"{",
        b"{'vcpu':1}",
        b'{"vcpu":1,}',
        b'{"vcpu":NaN}',
        b'{"vcpu":Infinity}',
        b'{"vcpu":1e999}',
        b'{"vcpu":' + b"9" * 5000 + b"}",
        b'{"autosleep":"\xff"}',
        b'{"autosleep":"\\ud800"}',
        b"\xef\xbb\xbf{}",
        b"\x00",
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"vcpu":' + b"[" * 1000 + b"]" * 1000 + b"}",
        b'{"vcpu":1,"vcpu":1}',
        b'{"vcpu":1,"vcp\\u0075":2}',
        b'{"x":{"y":1,"y":2}}',
        _GOOD + _GOOD,
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_what_is_no_json_document_is_400(raw: bytes) -> None:
    refusal = _refusal(raw)
    assert refusal.status == 400, refusal.body()
    assert refusal.body()["errors"][0]["location"] == "body"


@pytest.mark.parametrize("raw", [b"[]", b"null", b"1", b'"x"', b"true", b"[{}]"])
def test_another_document_than_an_object_is_422(raw: bytes) -> None:
    refusal = _refusal(raw)
    assert refusal.status == 422
    assert refusal.body()["errors"][0]["location"] == "body"


# --- members


@pytest.mark.parametrize(
    ("member", "value", "message"),
    [
        ("vcpu", "1", "must be a number"),
        ("vcpu", True, "must be a number"),
        ("vcpu", None, "must not be null: leave it out instead"),
        ("vcpu", [1], "must be a number"),
        ("vcpu", {}, "must be a number"),
        ("vcpu", 0, "must be at least 0.25"),
        ("vcpu", -1, "must be at least 0.25"),
        ("vcpu", 0.3, "must be a multiple of 0.25"),
        ("vcpu", 0.2500000001, "must be a multiple of 0.25"),
        ("vcpu", 128.25, "must be at most 128.0"),
        ("vcpu", 1e300, "must be at most 128.0"),
        ("memory_mib", "2048", "must be a whole number"),
        ("memory_mib", True, "must be a number"),
        ("memory_mib", 2048.5, "must be a whole number"),
        ("memory_mib", 127, "must be at least 128"),
        ("memory_mib", 4_194_305, "must be at most 4194304"),
        ("memory_mib", 1e30, "must be at most 4194304"),
        ("memory_mib", -0.0, "must be at least 128"),
        ("storage_gib", 0, "must be at least 1"),
        ("storage_gib", 65_537, "must be at most 65536"),
        ("autosleep", 300, "must be a string"),
        ("autosleep", "", None),
        ("autosleep", "soon", None),
        ("autosleep", "5x", None),
        ("autosleep", "3m4h", None),
        ("autosleep", "30s junk", None),
        ("autosleep", "-5s", None),
        ("autosleep", "off", None),
        ("autosleep", f"{MAX_SECONDS + 1}", None),
        ("autosleep", " " * 64 + "5m", "must have at most 64 characters"),
        ("autosleep_seconds", -1, "must be at least 0"),
        ("autosleep_seconds", "5", "must be a whole number"),
        ("autosleep_seconds", MAX_SECONDS + 1, f"must be at most {MAX_SECONDS}"),
        ("colour", "red", "is not known here"),
        ("desired_state", "running", "is not known here"),
        ("", 1, "is not known here"),
    ],
)
def test_a_wrong_member_is_422_at_its_place(member: str, value: Any, message: str | None) -> None:
    refusal = _refusal({member: value})
    assert refusal.status == 422
    (fault,) = refusal.body()["errors"]
    assert fault["location"] == f"body.{member}"
    if message is not None:
        assert fault["message"] == message
    for model in (CreateMachineRequest, UpdateMachineRequest):
        with pytest.raises(GatewayError):
            read_request(model, orjson.dumps({member: value}), None)


def test_all_that_is_wrong_is_told_at_once() -> None:
    refusal = _refusal({"vcpu": 0.3, "memory_mib": "x", "storage_gib": 0, "zoo": 1})
    locations = {fault["location"] for fault in refusal.body()["errors"]}
    assert locations == {"body.vcpu", "body.memory_mib", "body.storage_gib", "body.zoo"}


@pytest.mark.parametrize("count", [60, 100_000])
def test_a_flood_of_unknown_members_gets_a_short_answer(count: int) -> None:
    refusal = _refusal({f"x{n}": "y" * 500 for n in range(count)})
    assert refusal.status == 422
    assert len(orjson.dumps(refusal.body())) < 20_000


@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        ({"vcpu": 1, "memory_mib": 2048, "storage_gib": 10}, (1.0, 2048, 10)),
        ({"vcpu": 1.0, "memory_mib": 2048.0, "storage_gib": 1e1}, (1.0, 2048, 10)),
        ({"vcpu": 0.25}, (0.25, None, None)),
        ({}, (None, None, None)),
    ],
)
def test_good_sizes(body: dict[str, Any], sizes: tuple[Any, ...]) -> None:
    request = _create(body)
    assert (request.vcpu, request.memory_mib, request.storage_gib) == sizes
    assert isinstance(request.memory_mib, int | None)
    assert request.autosleep_text is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"autosleep": "5m"}, "5m"),
        ({"autosleep": " 5M "}, "5m"),
        ({"autosleep": "300"}, "5m"),
        ({"autosleep": "1W3D"}, "1w3d"),
        ({"autosleep": "never"}, "never"),
        ({"autosleep": "NEVER"}, "never"),
        ({"autosleep": "0"}, "never"),
        ({"autosleep_seconds": 300}, "5m"),
        ({"autosleep_seconds": 300.0}, "5m"),
        ({"autosleep_seconds": 0}, "never"),
        ({"autosleep": "5m", "autosleep_seconds": 300}, "5m"),
        ({"autosleep": str(MAX_SECONDS)}, None),
    ],
)
def test_autosleep_has_one_spelling_per_meaning(body: dict[str, Any], text: str | None) -> None:
    made = _create(body).autosleep_text
    assert made is not None
    assert text is None or made == text
    assert len(made) <= 64


def test_two_autosleeps_that_contradict_each_other_are_refused() -> None:
    refusal = _refusal({"autosleep": "5m", "autosleep_seconds": 301})
    assert refusal.status == 422
    assert "contradict" in refusal.body()["errors"][0]["message"]


# --- whatever comes

_NAMES = st.sampled_from(sorted([*CreateMachineRequest.model_fields, "other", "\u0000"]))
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_BODIES = st.binary() | st.dictionaries(_NAMES, _VALUES).map(lambda body: json.dumps(body).encode())


def _outcome(model: type[BaseModel], raw: bytes, content_type: str | None) -> Any:
    try:
        return read_request(model, raw, content_type)
    except GatewayError as error:
        return error


@given(raw=_BODIES, content_type=st.none() | st.text() | st.just("application/json"))
def test_nothing_but_a_model_or_an_answer_comes_out(raw: bytes, content_type: str | None) -> None:
    for model in (CreateMachineRequest, UpdateMachineRequest):
        outcome = _outcome(model, raw, content_type)
        if isinstance(outcome, GatewayError):
            assert outcome.status in (400, 415, 422)
            assert len(orjson.dumps(outcome.body())) < 50_000
        else:
            assert isinstance(outcome, model)


@given(
    vcpu=st.floats(0, 200) | st.integers(0, 512).map(lambda quarters: quarters / 4),
    memory_mib=st.integers(0, 2**23),
    storage_gib=st.integers(0, 2**17),
    autosleep=st.text() | st.from_regex(r"\A[0-9]{1,11}[wdhms]?\Z"),
)
def test_what_is_accepted_is_what_a_machine_may_have(
    *, vcpu: float, memory_mib: int, storage_gib: int, autosleep: str
) -> None:
    body = {
        "vcpu": vcpu,
        "memory_mib": memory_mib,
        "storage_gib": storage_gib,
        "autosleep": autosleep,
    }
    try:
        MachineSpec.model_validate(body)
    except ValueError:
        legal = False
    else:
        legal = True
    try:
        request = _create(body)
    except GatewayError:
        assert not legal
    else:
        assert legal
        assert parse_autosleep(request.autosleep_text or "") == parse_autosleep(autosleep)


def test_bounds_are_told_in_the_schema() -> None:
    properties = CreateMachineRequest.model_json_schema()["properties"]
    spec = MachineSpec.model_json_schema()["properties"]
    for name in ("vcpu", "memory_mib", "storage_gib"):
        assert properties[name]["minimum"] == spec[name]["minimum"]
        assert properties[name]["maximum"] == spec[name]["maximum"]
    assert properties["vcpu"]["multipleOf"] == rules.VCPU_STEP
    assert "required" not in CreateMachineRequest.model_json_schema()


# --- no body


@pytest.mark.parametrize("raw", [b"", b" ", b"{}", b" {}\n", b"null"])
def test_saying_nothing_is_fine_where_no_body_is_taken(raw: bytes) -> None:
    refuse_body(raw)


@pytest.mark.parametrize("raw", [b'{"force":true}', b"[]", b"x"])
def test_saying_something_is_not(raw: bytes) -> None:
    with pytest.raises(GatewayError) as caught:
        refuse_body(raw)
    assert caught.value.status == 422
    assert caught.value.body()["errors"][0]["location"] == "body"


# --- answers


@pytest.mark.parametrize("model", [LifecycleResponse, MachineListItem, MachineListResponse])
def test_no_member_of_an_answer_is_nullable(model: type[LifecycleResponse]) -> None:
    text = orjson.dumps(model.model_json_schema(mode="serialization"))
    assert b'"null"' not in text
    assert b'"default":null' not in text
