"""Where a machine is in its life (phase), and the stable word for why (reason).

A phase is settled when it can satisfy a desired state for good; `failed` is stuck, not settled.
Reasons are API: scripts and alerts match on them, so they are never renamed. `REASONS` is their one
table; the documentation prints it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

__all__ = [
    "PHASE_REASONS",
    "REASONS",
    "SETTLED",
    "DesiredState",
    "Phase",
    "Power",
    "Reason",
    "ReclaimPolicy",
]


class Phase(StrEnum):
    """Where a machine is in its life, in the order of a life."""

    ACCEPTED = "accepted"
    PLACEMENT_PENDING = "placement_pending"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SLEEPING = "sleeping"
    DESTROYING = "destroying"
    DESTROYED = "destroyed"
    FAILED = "failed"


class Power(StrEnum):
    """The two states between which a machine is switched."""

    RUNNING = "running"
    SLEEPING = "sleeping"


class DesiredState(StrEnum):
    """What somebody wants of a machine; `destroyed` is one-way."""

    RUNNING = "running"
    SLEEPING = "sleeping"
    DESTROYED = "destroyed"


class ReclaimPolicy(StrEnum):
    """What becomes of the home disk at the end, in the words of PersistentVolumes."""

    DELETE = "Delete"
    RETAIN = "Retain"


SETTLED: Final = frozenset({Phase.RUNNING, Phase.SLEEPING, Phase.DESTROYED})
"""The phases in which nothing is left to do, if they are the desired ones."""


class Reason(StrEnum):
    """Why a machine is in its phase, or a condition has its status; `REASONS` tells them all."""

    DESIRED_STATE_REACHED = "DesiredStateReached"

    ACCEPTED = "Accepted"
    SCHEDULING = "Scheduling"
    STARTING = "Starting"
    STOPPING = "Stopping"
    DESTROYING = "Destroying"
    DELETING = "Deleting"
    PAUSED = "Paused"

    IMAGE_NOT_AVAILABLE = "ImageNotAvailable"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    STORAGE_NOT_AVAILABLE = "StorageNotAvailable"
    STORAGE_NOT_RESIZABLE = "StorageNotResizable"
    STORAGE_LOST = "StorageLost"
    VIRTUAL_MACHINE_REFUSED = "VirtualMachineRefused"
    VIRTUAL_MACHINE_FOREIGN = "VirtualMachineForeign"
    KUBEVIRT_NOT_AVAILABLE = "KubeVirtNotAvailable"
    SPEC_INVALID = "SpecInvalid"
    CRASH_LOOP = "CrashLoop"
    NODE_NOT_READY = "NodeNotReady"
    GUEST_PAUSED = "GuestPaused"
    GUEST_NOT_REACHABLE = "GuestNotReachable"
    START_TIMEOUT = "StartTimeout"
    STOP_TIMEOUT = "StopTimeout"
    INTERNAL_ERROR = "InternalError"

    AWAKE = "Awake"
    ASLEEP = "Asleep"
    NODE_ASSIGNED = "NodeAssigned"
    STORAGE_BOUND = "StorageBound"
    STORAGE_PENDING = "StoragePending"
    GUEST_ANSWERS = "GuestAnswers"
    SIZES_APPLIED = "SizesApplied"
    SIZES_DIFFER = "SizesDiffer"
    UNKNOWN = "Unknown"


_NOTHING: Final = "Nothing to do."


@dataclass(frozen=True, slots=True)
class ReasonFacts:
    """One row of the table of reasons.

    Attributes:
        meaning: What is the case.
        unblocks: What ends it, and who has to do it; "Nothing to do." when it ends by itself.
        retryable: Whether the operator goes on trying by itself.
    """

    meaning: str
    unblocks: str
    retryable: bool

    @property
    def is_trouble(self) -> bool:
        """Whether something is wrong that somebody has to end."""
        return self.unblocks != _NOTHING


REASONS: Final[Mapping[Reason, ReasonFacts]] = MappingProxyType(
    {
        Reason.DESIRED_STATE_REACHED: ReasonFacts(
            "The machine is as it was asked to be.", _NOTHING, False
        ),
        Reason.ACCEPTED: ReasonFacts(
            "The operator has seen the machine and prepares its disk and its VM.", _NOTHING, True
        ),
        Reason.SCHEDULING: ReasonFacts("The VM waits for a node.", _NOTHING, True),
        Reason.STARTING: ReasonFacts("The VM boots on its node.", _NOTHING, True),
        Reason.STOPPING: ReasonFacts("The guest shuts down on its way to sleep.", _NOTHING, True),
        Reason.DESTROYING: ReasonFacts(
            "The VM and, if not retained, the home disk are being removed.", _NOTHING, True
        ),
        Reason.DELETING: ReasonFacts(
            "The Machine object was deleted; the operator removes what belongs to it first.",
            _NOTHING,
            True,
        ),
        Reason.PAUSED: ReasonFacts(
            "The annotation machines.dedaluslabs.ai/paused tells the operator to change nothing.",
            "Remove the annotation.",
            False,
        ),
        Reason.IMAGE_NOT_AVAILABLE: ReasonFacts(
            "The root image cannot be pulled.",
            "Correct spec.image, or the registry and its pull secret.",
            True,
        ),
        Reason.UNSCHEDULABLE: ReasonFacts(
            "No node has room for the machine, or none may run it.",
            "Ask for less, let other machines sleep, or add a node.",
            True,
        ),
        Reason.QUOTA_EXCEEDED: ReasonFacts(
            "A quota or limit of the namespace refuses the machine.",
            "Raise the ResourceQuota or LimitRange, or ask for less.",
            True,
        ),
        Reason.STORAGE_NOT_AVAILABLE: ReasonFacts(
            "The home disk cannot be provided.",
            "Repair the storage class or its provisioner. Another class takes a new machine.",
            True,
        ),
        Reason.STORAGE_NOT_RESIZABLE: ReasonFacts(
            "The home disk's storage class does not let it grow.",
            "Set allowVolumeExpansion on the class, or restore spec.storage_gib.",
            True,
        ),
        Reason.STORAGE_LOST: ReasonFacts(
            "The home disk existed and is gone; the operator does not replace it by an empty one.",
            "Restore the disk from a backup under its old name, or destroy the machine.",
            False,
        ),
        Reason.VIRTUAL_MACHINE_REFUSED: ReasonFacts(
            "KubeVirt or an admission webhook refuses the VM.",
            "Read last_error; change the spec or the policy which refuses it.",
            True,
        ),
        Reason.VIRTUAL_MACHINE_FOREIGN: ReasonFacts(
            "An object of the VM's or disk's name exists and belongs to somebody else.",
            "Remove or rename that object.",
            True,
        ),
        Reason.KUBEVIRT_NOT_AVAILABLE: ReasonFacts(
            "KubeVirt's API does not answer, so no VM can be changed.",
            "Look at virt-api; the operator goes on as soon as it answers.",
            True,
        ),
        Reason.SPEC_INVALID: ReasonFacts(
            "The stored spec breaks a rule which this operator has.",
            "Correct the field which last_error names.",
            False,
        ),
        Reason.CRASH_LOOP: ReasonFacts(
            "The VM ends again and again soon after its start.",
            "Read the VM's console; correct the image or the guest. Retries get rarer.",
            True,
        ),
        Reason.NODE_NOT_READY: ReasonFacts(
            "The machine's node no longer reports.",
            "Repair the node, or fence and delete it, so that the machine starts elsewhere.",
            True,
        ),
        Reason.GUEST_PAUSED: ReasonFacts(
            "The VM is paused; not by us: an I/O error, a full disk, or a person.",
            "Make room on the storage, then unpause or restart the VM.",
            True,
        ),
        Reason.GUEST_NOT_REACHABLE: ReasonFacts(
            "The VM runs, but nothing answers at its SSH port.",
            "Look at the console: sshd may be missing, or the guest still boots.",
            True,
        ),
        Reason.START_TIMEOUT: ReasonFacts(
            "The machine did not become usable in time.",
            "Read last_error and the VM's console. Retries get rarer.",
            True,
        ),
        Reason.STOP_TIMEOUT: ReasonFacts(
            "The VM outlived its grace period.",
            "Look at the node: its KubeVirt handler may not answer.",
            True,
        ),
        Reason.INTERNAL_ERROR: ReasonFacts(
            "The operator met an error which it does not know.",
            "Read last_error and the operator's log, and report it.",
            True,
        ),
        Reason.AWAKE: ReasonFacts("The machine is on.", _NOTHING, False),
        Reason.ASLEEP: ReasonFacts("The machine is off and wakes when used.", _NOTHING, False),
        Reason.NODE_ASSIGNED: ReasonFacts("The VM has a node.", _NOTHING, False),
        Reason.STORAGE_BOUND: ReasonFacts("The home disk is there.", _NOTHING, False),
        Reason.STORAGE_PENDING: ReasonFacts(
            "The home disk is being provided, or waits for the first start.", _NOTHING, True
        ),
        Reason.GUEST_ANSWERS: ReasonFacts("The guest's SSH port answers.", _NOTHING, False),
        Reason.SIZES_APPLIED: ReasonFacts(
            "The running VM has the sizes asked for.", _NOTHING, False
        ),
        Reason.SIZES_DIFFER: ReasonFacts(
            "The running VM has other sizes than the spec asks for.",
            "Restart the machine, or let it sleep: the next start takes them over.",
            False,
        ),
        Reason.UNKNOWN: ReasonFacts("The operator has not looked yet.", _NOTHING, True),
    }
)

PHASE_REASONS: Final[Mapping[Phase, Reason]] = MappingProxyType(
    {
        Phase.ACCEPTED: Reason.ACCEPTED,
        Phase.PLACEMENT_PENDING: Reason.SCHEDULING,
        Phase.STARTING: Reason.STARTING,
        Phase.RUNNING: Reason.DESIRED_STATE_REACHED,
        Phase.STOPPING: Reason.STOPPING,
        Phase.SLEEPING: Reason.DESIRED_STATE_REACHED,
        Phase.DESTROYING: Reason.DESTROYING,
        Phase.DESTROYED: Reason.DESIRED_STATE_REACHED,
    }
)
"""The reason of a phase in which nothing is wrong. `failed` has none: its reason is the root
cause."""
