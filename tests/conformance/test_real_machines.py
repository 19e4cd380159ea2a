"""The published clients on machines that really boot: the cluster with QEMU, and what its own environment tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cluster.support import Cluster
from tests.conformance.environments import CLIENTS
from tests.conformance.support import tell_story

pytestmark = pytest.mark.cluster


def phases(lines: list[dict[str, Any]]) -> list[str]:
    """The phases in which the machine was seen to settle."""
    return [
        (line.get("machine") or line["events"][-1])["status"]["phase"]
        for line in lines
        if line["step"] in ("reached", "watch")
    ]


def test_a_life_by_the_client_that_watches(sdk_010: Path, real_env: dict[str, str]) -> None:
    lines = tell_story(sdk_010, CLIENTS / "flow_010.py", "life", "sync", env=real_env)
    assert phases(lines)[:4] == ["running", "running", "sleeping", "running"]
    left = [line for line in lines if line["step"] == "left"]
    assert [line["found"] for line in left] == [[]]


def test_a_life_by_the_client_that_asks(sdk_060: Path, real_env: dict[str, str]) -> None:
    lines = tell_story(sdk_060, CLIENTS / "flow_060.py", "life", "async", env=real_env)
    assert phases(lines) == ["running", "running", "sleeping", "running", "running"]
    left = [line for line in lines if line["step"] == "left"]
    assert [line["found"] for line in left] == [[]]


def test_a_machine_of_rest_is_one_of_kubectl(
    real_cluster: Cluster, real_env: dict[str, str]
) -> None:
    made = real_cluster.kubectl("get", "machines", "--namespace=default", "--output=name").stdout
    assert all(name.startswith("machine.machines.dedaluslabs.ai/dm-") for name in made.split())
