"""A machine that the cluster refuses: quota, placement, image, disk, policy. Each says why, and goes on by itself.

All patients fall ill at the same time, each in a namespace of its own. The first round of tests looks at each and heals
it, the second one sees that they are well: so they wait side by side for the next try of whoever refused them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest

from tests.cluster.failures import told, well
from tests.cluster.support import MINUTE, Cluster, Machine, Object, until

pytestmark = pytest.mark.cluster

_GROUPS = {"virtualmachines": "VirtualMachine", "virtualmachineinstances": "VirtualMachineInstance"}


def quota(**hard: str) -> Callable[[str], list[Object]]:
    """A ResourceQuota; `__` in a name stands for a dot."""
    limits = {name.replace("__", "."): value for name, value in hard.items()}

    def objects(_: str) -> list[Object]:
        return [_object("v1", "ResourceQuota", "team", spec={"hard": limits})]

    return objects


def limit_range(kind: str, resource: str, most: str) -> Callable[[str], list[Object]]:
    """A LimitRange with one upper bound."""

    def objects(_: str) -> list[Object]:
        limits = [{"type": kind, "max": {resource: most}}]
        return [_object("v1", "LimitRange", "team", spec={"limits": limits})]

    return objects


def policy(plural: str) -> Callable[[str], list[Object]]:
    """A ValidatingAdmissionPolicy that lets nobody create these in the namespace."""

    def objects(namespace: str) -> list[Object]:
        version, rule = (
            "admissionregistration.k8s.io/v1",
            {
                "apiGroups": ["kubevirt.io"],
                "apiVersions": ["*"],
                "operations": ["CREATE"],
                "resources": [plural],
            },
        )
        only = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
        spec = {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [rule], "namespaceSelector": only},
            "validations": [{"expression": "false", "message": "this team may not have any"}],
        }
        binding = {"policyName": namespace, "validationActions": ["Deny"]}
        return [
            _object(version, "ValidatingAdmissionPolicy", namespace, spec=spec),
            _object(version, "ValidatingAdmissionPolicyBinding", namespace, spec=binding),
        ]

    return objects


def _object(version: str, kind: str, name: str, **rest: Any) -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **rest}


def hog(_: str) -> list[Object]:
    """A pod that has all of the node's 256 TiB of memory but 2."""
    container = {"name": "hog", "image": "hog", "resources": {"requests": {"memory": "254Ti"}}}
    return [_object("v1", "Pod", "hog", spec={"containers": [container]})]


def nothing(_: str) -> list[Object]:
    return []


# ---- what heals


def removed(kind: str, name: str = "team") -> Callable[[Machine], None]:
    """The object that was in the way is removed."""

    def heal(machine: Machine) -> None:
        machine.kubectl("delete", kind, name or machine.namespace)

    return heal


def asked(**spec: Any) -> Callable[[Machine], None]:
    """Somebody corrects the spec."""
    return lambda machine: machine.patch(**spec)


def class_made(machine: Machine) -> None:
    """The class that was missing is made."""
    cluster = machine.cluster
    [local] = [
        item for item in cluster.items("storageclass") if item["metadata"]["name"] == "local"
    ]
    fields = {key: local[key] for key in ("provisioner", "reclaimPolicy", "volumeBindingMode")}
    made = _object("storage.k8s.io/v1", "StorageClass", machine.spec["storage_class"], **fields)
    machine.kubectl("apply", "-f", "-", input=json.dumps(made))


@dataclass(frozen=True)
class Cause:
    """What is in the way, how it is told, and what ends it (None: nothing does, but to give up the machine)."""

    name: str
    reason: str
    text: str
    objects: Callable[[str], list[Object]] = nothing
    spec: Object = field(default_factory=dict)
    phase: str = "failed"
    heal: Callable[[Machine], None] | None = None


# Whoever tries again does so ever more rarely (KubeVirt up to a quarter of an hour): those are healed first.
CAUSES = (
    Cause(
        "pod quota",
        "QuotaExceeded",
        "exceeded quota: team, requested: pods=1, used: pods=0, limited: pods=0",
        objects=quota(pods="0"),
        heal=removed("quota"),
    ),
    Cause(
        "policy against VMIs",
        "VirtualMachineRefused",
        "denied request: this team may not have any",
        objects=policy("virtualmachineinstances"),
        heal=removed("validatingadmissionpolicybinding", ""),
    ),
    Cause(
        "limit range for containers",
        "QuotaExceeded",
        "must be less than or equal to memory limit of 64Mi",
        objects=limit_range("Container", "memory", "64Mi"),
        heal=removed("limitrange"),
    ),
    Cause(
        "storage quota",
        "QuotaExceeded",
        "exceeded quota: team, requested: requests.storage=1Gi",
        objects=quota(requests__storage="512Mi"),
        phase="accepted",
        heal=removed("quota"),
    ),
    Cause(
        "limit range for disks",
        "QuotaExceeded",
        "maximum storage usage per PersistentVolumeClaim is 512Mi",
        objects=limit_range("PersistentVolumeClaim", "storage", "512Mi"),
        phase="accepted",
        heal=removed("limitrange"),
    ),
    Cause(
        "policy against VMs",
        "VirtualMachineRefused",
        "denied request: this team may not have any",
        objects=policy("virtualmachines"),
        phase="accepted",
        heal=removed("validatingadmissionpolicybinding", ""),
    ),
    Cause(
        "no node has room",
        "Unschedulable",
        "0/1 nodes are available: 1 Insufficient memory",
        objects=hog,
        spec={"memory_mib": 3 * 2**20},
        phase="placement_pending",
        heal=removed("pod", "hog"),
    ),
    Cause(
        "image",
        "ImageNotAvailable",
        "registry.invalid/none:1",
        spec={"image": "registry.invalid/none:1"},
        heal=asked(image=None),
    ),
    Cause(
        "storage class",
        "StorageNotAvailable",
        'storageclass.storage.k8s.io "test-later" not found',
        spec={"storage_class": "test-later"},
        heal=class_made,
    ),
    Cause(
        "provisioner",
        "StorageNotAvailable",
        "were asked for, but the whole file system of",
        spec={"storage_gib": 60_000},
    ),
)


@pytest.fixture(scope="module")
def patients(impatient_cluster: Cluster) -> Iterator[dict[str, Machine]]:
    """One machine for each cause, which is there first."""
    cluster, mark = impatient_cluster, uuid4().hex[:6]
    found: dict[str, Machine] = {}
    try:
        for number, cause in enumerate(CAUSES):
            namespace = f"ill-{mark}-{number}"
            cluster.kubectl("create", "namespace", namespace)
            found[cause.name] = Machine(cluster, namespace, spec=dict(cause.spec))
            for item in cause.objects(namespace):
                cluster.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(item))
        for machine in found.values():
            until(lambda machine=machine: _in_force(machine), "what is in the way to be in force")
        for machine in found.values():
            machine.apply()
        yield found
    finally:
        names = [machine.namespace for machine in found.values()]
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            cluster.kubectl("delete", kind, *names, "--ignore-not-found", check=False)
        cluster.kubectl("delete", "storageclass", "test-later", "--ignore-not-found", check=False)
        cluster.kubectl("delete", "namespace", *names, "--wait=false", check=False)


def _in_force(machine: Machine) -> bool:
    """Quotas count once they are counted, pods once they are placed, policies once the API server has compiled them."""
    for item in machine.cluster.items("quota", namespace=machine.namespace):
        assert (item.get("status") or {}).get("hard"), item
    for item in machine.cluster.items("pods", namespace=machine.namespace):
        assert item["spec"].get("nodeName"), item
    found = machine.cluster.items("validatingadmissionpolicy")
    for item in found:
        if item["metadata"]["name"] != machine.namespace:
            continue
        [rule] = item["spec"]["matchConstraints"]["resourceRules"]
        guest = {"spec": {"domain": {"devices": {}, "memory": {"guest": "64Mi"}}}}
        kind = _GROUPS[rule["resources"][0]]
        spec = {"runStrategy": "Halted", "template": guest} if kind == "VirtualMachine" else None
        body = _object("kubevirt.io/v1", kind, "probe", spec=spec or guest["spec"])
        done = machine.kubectl(
            *("create", "--dry-run=server", "-f", "-"), input=json.dumps(body), check=False
        )
        assert "may not have any" in done.stderr, done
    return True


def by_name(cause: Cause) -> str:
    return cause.name


@pytest.mark.parametrize("cause", CAUSES, ids=by_name)
def test_a_cause_is_told(patients: dict[str, Machine], cause: Cause) -> None:
    machine = patients[cause.name]
    told(machine, phase=cause.phase, reason=cause.reason, text=cause.text)
    if cause.heal is not None:
        cause.heal(machine)
    else:
        machine.delete()


@pytest.mark.parametrize("cause", [cause for cause in CAUSES if cause.heal], ids=by_name)
def test_its_end_is_noticed(patients: dict[str, Machine], cause: Cause) -> None:
    """Healed in the first round."""
    well(patients[cause.name], timeout=2 * MINUTE)
