"""A pod's status as kubelet would write it. Pure.

Ready needs three things: every container ready (the compute container by its readiness probe), and
every readiness gate of the spec true; virt-controller sets the one of virt-launcher pods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["PodView", "pod_status", "status_patch"]

Object = dict[str, Any]

Stage = Literal["waiting", "running", "succeeded", "failed"]


@dataclass(frozen=True, slots=True)
class PodView:
    """What is true of a pod now.

    Attributes:
        stage: where it is.
        ip: its address; "" while it has none.
        probed: whether the compute container's readiness probe succeeds.
        pulls: container -> (reason, message) of images that are not there.
        moment: the time to write where something changes (RFC 3339).
    """

    stage: Stage
    ip: str
    probed: bool
    moment: str
    pulls: Mapping[str, tuple[str, str]] = field(default_factory=dict)


def status_patch(pod: Mapping[str, Any], view: PodView) -> Object:
    """What has to be patched into the pod's status to make it say `view`; {} where nothing has."""
    current = pod.get("status") or {}
    wanted = pod_status(pod, view)
    patch = {
        key: value
        for key, value in wanted.items()
        if key != "conditions" and not _says(current.get(key), value)
    }
    known = {item["type"]: item for item in current.get("conditions") or []}
    changed = [
        item
        for item in wanted["conditions"]
        if any(known.get(item["type"], {}).get(key) != value for key, value in item.items())
    ]
    if changed:
        patch["conditions"] = changed  # merged by type
    return patch


def _says(stored: object, wanted: object) -> bool:
    """Whether what is stored says what we want; the API server adds fields of its own (`lastState: {}`)."""
    if isinstance(wanted, Mapping):
        return isinstance(stored, Mapping) and all(
            _says(stored.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        if not isinstance(stored, list) or len(stored) != len(wanted):
            return False
        return all(_says(*pair) for pair in zip(stored, wanted, strict=True))
    return stored == wanted


def pod_status(pod: Mapping[str, Any], view: PodView) -> Object:
    """The fields of the status that are kubelet's."""
    spec, current = pod["spec"], pod.get("status") or {}
    containers = [
        _container(item, "containerStatuses", pod=pod, view=view) for item in spec["containers"]
    ]
    inits = [
        _container(item, "initContainerStatuses", pod=pod, view=view)
        for item in spec.get("initContainers") or []
    ]
    status: Object = {
        "phase": _PHASES[view.stage],
        "hostIP": "127.0.0.1",
        "hostIPs": [{"ip": "127.0.0.1"}],
        "startTime": current.get("startTime") or view.moment,
        "containerStatuses": containers,
        "conditions": _conditions(pod, containers, view),
    }
    if inits:
        status["initContainerStatuses"] = inits
    if view.ip:
        # A second address would be added, not replace the first: the list merges by address.
        ip = current.get("podIP") or view.ip
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    return status


_PHASES = {
    "waiting": "Pending",
    "running": "Running",
    "succeeded": "Succeeded",
    "failed": "Failed",
}


def _container(
    container: Mapping[str, Any], where: str, *, pod: Mapping[str, Any], view: PodView
) -> Object:
    name, init = container["name"], where == "initContainerStatuses"
    former = _former(pod, where, name)
    stays = not init or container.get("restartPolicy") == "Always"
    state = _state(former, name=name, stays=stays, view=view)
    probes = name == "compute" and container.get("readinessProbe")
    ready = "running" in state and (view.probed or not probes)
    if not stays:
        ready = "terminated" in state
    status: Object = {
        "name": name,
        "image": container["image"],
        "imageID": "",
        "restartCount": 0,
        "ready": ready,
        "started": "running" in state,
        "state": state,
    }
    if "waiting" not in state:
        status["imageID"] = f"local://{container['image']}"
        status["containerID"] = f"hollow://{pod['metadata']['uid']}/{name}"
    return status


def _state(former: Mapping[str, Any], *, name: str, stays: bool, view: PodView) -> Object:
    if view.stage == "waiting":
        reason, message = view.pulls.get(name, ("ContainerCreating", ""))
        return {
            "waiting": {"reason": reason, "message": message} if message else {"reason": reason}
        }
    begun = (former.get("running") or former.get("terminated") or {}).get("startedAt", view.moment)
    if stays and view.stage == "running":
        return {"running": {"startedAt": begun}}
    if former.get("terminated"):
        return {"terminated": former["terminated"]}
    failed = view.stage == "failed" and stays
    return {
        "terminated": {
            "exitCode": 1 if failed else 0,
            "reason": "Error" if failed else "Completed",
            "startedAt": begun,
            "finishedAt": view.moment,
        }
    }


def _conditions(pod: Mapping[str, Any], containers: list[Object], view: PodView) -> list[Object]:
    known = {item["type"]: item for item in (pod.get("status") or {}).get("conditions") or []}
    unready = [item["name"] for item in containers if not item["ready"]]
    over = view.stage in ("succeeded", "failed")
    up = view.stage == "running"
    gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates") or []]
    closed = [gate for gate in gates if known.get(gate, {}).get("status") != "True"]

    all_ready = up and not unready
    why_not: tuple[str, str] = ("", "")
    if over:
        why_not = ("PodCompleted", "")
    elif not all_ready:
        why_not = ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    ready_why = why_not
    if all_ready and closed:
        ready_why = ("ReadinessGatesNotReady", f"readiness gates not ready: {', '.join(closed)}")
    wanted = {
        "PodReadyToStartContainers": (up, "", ""),
        "Initialized": (up or over, "", ""),
        "ContainersReady": (all_ready, *why_not),
        "Ready": (all_ready and not closed, *ready_why),
    }
    return [
        _condition(kind, known.get(kind), true=true, reason=reason, message=message, view=view)
        for kind, (true, reason, message) in wanted.items()
    ]


def _condition(
    kind: str,
    former: Mapping[str, Any] | None,
    *,
    true: bool,
    reason: str,
    message: str,
    view: PodView,
) -> Object:
    status = "True" if true else "False"
    condition: Object = {"type": kind, "status": status, "lastTransitionTime": view.moment}
    if former is not None and former.get("status") == status and former.get("lastTransitionTime"):
        condition["lastTransitionTime"] = former["lastTransitionTime"]
    # None removes what stood there: the patch merges.
    condition["reason"] = reason or None
    condition["message"] = message or None
    return condition


def _former(pod: Mapping[str, Any], where: str, name: str) -> Mapping[str, Any]:
    statuses = (pod.get("status") or {}).get(where) or []
    state: Mapping[str, Any] = next(
        (item.get("state") or {} for item in statuses if item["name"] == name), {}
    )
    return state
