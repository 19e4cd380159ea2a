"""What one reconcile sees: the Machine, its children as small views, and what the children should be.

Views hold only what decisions need, so that two observations that lead to the same decision compare equal and a
heartbeat somewhere in a VMI wakes nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from machine_operator.api.machine import Machine
from machine_operator.api.phases import REASONS, Reason, ReclaimPolicy

__all__ = [
    "ClaimView",
    "InstancePhase",
    "InstanceView",
    "NodeView",
    "Observation",
    "Question",
    "RunStrategy",
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


class RunStrategy(StrEnum):
    """How a VM is switched on and off.

    Not `Always`: under that, KubeVirt starts a guest again that powered itself off, and no state is left from which
    one could tell afterwards that it had.
    """

    ON = "RerunOnFailure"
    OFF = "Halted"


class InstancePhase(StrEnum):
    """How far a VMI has come, in the steps that matter here."""

    PENDING = "pending"
    """KubeVirt has it; no node yet."""
    SCHEDULED = "scheduled"
    """It has a node, and boots."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    """It was shut down, by the guest itself or from outside."""
    FAILED = "failed"
    """It crashed, was killed, or lost its node."""

    @property
    def ended(self) -> bool:
        """This one never runs again."""
        return self in (InstancePhase.SUCCEEDED, InstancePhase.FAILED)


@dataclass(frozen=True, slots=True)
class VirtualMachineView:
    """A KubeVirt VirtualMachine.

    Attributes:
        applied: our digest of the template that was last applied ("" where it is not ours).
        run_strategy: one of RunStrategy, or whatever somebody set.
        halting: it is told to be off, and KubeVirt has not taken notice yet.
        start_requested: KubeVirt is about to start it (it crashed, or somebody asked for a restart).
        rests: it is told to be on, KubeVirt has acted on that, and has no start planned: without a VMI it stays down.
        start_failures: how often in a row it ended before it was up, as KubeVirt counts; retry_at: its next try.
        trouble: what KubeVirt reports about the VM itself (refused by a webhook, crash loop).
    """

    name: str
    uid: str
    deleting: bool
    run_strategy: str
    applied: str
    halting: bool = False
    start_requested: bool = False
    rests: bool = False
    start_failures: int = 0
    retry_at: datetime | None = None
    trouble: Trouble | None = None

    @property
    def on(self) -> bool:
        """It is told to be on, and to stay so."""
        return self.run_strategy == RunStrategy.ON and not self.deleting


@dataclass(frozen=True, slots=True)
class InstanceView:
    """A KubeVirt VirtualMachineInstance: one boot.

    Attributes:
        deleting_since: when it was told to stop; None while it was not.
        ready: its readiness probe (sshd answers) succeeded.
        started_from: digest of the template that it was started from, without what can change live.
        vcpu: processors in quarter steps; memory_mib: guest memory.
        trouble: what keeps it from running or from answering.
    """

    uid: str
    phase: InstancePhase
    deleting_since: datetime | None
    ready: bool
    started_from: str
    node: str | None = None
    addresses: tuple[str, ...] = ()
    vcpu: float | None = None
    memory_mib: int | None = None
    trouble: Trouble | None = None

    @property
    def deleting(self) -> bool:
        """It was told to stop."""
        return self.deleting_since is not None


@dataclass(frozen=True, slots=True)
class ClaimView:
    """The home disk's PersistentVolumeClaim.

    Attributes:
        created_at: when it was made.
        bound: it has a volume.
        capacity_gib: size of the volume, rounded down (0 while unbound).
        requested_gib: size asked for.
        owned: the Machine that its label names is its owner, so it would be collected with it.
        foreign_owner: something else is its controller.
        machine, machine_uid: whose disk it is, or was: the labels.
        labelled: it carries our labels (else our cache does not see it).
    """

    name: str
    uid: str
    deleting: bool
    bound: bool
    capacity_gib: int
    applied: str
    owned: bool
    machine: str
    machine_uid: str
    requested_gib: int = 0
    created_at: datetime | None = None
    foreign_owner: bool = False

    @property
    def labelled(self) -> bool:
        """It carries the labels by which caches find it."""
        return bool(self.machine and self.machine_uid)


@dataclass(frozen=True, slots=True)
class SeedView:
    """The Secret with the seed and the host key."""

    name: str
    uid: str
    applied: str


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node, as far as its machines care.

    Attributes:
        ready: it reports, and says that it is well; message: what it says otherwise.
        schedulable: it takes new pods (it is not cordoned or drained).
    """

    name: str
    ready: bool
    schedulable: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The children as they should be, as digests; a child whose `applied` differs is applied again.

    Attributes:
        boot: digest of what only a start takes over.
        home_name: name of the home disk's claim.
    """

    virtual_machine: str
    boot: str
    home: str
    home_name: str
    seed: str


class Question(StrEnum):
    """What a decision needs to know from the API server itself: caches lag, and something drastic hangs on it."""

    VIRTUAL_MACHINE = "virtual machine"
    """Is there really no VM?"""
    INSTANCE = "instance"
    """Is there really no VMI?"""
    HOME = "home"
    """Is there really no home disk?"""
    WHY_UNBOUND = "why unbound"
    """What do the events of the claim say?"""


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that one decision is made from. None stands for "is not there".

    Attributes:
        fault: what is wrong with the spec, or None; the machine's spec is then a stand-in.
        node: the node on which the machine runs, or ran last.
        failed_instance: UID of the newest VMI that failed without being told to stop; it may be gone.
        answered: the questions that the API server has answered in this pass.
        unbound_because: what the events of an unbound claim say, once asked.
    """

    machine: Machine
    wanted: Wanted
    virtual_machine: VirtualMachineView | None = None
    instance: InstanceView | None = None
    home: ClaimView | None = None
    seed: SeedView | None = None
    node: NodeView | None = None
    fault: str | None = None
    failed_instance: str | None = None
    answered: frozenset[Question] = frozenset()
    unbound_because: str | None = None

    @property
    def home_is_done(self) -> bool:
        """At the end of a machine: the home disk is gone, or kept on purpose and no longer ours."""
        if self.home is None or self.home.machine_uid != self.machine.metadata.uid:
            return True
        return self.machine.spec.reclaim_policy is ReclaimPolicy.RETAIN and not self.home.owned
