"""Whether the VM has to be on or off now, on the way to the goal.

A start goes through "off and gone" whenever there is a doubt: KubeVirt notices a change from off to on, and nothing
else starts a VM that rests.
"""

from __future__ import annotations

from machine_operator.api.machine import Backoff
from machine_operator.api.phases import DesiredState, Phase
from machine_operator.lifecycle.backoff import holds_off, retry_is_due
from machine_operator.lifecycle.observation import InstancePhase, RunStrategy
from machine_operator.lifecycle.situation import Situation

__all__ = ["strategy_of"]


def strategy_of(at: Situation, backoff: Backoff | None) -> RunStrategy:
    """The run strategy that the VM should have."""
    if at.goal.state is not DesiredState.RUNNING:
        return RunStrategy.OFF
    if _finishes_stopping(at) or holds_off(at, backoff) or _power_cycle(at):
        return RunStrategy.OFF
    return RunStrategy.ON


def _finishes_stopping(at: Situation) -> bool:
    """The VM was switched off, and is not gone yet, or KubeVirt has not taken notice yet."""
    vm = at.seen.virtual_machine
    if vm is None or vm.run_strategy != RunStrategy.OFF:
        return False
    return at.seen.instance is not None or vm.halting


def _power_cycle(at: Situation) -> bool:
    """Only switching it off and on again helps."""
    if not at.on:
        return False
    if at.phase_before is Phase.FAILED and retry_is_due(at) and (at.down or at.stuck):
        return True
    if at.displaced and at.instance_phase is InstancePhase.SUCCEEDED:
        return True  # its node was drained; KubeVirt takes the clean shutdown for the guest's own
    return _stuck_with_old_template(at)


def _stuck_with_old_template(at: Situation) -> bool:
    """A VMI that waits for an image or a node is not started anew by KubeVirt when the VM is corrected."""
    instance = at.seen.instance
    if instance is None or instance.phase is not InstancePhase.PENDING or instance.deleting:
        return False
    spec = at.seen.machine.spec
    return instance.started_from != at.seen.wanted.boot or instance.memory_mib != spec.memory_mib
