"""curl, which has no manners of its own: an entity tag as it stands in the answer, and the raw stream."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.support import Cluster, Object, run
from tests.conformance.support import SMALL, Rest

pytestmark = pytest.mark.cluster


class Curl:
    """`curl` with a key, and the head of each answer beside its body."""

    def __init__(self, base: str, key: str, directory: Path) -> None:
        self._base = base
        self._head = directory / "head"
        self._options = ["curl", "-sS", "-H", f"Authorization: Bearer {key}"]

    def __call__(self, path: str, *options: str, check: bool = True) -> str:
        argv = [*self._options, "-D", str(self._head), *options, self._base + path]
        return run(argv, check=check).stdout

    @property
    def status(self) -> int:
        """Of the last answer."""
        return int(self._head.read_text().split()[1])

    def header(self, name: str) -> str:
        """Of the last answer, as it was on the wire."""
        found = re.search(rf"(?im)^{name}: *(.*?)\s*$", self._head.read_text())
        assert found, f"no {name} in {self._head.read_text()}"
        return found[1]

    def stream(self, path: str) -> subprocess.Popen[str]:
        """`curl -N`, which prints what comes as it comes."""
        argv = [*self._options, "-N", "--max-time", "60", self._base + path]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def curl(base_url: str, key: str, tmp_path: Path) -> Curl:
    """For a new organisation."""
    return Curl(base_url, key, tmp_path)


@pytest.fixture
def machine(curl: Curl) -> Object:
    """A machine that runs."""
    made: Object = json.loads(curl("/v1/machines", "--json", json.dumps(SMALL)))
    curl(f"/v1/machines/{made['machine_id']}/status/stream", "-N")
    return made


def test_the_tag_of_an_answer_is_good_for_the_next_change(curl: Curl, machine: Object):
    path = f"/v1/machines/{machine['machine_id']}"
    curl(path)
    tag = curl.header("etag")
    assert re.fullmatch(r'"\d+"', tag), "a strong entity tag"
    curl(path, "-H", f"If-None-Match: {tag}")
    assert curl.status == 304

    change = ["-X", "PATCH", "--json", '{"autosleep": "10m"}']
    changed = json.loads(curl(path, *change, "-H", f"If-Match: {tag}"))
    assert changed["autosleep_seconds"] == 600
    newer = curl.header("etag")
    assert newer == f'"{changed["status"]["revision"]}"' != tag

    refused = json.loads(curl(path, "-X", "DELETE", "-H", f"If-Match: {tag}"))
    assert (curl.status, refused["error_code"]) == (409, "REVISION_MISMATCH")
    assert curl.header("x-should-retry") == "false"
    expected = refused["details"]["expected_revision"]
    # A proxy that compresses weakens tags.
    curl(path, "-X", "DELETE", "-H", f'If-Match: W/"{expected}"')
    assert curl.status in (200, 202)


def test_the_raw_stream(curl: Curl, machine: Object):
    path = f"/v1/machines/{machine['machine_id']}"
    curl(f"{path}/sleep", "-X", "POST")
    raw = curl(f"{path}/status/stream", "-N")
    assert curl.header("content-type").startswith("text/event-stream")
    assert raw.endswith("\n\n"), "the last event is a whole one"
    events = [dict(_fields(frame)) for frame in raw.split("\n\n") if _fields(frame)]
    assert {event["event"] for event in events} <= {"status", "bookmark"}
    shown = [json.loads(event["data"]) for event in events if event["event"] == "status"]
    assert shown[0]["desired_state"] == "sleeping"
    assert shown[-1]["status"]["phase"] == shown[-1]["phase"] == "sleeping"

    again = curl(f"{path}/status/stream", "-N", "-H", f"Last-Event-ID: {events[-1]['id']}")
    assert "event: status" not in again, "the client has seen everything"
    older = curl(f"{path}/status/stream", "-N", "-H", "Last-Event-ID: Last-Event-ID")
    assert older.count("event: status") == 1, "no bookmark of ours: the state now"


async def test_a_stream_of_a_machine_that_waits(
    rest_cluster: Cluster, base_url: str, key: str, curl: Curl
):
    """The node does nothing for a while: the stream stays, and is not silent."""
    async with Rest.open(base_url, key) as rest:
        with rest_cluster.frozen("hollow-node"):
            made = await rest.create("waits")
            assert made.status == 202, made
            machine_id = made.body["machine_id"]
            await rest.eventually(machine_id, "placement_pending")
            stream = curl.stream(f"/v1/machines/{machine_id}/status/stream")
            frames = _frames(stream)
            try:
                assert '"phase":"placement_pending"' in next(frames)
                assert next(frames).startswith((":", "id:")), "a comment or a bookmark"
                assert stream.poll() is None
            except BaseException:
                stream.kill()
                raise
        with stream:
            assert '"phase":"running"' in "".join(frames)
        assert stream.returncode == 0, "ended in good order"


def _frames(stream: subprocess.Popen[str]) -> Iterator[str]:
    assert stream.stdout is not None
    frame = ""
    for line in stream.stdout:
        if line != "\n":
            frame += line
            continue
        yield frame
        frame = ""


def _fields(frame: str) -> list[tuple[str, str]]:
    lines = [line for line in frame.splitlines() if line and not line.startswith(":")]
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


def test_a_full_quota_is_a_refusal_that_says_how_full(
    rest_cluster: Cluster, curl: Curl, machine: Object, org: str
) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "machines", "namespace": org},
        "spec": {"hard": {"count/machines.machines.dedaluslabs.ai": "1"}},
    }
    rest_cluster.kubectl("apply", "-f", "-", input=json.dumps(quota))
    counted = "--for=jsonpath={.status.used.count/machines\\.machines\\.dedaluslabs\\.ai}=1"
    rest_cluster.kubectl("wait", "resourcequota/machines", counted, "-n", org, "--timeout=60s")
    refused = json.loads(curl("/v1/machines", "--json", json.dumps(SMALL)))
    assert curl.status == 403
    assert refused["error_code"] == "QUOTA_EXCEEDED"
    assert refused["retryable"] is False
    assert "1 of 1 in use" in refused["message"]
    assert "machines" not in refused.get("details", {}), "the quota's own name is nobody's business"
    curl(f"/v1/machines/{machine['machine_id']}")
    assert curl.status == 200
