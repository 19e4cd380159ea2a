"""Names of a machine's children: derived from the Machine's UID alone, so that making one twice is a no-op.

48 bits of a random UID are enough for one namespace, and the owner reference catches the rest: the API server
refuses a second controller. At most 52 characters, no dots: KubeVirt cuts longer names in labels and host names.
"""

from __future__ import annotations

from dataclasses import dataclass

from machine_operator.api.machine import Machine
from machine_operator.api.names import (
    ADOPT_ANNOTATION,
    MANAGED_BY,
    MANAGED_BY_LABEL,
    NAME_LABEL,
    UID_LABEL,
)

__all__ = [
    "APPLIED_ANNOTATION",
    "BOOT_ANNOTATION",
    "ChildNames",
    "child_labels",
    "child_names",
    "home_name",
]

APPLIED_ANNOTATION = "machines.dedaluslabs.ai/applied"
"""On each child: digest of what was last applied. While it is the wanted one, nothing needs to be written."""

BOOT_ANNOTATION = "machines.dedaluslabs.ai/started-from"
"""On a VM's template, and so on each VMI: digest of everything that only a start takes over."""


@dataclass(frozen=True, slots=True)
class ChildNames:
    """The children of one Machine, all in its namespace."""

    vm: str
    home: str
    seed: str


def child_names(uid: str) -> ChildNames:
    """The names for a Machine of this UID. A VM and its VMI have the same name."""
    base = f"m-{uid.replace('-', '')[:12]}"
    return ChildNames(vm=base, home=f"{base}-home", seed=f"{base}-seed")


def child_labels(*, uid: str, machine: str) -> dict[str, str]:
    """The labels of every child, by which informers and people find it."""
    return {UID_LABEL: uid, NAME_LABEL: machine, MANAGED_BY_LABEL: MANAGED_BY}


def home_name(machine: Machine, *, found: str | None) -> str:
    """The name of the home disk's claim. `found` is the claim which carries the machine's UID, if there is one:
    a disk keeps the name under which it began.
    """
    known = machine.status.vm
    if found is not None:
        return found
    if known is not None and known.home_claim is not None:
        return known.home_claim
    adopted = machine.metadata.annotations.get(ADOPT_ANNOTATION)
    return adopted or child_names(machine.metadata.uid).home
