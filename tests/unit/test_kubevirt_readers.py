"""From objects as KubeVirt writes them to views, for every way in which it shows a failure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from machine_operator.api.phases import Reason
from machine_operator.kubevirt.home import build_home
from machine_operator.kubevirt.readers import (
    machine_uid,
    read_claim,
    read_instance,
    read_node,
    read_seed,
    read_vm,
)
from machine_operator.kubevirt.seed import HostKey, build_seed
from machine_operator.kubevirt.vm import build_vm, vm_digests
from machine_operator.lifecycle.observation import InstancePhase, RunStrategy, Trouble
from tests.support.machines import DEFAULTS, UID, a_machine

Object = dict[str, Any]
HOME = "m-7f3a9c215b1e-home"
APPLIED, BOOT = vm_digests(a_machine(), DEFAULTS, home=HOME)
THEN = datetime(2026, 3, 1, 10, tzinfo=UTC)
QUOTA = (
    'pods "virt-launcher-m-7f3a9c215b1e-x7k2p" is forbidden: exceeded quota: team, '
    "requested: requests.memory=809Mi, used: requests.memory=8Gi, limited: requests.memory=8Gi"
)


def vm(status: Object | None = None, **metadata: Any) -> Object:
    """A VM as it comes back: ours, with what KubeVirt adds."""
    body = build_vm(a_machine(), DEFAULTS, home=HOME, run_strategy=RunStrategy.ON)
    body["metadata"] |= {"uid": "vm-uid", "resourceVersion": "9", "generation": 1, **metadata}
    body["metadata"]["finalizers"] = ["kubevirt.io/virtualMachineControllerFinalize"]
    return body | ({} if status is None else {"status": status})


def instance(status: Object | None = None, **metadata: Any) -> Object:
    """The VMI of that VM."""
    template = build_vm(a_machine(), DEFAULTS, home=HOME, run_strategy=RunStrategy.ON)["spec"][
        "template"
    ]
    meta = {
        **template["metadata"],
        "name": "m-7f3a9c215b1e",
        "namespace": "ns",
        "uid": "vmi-uid",
        "resourceVersion": "10",
        **metadata,
    }
    return {"metadata": meta, "spec": template["spec"], "status": status or {}}


def condition(kind: str, status: str, reason: str = "", message: str = "") -> Object:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastProbeTime": None,
        "lastTransitionTime": "2026-03-01T10:00:00Z",
    }


def trouble_of(*conditions: Object, phase: str = "Scheduling") -> Trouble | None:
    return read_instance(instance({"phase": phase, "conditions": list(conditions)})).trouble


# ---- VM


def test_a_vm_before_its_first_status() -> None:
    view = read_vm(vm())
    assert (view.name, view.uid, view.deleting) == ("m-7f3a9c215b1e", "vm-uid", False)
    assert (view.run_strategy, view.on, view.trouble) == ("RerunOnFailure", True, None)
    assert view.applied == APPLIED
    assert {view.halting, view.start_requested, view.rests} == {False}
    assert (view.start_failures, view.retry_at) == (0, None)


def test_a_foreign_vm() -> None:
    view = read_vm({"metadata": {"name": "x", "uid": "u"}, "spec": {"running": True}})
    assert (view.run_strategy, view.applied) == ("", "")
    assert machine_uid({"metadata": {}}) == ""


def test_a_vm_on_its_way_out() -> None:
    assert read_vm(vm(deletionTimestamp="2026-03-01T10:00:00Z")).deleting


def test_an_instance_that_a_webhook_refuses() -> None:
    text = 'admission webhook "virtualmachineinstances-create-validator.kubevirt.io" denied the request: no memory'
    refused = {
        "printableStatus": "Stopped",
        "conditions": [condition("Failure", "True", "FailedCreate", text)],
    }
    assert read_vm(vm(refused)).trouble == Trouble(Reason.VIRTUAL_MACHINE_REFUSED, text)


def test_a_vm_over_quota() -> None:
    over = {"conditions": [condition("Failure", "True", "FailedCreate", QUOTA)]}
    assert read_vm(vm(over)).trouble == Trouble(Reason.QUOTA_EXCEEDED, QUOTA)


def test_a_vm_that_dies_before_it_is_up() -> None:
    looping = {
        "printableStatus": "CrashLoopBackOff",
        "startFailure": {
            "consecutiveFailCount": 3,
            "lastFailedVMIUID": "x",
            "retryAfterTimestamp": "2026-03-01T10:05:00Z",
        },
    }
    view = read_vm(vm(looping))
    assert (view.start_failures, view.retry_at) == (3, THEN + timedelta(minutes=5))
    trouble = view.trouble
    assert trouble is not None
    assert trouble.reason is Reason.CRASH_LOOP
    assert "3 times" in trouble.message
    assert "10:05:00" in trouble.message


@pytest.mark.parametrize("printable", ["Stopped", "Starting", "Running", "ErrorUnschedulable"])
def test_nothing_else_is_concluded_from_the_printable_status(printable: str) -> None:
    status = {
        "printableStatus": printable,
        "conditions": [condition("Ready", "False", "VMINotExists"), condition("Failure", "False")],
    }
    assert read_vm(vm(status)).trouble is None


ON, OFF, START = "RerunOnFailure", "Halted", [{"action": "Start"}]


@pytest.mark.parametrize(
    ("told", "acted_on", "status", "expected"),
    [
        (ON, "", {"printableStatus": "Stopped"}, ""),
        (ON, ON, {"printableStatus": "Running"}, "rests"),
        (ON, ON, {"printableStatus": "Stopped"}, "rests"),
        (ON, OFF, {"printableStatus": "Stopped"}, ""),
        (ON, ON, {"printableStatus": "Stopped", "stateChangeRequests": START}, "requested"),
        (ON, ON, {"printableStatus": "CrashLoopBackOff", "startFailure": {"x": 1}}, "rests"),
        (
            ON,
            ON,
            {"printableStatus": "CrashLoopBackOff", "stateChangeRequests": START},
            "requested",
        ),
        (ON, ON, {"printableStatus": "WaitingForVolumeBinding"}, "rests"),
        (OFF, ON, {"printableStatus": "Stopping"}, "halting"),
        (OFF, OFF, {"printableStatus": "Stopped"}, ""),
        (OFF, "", {}, ""),
        ("Always", "Always", {"printableStatus": "Stopped"}, ""),
        (ON, ON, {"stateChangeRequests": [{"action": "Stop"}, *START]}, "requested"),
        (ON, ON, {"stateChangeRequests": None, "startFailure": None}, "rests"),
    ],
)
def test_where_kubevirt_is_between_two_strategies(
    told: str, acted_on: str, status: Object, expected: str
) -> None:
    body = vm({**status, **({"runStrategy": acted_on} if acted_on else {})})
    body["spec"]["runStrategy"] = told
    view = read_vm(body)
    flags = {"rests": view.rests, "halting": view.halting, "requested": view.start_requested}
    assert [name for name, holds in flags.items() if holds] == ([expected] if expected else [])
    assert view.on == (told == ON)


# ---- VMI


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        ("", InstancePhase.PENDING),
        ("Pending", InstancePhase.PENDING),
        ("Scheduling", InstancePhase.PENDING),
        ("WaitingForSync", InstancePhase.PENDING),
        ("Unknown", InstancePhase.PENDING),
        ("Scheduled", InstancePhase.SCHEDULED),
        ("Running", InstancePhase.RUNNING),
        ("Succeeded", InstancePhase.SUCCEEDED),
        ("Failed", InstancePhase.FAILED),
    ],
)
def test_phases(phase: str, expected: InstancePhase) -> None:
    assert read_instance(instance({"phase": phase})).phase is expected


def test_an_instance_without_any_status() -> None:
    view = read_instance({**instance(), "status": None})
    assert (view.phase, view.ready, view.node, view.addresses) == (
        InstancePhase.PENDING,
        False,
        None,
        (),
    )
    assert (view.started_from, view.deleting_since) == (BOOT, None)


def test_a_running_instance() -> None:
    view = read_instance(
        instance(
            {
                "phase": "Running",
                "nodeName": "node-1",
                "conditions": [condition("Ready", "True"), condition("LiveMigratable", "False")],
                "interfaces": [
                    {"ipAddress": "10.0.0.7", "ipAddresses": ["10.0.0.7", "fd00::7"]},
                    {"name": "no address yet"},
                ],
            }
        )
    )
    assert (view.ready, view.node, view.trouble) == (True, "node-1", None)
    assert view.addresses == ("10.0.0.7", "fd00::7")
    assert (view.vcpu, view.memory_mib) == (0.25, 512)


def test_an_instance_that_was_told_to_stop() -> None:
    view = read_instance(instance({"phase": "Running"}, deletionTimestamp="2026-03-01T10:00:00Z"))
    assert (view.deleting, view.deleting_since) == (True, THEN)


def test_no_node_fits() -> None:
    text = "0/3 nodes are available: 3 Insufficient memory."
    assert trouble_of(condition("PodScheduled", "False", "Unschedulable", text)) == Trouble(
        Reason.UNSCHEDULABLE, text
    )


def test_waiting_for_a_disk_is_no_trouble() -> None:
    text = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    assert trouble_of(condition("PodScheduled", "False", "Unschedulable", text)) is None


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff"])
def test_the_image_cannot_be_pulled(reason: str) -> None:
    text = 'Back-off pulling image "registry.example/typo:1"'
    assert trouble_of(condition("Synchronized", "False", reason, text)) == Trouble(
        Reason.IMAGE_NOT_AVAILABLE, text
    )


@pytest.mark.parametrize(
    "text",
    [
        QUOTA,
        'pods "virt-launcher-x" is forbidden: failed quota: team: must specify limits.cpu for: compute',
        'pods "virt-launcher-x" is forbidden: maximum memory usage per Pod is 1Gi, but limit is 2Gi',
        'pods "virt-launcher-x" is forbidden: [minimum cpu usage per Container is 1, but request is 250m]',
        'pods "x" is forbidden: cpu max limit to request ratio per Container is 2, but provided ratio is 4.0',
        'Pod "x" is invalid: spec.containers[0].resources.requests: Invalid value: "1": '
        "must be less than or equal to memory limit of 512Mi",
    ],
    ids=["exceeded", "must specify", "per pod", "per container", "ratio", "below its request"],
)
def test_quota_and_limits_of_the_namespace(text: str) -> None:
    """Texts of the ResourceQuota and LimitRanger plugins."""
    trouble = trouble_of(condition("Synchronized", "False", "FailedCreate", text), phase="Pending")
    assert trouble == Trouble(Reason.QUOTA_EXCEEDED, text)


def test_pod_security_refuses_the_pod() -> None:
    text = 'pods "virt-launcher-x" is forbidden: violates PodSecurity "restricted:latest"'
    trouble = trouble_of(condition("Synchronized", "False", "FailedCreate", text), phase="Pending")
    assert trouble == Trouble(Reason.VIRTUAL_MACHINE_REFUSED, text)


def test_the_disk_is_missing() -> None:
    text = "failed to render launch manifest: PVC ns/m-7f3a9c215b1e-home does not exist"
    found = trouble_of(
        condition("PodScheduled", "False", "Unschedulable", "persistentvolumeclaim not found"),
        condition("Synchronized", "False", "FailedPvcNotFound", text),
    )
    assert found == Trouble(Reason.STORAGE_NOT_AVAILABLE, text)


def test_paused_by_an_io_error() -> None:
    found = trouble_of(
        condition("Ready", "True"),
        condition("Paused", "True", "PausedIOError", "VMI was paused, low-level IO error detected"),
        phase="Running",
    )
    assert found is not None
    assert found.reason is Reason.GUEST_PAUSED
    assert found.message.startswith("PausedIOError: VMI was paused")


def test_an_instance_that_ended_has_no_trouble_any_more() -> None:
    stale = condition("Synchronized", "False", "ErrImagePull", "x")
    assert trouble_of(stale, phase="Failed") is None


def test_synchronized_again_is_no_trouble() -> None:
    assert trouble_of(condition("Synchronized", "True")) is None
    assert trouble_of(condition("PodScheduled", "True")) is None


def test_a_lost_node() -> None:
    view = read_instance(
        instance(
            {
                "phase": "Running",
                "nodeName": "node-1",
                "conditions": [condition("Ready", "False", "PodNotReady")],
            }
        )
    )
    assert (view.phase, view.ready, view.trouble) == (InstancePhase.RUNNING, False, None)


def test_sizes_from_topology_where_there_is_no_request() -> None:
    body = instance()
    body["spec"]["domain"] = {"cpu": {"sockets": 2, "cores": 2}}
    view = read_instance(body)
    assert (view.vcpu, view.memory_mib) == (4.0, None)


# ---- node


@pytest.mark.parametrize(
    ("ready", "spec", "expected"),
    [
        (condition("Ready", "True", "KubeletReady", "well"), {}, (True, True, "")),
        (condition("Ready", "True"), {"unschedulable": True}, (True, False, "")),
        (condition("Ready", "Unknown", "X", "no word"), {}, (False, True, "no word")),
        (condition("Ready", "False"), {}, (False, True, "it has not reported yet")),
        (None, {}, (False, True, "it has not reported yet")),
    ],
    ids=["well", "cordoned", "silent", "unwell", "new"],
)
def test_a_node(ready: Object | None, spec: Object, expected: tuple[bool, bool, str]) -> None:
    body = {"metadata": {"name": "node-1"}, "spec": spec}
    view = read_node(body | ({"status": {"conditions": [ready]}} if ready else {}))
    assert (view.ready, view.schedulable, view.message) == expected


# ---- disk and seed


def claim(status: Object | None = None, **metadata: Any) -> Object:
    body = build_home(a_machine(), name=HOME)
    body["metadata"] |= {"uid": "home-uid", "resourceVersion": "3", **metadata}
    return body | ({"status": status} if status is not None else {})


@pytest.mark.parametrize(
    ("capacity", "gib"), [("10Gi", 10), ("10737418239", 9), ("11G", 10), ("1Ti", 1024)]
)
def test_a_bound_disk(capacity: str, gib: int) -> None:
    view = read_claim(claim({"phase": "Bound", "capacity": {"storage": capacity}}))
    assert (view.bound, view.capacity_gib, view.owned, view.deleting) == (True, gib, True, False)


@pytest.mark.parametrize("status", [None, {}, {"phase": "Pending"}])
def test_a_disk_without_a_volume(status: Object | None) -> None:
    view = read_claim(claim(status))
    assert (view.bound, view.capacity_gib) == (False, 0)


def test_a_released_disk_is_not_owned() -> None:
    assert not read_claim(claim({"phase": "Bound"}, ownerReferences=[])).owned
    other = [{"uid": "somebody-else"}]
    assert not read_claim(claim({"phase": "Bound"}, ownerReferences=other)).owned


def test_a_released_disk_can_be_told_from_others() -> None:
    view = read_claim(claim(ownerReferences=[], creationTimestamp="2026-03-01T10:00:00Z"))
    assert (view.machine, view.machine_uid, view.labelled) == ("box", UID, True)
    assert (view.foreign_owner, view.created_at) == (False, THEN)
    owned = read_claim(claim(ownerReferences=[{"uid": "x", "controller": True}]))
    assert (owned.owned, owned.foreign_owner) == (False, True)
    assert not read_claim(claim(ownerReferences=[{"uid": "x"}])).foreign_owner


def test_a_disk_without_our_labels() -> None:
    view = read_claim({"metadata": {"name": "data", "uid": "u"}})
    assert (view.machine, view.machine_uid, view.labelled) == ("", "", False)
    assert {view.owned, view.foreign_owner, view.bound} == {False}


def test_a_disk_whose_volume_is_lost() -> None:
    assert not read_claim(claim({"phase": "Lost", "capacity": {"storage": "10Gi"}})).bound


def test_a_seed_is_read_without_its_content() -> None:
    body = build_seed(a_machine(), DEFAULTS, HostKey(private="SECRET", public="p"))
    body["metadata"]["uid"] = "seed-uid"
    view = read_seed(body)
    assert view.uid == "seed-uid"
    assert machine_uid(body) == UID
    assert "SECRET" not in repr(view)
