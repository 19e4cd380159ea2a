"""What one reconcile sees: the Machine, its children as small views, and what the children should be.

Views hold only what decisions need, so that two observations that lead to the same decision compare equal and a
heartbeat somewhere in a VMI wakes nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from machine_operator.api.machine import Machine
from machine_operator.api.phases import REASONS, Reason, ReclaimPolicy

__all__ = [
    "ClaimView",
    "InstancePhase",
    "InstanceView",
    "Observation",
    "SeedView",
    "Trouble",
    "VirtualMachineView",
    "Wanted",
]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is wrong, as its root cause said it."""

    reason: Reason
    message: str

    def __post_init__(self) -> None:
        if not REASONS[self.reason].is_trouble:
            raise ValueError(f"{self.reason} is no trouble: nobody has to do anything about it")


class InstancePhase(StrEnum):
    """How far a VMI has come, in the steps that matter here."""

    PENDING = "pending"
    """KubeVirt has it; no node yet."""
    SCHEDULED = "scheduled"
    """It has a node, and boots."""
    RUNNING = "running"
    ENDED = "ended"
    """Succeeded or Failed: this one never runs again."""


@dataclass(frozen=True, slots=True)
class VirtualMachineView:
    """A KubeVirt VirtualMachine.

    Attributes:
        applied: our digest of the template that was last applied ("" where it is not ours).
        run_strategy: `Always`, `Halted` or whatever somebody set.
        trouble: what KubeVirt reports about the VM itself (refused by a webhook, crash loop).
    """

    name: str
    uid: str
    deleting: bool
    run_strategy: str
    applied: str
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class InstanceView:
    """A KubeVirt VirtualMachineInstance: one boot.

    Attributes:
        ready: its readiness probe (sshd answers) succeeded.
        applied: digest of the template that it was started from.
        vcpu: processors in quarter steps; memory_mib: guest memory.
        trouble: what keeps it from running or from answering.
    """

    uid: str
    phase: InstancePhase
    deleting: bool
    ready: bool
    applied: str
    node: str | None = None
    addresses: tuple[str, ...] = ()
    vcpu: float | None = None
    memory_mib: int | None = None
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True)
class ClaimView:
    """The home disk's PersistentVolumeClaim.

    Attributes:
        bound: it has a volume.
        capacity_gib: size of the volume, rounded down (0 while unbound).
        owned: our Machine is its owner, so it would be collected with it.
    """

    name: str
    uid: str
    deleting: bool
    bound: bool
    capacity_gib: int
    applied: str
    owned: bool


@dataclass(frozen=True, slots=True)
class SeedView:
    """The Secret with the seed and the host key."""

    name: str
    uid: str
    applied: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """Digests of the children as they should be; a child whose `applied` differs is applied again."""

    virtual_machine: str
    home: str
    seed: str


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that one decision is made from. None stands for "is not there"."""

    machine: Machine
    wanted: Wanted
    virtual_machine: VirtualMachineView | None = None
    instance: InstanceView | None = None
    home: ClaimView | None = None
    seed: SeedView | None = None

    @property
    def home_is_done(self) -> bool:
        """At the end of a machine: the home disk is gone, or kept on purpose and no longer ours."""
        if self.home is None:
            return True
        return self.machine.spec.reclaim_policy is ReclaimPolicy.RETAIN and not self.home.owned
