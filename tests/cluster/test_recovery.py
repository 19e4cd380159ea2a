"""kill -9 of any one process: the cluster heals, and no machine ever has two guests.

After each blow a machine that ran before still runs (again), and a new one can be made.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.cluster.host import one_guest_each
from tests.cluster.support import COMPONENTS, MINUTE, Cluster, Machine, Object, until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def survivor(qemu_cluster: Cluster) -> Iterator[Machine]:
    """A machine that runs when the blow comes."""
    with qemu_cluster.namespace(f"test-{uuid4().hex[:8]}") as namespace:
        yield Machine(qemu_cluster, namespace, "survivor").apply().wait_ready(timeout=2 * MINUTE)


@pytest.fixture
def another(survivor: Machine) -> Iterator[Machine]:
    """A machine that is made after the blow; it ends while the next test begins."""
    machine = Machine(survivor.cluster, survivor.namespace, f"m-{uuid4().hex[:8]}")
    yield machine
    machine.kubectl("delete", "machine", machine.name, "--wait=false", check=False)


@pytest.mark.parametrize("victim", COMPONENTS)
def test_a_killed_component_is_back_and_nobody_notices(
    survivor: Machine, another: Machine, victim: str
) -> None:
    cluster, boot = survivor.cluster, survivor.boot_id()
    before = component(cluster, victim)
    with one_guest_each():
        os.kill(before["process"]["pid"], signal.SIGKILL)
        until(
            lambda: component(cluster, victim)["restarts"] == before["restarts"] + 1,
            f"{victim} to be started again",
        )
        until(lambda: cluster.kubectl("get", "--raw", "/readyz"), "the API server to be ready")
        until(another.apply, "a machine to be accepted")
        another.wait_ready(timeout=2 * MINUTE)
        until(survivor.answers, "the machine from before to answer")
        survivor.wait_phase("running").wait_ready()
        assert survivor.boot_id() == boot, "its guest did not live through it"
    assert len(survivor.guests()) == 1


def test_a_machine_whose_qemu_is_killed_runs_again(survivor: Machine) -> None:
    boot = survivor.boot_id()
    survivor.run("echo kept > note; sync")
    [pid] = survivor.guests()
    with one_guest_each():
        os.kill(pid, signal.SIGKILL)
        until(lambda: survivor.boot_id() != boot, "another boot", timeout=2 * MINUTE)
        survivor.wait_phase("running").wait_ready()
    assert survivor.run("cat note") == "kept"
    assert len(survivor.guests()) == 1


def test_after_the_supervisor_is_killed_up_heals(survivor: Machine, another: Machine) -> None:
    cluster = survivor.cluster
    survivor.run("echo kept > note; sync")
    os.kill(cluster.state()["supervisor"]["pid"], signal.SIGKILL)
    until(
        lambda: cluster.local("status", check=False).stdout.startswith("orphaned"),
        "the status to say so",
    )
    assert survivor.answers(), "what runs goes on without a supervisor"
    with one_guest_each():
        cluster.local("up")
        another.apply()
        another.wait_ready(timeout=2 * MINUTE)
        until(survivor.answers, "the machine from before to answer", timeout=2 * MINUTE)
        survivor.wait_phase("running").wait_ready()
    assert survivor.run("cat note") == "kept"
    assert len(survivor.guests()) == 1


def component(cluster: Cluster, name: str) -> Object:
    """What the supervisor wrote down about one process."""
    found: Object = cluster.state()["components"][name]
    return found
