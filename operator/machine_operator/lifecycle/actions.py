"""What a decision can ask for. Each is safe to do twice, and safe to do late."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Action",
    "AddFinalizer",
    "ApplyHome",
    "ApplySeed",
    "ApplyVirtualMachine",
    "DeleteHome",
    "DeleteSeed",
    "DeleteVirtualMachine",
    "ReleaseHome",
    "RemoveFinalizer",
]


@dataclass(frozen=True, slots=True)
class AddFinalizer:
    """Before any child is made, so that none can be forgotten."""


@dataclass(frozen=True, slots=True)
class RemoveFinalizer:
    """Nothing of the machine is left; the object may go."""


@dataclass(frozen=True, slots=True)
class ApplyHome:
    """Create the home disk's claim, or grow it."""


@dataclass(frozen=True, slots=True)
class ApplySeed:
    """Create the seed Secret with a new host key, or render it again with the one that it has."""


@dataclass(frozen=True, slots=True)
class ApplyVirtualMachine:
    """Create or change the VM. `run_strategy` is `Always` or `Halted`."""

    run_strategy: str


@dataclass(frozen=True, slots=True)
class DeleteVirtualMachine:
    """Shut down and remove the VM of this uid."""

    uid: str


@dataclass(frozen=True, slots=True)
class DeleteHome:
    """Remove the home disk for good."""

    uid: str


@dataclass(frozen=True, slots=True)
class ReleaseHome:
    """Keep the home disk: take our owner reference off, or it would be collected with the Machine."""

    uid: str


@dataclass(frozen=True, slots=True)
class DeleteSeed:
    """Remove the seed Secret, host key included."""

    uid: str


Action = (
    AddFinalizer
    | RemoveFinalizer
    | ApplyHome
    | ApplySeed
    | ApplyVirtualMachine
    | DeleteVirtualMachine
    | DeleteHome
    | ReleaseHome
    | DeleteSeed
)
