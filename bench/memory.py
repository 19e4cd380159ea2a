"""Resident memory: each process of an idle cluster, each QEMU, and each machine of a cluster without QEMU."""

from __future__ import annotations

import json
import time
from pathlib import Path

from clusters import BenchError, Cluster, progress
from figures import Report, measured, single

from machine_operator.local.processes import resident_mib

__all__ = ["machine_manifest", "measure"]

_SETTLE = 15.0
"""Seconds after the last change before memory is read: Go gives back what a burst of work took within some seconds."""

_GUESTS = 2
_READY_LIMIT = 300

Sizes = dict[str, float]


def machine_manifest(
    name: str, *, keys: tuple[str, ...] = (), memory_mib: int = 256, vcpu: float = 1
) -> str:
    """A Machine of the size of the example, as JSON for kubectl."""
    return json.dumps(
        {
            "apiVersion": "machines.dedaluslabs.ai/v1alpha1",
            "kind": "Machine",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "vcpu": vcpu,
                "memory_mib": memory_mib,
                "storage_gib": 1,
                "autosleep": "never",
                "ssh_authorized_keys": list(keys),
            },
        }
    )


def measure(report: Report, directory: Path, *, machines: int) -> None:
    """Both kinds of cluster, one after the other.

    Args:
        report: gets the figures.
        directory: for the clusters' data.
        machines: how many machines the cluster without QEMU gets.
    """
    with Cluster(directory) as cluster:
        _with_qemu(report, cluster)
    report.note_load("after memory with QEMU")
    with Cluster(directory, "--hollow") as cluster:
        _hollow(report, cluster, machines=machines)
    report.note_load("after memory without QEMU")


def _with_qemu(report: Report, cluster: Cluster) -> None:
    progress("memory: an idle cluster")
    cluster.up()
    idle = _settled(cluster)
    progress(f"memory: {_GUESTS} guests")
    _machines(cluster, _GUESTS)
    busy = _settled(cluster)
    guests = [resident_mib(g.process.pid) or 0.0 for g in cluster.guests() if g.process]
    if len(guests) != _GUESTS:
        raise BenchError(f"{len(guests)} guests run where {_GUESTS} should")
    report.raw["memory"] = {"idle": idle, "with guests": busy, "guests": guests}
    report.add(single("memory of the idle cluster, all processes", sum(idle.values()), "MiB"))
    for name, size in sorted(idle.items(), key=lambda item: -item[1]):
        report.add(single(f"  {name}", size, "MiB"))
    report.add(measured("memory of a guest's QEMU (256 MiB machine)", guests, "MiB"))


def _hollow(report: Report, cluster: Cluster, *, machines: int) -> None:
    progress(f"memory: {machines} machines without QEMU")
    cluster.up()
    idle = _settled(cluster)
    begun = time.monotonic()
    _machines(cluster, machines)
    took = time.monotonic() - begun
    full = _settled(cluster)
    each = {name: (full[name] - idle[name]) / machines for name in idle}
    report.raw["memory, hollow"] = {"idle": idle, "full": full, "machines": machines, "s": took}
    title = f"memory per machine without QEMU ({machines} of them)"
    report.add(single(title, sum(each.values()), "MiB"))
    for name, size in sorted(each.items(), key=lambda item: -item[1]):
        report.add(single(f"  {name}", size, "MiB"))
    report.add(single(f"{machines} machines without QEMU applied and Ready", took, "s"))


def _machines(cluster: Cluster, count: int) -> None:
    """Apply machines and wait until all of them are Ready."""
    manifests = [json.loads(machine_manifest(f"memory-{n}", vcpu=0.25)) for n in range(count)]
    whole = json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    cluster.kubectl("apply", "-f", "-", stdin=whole)
    cluster.kubectl(
        "wait",
        "--for=condition=Ready",
        "machine",
        "--all",
        f"--timeout={_READY_LIMIT}s",
        limit=_READY_LIMIT + 30,
    )


def _settled(cluster: Cluster) -> Sizes:
    cluster.wait_quiet()
    time.sleep(_SETTLE)
    return cluster.resident()
