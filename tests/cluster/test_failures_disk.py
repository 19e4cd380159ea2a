"""The home disk behind the operator's back: lost, put back, unlabelled, deleted while it is in use."""

from __future__ import annotations

import json

import pytest

from machine_operator.api.names import NAME_LABEL, UID_LABEL
from tests.cluster.failures import told, well
from tests.cluster.support import Cluster, Machine, Object, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(impatient_cluster: Cluster) -> Cluster:
    return impatient_cluster


def lose_disk(machine: Machine) -> Object:
    """Delete the disk of a sleeping machine; returns what it was."""
    claim = machine.child("pvc")
    machine.kubectl("delete", "pvc", claim["metadata"]["name"], "--timeout=30s")
    return claim


def test_a_lost_disk_is_told_not_replaced_and_used_again_once_it_is_back(machine: Machine) -> None:
    machine.apply(desired_state="sleeping")
    until(lambda: machine.status.get("vm", {}).get("home_claim"), "the machine to know its disk")
    well(machine, phase="sleeping")
    claim = lose_disk(machine)
    lost = {"phase": "failed", "reason": "StorageLost", "retryable": False}
    told(machine, text="does not replace it by an empty one", **lost)
    machine.patch(desired_state="running")
    until(lambda: machine.status["observedGeneration"] == 2, "the operator to see the wish")
    told(machine, text="does not replace it by an empty one", **lost)
    storage = machine.condition("StorageReady")
    assert (storage["status"], storage["reason"]) == ("False", "StorageLost")
    assert machine.cluster.items("vmi,pvc", namespace=machine.namespace) == []

    # As from a backup: the name and the size, and nothing else.
    spec = {key: claim["spec"][key] for key in ("accessModes", "resources", "storageClassName")}
    name = claim["metadata"]["name"]
    restored = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": spec}
    restored["metadata"] = {"name": name}
    machine.kubectl("create", "-f", "-", input=json.dumps(restored))
    # Without labels nothing tells that it is back: it is looked for twice a minute, and at any word about the machine.
    machine.patch(autosleep="1h")
    well(machine)
    assert machine.child("pvc")["metadata"]["labels"][UID_LABEL] == machine.uid


def test_a_disk_without_its_labels_is_no_lost_disk(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    claim = machine.child("pvc")
    gone = [f"{UID_LABEL}-", f"{NAME_LABEL}-"]
    machine.kubectl("label", "pvc", claim["metadata"]["name"], *gone)
    until(lambda: UID_LABEL in machine.child("pvc")["metadata"]["labels"], "the labels to be back")
    assert machine.child("pvc")["metadata"]["uid"] == claim["metadata"]["uid"]
    well(machine)
    assert machine.events("StorageLost") == []


def test_a_disk_that_is_deleted_while_it_is_in_use_is_lost_when_the_guest_is_off(
    machine: Machine,
) -> None:
    machine.apply().wait_phase("running").wait_ready()
    name = machine.child("pvc")["metadata"]["name"]
    machine.kubectl("delete", "pvc", name, "--wait=false")
    # Kubernetes keeps it for as long as the pod uses it.
    assert machine.child("pvc")["metadata"]["deletionTimestamp"]
    assert machine.status["phase"] == "running"
    machine.patch(desired_state="sleeping")
    told(machine, phase="failed", reason="StorageLost", text="is gone", retryable=False)
    machine.delete()
    assert machine.cluster.items("vm,vmi,pods,pvc,secrets", namespace=machine.namespace) == []
