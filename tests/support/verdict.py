"""What has to be true of machines: at every change, and once all faults are over.

The rules are told here once more, by other means than the operator's: from what people asked for and what was seen.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from machine_operator.api.conditions import ConditionType
from machine_operator.api.durations import parse_autosleep
from machine_operator.api.names import NAME_LABEL, UID_LABEL
from machine_operator.api.phases import Phase
from tests.support.apiserver import FakeApi
from tests.support.world import GATEWAY, USER

__all__ = ["Witness", "expected", "lost_touch", "trespasses", "unlike"]

Object = dict[str, Any]

VMS, VMIS = "virtualmachines", "virtualmachineinstances"
CLAIMS, SECRETS = "persistentvolumeclaims", "secrets"
CHILDREN = (VMS, VMIS, CLAIMS, SECRETS)
_BY_ITSELF = ("autosleep", "guest", "activity")


class Witness:
    """Sees every change; `faults` has what should never have happened."""

    def __init__(self, api: FakeApi) -> None:
        self.faults: list[str] = []
        self._api = api
        self._host_keys: dict[str, set[str]] = {}
        self._disks: dict[str, set[str]] = {}
        self._ends: set[str] = set()
        self.ever: dict[str, set[str]] = {plural: set() for plural in CHILDREN}
        api.listeners.append(self._saw)

    @property
    def host_keys(self) -> set[str]:
        """All host keys that there ever were."""
        return set().union(*self._host_keys.values())

    def _saw(self, kind: str, plural: str, body: Object) -> None:
        meta = body["metadata"]
        if plural == "machines":
            over = "deletionTimestamp" in meta or body["spec"].get("desired_state") == "destroyed"
            if over:
                self._ends.add(meta["uid"])
            return
        if plural not in CHILDREN:
            return
        self.ever[plural].add(meta["uid"])
        machine = (meta.get("labels") or {}).get(UID_LABEL, "")
        if plural == SECRETS:
            keys = self._host_keys.setdefault(machine, set())
            keys.add(body["data"]["ssh-host-key"])
            if len(keys) > 1:
                self.faults.append(f"another host key for {machine}")
        if plural == CLAIMS:
            disks = self._disks.setdefault(machine, set())
            disks.add(meta["uid"])
            if len(disks) > 1:
                self.faults.append(f"a second home disk for {machine}")
            if "deletionTimestamp" in meta and machine not in self._ends:
                self.faults.append(f"the home disk of {machine} is deleted")


def expected(machine: Object | None) -> str:
    """Where a machine has to be in the end, as a phase; "gone" for one that is deleted."""
    if machine is None or "deletionTimestamp" in machine["metadata"]:
        return "gone"
    spec, status = machine["spec"], machine.get("status") or {}
    desired = spec.get("desired_state", "running")
    if desired == "destroyed":
        return "destroyed"
    request = status.get("power_request")
    if request is not None and request["spec_desired_state"] == desired:
        desired = request["state"]
        if request["by"] in _BY_ITSELF and _touch(status) != request.get("last_touch_at"):
            desired = "running"
    # Nobody uses it any more, so autosleep has the last word.
    if desired == "running" and parse_autosleep(spec.get("autosleep", "5m")):
        return "sleeping, by autosleep"
    return str(desired)


def unlike(api: FakeApi, name: str) -> str | None:
    """In what a machine is not as it has to be in the end, or None."""
    stored = api.objects.get(("machines", "ns", name))
    machine = stored.body if stored else None
    goal = expected(machine)
    if machine is None:
        left = _children(api, NAME_LABEL, name)
        return f"{name} is gone, and not {_words(left)}" if left else None
    status, uid = machine.get("status") or {}, machine["metadata"]["uid"]
    if goal == "gone" or status.get("phase") != goal:
        return f"{name} should be {goal}, and is {status.get('phase')}"
    if status.get("reason") != "DesiredStateReached":
        return f"{name} is {goal}, but {status.get('reason')}"
    kinds = {c["type"]: c["status"] for c in status.get("conditions") or []}
    if set(kinds) != {str(kind) for kind in ConditionType}:
        return f"{name} has the conditions {kinds}"
    if kinds["Ready"] != ("False" if goal == "destroyed" else "True"):
        return f"{name} is {goal}, and Ready is {kinds['Ready']}"
    children = _children(api, UID_LABEL, uid)
    return _children_unlike(name, goal, children, machine["spec"], kinds)


def _children_unlike(
    name: str, goal: str, children: dict[str, list[Object]], spec: Object, kinds: dict[str, str]
) -> str | None:
    if goal == Phase.DESTROYED:
        return f"{name} is destroyed, and not {_words(children)}" if children else None
    wanted = {VMS: 1, CLAIMS: 1, SECRETS: 1} | ({VMIS: 1} if goal == Phase.RUNNING else {})
    have = {plural: len(objects) for plural, objects in children.items()}
    if have != wanted:
        return f"{name} is {goal} and has {have}"
    memory = f"{spec['memory_mib']}Mi"
    vm = children[VMS][0]
    if _memory(vm["spec"]["template"]["spec"]) != memory:
        return f"{name} asks for {memory}, and its VM does not"
    strategy = vm["spec"]["runStrategy"]
    if (strategy == "Halted") != (goal == Phase.SLEEPING):
        return f"{name} is {goal} and its VM {strategy}"
    claim = children[CLAIMS][0]
    bound = (claim.get("status") or {}).get("phase") == "Bound"
    size = claim["spec"]["resources"]["requests"]["storage"]
    if (bound or goal == Phase.RUNNING) and size != f"{spec['storage_gib']}Gi":
        return f"{name} asks for {spec['storage_gib']} GiB, and its disk is {size}"
    if goal == Phase.RUNNING:
        differs = _memory(children[VMIS][0]["spec"]) != memory
        if differs and kinds["RestartPending"] != "True":
            return f"{name} runs with another memory than asked for, and does not say so"
    return None


def lost_touch(machine: Object, touched: datetime | None) -> str | None:
    """Whether it sleeps although somebody used it, or None: autosleep has to let its whole time pass."""
    status = machine.get("status") or {}
    request = status.get("power_request") or {}
    asked_for = machine["spec"].get("desired_state", "running")
    holds = request.get("spec_desired_state") == asked_for
    if touched is None or request.get("state") != "sleeping" or not holds:
        return None
    idle = parse_autosleep(machine["spec"].get("autosleep", "5m"))
    asked = datetime.fromisoformat(request["at"])
    if request.get("by") == "guest" and asked < touched:
        return f"touched at {touched}, after its guest powered itself off at {asked}"
    if request.get("by") == "autosleep" and idle and asked < touched + timedelta(seconds=idle - 1):
        return f"touched at {touched}, and put to sleep at {asked}"
    return None


def trespasses(api: FakeApi, name: str) -> list[str]:
    """Fields under the spec that belong to somebody who is no user."""
    owners = api.owners("machines", name)
    return [
        f"{manager}: {path}"
        for manager, paths in owners.items()
        if manager not in (USER, GATEWAY)
        for path in paths
        if path.startswith("spec")
    ]


def _children(api: FakeApi, label: str, value: str) -> dict[str, list[Object]]:
    found: dict[str, list[Object]] = {}
    for (plural, _, _), stored in api.objects.items():
        labels = stored.body["metadata"].get("labels") or {}
        if plural in CHILDREN and labels.get(label) == value:
            found.setdefault(plural, []).append(stored.body)
    return found


def _words(children: dict[str, list[Object]]) -> str:
    return ", ".join(f"{len(objects)} {plural}" for plural, objects in children.items())


def _memory(spec: Object) -> str:
    return str(spec["domain"]["memory"]["guest"])


def _touch(status: Object) -> Any:
    return (status.get("activity") or {}).get("last_touch_at")
