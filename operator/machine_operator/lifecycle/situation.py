"""An observation together with the goal and the time, and the questions that the table asks about them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from machine_operator.api.names import ADOPT_ANNOTATION
from machine_operator.api.phases import DesiredState, Phase, Reason
from machine_operator.lifecycle.clocks import after, rising_since
from machine_operator.lifecycle.goal import Goal
from machine_operator.lifecycle.limits import Limits
from machine_operator.lifecycle.observation import (
    InstancePhase,
    Observation,
    Question,
    RunStrategy,
    Trouble,
)

__all__ = ["Situation"]


@dataclass(frozen=True, slots=True)
class Situation:
    """One machine at one moment."""

    seen: Observation
    goal: Goal
    now: datetime
    limits: Limits

    @property
    def phase_before(self) -> Phase | None:
        """The phase that the status has now."""
        return self.seen.machine.status.phase

    def lasted(self, seconds: float) -> bool:
        """The phase that the status has now has lasted so long."""
        since = self.seen.machine.status.last_transition_at
        return since is not None and after(since, seconds) <= self.now

    # ---- the disk

    @property
    def storage_lost(self) -> bool:
        """The home disk was there once, and is not any more; for a machine that ends nothing is lost by that."""
        if self.goal.state is DesiredState.DESTROYED:
            return False
        known = self.seen.machine.status.vm
        return known is not None and known.home_claim is not None and self.seen.home is None

    @property
    def adopts(self) -> str | None:
        """Name of the retained disk that this machine asked for, as long as it has none."""
        named = self.seen.machine.metadata.annotations.get(ADOPT_ANNOTATION)
        known = self.seen.machine.status.vm
        return named if known is None or known.home_claim is None else None

    @property
    def unprovided(self) -> bool:
        """The home disk has no volume, and it is known why."""
        home = self.seen.home
        return home is not None and not home.bound and self.seen.unbound_because is not None

    @property
    def home_waits_to_grow(self) -> bool:
        """Kubernetes lets a claim grow only once it has a volume."""
        home = self.seen.home
        if home is None or home.bound:
            return False
        return home.requested_gib not in (0, self.seen.machine.spec.storage_gib)

    @property
    def home_fault(self) -> Trouble | None:
        """Why the disk that is there, or was asked for, cannot be this machine's."""
        home, machine, named = self.seen.home, self.seen.machine.metadata, self.adopts
        if home is None:
            if named is None:
                return None
            message = f"There is no PersistentVolumeClaim {named}, which {ADOPT_ANNOTATION} names."
            return Trouble(Reason.STORAGE_NOT_AVAILABLE, message)
        known = self.seen.machine.status.vm
        had = known is not None and known.home_claim is not None
        # The disk that we had is ours without labels as well; one to adopt has to carry a machine's.
        if home.machine_uid == machine.uid or (had and not home.machine_uid):
            return None
        if (had or named is not None) and home.labelled and home.machine == machine.name:
            if not (home.owned or home.foreign_owner):
                return None
            whose = "still in use"
        else:
            whose = f"of the machine {home.machine!r}" if home.machine else "not a machine's disk"
        message = f"The PersistentVolumeClaim {home.name} is {whose} and cannot be adopted."
        return Trouble(Reason.VIRTUAL_MACHINE_FOREIGN, message)

    # ---- what is wrong

    @property
    def trouble(self) -> Trouble | None:
        """The root cause of what is wrong: the disk's before the VMI's before the VM's."""
        if self.home_fault is not None:
            return self.home_fault
        instance, vm = self.seen.instance, self.seen.virtual_machine
        if instance is not None and instance.trouble is not None and not instance.deleting:
            return instance.trouble
        return vm.trouble if vm is not None else None

    def troubled_by(self, *reasons: Reason) -> bool:
        """Whether the root cause is one of these."""
        return self.trouble is not None and self.trouble.reason in reasons

    @property
    def blocked(self) -> bool:
        """It is known what is in the way, so that no start is tried, and none counts as gone wrong."""
        return self.seen.fault is not None or self.storage_lost or self.trouble is not None

    @property
    def node_lost(self) -> bool:
        """The machine is on a node that does not report."""
        node, instance = self.seen.node, self.seen.instance
        return node is not None and not node.ready and instance is not None and bool(instance.node)

    @property
    def displaced(self) -> bool:
        """The node on which it ran went away or was drained: what ended there did not end by the guest's will."""
        node = self.seen.node
        return node is not None and not (node.ready and node.schedulable)

    # ---- the VM and its instance

    @property
    def instance_phase(self) -> InstancePhase | None:
        """How far the VMI is; None without one."""
        return self.seen.instance.phase if self.seen.instance else None

    @property
    def answers(self) -> bool:
        """The guest runs, and its sshd answers."""
        instance = self.seen.instance
        return (
            instance is not None
            and instance.phase is InstancePhase.RUNNING
            and instance.ready
            and not instance.deleting
        )

    @property
    def may_autosleep(self) -> bool:
        """The guest runs, and nothing is wrong with it that a shutdown would make worse."""
        instance = self.seen.instance
        return (
            instance is not None
            and instance.phase is InstancePhase.RUNNING
            and not instance.deleting
            and not self.node_lost
            and self.trouble is None
        )

    @property
    def same_instance(self) -> bool:
        """The VMI is the one that the status speaks of."""
        known, instance = self.seen.machine.status.vm, self.seen.instance
        return instance is not None and known is not None and known.instance_uid == instance.uid

    @property
    def off(self) -> bool:
        """The VM is told to be off, and nothing runs any more."""
        vm = self.seen.virtual_machine
        return vm is not None and vm.run_strategy == RunStrategy.OFF and self.seen.instance is None

    @property
    def anything_left(self) -> bool:
        """A VM or a VMI is still there."""
        return self.seen.virtual_machine is not None or self.seen.instance is not None

    @property
    def on(self) -> bool:
        """The VM is told to be on."""
        vm = self.seen.virtual_machine
        return vm is not None and vm.on

    @property
    def down(self) -> bool:
        """The VM is told to be on, KubeVirt rests, and the API server has confirmed that nothing runs."""
        vm = self.seen.virtual_machine
        return (
            vm is not None
            and vm.on
            and vm.rests
            and self.seen.instance is None
            and Question.INSTANCE in self.seen.answered
        )

    @property
    def guest_powered_off(self) -> bool:
        """The guest ended by itself, while it was wanted."""
        vm, displaced = self.seen.virtual_machine, self.displaced
        if vm is None or not vm.on or vm.start_requested or displaced:
            return False
        if self.instance_phase is InstancePhase.SUCCEEDED:
            return True
        return self.down and self.phase_before is Phase.RUNNING

    @property
    def stop_overdue(self) -> bool:
        """The VMI outlives its grace period."""
        due = self.stop_due_at
        return due is not None and due <= self.now

    @property
    def stop_due_at(self) -> datetime | None:
        """When the stop that is under way becomes overdue."""
        instance = self.seen.instance
        since = instance.deleting_since if instance is not None else None
        return None if since is None else after(since, self.limits.grace + self.limits.stop)

    @property
    def start_overdue(self) -> bool:
        """The guest should have answered by now, and nobody says why not; stays so until it answers or is off."""
        if self.goal.state is not DesiredState.RUNNING or self.answers:
            return False
        if self.blocked or self.unprovided:
            return False
        before = self.seen.machine.status
        if before.phase is Phase.FAILED and before.reason == Reason.START_TIMEOUT:
            return self.on and (self.seen.instance is None or self.same_instance)
        since = rising_since(before)
        return since is not None and after(since, self.limits.start) <= self.now

    @property
    def stuck(self) -> bool:
        """The start takes too long, and no guest runs: only another start helps.

        One that runs and only does not answer is left alone: somebody may be at work in it.
        """
        return self.start_overdue and self.instance_phase is not InstancePhase.RUNNING
