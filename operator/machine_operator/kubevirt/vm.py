"""The VirtualMachine of a Machine.

Whatever KubeVirt's mutating webhook would fill in at random (firmware UUID and serial) or by default (architecture,
machine type) is set here: server-side apply would otherwise not own it, and the guest's identity would hang on it.
The firmware UUID is the Machine's UID; it is also the NoCloud instance id. Sizes: the guest has whole processors,
and the share of a fraction is the pod's CPU request.
"""

from __future__ import annotations

import math
from typing import Any

from machine_operator.api.machine import Machine
from machine_operator.api.names import API_VERSION, KIND
from machine_operator.kubevirt.digest import digest
from machine_operator.kubevirt.names import (
    APPLIED_ANNOTATION,
    BOOT_ANNOTATION,
    child_labels,
    child_names,
)
from machine_operator.kubevirt.settings import MachineDefaults

__all__ = ["HOME_SERIAL", "build_vm", "owner_reference", "vm_digests"]

Object = dict[str, Any]

HOME_SERIAL = "home"
"""Serial of the home disk: the guest finds it as /dev/disk/by-id/virtio-home."""


def owner_reference(machine: Machine) -> Object:
    """What makes a child the Machine's: collected with it, and never taken over from another owner."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": machine.metadata.name,
        "uid": machine.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def vm_digests(machine: Machine, defaults: MachineDefaults, *, home: str) -> tuple[str, str]:
    """Two fingerprints of the VM without its power state. `home` is the name of the home disk's claim.

    The first is of everything; the second of what only a start takes over: all but the guest's memory, which
    KubeVirt can change live.
    """
    template = _template(machine, defaults, home=home)
    whole = digest(template)
    del template["spec"]["domain"]["memory"]
    return whole, digest(template)


def build_vm(
    machine: Machine, defaults: MachineDefaults, *, home: str, run_strategy: str
) -> Object:
    """The VM as the operator applies it. `run_strategy` is one of RunStrategy."""
    applied, boot = vm_digests(machine, defaults, home=home)
    template = _template(machine, defaults, home=home)
    # On the template it reaches the VMI, which so tells what it was started from.
    template["metadata"]["annotations"] = {BOOT_ANNOTATION: boot}
    meta = machine.metadata
    return {
        "metadata": {
            "name": child_names(meta.uid).vm,
            "namespace": meta.namespace,
            "labels": child_labels(uid=meta.uid, machine=meta.name),
            "annotations": {APPLIED_ANNOTATION: applied},
            "ownerReferences": [owner_reference(machine)],
        },
        "spec": {"runStrategy": run_strategy, "template": template},
    }


def _template(machine: Machine, defaults: MachineDefaults, *, home: str) -> Object:
    meta, spec = machine.metadata, machine.spec
    names = child_names(meta.uid)
    return {
        "metadata": {"labels": child_labels(uid=meta.uid, machine=meta.name)},
        "spec": {
            "architecture": "amd64",
            "terminationGracePeriodSeconds": defaults.grace_seconds,
            "evictionStrategy": "LiveMigrateIfPossible",
            "hostname": meta.name,
            "domain": _domain(machine),
            "networks": [{"name": "default", "pod": {}}],
            # sshd answers: until then the machine is starting, and no Service sends anybody to it.
            "readinessProbe": {
                "tcpSocket": {"port": defaults.ssh_port},
                "periodSeconds": 2,
                "timeoutSeconds": 5,
                "failureThreshold": 3,
            },
            "volumes": [
                {
                    "name": "root",
                    "containerDisk": {
                        "image": spec.image or defaults.image,
                        "imagePullPolicy": "IfNotPresent",
                    },
                },
                {"name": "home", "persistentVolumeClaim": {"claimName": home}},
                {"name": "seed", "cloudInitNoCloud": {"secretRef": {"name": names.seed}}},
            ],
        },
    }


def _domain(machine: Machine) -> Object:
    spec = machine.spec
    processors = math.ceil(spec.vcpu)
    return {
        "cpu": {"sockets": processors, "cores": 1, "threads": 1},
        "memory": {"guest": f"{spec.memory_mib}Mi"},
        "machine": {"type": "q35"},
        "firmware": {"uuid": machine.metadata.uid, "serial": machine.metadata.uid},
        "resources": {
            # The limit is whole processors: a hard fraction would slow down boot and shutdown as well.
            "requests": {"cpu": f"{round(spec.vcpu * 1000)}m"},
            "limits": {"cpu": str(processors)},
        },
        "devices": {
            "autoattachGraphicsDevice": False,
            "rng": {},
            "disks": [
                {"name": "root", "disk": {"bus": "virtio"}, "bootOrder": 1},
                {"name": "home", "disk": {"bus": "virtio"}, "serial": HOME_SERIAL},
                {"name": "seed", "disk": {"bus": "virtio"}},
            ],
            "interfaces": [{"name": "default", "masquerade": {}, "model": "virtio"}],
        },
    }
