"""The models: what a spec may say, that reading is lenient, and that writing loses nothing."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from machine_operator.api.conditions import ConditionType
from machine_operator.api.machine import (
    Machine,
    MachineError,
    MachineSpec,
    MachineStatus,
    read_machine,
    read_machine_anyway,
)
from machine_operator.api.phases import DesiredState, Phase, ReclaimPolicy

SIZES: dict[str, Any] = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1}
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2v3Vd7S0aW4Rz9p"
THEN = "2026-03-01T10:00:00Z"

FULL_STATUS: dict[str, Any] = {
    "phase": "running",
    "reason": "DesiredStateReached",
    "retryable": False,
    "revision": "12",
    "last_transition_at": THEN,
    "last_progress_at": "2026-03-01T10:00:00.000250Z",
    "last_error": "none, but kept",
    "transitions": 9,
    "observedGeneration": 2,
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "DesiredStateReached",
            "message": "",
            "observedGeneration": 2,
            "lastTransitionTime": THEN,
        }
    ],
    "desired_power": {"state": "running", "why": "spec.desired_state is running"},
    "power_request": {
        "state": "running",
        "by": "ada",
        "reason": "an execution",
        "at": THEN,
        "sequence": 1,
        "spec_desired_state": "running",
        "last_touch_at": THEN,
    },
    "activity": {
        "last_touch_at": THEN,
        "holds": [{"id": "e1", "kind": "execution", "since": THEN, "expires_at": THEN}],
    },
    "next_sleep_at": THEN,
    "wake_count": 3,
    "effective": {"vcpu": 0.5, "memory_mib": 256, "storage_gib": 1},
    "vm": {
        "name": "m-1",
        "uid": "u",
        "instance_uid": "i",
        "home_claim": "m-1-home",
    },
    "node": "n",
    "addresses": ["10.0.0.1", "fd00::1"],
    "backoff": {"failures": 0, "next_retry_at": THEN, "instance_uid": "i"},
}


def machine(**changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "machines.dedaluslabs.ai/v1alpha1",
        "kind": "Machine",
        "metadata": {"name": "hello", "namespace": "team", "uid": "u-1", "generation": 2},
        "spec": SIZES,
    } | changes


def test_three_sizes_suffice() -> None:
    spec = MachineSpec.model_validate(SIZES)
    assert spec.to_dict() == SIZES | {
        "autosleep": "5m",
        "desired_state": "running",
        "reclaim_policy": "Delete",
        "ssh_authorized_keys": [],
    }
    assert spec.desired_state is DesiredState.RUNNING
    assert spec.reclaim_policy is ReclaimPolicy.DELETE


@pytest.mark.parametrize("size", ["vcpu", "memory_mib", "storage_gib"])
def test_each_size_is_required(size: str) -> None:
    with pytest.raises(ValidationError, match=size):
        MachineSpec.model_validate({key: value for key, value in SIZES.items() if key != size})


@settings(deadline=None)
@given(st.integers(1, 512))
def test_quarters_of_a_vcpu(quarters: int) -> None:
    assert MachineSpec.model_validate(SIZES | {"vcpu": quarters / 4}).vcpu == quarters / 4


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("vcpu", 0.3, "not a multiple of 0.25"),
        ("vcpu", 0, "greater than or equal to 0.25"),
        ("vcpu", 128.25, "less than or equal to 128"),
        ("vcpu", float("nan"), "vcpu"),
        ("memory_mib", 127, "greater than or equal to 128"),
        ("memory_mib", 4_194_305, "less than or equal to 4194304"),
        ("storage_gib", 0, "greater than or equal to 1"),
        ("storage_gib", 65_537, "less than or equal to 65536"),
        ("autosleep", "soon", "is not understood"),
        ("desired_state", "on", "'running', 'sleeping' or 'destroyed'"),
        ("reclaim_policy", "Keep", "'Delete' or 'Retain'"),
        ("image", "my image", "image reference such as"),
        ("image", "", "image reference such as"),
        ("image", "debian\n", "image reference such as"),
        ("storage_class", "Fast one", "name of a StorageClass"),
        ("ssh_authorized_keys", ["nope"], "one line of a public key file"),
        ("ssh_authorized_keys", [KEY + "\n"], "one line of a public key file"),
        ("ssh_authorized_keys", [f'command="id" {KEY}'], "one line of a public key file"),
        ("ssh_authorized_keys", [f"{KEY} me\n{KEY}"], "one line of a public key file"),
        ("ssh_authorized_keys", [KEY + "A" * 8192], "at most 8192 characters"),
        ("ssh_authorized_keys", [KEY] * 65, "at most 64 items"),
    ],
)
def test_refusals(field: str, value: object, told: str) -> None:
    with pytest.raises(ValidationError, match=told) as caught:
        MachineSpec.model_validate(SIZES | {field: value})
    assert {fault["loc"][0] for fault in caught.value.errors()} == {field}


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        f"{KEY} ada@example.org with words",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ==",
        "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY=",
        "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29t",
    ],
)
def test_public_keys(key: str) -> None:
    spec = MachineSpec.model_validate(SIZES | {"ssh_authorized_keys": [key]})
    assert spec.ssh_authorized_keys == (key,)


def test_reading_ignores_what_a_newer_operator_wrote() -> None:
    read = read_machine(
        machine(spec=SIZES | {"gpu": 1}, status={"phase": "sleeping", "snapshots": [1]}, more=True)
    )
    assert read.spec == MachineSpec.model_validate(SIZES)
    assert read.status.phase is Phase.SLEEPING


def test_an_object_without_status_has_an_empty_one() -> None:
    read = read_machine(machine())
    assert read.status == MachineStatus()
    assert (read.metadata.namespace, read.metadata.name) == ("team", "hello")
    assert read.metadata.deletionTimestamp is None


def test_a_status_survives_reading_and_writing() -> None:
    assert set(FULL_STATUS) == set(MachineStatus.model_fields), "the example must have every field"
    status = read_machine(machine(status=FULL_STATUS)).status
    assert status.to_dict() == FULL_STATUS
    assert status.conditions[0].type == ConditionType.READY


def test_an_unreadable_object_is_named_with_each_fault() -> None:
    with pytest.raises(MachineError) as caught:
        read_machine(machine(spec={"vcpu": 0.3, "memory_mib": 256, "storage_gib": 0}))
    told = str(caught.value)
    assert told.startswith("machine team/hello cannot be read: ")
    assert "spec.vcpu: " in told
    assert "spec.storage_gib: " in told


@pytest.mark.parametrize(
    "obj", [{}, {"metadata": None}, machine(kind="Pod"), machine(apiVersion="v1")]
)
def test_what_is_no_machine_is_refused(obj: dict[str, Any]) -> None:
    with pytest.raises(MachineError, match="cannot be read"):
        read_machine(obj)


# ---- read as far as possible


def test_a_readable_machine_has_no_fault() -> None:
    obj = machine(status=FULL_STATUS)
    assert read_machine_anyway(obj) == (read_machine(obj), None)


@pytest.mark.parametrize(
    ("status", "kept"),
    [
        ("nonsense", {}),
        ([1], {}),
        ({"phase": "melting"}, {}),
        (
            {"phase": "running", "transitions": -1, "wake_count": 4},
            {"phase": "running", "wake_count": 4},
        ),
        ({"power_request": {"state": "off"}, "node": "n"}, {"node": "n"}),
        ({"conditions": [{"type": "?"}], "vm": {"name": "m"}}, {"vm": {"name": "m"}}),
        ({"last_transition_at": "yesterday", "backoff": 3}, {}),
    ],
)
def test_of_a_garbage_status_only_what_can_be_read_counts(
    status: Any, kept: dict[str, Any]
) -> None:
    read, fault = read_machine_anyway(machine(status=status))
    assert fault is None, "a status is nobody's mistake but is written again"
    assert read.spec == MachineSpec.model_validate(SIZES)
    assert read.status == MachineStatus.model_validate(kept)


@pytest.mark.parametrize("status", [None, FULL_STATUS, {"phase": "melting", "node": "n"}])
def test_a_spec_that_cannot_be_read_is_stood_in_for(status: dict[str, Any] | None) -> None:
    obj = machine(spec=SIZES | {"vcpu": 0.3, "reclaim_policy": "Delete"})
    if status is not None:
        obj["status"] = status
    read, fault = read_machine_anyway(obj)
    assert fault is not None
    assert fault.startswith("machine team/hello cannot be read: spec.vcpu: ")
    assert "status" not in fault
    assert read.metadata == read_machine(machine()).metadata
    assert read.spec.desired_state is DesiredState.SLEEPING
    assert read.spec.reclaim_policy is ReclaimPolicy.RETAIN, "nothing is lost for a mistake"
    if status is not None:
        assert read.status.node == "n"


def test_what_is_no_machine_cannot_be_stood_in_for() -> None:
    with pytest.raises(MachineError, match="cannot be read"):
        read_machine_anyway(machine(kind="Pod"))


def test_models_are_immutable() -> None:
    read = Machine.model_validate(machine())
    with pytest.raises(ValidationError, match="frozen"):
        read.spec.__setattr__("vcpu", 2)
