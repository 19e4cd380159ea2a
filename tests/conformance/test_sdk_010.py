"""The published Python client 0.1.0, unchanged, in an environment of its own, sync and async."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support import Cluster, Object
from tests.conformance.environments import CLIENTS
from tests.conformance.support import make_key, one, steps, tell_story

pytestmark = pytest.mark.cluster

PROGRAM = CLIENTS / "flow_010.py"
SETTLED = "DesiredStateReached"
ID = re.compile(r"dm-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

both = pytest.mark.parametrize("mode", ["sync", "async"])


@pytest.fixture
def env(base_url: str, key: str) -> dict[str, str]:
    """A client's environment: nothing else is needed to point it here."""
    return {"DEDALUS_BASE_URL": base_url, "DEDALUS_API_KEY": key}


@pytest.fixture(scope="module", params=["sync", "async"])
def life(
    rest_cluster: Cluster, base_url: str, sdk_010: Path, request: pytest.FixtureRequest
) -> list[Object]:
    """What the program told of one machine's life."""
    key = make_key(rest_cluster, f"life-010-{request.param}")
    env = {"DEDALUS_BASE_URL": base_url, "DEDALUS_API_KEY": key}
    return tell_story(sdk_010, PROGRAM, "life", request.param, env=env)


def test_a_whole_life(life: list[Object]):
    created = one(life, "create")["machine"]
    assert ID.fullmatch(created["machine_id"])
    assert created["desired_state"] == "running"
    assert (created["vcpu"], created["memory_mib"], created["storage_gib"]) == (1, 256, 1)
    assert created["status"]["revision"] == "1"

    updated = one(life, "update")
    assert updated["machine"]["memory_mib"] == 512
    assert int(updated["machine"]["status"]["revision"]) > int(updated["seen"])
    assert one(life, "sleep")["machine"]["desired_state"] == "sleeping"
    woken, again = (step["machine"] for step in steps(life, "wake"))
    assert woken["desired_state"] == again["desired_state"] == "running"

    # Watched after: create, update, sleep, wake, the wake that was not needed, and three deletions.
    watched = [step["events"] for step in steps(life, "watch")]
    ends = ["running", "running", "sleeping", "running", "running", *["destroyed"] * 3]
    assert [events[-1]["status"]["phase"] for events in watched] == ends
    assert all(events[-1]["status"]["reason"] == SETTLED for events in watched)
    assert len(watched[4]) == 1, "one event, and the end, where there is nothing to wait for"
    for events in watched:
        revisions = [int(event["status"]["revision"]) for event in events]
        assert revisions == sorted(revisions)
        under_way = [e for e in events if e["status"]["phase"] != e["desired_state"]]
        assert all(event["status"]["reason"] != SETTLED for event in under_way)

    same = one(life, "same")
    assert same["first"] == same["again"]
    pages = one(life, "pages")
    assert sorted(pages["found"]) == sorted(pages["made"])
    assert pages["found"][-1] == pages["made"][0], "the newest first"
    assert [step["phase"] for step in steps(life, "gone")] == ["destroyed"] * 3
    assert one(life, "left")["found"] == []


def test_what_goes_over_the_wire(life: list[Object]):
    wire = steps(life, "wire")
    assert all(step["status"] in (200, 202) for step in wire)
    # As shipped: the client's own patience, and not one repetition.
    assert all(step["sent"]["x-stainless-retry-count"] == "0" for step in wire)
    assert all(step["sent"]["x-stainless-read-timeout"] == "60" for step in wire)

    changes = [step for step in wire if not step["call"].startswith("GET")]
    assert all("etag" in step["got"] and "idempotency-key" in step["sent"] for step in changes)
    powers = [step for step in changes if step["call"].endswith(("/sleep", "/wake"))]
    assert len(powers) == 3
    for step in powers:
        assert step["sent"]["content-type"] == "application/json"
        assert step["sent"]["content-length"] == "0"
        assert step["sent"]["if-match"].isdecimal(), "the bare revision, not an entity tag"
    assert [step["status"] for step in powers] == [202, 202, 200]
    deletions = [step for step in changes if step["call"].startswith("DELETE")]
    assert all(step["sent"]["content-type"] == "application/json" for step in deletions)
    assert not any("content-length" in step["sent"] for step in deletions)

    pages = [step["call"] for step in wire if step["call"].startswith("GET /v1/machines?")]
    assert pages[0] == "GET /v1/machines?limit=1"
    assert len(pages) == 3
    assert all(call.startswith("GET /v1/machines?limit=1&cursor=") for call in pages[1:])
    streams = [step for step in wire if step["call"].endswith("/status/stream")]
    assert all(step["got"]["content-type"].startswith("text/event-stream") for step in streams)
    replays = [
        step["got"].get("idempotency-replayed")
        for step in changes
        if "same" in step["sent"]["idempotency-key"]
    ]
    assert replays == [None, "true"]


REFUSALS: dict[str, tuple[str, int, str | None]] = {
    "key invalid": ("AuthenticationError", 401, "AUTH_INVALID"),
    "key missing": ("AuthenticationError", 401, "AUTH_REQUIRED"),
    "scope": ("PermissionDeniedError", 403, "AUTH_SCOPE_FORBIDDEN"),
    "org": ("PermissionDeniedError", 403, "AUTH_ORG_MISMATCH"),
    "other org": ("NotFoundError", 404, None),
    "missing": ("NotFoundError", 404, None),
    "watch missing": ("NotFoundError", 404, None),
    "bad id": ("NotFoundError", 404, None),
    "stale": ("ConflictError", 409, "REVISION_MISMATCH"),
    "key reused": ("ConflictError", 409, "IDEMPOTENCY_KEY_REUSED"),
    "quarter": ("UnprocessableEntityError", 422, "body.vcpu"),
    "too much": ("BadRequestError", 400, "body.memory_mib"),
    "shrink": ("UnprocessableEntityError", 422, "body.storage_gib"),
    "member": ("UnprocessableEntityError", 422, "body.colour"),
    "wake destroyed": ("ConflictError", 409, "INVALID_STATE"),
}
"""Class, status, and the code of Format A or the location of Format B."""


@both
def test_its_own_error_classes(
    rest_cluster: Cluster, sdk_010: Path, env: dict[str, str], org: str, mode: str
):
    reader = make_key(rest_cluster, org, "machines:read")
    stranger = make_key(rest_cluster, f"{org}-other")
    lines = tell_story(sdk_010, PROGRAM, "errors", mode, env=env, reader=reader, stranger=stranger)
    found = {step["name"]: _refusal(step) for step in steps(lines, "error")}
    assert found == REFUSALS
    assert one(lines, "reader")["machine"], "the key without a right to write may read"

    # Neither a conflict nor anything else here is worth a second request.
    refused = [step for step in steps(lines, "wire") if step["status"] >= 400]
    assert len(refused) == len(REFUSALS)
    assert Counter(step["sent"]["x-stainless-retry-count"] for step in refused).keys() == {"0"}
    conflicts = [step for step in refused if step["status"] == 409]
    assert all(step["got"]["x-should-retry"] == "false" for step in conflicts)


def _refusal(step: Object) -> tuple[Any, ...]:
    body = step.get("body") or {}
    told = body.get("error_code") or next((e["location"] for e in body.get("errors", ())), None)
    return step["kind"], step.get("status"), told


def test_both_headers_with_a_key(sdk_010: Path, env: dict[str, str]):
    key = env["DEDALUS_API_KEY"]
    lines = tell_story(sdk_010, PROGRAM, "headers", "sync", env=env, key=key)
    twice, alone, _ = steps(lines, "wire")
    assert (twice["sent"]["authorization"], twice["sent"]["x-api-key"]) == ("Bearer", "key")
    assert twice["status"] == 200, "limit=0 is the default"
    assert "authorization" not in alone["sent"]
    assert alone["status"] == 200
    assert _refusal(one(lines, "error")) == ("UnprocessableEntityError", 422, "query.cursor")


@both
def test_it_waits_for_its_turn(sdk_010: Path, env: dict[str, str], gateways: Any, mode: str):
    slow = gateways("--read-rate=1", "--read-burst=1", "--change-rate=0.1", "--change-burst=1").up()
    here = env | {"DEDALUS_BASE_URL": slow.base}
    lines = tell_story(sdk_010, PROGRAM, "limits", mode, env=here)
    wire = steps(lines, "wire")
    first, refused, second = wire[:3]
    assert (first["status"], refused["status"], second["status"]) == (200, 429, 200)
    # Its own loop goes by the header, not by the body.
    assert 0 < int(refused["got"]["retry-after-ms"]) <= 1000
    assert second["sent"]["x-stainless-retry-count"] == "1"
    assert steps(lines, "read")[1]["seconds"] < 2.5

    allowed, limited = steps(lines, "error")
    assert allowed["kind"] == "NotFoundError"
    assert (limited["kind"], limited["status"]) == ("RateLimitError", 429)
    assert limited["body"]["error_code"] == "RATE_LIMITED"
    assert limited["body"]["details"] == {"rate_limit_scope": "mutating_lifecycle_routes"}
    assert limited["body"]["retry_after_ms"] > 0
