"""Ends and beginnings that need no guest: what is kept, what is left, what is reported."""

from __future__ import annotations

import pytest

from machine_operator.api.names import PAUSED_ANNOTATION
from tests.cluster.support import Cluster, Machine, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(hollow_cluster: Cluster) -> Cluster:
    return hollow_cluster


def claims(machine: Machine) -> list[str]:
    found = machine.cluster.items("pvc", namespace=machine.namespace)
    return [claim["metadata"]["uid"] for claim in found if claim["status"]["phase"] == "Bound"]


def left(machine: Machine, kinds: str) -> list[str]:
    found = machine.cluster.items(kinds, namespace=machine.namespace)
    return [item["metadata"]["name"] for item in found]


def test_sleep_keeps_the_disk_and_wake_uses_it(machine: Machine) -> None:
    machine.apply().wait_ready().wait_phase("running")
    [before] = claims(machine)
    machine.power("sleeping")
    assert left(machine, "vmi,pods") == []
    assert claims(machine) == [before]
    machine.power("running")
    assert claims(machine) == [before]
    assert machine.status["wake_count"] == 1


def test_a_machine_can_be_born_asleep(machine: Machine) -> None:
    machine.apply(desired_state="sleeping").wait_phase("sleeping").wait_ready()
    assert left(machine, "vmi,pods") == []
    machine.power("running")


def test_delete_removes_all_that_was_made(machine: Machine) -> None:
    machine.apply().wait_ready()
    kinds = {child.split()[0] for child in machine.children()}
    assert kinds == {
        "VirtualMachine",
        "VirtualMachineInstance",
        "Pod",
        "PersistentVolumeClaim",
        "Secret",
    }
    machine.delete()
    until(lambda: left(machine, "vm,vmi,pods,pvc,secrets") == [], "all children to be gone")


def test_retain_keeps_the_disk_of_a_deleted_machine(machine: Machine) -> None:
    machine.apply(reclaim_policy="Retain").wait_ready()
    before = claims(machine)
    machine.delete()
    until(lambda: left(machine, "vm,vmi,pods,secrets") == [], "the rest to be gone")
    assert claims(machine) == before
    [claim] = machine.cluster.items("pvc", namespace=machine.namespace)
    # Nothing may collect it later: its owner is gone, and it has a life of its own now.
    assert not claim["metadata"].get("ownerReferences")


@pytest.mark.parametrize(("policy", "disks"), [("Delete", 0), ("Retain", 1)])
def test_destroyed_is_reported_by_an_object_that_stays(
    machine: Machine, policy: str, disks: int
) -> None:
    machine.apply(reclaim_policy=policy).wait_ready()
    machine.patch(desired_state="destroyed")
    machine.wait_phase("destroyed")
    status = machine.status
    assert status["reason"] == "DesiredStateReached"
    assert machine.condition("Ready")["status"] == "False"
    assert not status.get("addresses")
    until(lambda: left(machine, "vm,vmi,pods,secrets") == [], "the rest to be gone")
    until(lambda: len(left(machine, "pvc")) == disks, f"{disks} disks to be left")
    machine.delete()


def test_delete_before_anything_was_made(machine: Machine) -> None:
    machine.apply()
    machine.delete()
    until(lambda: left(machine, "vm,vmi,pods,pvc,secrets") == [], "all children to be gone")


def test_the_same_name_again_is_another_machine(machine: Machine) -> None:
    machine.apply().wait_ready()
    [before] = claims(machine)
    machine.delete()
    machine.apply().wait_ready()
    assert before not in claims(machine)
    assert len(claims(machine)) == 1


def test_a_settled_machine_is_not_written(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    version = machine.get()["metadata"]["resourceVersion"]
    others = [Machine(machine.cluster, machine.namespace, f"other-{n}").apply() for n in range(3)]
    for other in others:
        other.wait_ready()
    assert machine.get()["metadata"]["resourceVersion"] == version


def test_a_paused_machine_is_left_alone_until_it_is_released(machine: Machine) -> None:
    machine.apply().wait_phase("running")
    machine.kubectl("annotate", "machine", machine.name, f"{PAUSED_ANNOTATION}=true")
    machine.patch(desired_state="sleeping")
    # Once this later one is through, the controller has long seen the change.
    Machine(machine.cluster, machine.namespace, "later").apply().wait_ready()
    assert machine.status["phase"] == "running"
    assert len(left(machine, "vmi")) == 2
    machine.kubectl("annotate", "machine", machine.name, f"{PAUSED_ANNOTATION}-")
    machine.wait_phase("sleeping")


def test_the_table_tells_where_a_machine_is_and_why(machine: Machine) -> None:
    """What people see first: phase, why, sizes, age, in a line."""
    machine.apply(vcpu=0.5).wait_phase("running").wait_ready()
    header, row = machine.kubectl("get", "machines").stdout.splitlines()
    assert header.split()[:3] == ["NAME", "PHASE", "REASON"]
    assert row.split()[:7] == [
        *("hello", "running", "DesiredStateReached"),
        *("0.5", "256", "1", "never"),
    ]
    wide = machine.kubectl("get", "machines", "-o", "wide").stdout.splitlines()[1]
    assert "hollow-0" in wide.split()
