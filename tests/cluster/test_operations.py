"""What people who run the operator rely on: probes, metrics, leadership, the paused annotation, adoption of disks."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from machine_operator.api.names import ADOPT_ANNOTATION, PAUSED_ANNOTATION, UID_LABEL
from machine_operator.local.processes import ProcessRecord
from tests.cluster.failures import told, well
from tests.cluster.support import IMPATIENT, Cluster, Machine, fetch, until

pytestmark = pytest.mark.cluster

DOCUMENTED = Path(__file__).parents[2] / "docs" / "operations" / "metrics.md"


@pytest.fixture
def cluster(impatient_cluster: Cluster) -> Cluster:
    return impatient_cluster


def test_probes_name_what_they_check(cluster: Cluster) -> None:
    assert cluster.controller("/livez") == (200, "ok")
    assert cluster.controller("/readyz") == (200, "ok")
    assert cluster.controller("/livez?verbose") == (
        200,
        "[+]loop ok\n[+]engine ok\nlivez check passed\n",
    )
    assert cluster.controller("/readyz?verbose") == (
        200,
        "[+]caches ok\n[+]watches ok\nreadyz check passed\n",
    )
    assert cluster.gateway("/readyz?verbose") == (
        200,
        "[+]caches ok\n[+]serving ok\nreadyz check passed\n",
    )


def test_every_documented_metric_is_served(cluster: Cluster) -> None:
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", DOCUMENTED.read_text(), re.MULTILINE))
    (status, text), (also, more) = cluster.controller("/metrics"), cluster.gateway("/metrics")
    served = set(re.findall(r"^# TYPE (\w+) ", text + more, re.MULTILINE))
    assert (status, also) == (200, 200)
    assert len(documented) > 20
    assert documented - served == set()
    ours = {name for name in served if not name.startswith(("process_", "python_"))}
    created = {name for name in ours if name.endswith("_created")}
    assert ours - created - documented == set(), "nobody told what these are"


def test_a_life_is_counted(machine: Machine) -> None:
    before = values(machine.cluster)
    machine.apply().wait_phase("running").wait_ready()
    machine.power("sleeping")
    after = values(machine.cluster)

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    assert grown('machine_operator_time_to_running_seconds_count{from="create"}') == 1
    assert grown("machine_operator_time_to_sleep_seconds_count") == 1
    assert after['machine_operator_machines{phase="sleeping"}'] >= 1
    writes = 'machine_operator_api_writes_total{resource="virtualmachines",verb="apply"}'
    assert grown(writes) == 2


def values(cluster: Cluster) -> dict[str, float]:
    """Every sample of the controller's metrics."""
    _, text = cluster.controller("/metrics")
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in samples}


def test_a_paused_machine_is_looked_at_and_not_touched(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    before = machine.child("vm")["metadata"]
    machine.kubectl("annotate", "machine", machine.name, f"{PAUSED_ANNOTATION}=true")
    until(lambda: machine.condition("Reconciling")["reason"] == "Paused", "it to say so")
    assert "Remove the annotation" in machine.condition("Reconciling")["message"]
    machine.kubectl("delete", "vm", before["name"])
    until(lambda: machine.status["phase"] == "starting", "it to say that nothing runs")
    assert machine.cluster.items("vm,vmi", namespace=machine.namespace) == []
    machine.kubectl("annotate", "machine", machine.name, f"{PAUSED_ANNOTATION}-")
    well(machine)
    assert machine.child("vm")["metadata"]["uid"] != before["uid"]


def test_a_retained_disk_is_adopted_on_purpose_and_only_by_its_namesake(machine: Machine) -> None:
    machine.apply(reclaim_policy="Retain").wait_phase("running").wait_ready()
    claim, first = machine.child("pvc")["metadata"], machine.uid
    machine.delete()

    adopt = f"{ADOPT_ANNOTATION}={claim['name']}"
    other = Machine(machine.cluster, machine.namespace, "other")
    for each in (machine, other):
        body = each.kubectl(
            "annotate", "--local", "-f", "-", adopt, "-o", "json", input=each.manifest()
        )
        each.kubectl("create", "-f", "-", input=body.stdout)
    well(machine)
    [disk] = machine.cluster.items("pvc", namespace=machine.namespace)
    assert disk["metadata"]["uid"] == claim["uid"]
    assert disk["metadata"]["labels"][UID_LABEL] == machine.uid != first
    told(
        other,
        phase="failed",
        reason="VirtualMachineForeign",
        text=f"The PersistentVolumeClaim {claim['name']} is",
    )


# ---- leadership


@contextmanager
def standby(cluster: Cluster, log: Path) -> Iterator[str]:
    """Another controller, as somebody starts it by hand; gives its metrics address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv = [sys.executable, "-m", "machine_operator.cli.main", "controller"]
    flags = [
        f"--kubeconfig={cluster.paths.kubeconfigs / 'operator.yaml'}",
        f"--default-image={cluster.settings.default_image}",
        f"--metrics-address={address}",
        "--identity=standby",
    ]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*argv, *flags],
            env={**os.environ, **IMPATIENT},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield address
    finally:
        process.terminate()
        try:
            code = process.wait(timeout=15)
        finally:
            process.kill()
    assert code == 0, log.read_text()


def test_when_the_leader_is_killed_the_standby_works(machine: Machine, tmp_path: Path) -> None:
    cluster, log = machine.cluster, tmp_path / "standby.log"
    machine.apply().wait_phase("running").wait_ready()
    # Details come some seconds after the phase; whoever leads then writes them.
    until(lambda: machine.status.get("effective"), "the details of the machine")
    until(lambda: machine.condition("StorageReady")["status"] == "True", "its disk")
    version = machine.get()["metadata"]["resourceVersion"]
    leads = 'leader_election_master_status{name="machine-operator"} 1.0'
    supervisor = ProcessRecord.from_json(cluster.state()["supervisor"])
    with standby(cluster, log) as address:
        ready = f"http://{address}/readyz"
        until(lambda: fetch(ready) == (200, "ok"), "the standby's caches to be complete")
        assert leads not in fetch(f"http://{address}/metrics")[1]
        # It would start the leader again, which takes its own lease back at once.
        assert supervisor.signal(signal.SIGSTOP)
        try:
            os.kill(cluster.process("controller").pid, signal.SIGKILL)
            late = Machine(cluster, machine.namespace, "late").apply()
            late.wait_ready(timeout=20)
            assert leads in fetch(f"http://{address}/metrics")[1]
        finally:
            supervisor.signal(signal.SIGCONT)
        assert machine.get()["metadata"]["resourceVersion"] == version, log.read_text()
        until(lambda: cluster.controller("/readyz") == (200, "ok"), "the other one to stand by")
        assert leads not in cluster.controller("/metrics")[1]
    # The standby gave its lease back when it was told to end.
    until(lambda: leads in cluster.controller("/metrics")[1], "the first one to lead", timeout=5)
    machine.power("sleeping")
