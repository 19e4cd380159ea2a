"""The root cause in words: what happened, to which object, and what to do; the same words until something changes."""

from __future__ import annotations

from machine_operator.api.machine import Backoff
from machine_operator.api.phases import REASONS, Reason
from machine_operator.api.timestamps import format_timestamp
from machine_operator.lifecycle.observation import InstancePhase
from machine_operator.lifecycle.situation import Situation

__all__ = ["explain"]

_HOW_FAR = {
    None: "KubeVirt has not made an instance of it",
    InstancePhase.PENDING: "it has no node",
    InstancePhase.SCHEDULED: "it has a node, which has not started it",
    InstancePhase.RUNNING: "the guest runs, and its SSH port does not answer",
    InstancePhase.SUCCEEDED: "the guest has powered itself off",
    InstancePhase.FAILED: "the guest has crashed",
}


def explain(at: Situation, reason: Reason, backoff: Backoff | None) -> str | None:
    """Why the machine is as it is, for a reason that is somebody's trouble; None for others."""
    facts = REASONS[reason]
    if not facts.is_trouble:
        return None
    if at.trouble is not None and at.trouble.reason is reason:
        return at.trouble.message
    return _own(at, reason, backoff) or f"{facts.meaning} {facts.unblocks}"


def _own(at: Situation, reason: Reason, backoff: Backoff | None) -> str | None:
    """What no object of KubeVirt says by itself."""
    seen = at.seen
    match reason:
        case Reason.SPEC_INVALID:
            return seen.fault
        case Reason.START_TIMEOUT:
            how_far = _HOW_FAR[at.instance_phase]
            retry = _next_try(backoff)
            return f"Not usable {at.limits.start:.0f} s after its start: {how_far}.{retry}"
        case Reason.CRASH_LOOP:
            count = backoff.failures if backoff else 1
            times = "once" if count == 1 else f"{count} times in a row"
            return f"The VM ended {times} without being told to.{_next_try(backoff)}"
        case Reason.STOP_TIMEOUT:
            node = f" on node {seen.instance.node}" if seen.instance and seen.instance.node else ""
            grace = at.limits.grace + at.limits.stop
            return f"The VM{node} was told to stop and is still there after {grace:.0f} s."
        case Reason.NODE_NOT_READY if seen.node is not None:
            return f"Node {seen.node.name} is not ready: {seen.node.message}"
        case Reason.STORAGE_NOT_AVAILABLE if seen.unbound_because is not None:
            return seen.unbound_because
        case _:
            return None


def _next_try(backoff: Backoff | None) -> str:
    if backoff is None or backoff.next_retry_at is None:
        return ""
    return f" The next try is at {format_timestamp(backoff.next_retry_at.replace(microsecond=0))}."
