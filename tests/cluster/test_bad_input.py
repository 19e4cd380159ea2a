"""Bad input is refused by the API server, with a sentence; what only shows later is told by the Machine itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from tests.cluster.support import Cluster, Completed, Machine, until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def bad(hollow_cluster: Cluster) -> Iterator[Machine]:
    """A machine in a namespace where, at the end, nothing may ever have been created."""
    with hollow_cluster.namespace(f"test-{uuid4().hex[:8]}") as namespace:
        yield Machine(hollow_cluster, namespace)


@pytest.fixture
def cluster(hollow_cluster: Cluster) -> Cluster:
    return hollow_cluster


def refused(machine: Machine, **spec: Any) -> str:
    """What a person reads."""
    attempt = Machine(machine.cluster, machine.namespace, machine.name, spec=machine.spec | spec)
    done: Completed = machine.kubectl("apply", "-f", "-", input=attempt.manifest(), check=False)
    assert done.returncode != 0, f"{spec} was accepted: {done.stdout}"
    return done.stderr


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"vcpu": 0.3}, "vcpu 0.3 is not a multiple of 0.25; the nearest are 0.25 and 0.50"),
        ({"memory_mib": 0}, "spec.memory_mib in body should be greater than or equal to 128"),
        ({"autosleep": "soon"}, "autosleep must be a duration such as 5m, 2h30m, 1w3d, a number"),
        ({"memory": 512}, 'unknown field "spec.memory"'),
    ],
)
def test_a_manifest_with_a_mistake_creates_nothing(
    bad: Machine, spec: dict[str, Any], sentence: str
) -> None:
    assert sentence in refused(bad, **spec)
    left = bad.kubectl("get", "machines,vm,vmi,pods,pvc,secrets", "-o", "name").stdout
    assert left == ""


def test_a_change_that_cannot_be_made_is_refused_and_the_machine_stays(machine: Machine) -> None:
    machine.apply(storage_gib=2).wait_ready()
    children = machine.children()
    assert "storage_gib can grow but never shrink: it is 2, so use 2 or more, not 1" in refused(
        machine, storage_gib=1
    )
    machine.patch(desired_state="destroyed")
    assert "a destroyed machine cannot come back" in refused(machine, desired_state="running")
    assert children, "it had no children"
    machine.wait_phase("destroyed")


def test_an_image_that_is_not_there_is_told_and_corrected(machine: Machine) -> None:
    image = "registry.invalid/none:1"
    machine.apply(image=image)
    until(lambda: machine.status.get("phase") == "failed", "the machine to say that it failed")

    status = machine.status
    assert status["reason"] == "ImageNotAvailable"
    assert status["retryable"] is True
    assert image in status["last_error"]
    ready, stalled = machine.condition("Ready"), machine.condition("Stalled")
    assert (ready["status"], ready["reason"]) == ("False", "ImageNotAvailable")
    assert image in ready["message"]
    assert stalled["status"] == "True"
    assert "Correct spec.image" in stalled["message"]
    assert machine.condition("Reconciling")["status"] == "False"

    # It changes with what the pull says (error, back-off, error), and with nothing else.
    seen = versions_within(machine, seconds=10)
    assert len(seen) <= 6, "\n".join(seen)

    machine.apply(image="debian:12").wait_phase("running").wait_ready()
    assert "last_error" not in machine.status


def versions_within(machine: Machine, *, seconds: float) -> list[str]:
    """The versions that a Machine goes through, the one that it has included, each with what it says."""
    argv = [str(machine.cluster.paths.bin / "kubectl"), "--namespace", machine.namespace]
    argv += ["--kubeconfig", str(machine.cluster.paths.kubeconfig)]
    argv += ["get", "machine", machine.name, "--watch", "-o"]
    argv += [r'jsonpath={.metadata.resourceVersion} {.status.reason} {.status.last_error}{"\n"}']
    try:
        subprocess.run(argv, capture_output=True, timeout=seconds, check=True)
    except subprocess.TimeoutExpired as error:
        seen = (error.stdout or b"").decode().splitlines()
        assert seen, "the watch showed nothing"
        return seen
    raise AssertionError("the watch ended early")


def test_a_quota_is_told_and_room_in_it_is_used(machine: Machine) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"persistentvolumeclaims": "0"}},
    }
    machine.kubectl("apply", "-f", "-", input=json.dumps(quota))
    used = "jsonpath={.status.hard.persistentvolumeclaims}"
    until(
        lambda: machine.kubectl("get", "quota", "small", "-o", used).stdout == "0",
        "the quota to be counted",
    )
    machine.apply()
    until(lambda: machine.status.get("reason") == "QuotaExceeded", "the machine to name the quota")
    assert "exceeded quota: small" in machine.status["last_error"]
    machine.kubectl("delete", "quota", "small")
    machine.wait_ready()
