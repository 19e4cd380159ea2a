"""From KubeVirt's and Kubernetes' objects to the views that decisions are made from.

`printableStatus` lags and flashes, so nothing is decided from it except where it is the only place that tells
(crash loops). Root causes are taken from the conditions that KubeVirt copies from the pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from machine_operator.api.names import NAME_LABEL, UID_LABEL
from machine_operator.api.phases import Reason
from machine_operator.api.timestamps import parse_timestamp
from machine_operator.kubevirt.names import APPLIED_ANNOTATION, BOOT_ANNOTATION
from machine_operator.kubevirt.quantity import parse_quantity
from machine_operator.lifecycle.observation import (
    ClaimView,
    InstancePhase,
    InstanceView,
    NodeView,
    RunStrategy,
    SeedView,
    Trouble,
    VirtualMachineView,
)

__all__ = [
    "machine_uid",
    "over_a_limit",
    "read_claim",
    "read_instance",
    "read_node",
    "read_seed",
    "read_vm",
]

Object = Mapping[str, Any]

_PHASES = {
    "Scheduled": InstancePhase.SCHEDULED,
    "Running": InstancePhase.RUNNING,
    "Succeeded": InstancePhase.SUCCEEDED,
    "Failed": InstancePhase.FAILED,
}

_IMAGE = ("ErrImagePull", "ImagePullBackOff")


def machine_uid(obj: Object) -> str:
    """UID of the Machine whose child this is ("" where it is nobody's)."""
    return str((obj["metadata"].get("labels") or {}).get(UID_LABEL, ""))


def read_vm(obj: Object) -> VirtualMachineView:
    """A VirtualMachine."""
    meta, status = obj["metadata"], obj.get("status") or {}
    told = obj["spec"].get("runStrategy", "")
    # The strategy that KubeVirt acted on last; empty until there was a first VMI.
    acted_on = status.get("runStrategy", "")
    requested = any(
        request.get("action") == "Start" for request in status.get("stateChangeRequests") or []
    )
    # Without a start request KubeVirt has no next try, whatever it shows: a VMI that was deleted before it ran leaves
    # a crash loop, or a wait for a volume, behind that never goes on.
    rests = told == acted_on == RunStrategy.ON and not requested
    failure = {} if rests else status.get("startFailure") or {}
    return VirtualMachineView(
        name=meta["name"],
        uid=meta["uid"],
        deleting="deletionTimestamp" in meta,
        run_strategy=told,
        applied=_applied(meta),
        halting=told == RunStrategy.OFF and acted_on not in ("", RunStrategy.OFF),
        start_requested=requested,
        rests=rests,
        start_failures=int(failure.get("consecutiveFailCount", 0)),
        retry_at=_moment(failure.get("retryAfterTimestamp")),
        trouble=_vm_trouble(_conditions(status), status, rests=rests),
    )


def _vm_trouble(conditions: Mapping[str, Object], status: Object, *, rests: bool) -> Trouble | None:
    failure = conditions.get("Failure")
    if failure is not None and failure["status"] == "True":
        return _refusal(str(failure.get("message", "")))
    if status.get("printableStatus") == "CrashLoopBackOff" and not rests:
        start = status.get("startFailure") or {}
        count, after = (
            start.get("consecutiveFailCount", "?"),
            start.get("retryAfterTimestamp", "soon"),
        )
        times = "once" if count == 1 else f"{count} times"
        message = f"The VM ended {times} before it was up; the next try is at {after}."
        return Trouble(Reason.CRASH_LOOP, message)
    return None


def _refusal(message: str) -> Trouble:
    quota = over_a_limit(message)
    return Trouble(Reason.QUOTA_EXCEEDED if quota else Reason.VIRTUAL_MACHINE_REFUSED, message)


def over_a_limit(message: str) -> bool:
    """Whether a ResourceQuota or a LimitRange refused something, by the words of the refusal.

    "exceeded quota: ...", "failed quota: ... must specify". LimitRanger names only itself: "maximum ... usage per Pod
    is ..."; and its upper bound becomes the limit of a container that has none, which then is below the request.
    """
    ranges = " per Pod is ", " per Container is ", " per PersistentVolumeClaim is "
    return (
        "quota: " in message
        or any(words in message for words in ranges)
        or ("must be less than or equal to " in message and " limit of " in message)
    )


def read_instance(obj: Object) -> InstanceView:
    """A VirtualMachineInstance."""
    meta, status = obj["metadata"], obj.get("status") or {}
    conditions = _conditions(status)
    phase = _PHASES.get(status.get("phase", ""), InstancePhase.PENDING)
    domain = obj["spec"]["domain"]
    return InstanceView(
        uid=meta["uid"],
        phase=phase,
        deleting_since=_moment(meta.get("deletionTimestamp")),
        ready=conditions.get("Ready", {}).get("status") == "True",
        started_from=str((meta.get("annotations") or {}).get(BOOT_ANNOTATION, "")),
        node=status.get("nodeName") or None,
        addresses=_addresses(status),
        vcpu=_vcpu(domain),
        memory_mib=_memory_mib(domain),
        trouble=None if phase.ended else _instance_trouble(conditions),
    )


def _instance_trouble(conditions: Mapping[str, Object]) -> Trouble | None:
    paused = conditions.get("Paused")
    if paused is not None and paused["status"] == "True":
        message = paused.get("message") or "The VM is paused."
        return Trouble(Reason.GUEST_PAUSED, f"{paused.get('reason', 'Paused')}: {message}")
    synchronized = conditions.get("Synchronized")
    if synchronized is not None and synchronized["status"] == "False":
        reason, message = synchronized.get("reason", ""), str(synchronized.get("message", ""))
        if reason in _IMAGE:
            return Trouble(Reason.IMAGE_NOT_AVAILABLE, message)
        if reason == "FailedPvcNotFound":
            return Trouble(Reason.STORAGE_NOT_AVAILABLE, message)
        return _refusal(message)
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.get("reason") == "Unschedulable":
        message = str(scheduled.get("message", ""))
        # The scheduler's word for "wait until the disk is bound", which ends by itself.
        if "unbound immediate PersistentVolumeClaims" in message:
            return None
        return Trouble(Reason.UNSCHEDULABLE, message)
    return None


def _addresses(status: Object) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for interface in status.get("interfaces") or []:
        for address in [interface.get("ipAddress"), *(interface.get("ipAddresses") or [])]:
            if address:
                found[address] = None
    return tuple(found)


def _vcpu(domain: Object) -> float | None:
    requests = (domain.get("resources") or {}).get("requests") or {}
    if "cpu" in requests:
        return float(parse_quantity(requests["cpu"]))
    cpu = domain.get("cpu") or {}
    return float(cpu["sockets"] * cpu.get("cores", 1)) if "sockets" in cpu else None


def _memory_mib(domain: Object) -> int | None:
    guest = (domain.get("memory") or {}).get("guest")
    return int(parse_quantity(guest) / 2**20) if guest is not None else None


def read_claim(obj: Object) -> ClaimView:
    """The PersistentVolumeClaim of a home disk."""
    meta, status = obj["metadata"], obj.get("status") or {}
    labels, owners = meta.get("labels") or {}, meta.get("ownerReferences") or []
    capacity = (status.get("capacity") or {}).get("storage", "0")
    resources = obj.get("spec", {}).get("resources") or {}
    requested = (resources.get("requests") or {}).get("storage", "0")
    uid = machine_uid(obj)
    return ClaimView(
        name=meta["name"],
        uid=meta["uid"],
        deleting="deletionTimestamp" in meta,
        bound=status.get("phase") == "Bound",
        capacity_gib=int(parse_quantity(capacity) / 2**30),
        requested_gib=int(parse_quantity(requested) / 2**30),
        applied=_applied(meta),
        owned=any(owner["uid"] == uid for owner in owners),
        machine=str(labels.get(NAME_LABEL, "")),
        machine_uid=uid,
        created_at=_moment(meta.get("creationTimestamp")),
        foreign_owner=any(owner.get("controller") and owner["uid"] != uid for owner in owners),
    )


def read_seed(obj: Object) -> SeedView:
    """The Secret of a seed, without its content."""
    meta = obj["metadata"]
    return SeedView(name=meta["name"], uid=meta["uid"], applied=_applied(meta))


def _applied(meta: Object) -> str:
    return str((meta.get("annotations") or {}).get(APPLIED_ANNOTATION, ""))


def _conditions(status: Object) -> dict[str, Object]:
    return {condition["type"]: condition for condition in status.get("conditions") or []}


def read_node(obj: Object) -> NodeView:
    """A node. Its message is the kubelet's or, where that is silent, the node controller's."""
    ready = _conditions(obj.get("status") or {}).get("Ready", {})
    well = ready.get("status") == "True"
    text = ready.get("message") or "it has not reported yet"
    return NodeView(
        name=obj["metadata"]["name"],
        ready=well,
        schedulable=not obj.get("spec", {}).get("unschedulable", False),
        message="" if well else str(text),
    )


def _moment(text: str | None) -> datetime | None:
    return parse_timestamp(text) if text else None
