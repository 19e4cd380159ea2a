"""The published Python client 0.6.0, unchanged, in an environment of its own, sync and async."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance.environments import CLIENTS
from tests.conformance.support import one, steps, tell_story

pytestmark = pytest.mark.cluster

PROGRAM = CLIENTS / "flow_060.py"
COMPACT = re.compile(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}")

both = pytest.mark.parametrize("mode", ["sync", "async"])


@pytest.fixture
def env(base_url: str, key: str) -> dict[str, str]:
    """A client's environment: nothing else is needed to point it here."""
    return {"DEDALUS_BASE_URL": base_url, "DEDALUS_API_KEY": key}


@both
def test_a_whole_life(sdk_060: Path, env: dict[str, str], mode: str):
    lines = tell_story(sdk_060, PROGRAM, "life", mode, env=env)
    created = one(lines, "create")["machine"]
    assert (created["vcpu"], created["autosleep_seconds"]) == (0.5, 0)
    assert created["phase"] == created["status"]["phase"]
    updated = one(lines, "update")["machine"]
    assert (updated["memory_mib"], updated["autosleep_seconds"]) == (512, 5400)
    assert one(lines, "sleep")["machine"]["desired_state"] == "sleeping"
    assert one(lines, "wake")["machine"]["desired_state"] == "running"
    rebooted = one(lines, "reboot")["machine"]
    assert rebooted["machine_id"] == created["machine_id"]
    reached = [step["machine"]["status"]["phase"] for step in steps(lines, "reached")]
    assert reached == ["running", "running", "sleeping", "running", "running"]
    configured = [s["machine"]["status"]["memory_configured_mib"] for s in steps(lines, "reached")]
    assert configured[-1] == 512

    bare = one(lines, "bare")
    assert bare["answer"] == bare["machine_id"], "answers spell the id as the request did"
    same = one(lines, "same")
    assert same["first"] == same["again"]
    default = one(lines, "defaults")["machine"]
    sizes = (default["vcpu"], default["memory_mib"], default["storage_gib"])
    assert (*sizes, default["autosleep_seconds"]) == (1, 2048, 10, 300)

    pages = one(lines, "pages")
    assert len(pages["found"]) == len(set(pages["found"])) == 3
    assert all(pages["phases"])
    assert [step["phase"] for step in steps(lines, "gone")] == ["destroyed"] * 3
    assert one(lines, "left")["found"] == []

    wire = steps(lines, "wire")
    assert all(step["status"] in (200, 202) for step in wire)
    assert all(step["sent"]["x-scalar-retry-count"] == "0" for step in wire)
    assert not any("if-match" in step["sent"] for step in wire)
    changes = [step["sent"] for step in wire if not step["call"].startswith("GET")]
    keys = [sent["idempotency-key"] for sent in changes if "idempotency-key" in sent]
    own = [key for key in keys if COMPACT.fullmatch(key)]
    assert (len(changes), len(keys), len(own)) == (11, 10, 8)


@both
def test_its_own_error_classes(sdk_060: Path, env: dict[str, str], mode: str):
    lines = tell_story(sdk_060, PROGRAM, "errors", mode, env=env)
    found = {step["name"]: (step["kind"], step["status"]) for step in steps(lines, "error")}
    assert found == {
        "missing": ("NotFoundError", 404),
        "quarter": ("UnprocessableEntityError", 422),
        "autosleep": ("UnprocessableEntityError", 422),
        "key invalid": ("AuthenticationError", 401),
    }
