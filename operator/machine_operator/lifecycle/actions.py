"""What a decision can ask for. Each is safe to do twice, and safe to do late."""

from __future__ import annotations

from dataclasses import dataclass

from machine_operator.api.machine import PowerRequest

__all__ = [
    "Action",
    "AddFinalizer",
    "ApplyHome",
    "ApplySeed",
    "ApplyVirtualMachine",
    "DeleteHome",
    "DeleteInstance",
    "DeleteSeed",
    "DeleteVirtualMachine",
    "ReleaseHome",
    "RemoveFinalizer",
    "RequestPower",
]


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Before any child is made, so that none can be forgotten."""


@dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    """Nothing of the machine is left; the object may go."""


@dataclass(frozen=True, slots=True)
class RequestPower:
    """Write down a power request; refused where the Machine has changed since (somebody may have touched it)."""

    request: PowerRequest


@dataclass(frozen=True, slots=True)
class ApplyHome:
    """Create the home disk's claim of this name, make it ours, or grow it."""

    name: str


@dataclass(frozen=True, slots=True)
class ApplySeed:
    """Create the seed Secret with a new host key, or render it again with the one that it has."""


@dataclass(frozen=True, slots=True)
class ApplyVirtualMachine:
    """Create or change the VM. `run_strategy` is one of RunStrategy.

    `drop_start`: first take back the start that KubeVirt has planned: it answers a VM that is off with a start request
    by switching it on for good.
    """

    run_strategy: str
    drop_start: bool = False


@dataclass(frozen=True, slots=True)
class DeleteVirtualMachine:
    """Shut down and remove the VM of this uid."""

    uid: str


@dataclass(frozen=True, slots=True)
class DeleteInstance:
    """Shut down and remove the VMI of this uid, whose VM is gone."""

    uid: str


@dataclass(frozen=True, slots=True)
class DeleteHome:
    """Remove the home disk for good."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class ReleaseHome:
    """Keep the home disk: take our owner reference off, or it would be collected with the Machine."""

    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class DeleteSeed:
    """Remove the seed Secret, host key included."""

    uid: str


Action = (
    AddFinalizer
    | RemoveFinalizer
    | RequestPower
    | ApplyHome
    | ApplySeed
    | ApplyVirtualMachine
    | DeleteVirtualMachine
    | DeleteInstance
    | DeleteHome
    | ReleaseHome
    | DeleteSeed
)
