"""The statuses that kubelet and virt-handler write."""

from __future__ import annotations

from typing import Any

import pytest

from machine_operator.local.hollow import instance_status
from machine_operator.local.hollow.pod_status import PodView, Stage, pod_status, status_patch

Object = dict[str, Any]

BEFORE, NOW = "2026-11-25T15:00:00Z", "2026-11-25T15:00:09Z"


def pod(**status: Any) -> Object:
    return {
        "metadata": {"uid": "p1", "name": "virt-launcher-m-1-abcde"},
        "spec": {
            "readinessGates": [{"conditionType": "kubevirt.io/virtual-machine-unpaused"}],
            "initContainers": [
                {"name": "volumeroot-init", "image": "machine-guest:12"},
                {"name": "guest-console-log", "image": "launcher", "restartPolicy": "Always"},
            ],
            "containers": [
                {
                    "name": "compute",
                    "image": "launcher",
                    "readinessProbe": {"tcpSocket": {"port": 22}},
                },
                {"name": "volumeroot", "image": "machine-guest:12"},
            ],
        },
        "status": status,
    }


def view(stage: Stage, *, probed: bool = False, moment: str = NOW, **changes: Any) -> PodView:
    ip = "127.77.0.1" if stage == "running" else ""
    return PodView(stage, ip=ip, probed=probed, moment=moment, **changes)


def condition(status: Object, kind: str) -> Object:
    return next(item for item in status["conditions"] if item["type"] == kind)


def containers(status: Object, where: str = "containerStatuses") -> dict[str, Object]:
    return {item["name"]: item for item in status[where]}


OPEN_GATE = {"type": "kubevirt.io/virtual-machine-unpaused", "status": "True"}


def test_a_started_pod_hands_the_vmi_over_although_its_guest_is_not_ready() -> None:
    status = pod_status(pod(), view("running"))
    assert status["phase"] == "Running"
    # virt-controller wants compute running, and everything else ready.
    assert "running" in containers(status)["compute"]["state"]
    assert {name: item["ready"] for name, item in containers(status).items()} == {
        "compute": False,
        "volumeroot": True,
    }
    inits = containers(status, "initContainerStatuses")
    assert inits["volumeroot-init"]["state"]["terminated"]["exitCode"] == 0
    assert "running" in inits["guest-console-log"]["state"]
    assert status["podIPs"] == [{"ip": "127.77.0.1"}]


@pytest.mark.parametrize(
    ("probed", "gates", "ready", "reason"),
    [
        (False, [], "False", "ContainersNotReady"),
        (True, [], "False", "ReadinessGatesNotReady"),
        (True, [OPEN_GATE], "True", None),
        (False, [OPEN_GATE], "False", "ContainersNotReady"),
    ],
)
def test_ready_needs_the_probe_and_the_gate(
    probed: bool, gates: list[Object], ready: str, reason: str | None
) -> None:
    status = pod_status(pod(conditions=gates), view("running", probed=probed))
    found = condition(status, "Ready")
    assert (found["status"], found["reason"]) == (ready, reason)


def test_the_steady_state_writes_nothing() -> None:
    first = pod_status(pod(conditions=[OPEN_GATE]), view("running", probed=True, moment=BEFORE))
    stored = {**first, "conditions": [OPEN_GATE, *map(without_nones, first["conditions"])]}
    assert status_patch(pod(**stored), view("running", probed=True)) == {}


def test_what_the_api_server_adds_is_no_difference() -> None:
    first = pod_status(pod(conditions=[OPEN_GATE]), view("running", probed=True, moment=BEFORE))
    for where in ("containerStatuses", "initContainerStatuses"):
        first[where] = [{**item, "lastState": {}} for item in first[where]]
    stored = {
        **first,
        "qosClass": "Burstable",
        "conditions": [
            OPEN_GATE,
            *({**without_nones(item), "lastProbeTime": None} for item in first["conditions"]),
        ],
    }
    assert status_patch(pod(**stored), view("running", probed=True)) == {}
    # One container fewer is a difference.
    stored["containerStatuses"] = stored["containerStatuses"][:1]
    assert status_patch(pod(**stored), view("running", probed=True)).keys() == {"containerStatuses"}


def without_nones(item: Object) -> Object:
    return {key: value for key, value in item.items() if value is not None}


def test_only_what_changed_is_patched() -> None:
    first = pod_status(pod(conditions=[OPEN_GATE]), view("running", probed=True, moment=BEFORE))
    stored = {**first, "conditions": [OPEN_GATE, *map(without_nones, first["conditions"])]}
    patch = status_patch(pod(**stored), view("running", probed=False))
    assert patch.keys() == {"containerStatuses", "conditions"}
    changed = {item["type"]: item["lastTransitionTime"] for item in patch["conditions"]}
    assert changed == {"ContainersReady": NOW, "Ready": NOW}
    # The container goes on running since when it was started.
    assert patch["containerStatuses"][0]["state"] == {"running": {"startedAt": BEFORE}}


def test_an_address_is_never_replaced() -> None:
    status = pod_status(pod(podIP="127.77.0.9"), view("running"))
    assert status["podIPs"] == [{"ip": "127.77.0.9"}]


def test_a_missing_image_waits_where_virt_controller_looks() -> None:
    pulls = {"volumeroot-init": ("ErrImagePull", "not found")}
    status = pod_status(pod(), view("waiting", pulls=pulls))
    inits = containers(status, "initContainerStatuses")
    assert inits["volumeroot-init"]["state"] == {
        "waiting": {"reason": "ErrImagePull", "message": "not found"}
    }
    assert containers(status)["compute"]["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert "podIP" not in status


@pytest.mark.parametrize(
    ("stage", "phase", "code"), [("succeeded", "Succeeded", 0), ("failed", "Failed", 1)]
)
def test_an_ended_pod(stage: Stage, phase: str, code: int) -> None:
    running = pod_status(pod(), view("running", moment=BEFORE))
    status = pod_status(pod(**running), view(stage))
    assert status["phase"] == phase
    terminated = containers(status)["compute"]["state"]["terminated"]
    assert (terminated["exitCode"], terminated["startedAt"]) == (code, BEFORE)
    assert condition(status, "Ready")["reason"] == "PodCompleted"


def scheduled() -> Object:
    return {
        "metadata": {"uid": "v1", "resourceVersion": "7"},
        "spec": {
            "networks": [{"name": "default", "pod": {}}],
            "domain": {"devices": {"disks": [{"name": "root"}, {"name": "home"}]}},
        },
        "status": {
            "phase": "Scheduled",
            "interfaces": [{"name": "default", "podInterfaceName": "eth0"}],
            "volumeStatus": [{"name": "home"}],
            "conditions": [
                {"type": "Ready", "status": "False"},
                {"type": "Synchronized", "status": "False", "message": "no image"},
            ],
            "phaseTransitionTimestamps": [
                {"phase": "Scheduled", "phaseTransitionTimestamp": BEFORE}
            ],
        },
    }


def test_a_running_vmi() -> None:
    before = scheduled()
    after = instance_status.running(
        before, address="127.77.0.1", mac="52:54:00:00:00:01", moment=NOW
    )
    assert before == scheduled()
    status = after["status"]
    assert status["phase"] == "Running"
    assert after["metadata"] == before["metadata"]
    assert status["interfaces"] == [
        {
            "name": "default",
            "podInterfaceName": "eth0",
            "ipAddress": "127.77.0.1",
            "ipAddresses": ["127.77.0.1"],
            "mac": "52:54:00:00:00:01",
            "infoSource": "domain",
            "queueCount": 1,
        }
    ]
    assert [item["type"] for item in status["conditions"]] == ["Ready", "LiveMigratable"]
    assert [item["phase"] for item in status["phaseTransitionTimestamps"]] == [
        "Scheduled",
        "Running",
    ]
    assert status["volumeStatus"] == [{"name": "home", "target": "vdb"}]


def test_a_paused_vmi() -> None:
    paused = instance_status.paused(scheduled(), moment=NOW)
    assert paused is not None
    found = condition(paused["status"], "Paused")
    assert (found["status"], found["reason"]) == ("True", "PausedIOError")
    assert instance_status.paused(paused, moment=NOW) is None
    assert instance_status.unpaused(paused) == scheduled()
    assert instance_status.unpaused(scheduled()) is None


def test_a_pause_on_purpose_is_left_alone() -> None:
    vmi = scheduled()
    vmi["status"]["conditions"].append(
        {"type": "Paused", "status": "True", "reason": "PausedByUser"}
    )
    assert instance_status.paused(vmi, moment=NOW) is None
    assert instance_status.unpaused(vmi) is None
    assert condition(instance_status.ended(vmi, phase="Failed", moment=NOW)["status"], "Paused")


def test_an_ended_vmi() -> None:
    after = instance_status.ended(scheduled(), phase="Failed", moment=NOW)
    assert instance_status.is_final(after)
    assert after["status"]["phaseTransitionTimestamps"][-1] == {
        "phase": "Failed",
        "phaseTransitionTimestamp": NOW,
    }


def test_why_a_guest_does_not_start_is_said_once() -> None:
    assert instance_status.not_synchronized(scheduled(), message="no image", moment=NOW) is None
    after = instance_status.not_synchronized(scheduled(), message="no disk", moment=NOW)
    assert after is not None
    found = [item for item in after["status"]["conditions"] if item["type"] == "Synchronized"]
    assert [(item["status"], item["message"]) for item in found] == [("False", "no disk")]
