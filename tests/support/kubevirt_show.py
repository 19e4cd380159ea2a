"""What virt-controller shows of a VM and its VMI: conditions, and `printableStatus` by first match."""

from __future__ import annotations

from datetime import datetime
from typing import Any

__all__ = [
    "FINAL",
    "condition",
    "copy_conditions",
    "has_condition",
    "printable",
    "set_condition",
    "start_failure",
    "was_running",
]

Object = dict[str, Any]

FINAL = ("Succeeded", "Failed")
_NOT_COPIED = {"Ready", "Failure", "RestartRequired"}


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Object:
    """A condition of a VM or VMI."""
    return {
        "type": kind,
        "status": status,
        **({"reason": reason} if reason else {}),
        **({"message": message} if message else {}),
    }


def has_condition(
    obj: Object | None, kind: str, status: str = "True", reason: str | None = None
) -> bool:
    """Whether a condition is there with this status (and reason)."""
    return any(
        c["type"] == kind and c["status"] == status and reason in (None, c.get("reason"))
        for c in ((obj or {}).get("status") or {}).get("conditions") or []
    )


def set_condition(status: Object, *conditions: Object, drop: tuple[str, ...] = ()) -> None:
    """Replace conditions of these types, or take them out, where they are."""
    have = {c["type"]: c for c in status.get("conditions") or []}
    have |= {c["type"]: c for c in conditions}
    status["conditions"] = [c for kind, c in have.items() if kind not in drop]


def was_running(vmi: Object) -> bool:
    """Whether it ever came as far as Running."""
    times = vmi["status"].get("phaseTransitionTimestamps") or []
    return any(entry["phase"] == "Running" for entry in times)


def copy_conditions(status: Object, vmi: Object | None, *, failure: str | None) -> None:
    """The VM's conditions: those of the VMI, and Ready and Failure, which are there without one too."""
    if vmi is None:
        ready = condition("Ready", "False", "VMINotExists", "VMI does not exist")
    else:
        found = [c for c in vmi["status"].get("conditions") or [] if c["type"] == "Ready"]
        missing = condition(
            "Ready", "False", "VMIConditionMissing", "VMI is missing the Ready condition"
        )
        ready = found[0] if found else missing
    set_condition(status, ready)
    if failure is None:
        set_condition(status, drop=("Failure",))
    else:
        set_condition(status, condition("Failure", "True", "FailedCreate", failure))
    if vmi is None:
        return  # stale copies stay, as they do in virt-controller
    theirs = [c for c in vmi["status"].get("conditions") or [] if c["type"] not in _NOT_COPIED]
    kept = {c["type"] for c in theirs} | _NOT_COPIED
    gone = tuple(c["type"] for c in status["conditions"] if c["type"] not in kept)
    set_condition(status, *theirs, drop=gone)


def start_failure(
    before: Object | None, vm: Object, vmi: Object | None, *, jitter: float, now: datetime
) -> tuple[Object | None, float]:
    """`status.startFailure`, and how long the next start is held back where this failure is new."""
    on = vm["spec"].get("runStrategy") in ("Always", "RerunOnFailure", "Once")
    if not on or (vmi is not None and was_running(vmi)):
        return None, 0.0
    if vmi is None or vmi["status"].get("phase") not in FINAL:
        return before, 0.0
    uid = vmi["metadata"]["uid"]
    if before is not None and before["lastFailedVMIUID"] == uid:
        return before, 0.0
    count = (before["consecutiveFailCount"] if before else 0) + 1
    delay = 10 * count * count
    delay = min(delay + int(jitter * (delay // 2 + 1)), 300)
    return {"lastFailedVMIUID": uid, "consecutiveFailCount": count}, float(delay)


def printable(
    vm: Object, vmi: Object | None, *, unbound: bool, starting: bool = False, stopping: bool = False
) -> str:
    """In virt-controller's order.

    Args:
        unbound: a claim of the VM has no volume.
        starting, stopping: a VMI was made or deleted just now, and the cache does not have it yet.
    """
    phase = (vmi or {}).get("status", {}).get("phase", "")
    final = phase in FINAL
    marked = vmi is not None and "deletionTimestamp" in vmi["metadata"]
    paused = has_condition(vmi, "Paused")
    failures = (vm.get("status") or {}).get("startFailure")
    rules = [
        ("Terminating", "deletionTimestamp" in vm["metadata"]),
        ("Stopping", vmi is not None and not final and (marked or stopping)),
        ("Paused", phase == "Running" and paused),
        ("Running", phase == "Running" and not paused),
        ("ErrorPvcNotFound", has_condition(vmi, "Synchronized", "False", "FailedPvcNotFound")),
        ("ErrorUnschedulable", has_condition(vmi, "PodScheduled", "False", "Unschedulable")),
        ("WaitingForVolumeBinding", unbound and _set_to_start(vm, vmi)),
        ("ErrImagePull", has_condition(vmi, "Synchronized", "False", "ErrImagePull")),
        ("ImagePullBackOff", has_condition(vmi, "Synchronized", "False", "ImagePullBackOff")),
        ("Starting", starting if vmi is None else not final),
        ("CrashLoopBackOff", (vmi is None or final) and not starting and failures is not None),
        ("Stopped", True),
    ]
    return next(name for name, holds in rules if holds)


def _set_to_start(vm: Object, vmi: Object | None) -> bool:
    match vm["spec"].get("runStrategy"):
        case "Always":
            return True
        case "RerunOnFailure":
            return vmi is None or vmi["status"].get("phase") != "Succeeded"
        case "Once":
            return vmi is None
        case _:
            return False
