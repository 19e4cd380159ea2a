"""What machines stand on fails: the node, virt-api, the API server; or somebody writes what is not theirs to write."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from machine_operator.api.names import GROUP, PLURAL
from tests.cluster.failures import told, well
from tests.cluster.support import MINUTE, Cluster, Machine, Object, until

pytestmark = pytest.mark.cluster

OUTAGE = 600.0 if os.environ.get("MACHINE_OPERATOR_LONG") else 90.0
"""Seconds for which the API server is away."""


@pytest.fixture
def cluster(impatient_cluster: Cluster) -> Cluster:
    return impatient_cluster


def test_a_stop_that_takes_too_long_is_told_until_it_is_done(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    with machine.cluster.frozen("hollow-node"):
        machine.patch(desired_state="sleeping")
        text = "The VM on node hollow-0 was told to stop and is still there after 3 s."
        told(machine, phase="stopping", reason="StopTimeout", text=text)
    well(machine, phase="sleeping")


def test_without_virt_api_nothing_can_be_changed_and_then_it_is(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    with machine.cluster.frozen("virt-api"):
        machine.patch(desired_state="sleeping")
        told(
            machine, phase="stopping", reason="KubeVirtNotAvailable", text="failed calling webhook"
        )
    well(machine, phase="sleeping")


def test_a_vm_that_was_deleted_from_above_its_instance_is_made_again(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    before = machine.child("vm")["metadata"]
    machine.kubectl("delete", "vm", before["name"], "--cascade=orphan")
    until(lambda: machine.status["vm"]["uid"] != before["uid"], "another VM")
    well(machine)


def test_an_orphaned_instance_goes_with_its_machine(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    name = machine.child("vm")["metadata"]["name"]
    machine.kubectl("delete", "vm", name, "--cascade=orphan", "--wait=false")
    machine.delete()
    until(
        lambda: machine.cluster.items("vm,vmi,pods,pvc,secrets", namespace=machine.namespace) == [],
        "all that was made for it to be gone",
    )


# ---- what others write


@contextmanager
def any_vcpu(cluster: Cluster) -> Iterator[None]:
    """The API server takes any number of processors, as with another version of the CRD."""
    name = f"{PLURAL}.{GROUP}"
    crd: Object = json.loads(cluster.kubectl("get", "crd", name, "-o", "json").stdout)
    crd["metadata"] = {"name": name}
    loose = json.loads(json.dumps(crd))
    schema = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    schema["properties"]["vcpu"] = {"type": "number"}
    del schema["x-kubernetes-validations"]
    cluster.kubectl("replace", "-f", "-", input=json.dumps(loose))
    try:
        yield
    finally:
        cluster.kubectl("replace", "-f", "-", input=json.dumps(crd))


def test_a_stored_spec_that_breaks_a_rule_is_told_and_corrected(machine: Machine) -> None:
    with any_vcpu(machine.cluster):
        until(lambda: machine.apply(vcpu=0.3), "a bad spec to be accepted")
    probe = Machine(machine.cluster, machine.namespace, "probe", spec={"vcpu": 0.3})
    until(lambda: refused(probe), "bad specs to be refused again")
    told(machine, phase="failed", reason="SpecInvalid", text="vcpu", retryable=False)
    assert machine.cluster.items("vm,vmi,pvc", namespace=machine.namespace) == []
    machine.patch(vcpu=0.25)
    well(machine)


def refused(machine: Machine) -> bool:
    argv = ("create", "--dry-run=server", "-f", "-")
    return machine.kubectl(*argv, input=machine.manifest(), check=False).returncode != 0


def test_a_status_that_somebody_else_wrote_is_repaired(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    before = until(
        lambda: machine.status if machine.status.get("addresses") else None, "its address"
    )
    condition = {
        "status": "True",
        "reason": "Because",
        "message": "I say so.",
        "lastTransitionTime": "2001-01-01T00:00:00Z",
    }
    garbage = {
        "phase": "destroyed",
        "reason": "Nonsense",
        "last_error": "everything is broken",
        "addresses": ["192.0.2.99"],
        "wake_count": 1000,
        "backoff": {"failures": 999, "next_retry_at": "2999-01-01T00:00:00Z"},
        "vm": {"name": "another"},
        "conditions": [{"type": kind, **condition} for kind in ("Ready", "Stalled", "Mine")],
    }
    machine.kubectl(
        *("patch", "machine", machine.name, "--subresource=status", "--type=merge"),
        *("--field-manager=somebody", "--patch", json.dumps({"status": garbage})),
    )
    until(lambda: machine.status.get("vm") == before["vm"], "the status to be repaired")
    after = well(machine)
    assert after["addresses"] == before["addresses"]
    kinds = [item["type"] for item in after["conditions"]]
    assert kinds == [item["type"] for item in before["conditions"]]


def test_the_operator_never_owns_a_field_of_the_spec(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    machine.patch(storage_gib=2)
    until(lambda: machine.status["effective"]["storage_gib"] == 2, "the disk to grow")
    machine.power("sleeping").power("running")
    shown = machine.kubectl("get", "machine", "hello", "-o", "json", "--show-managed-fields")
    managed = json.loads(shown.stdout)["metadata"]["managedFields"]
    ours = [item for item in managed if item["manager"].startswith("machine-operator")]
    assert ours, "nothing is the operator's"
    assert [item for item in ours if "f:spec" in item["fieldsV1"]] == []


# ---- the node and the API server


@pytest.mark.timeout(OUTAGE + 4 * MINUTE)
def test_an_outage_of_the_api_server_and_a_lost_node_end_by_themselves(machine: Machine) -> None:
    """The whole control plane is cut off, and then the node is still away: both in one test, for one wait."""
    machine.apply().wait_phase("running").wait_ready()
    cluster = machine.cluster
    before, restarts = cluster.process("controller"), _restarts(cluster)
    with cluster.frozen("hollow-node"):
        with cluster.frozen("kube-apiserver"):
            until(lambda: not leads(cluster), "the controller to give up its lease", timeout=20)
            until_then = time.monotonic() + OUTAGE
            while time.monotonic() < until_then:
                assert cluster.controller("/livez") == (200, "ok")
                assert before.alive()
                time.sleep(5)
        until(lambda: cluster.kubectl("get", "--raw", "/readyz"), "the API server to be back")
        until(lambda: leads(cluster), "the controller to lead again", timeout=30)
        asleep = Machine(cluster, machine.namespace, "asleep", spec={"desired_state": "sleeping"})
        until(asleep.apply, "a machine to be accepted")
        asleep.wait_phase("sleeping").wait_ready()
        assert (cluster.process("controller"), _restarts(cluster)) == (before, restarts)

        text = "Node hollow-0 is not ready: Kubelet stopped posting node status."
        told(machine, phase="running", reason="NodeNotReady", text=text, timeout=2 * MINUTE)
    well(machine)
    Machine(cluster, machine.namespace, "another").apply().wait_ready()


def leads(cluster: Cluster) -> bool:
    """Whether the cluster's own controller holds the lease."""
    status, text = cluster.controller("/metrics")
    assert status == 200
    [line] = [
        line for line in text.splitlines() if line.startswith("leader_election_master_status{")
    ]
    return line.endswith(" 1.0")


def _restarts(cluster: Cluster) -> int:
    restarts: int = cluster.state()["components"]["controller"]["restarts"]
    return restarts
