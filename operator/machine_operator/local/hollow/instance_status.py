"""A VMI's status as virt-handler writes it. Pure: each function returns a changed copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

__all__ = [
    "FINAL",
    "ended",
    "is_final",
    "not_synchronized",
    "paused",
    "phase_of",
    "running",
    "unpaused",
]

Object = dict[str, Any]

_IO_ERROR = "PausedIOError"

FINAL = ("Succeeded", "Failed")


def phase_of(vmi: Mapping[str, Any]) -> str:
    """`status.phase`, "" before the first."""
    return str((vmi.get("status") or {}).get("phase") or "")


def is_final(vmi: Mapping[str, Any]) -> bool:
    """Whether nobody may change the phase any more."""
    return phase_of(vmi) in FINAL


def running(vmi: Mapping[str, Any], *, address: str, mac: str | None, moment: str) -> Object:
    """The VMI with its guest running at `address`."""
    changed = _with_phase(vmi, "Running", moment)
    status = changed["status"]
    _drop_condition(status, "Synchronized")
    _set_condition(
        status,
        {
            "type": "LiveMigratable",
            "status": "False",
            "reason": "HostNotMigratable",
            "message": "the local cluster has one node",
            "lastProbeTime": None,
            "lastTransitionTime": moment,
        },
    )
    _set_interface(changed, address=address, mac=mac)
    _set_targets(changed)
    return changed


def ended(vmi: Mapping[str, Any], *, phase: str, moment: str) -> Object:
    """The VMI with its guest over: `Succeeded` or `Failed`."""
    changed = _with_phase(vmi, phase, moment)
    _drop_condition(changed["status"], "Synchronized")
    return changed


def not_synchronized(vmi: Mapping[str, Any], *, message: str, moment: str) -> Object | None:
    """The VMI with the reason why its guest does not start; None where that is said already."""
    for condition in (vmi.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Synchronized" and condition.get("message") == message:
            return None
    changed = copy.deepcopy(dict(vmi))
    _set_condition(
        changed["status"],
        {
            "type": "Synchronized",
            "status": "False",
            "reason": "SyncFailed",
            "message": message,
            "lastProbeTime": None,
            "lastTransitionTime": moment,
        },
    )
    return changed


def paused(vmi: Mapping[str, Any], *, moment: str) -> Object | None:
    """The VMI with its guest stopped by a failed write; None where it says already that it is paused."""
    if any(entry["type"] == "Paused" for entry in vmi["status"].get("conditions") or []):
        return None
    changed = copy.deepcopy(dict(vmi))
    _set_condition(
        changed["status"],
        {
            "type": "Paused",
            "status": "True",
            "reason": _IO_ERROR,
            "message": "VMI was paused, low-level IO error detected",
            "lastProbeTime": moment,
            "lastTransitionTime": moment,
        },
    )
    return changed


def unpaused(vmi: Mapping[str, Any]) -> Object | None:
    """The VMI without `paused`; None where it is not, or where somebody has paused it on purpose."""
    conditions = vmi["status"].get("conditions") or []
    ours = [item for item in conditions if item["type"] == "Paused" and item["reason"] == _IO_ERROR]
    if not ours:
        return None
    changed = copy.deepcopy(dict(vmi))
    _drop_condition(changed["status"], "Paused")
    return changed


def _with_phase(vmi: Mapping[str, Any], phase: str, moment: str) -> Object:
    changed = copy.deepcopy(dict(vmi))
    status = changed.setdefault("status", {})
    status["phase"] = phase
    transitions = status.setdefault("phaseTransitionTimestamps", [])
    if all(entry["phase"] != phase for entry in transitions):
        transitions.append({"phase": phase, "phaseTransitionTimestamp": moment})
    return changed


def _set_interface(vmi: Object, *, address: str, mac: str | None) -> None:
    networks = vmi["spec"].get("networks") or []
    if not networks or mac is None:
        return
    name, status = networks[0]["name"], vmi["status"]
    interfaces = status.setdefault("interfaces", [])
    ours = next((entry for entry in interfaces if entry.get("name") == name), None)
    if ours is None:
        ours = {"name": name}
        interfaces.insert(0, ours)
    ours |= {
        "ipAddress": address,
        "ipAddresses": [address],
        "mac": mac,
        "infoSource": "domain",
        "queueCount": 1,
    }


def _set_targets(vmi: Object) -> None:
    disks = vmi["spec"]["domain"].get("devices", {}).get("disks") or []
    targets = {disk["name"]: f"vd{chr(97 + number)}" for number, disk in enumerate(disks[:26])}
    for volume in vmi["status"].get("volumeStatus") or []:
        if volume["name"] in targets:
            volume["target"] = targets[volume["name"]]


def _set_condition(status: Object, condition: Object) -> None:
    _drop_condition(status, condition["type"])
    status.setdefault("conditions", []).append(condition)


def _drop_condition(status: Object, kind: str) -> None:
    conditions = status.get("conditions") or []
    status["conditions"] = [entry for entry in conditions if entry["type"] != kind]
