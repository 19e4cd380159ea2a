"""The home disk: a PersistentVolumeClaim outside of the VM, so that it outlives every start of it."""

from __future__ import annotations

from typing import Any

from machine_operator.api.machine import Machine
from machine_operator.kubevirt.digest import digest
from machine_operator.kubevirt.names import APPLIED_ANNOTATION, child_labels
from machine_operator.kubevirt.vm import owner_reference

__all__ = ["build_home", "home_digest", "released_home"]

Object = dict[str, Any]


def home_digest(machine: Machine, *, name: str) -> str:
    """Fingerprint of the claim as it should be."""
    return digest(_body(machine, name=name, owned=True))


def build_home(machine: Machine, *, name: str) -> Object:
    """The claim as the operator applies it; a bigger size makes it grow where its class allows that."""
    body = _body(machine, name=name, owned=True)
    body["metadata"]["annotations"] = {APPLIED_ANNOTATION: home_digest(machine, name=name)}
    return body


def released_home(machine: Machine, *, name: str) -> Object:
    """The claim without its owner: applied in place of `build_home`, it keeps the disk when the Machine goes."""
    return _body(machine, name=name, owned=False)


def _body(machine: Machine, *, name: str, owned: bool) -> Object:
    meta, spec = machine.metadata, machine.spec
    metadata: Object = {
        "name": name,
        "namespace": meta.namespace,
        "labels": child_labels(uid=meta.uid, machine=meta.name),
    }
    if owned:
        metadata["ownerReferences"] = [owner_reference(machine)]
    claim: Object = {
        "accessModes": ["ReadWriteOnce"],
        "volumeMode": "Filesystem",
        "resources": {"requests": {"storage": f"{spec.storage_gib}Gi"}},
    }
    if spec.storage_class is not None:
        claim["storageClassName"] = spec.storage_class
    return {"metadata": metadata, "spec": claim}
