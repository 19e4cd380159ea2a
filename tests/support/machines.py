"""Machines and observations for tests: valid by default, changed by keyword."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from machine_operator.api.machine import Machine, MachineStatus, read_machine
from machine_operator.api.names import API_VERSION, FINALIZER, KIND
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.lifecycle.limits import Limits
from machine_operator.lifecycle.observation import (
    ClaimView,
    InstancePhase,
    InstanceView,
    Observation,
    RunStrategy,
    SeedView,
    VirtualMachineView,
    Wanted,
)

__all__ = [
    "DEFAULTS",
    "KEY",
    "LIMITS",
    "NOW",
    "UID",
    "WANTED",
    "a_claim",
    "a_machine",
    "a_seed",
    "a_vm",
    "an_instance",
    "an_observation",
    "machine_object",
]

UID = "7f3a9c21-5b1e-4c7d-9a60-3c1f2e4d5a6b"
NOW = datetime(2026, 3, 1, 10, 0, 0, 250, tzinfo=UTC)
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2v3Vd7S0aW4Rz9p ada@desk"
DEFAULTS = MachineDefaults(image="registry.example/root:1")
WANTED = Wanted(
    virtual_machine="vm-1",
    boot="boot-1",
    home="home-1",
    home_name="m-7f3a9c215b1e-home",
    seed="seed-1",
)
LIMITS = Limits()

Object = dict[str, Any]


def machine_object(
    *,
    name: str = "box",
    uid: str = UID,
    spec: Object | None = None,
    status: Object | None = None,
    **metadata: Any,
) -> Object:
    """A Machine as the API server has it."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": uid,
            "generation": 1,
            "resourceVersion": "7",
            "finalizers": [FINALIZER],
            **metadata,
        },
        "spec": {"vcpu": 0.25, "memory_mib": 512, "storage_gib": 10, **(spec or {})},
        **({"status": status} if status is not None else {}),
    }


def a_machine(*, status: MachineStatus | Object | None = None, **parts: Any) -> Machine:
    """The same as a model."""
    if isinstance(status, MachineStatus):
        status = status.to_dict()
    return read_machine(machine_object(status=status, **parts))


def a_vm(**changes: Any) -> VirtualMachineView:
    """A VM as applied, told to run."""
    fields: Object = {
        "name": "m-7f3a9c215b1e",
        "uid": "vm-uid",
        "deleting": False,
        "run_strategy": RunStrategy.ON,
        "applied": WANTED.virtual_machine,
    }
    return VirtualMachineView(**(fields | changes))


def an_instance(phase: InstancePhase = InstancePhase.RUNNING, **changes: Any) -> InstanceView:
    """A VMI; a running one is ready."""
    up = phase in (InstancePhase.SCHEDULED, InstancePhase.RUNNING)
    fields: Object = {
        "uid": "vmi-uid",
        "phase": phase,
        "deleting_since": None,
        "ready": phase is InstancePhase.RUNNING,
        "started_from": WANTED.boot,
        "node": "node-1" if up else None,
        "vcpu": 0.25,
        "memory_mib": 512,
    }
    return InstanceView(**(fields | changes))


def a_claim(**changes: Any) -> ClaimView:
    """A home disk, bound, in the size asked for."""
    fields: Object = {
        "name": "m-7f3a9c215b1e-home",
        "uid": "home-uid",
        "deleting": False,
        "bound": True,
        "capacity_gib": 10,
        "applied": WANTED.home,
        "owned": True,
        "machine": "box",
        "machine_uid": UID,
    }
    return ClaimView(**(fields | changes))


def a_seed(**changes: Any) -> SeedView:
    """A seed as applied."""
    fields: Object = {"name": "m-7f3a9c215b1e-seed", "uid": "seed-uid", "applied": WANTED.seed}
    return SeedView(**(fields | changes))


def an_observation(machine: Machine | None = None, **parts: Any) -> Observation:
    """An observation: a running machine with all its children, each of which may be None."""
    children: Object = {
        "virtual_machine": a_vm(),
        "instance": an_instance(),
        "home": a_claim(),
        "seed": a_seed(),
    }
    wanted = parts.pop("wanted", WANTED)
    return Observation(machine=machine or a_machine(), wanted=wanted, **(children | parts))
