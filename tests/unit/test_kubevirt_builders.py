"""What is applied for a machine: one whole golden example, and what may never happen to the rest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.api.names import ADOPT_ANNOTATION
from machine_operator.kubevirt.digest import digest
from machine_operator.kubevirt.home import build_home, home_digest, released_home
from machine_operator.kubevirt.names import (
    APPLIED_ANNOTATION,
    BOOT_ANNOTATION,
    child_names,
    home_name,
)
from machine_operator.kubevirt.seed import HostKey, build_seed, seed_digest
from machine_operator.kubevirt.vm import build_vm, vm_digests
from machine_operator.lifecycle.observation import RunStrategy
from tests.support.machines import DEFAULTS, KEY, a_machine

GOLDEN = Path(__file__).parents[1] / "data" / "machine-children.yaml"
HOME = "m-7f3a9c215b1e-home"
HOST_KEY = HostKey(private="PRIVATE\n", public="ssh-ed25519 PUBLIC")


def golden_machine() -> Any:
    return a_machine(spec={"ssh_authorized_keys": [KEY], "storage_class": "fast"})


def test_the_children_of_one_machine() -> None:
    machine = golden_machine()
    found = {
        "home": build_home(machine, name=HOME),
        "vm": build_vm(machine, DEFAULTS, home=HOME, run_strategy=RunStrategy.ON),
    }
    assert found == yaml.safe_load(GOLDEN.read_text())


# ---- VM


@pytest.mark.parametrize(
    ("vcpu", "sockets", "request_", "limit"),
    [
        (0.25, 1, "250m", "1"),
        (0.5, 1, "500m", "1"),
        (0.75, 1, "750m", "1"),
        (1, 1, "1000m", "1"),
        (1.25, 2, "1250m", "2"),
        (2.75, 3, "2750m", "3"),
        (16, 16, "16000m", "16"),
        (128, 128, "128000m", "128"),
    ],
)
def test_sizes(vcpu: float, sockets: int, request_: str, limit: str) -> None:
    machine = a_machine(spec={"vcpu": vcpu, "memory_mib": 3072})
    domain = build_vm(machine, DEFAULTS, home=HOME, run_strategy=RunStrategy.OFF)["spec"][
        "template"
    ]["spec"]["domain"]
    assert domain["cpu"] == {"sockets": sockets, "cores": 1, "threads": 1}
    assert domain["resources"] == {"requests": {"cpu": request_}, "limits": {"cpu": limit}}
    assert domain["memory"] == {"guest": "3072Mi"}


@given(quarters=st.integers(1, 512))
def test_the_guest_has_enough_processors_and_never_one_too_many(quarters: int) -> None:
    vcpu = quarters / 4
    vm = build_vm(a_machine(spec={"vcpu": vcpu}), DEFAULTS, home=HOME, run_strategy=RunStrategy.ON)
    domain = vm["spec"]["template"]["spec"]["domain"]
    assert domain["cpu"]["sockets"] == math.ceil(vcpu)
    assert domain["resources"]["requests"]["cpu"] == f"{quarters * 250}m"


def test_nothing_is_left_to_be_filled_in_at_random() -> None:
    machine = a_machine()
    template = build_vm(machine, DEFAULTS, home=HOME, run_strategy=RunStrategy.ON)["spec"][
        "template"
    ]["spec"]
    firmware = template["domain"]["firmware"]
    assert firmware == {"uuid": machine.metadata.uid, "serial": machine.metadata.uid}
    assert template["architecture"] == "amd64"
    assert template["domain"]["machine"] == {"type": "q35"}


def test_power_is_no_part_of_the_digest() -> None:
    on, off = (
        build_vm(a_machine(), DEFAULTS, home=HOME, run_strategy=strategy)
        for strategy in RunStrategy
    )
    assert on["spec"].pop("runStrategy") == "RerunOnFailure"
    assert off["spec"].pop("runStrategy") == "Halted"
    assert "running" not in on["spec"]
    assert on == off


def test_the_digest_of_the_boot_reaches_the_instance_and_the_other_does_not() -> None:
    """KubeVirt copies the template's annotations to each VMI; a change there alone would ask for a restart."""
    vm = build_vm(a_machine(), DEFAULTS, home=HOME, run_strategy=RunStrategy.ON)
    applied, boot = vm_digests(a_machine(), DEFAULTS, home=HOME)
    assert vm["metadata"]["annotations"] == {APPLIED_ANNOTATION: applied}
    assert vm["spec"]["template"]["metadata"]["annotations"] == {BOOT_ANNOTATION: boot}


def test_an_image_of_its_own() -> None:
    def image(**spec: Any) -> str:
        vm = build_vm(a_machine(spec=spec), DEFAULTS, home=HOME, run_strategy=RunStrategy.ON)
        volumes = {v["name"]: v for v in vm["spec"]["template"]["spec"]["volumes"]}
        return str(volumes["root"]["containerDisk"]["image"])

    assert image() == DEFAULTS.image
    assert image(image="quay.io/containerdisks/debian:13") == "quay.io/containerdisks/debian:13"


# ---- digests

CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"vcpu": 0.5}, {"vm", "boot"}),
    # KubeVirt can give a running guest more memory.
    ({"memory_mib": 1024}, {"vm"}),
    ({"image": "other:1"}, {"vm", "boot"}),
    ({"storage_gib": 11}, {"home"}),
    ({"storage_class": "fast"}, {"home"}),
    ({"ssh_authorized_keys": [KEY]}, {"seed"}),
    ({"autosleep": "never"}, set()),
    ({"desired_state": "sleeping"}, set()),
    ({"reclaim_policy": "Retain"}, set()),
]


def digests(machine: Any, *, home: str = HOME) -> dict[str, str]:
    whole, boot = vm_digests(machine, DEFAULTS, home=home)
    return {
        "vm": whole,
        "boot": boot,
        "home": home_digest(machine, name=home),
        "seed": seed_digest(machine, DEFAULTS),
    }


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.mark.parametrize(("spec", "expected"), CHANGES, ids=lambda value: ",".join(sorted(value)))
def test_a_change_touches_only_the_child_that_it_is_about(
    spec: dict[str, Any], expected: set[str]
) -> None:
    assert changed(digests(a_machine()), digests(a_machine(spec=spec))) == expected


def test_another_disk_is_another_vm() -> None:
    machine = a_machine()
    assert changed(digests(machine), digests(machine, home="old-home")) == {"vm", "boot", "home"}


def test_digests_are_the_same_in_every_process() -> None:
    assert digest({"b": [1, 0.25, None], "a": "ü"}) == digest({"a": "ü", "b": [1, 0.25, None]})
    assert digest({"a": 1}) == "015abd7f5cc57a2d"


def test_status_and_versions_are_no_part_of_a_digest() -> None:
    one = a_machine()
    other = a_machine(resourceVersion="99", generation=7, status={"phase": "running"})
    assert digests(one) == digests(other)


# ---- names


@given(uid=st.uuids())
def test_names_fit_everywhere(uid: Any) -> None:
    names = child_names(str(uid))
    for name in (names.vm, names.home, names.seed):
        assert len(name) <= 52
        assert name.replace("-", "").isalnum()
        assert name == name.lower()
    assert len({names.vm, names.home, names.seed}) == 3


def test_names_are_derived_from_the_uid_alone() -> None:
    assert child_names("7f3a9c21-5b1e-4c7d-9a60-3c1f2e4d5a6b").vm == "m-7f3a9c215b1e"


HAS = {"vm": {"name": "m", "home_claim": "old-home"}}
ADOPTS = {ADOPT_ANNOTATION: "retained"}


@pytest.mark.parametrize(
    ("parts", "found", "expected"),
    [
        ({}, None, HOME),
        ({}, HOME, HOME),
        ({"annotations": ADOPTS}, None, "retained"),
        ({"annotations": ADOPTS}, HOME, HOME),
        ({"status": HAS}, None, "old-home"),
        ({"status": HAS, "annotations": ADOPTS}, None, "old-home"),
        ({"status": HAS}, "another", "another"),
    ],
    ids=["new", "made", "adopts", "made before", "lost", "lost and asks", "relabelled"],
)
def test_a_disk_keeps_the_name_under_which_it_began(
    parts: dict[str, Any], found: str | None, expected: str
) -> None:
    assert home_name(a_machine(**parts), found=found) == expected


def test_an_adopted_disk_is_the_vms_and_the_machines() -> None:
    vm = build_vm(a_machine(), DEFAULTS, home="retained", run_strategy=RunStrategy.ON)
    volumes = {v["name"]: v for v in vm["spec"]["template"]["spec"]["volumes"]}
    assert volumes["home"] == {
        "name": "home",
        "persistentVolumeClaim": {"claimName": "retained"},
    }
    claim = build_home(a_machine(), name="retained")["metadata"]
    assert claim["name"] == "retained"
    assert claim["ownerReferences"][0]["uid"] == a_machine().metadata.uid


@pytest.mark.parametrize("build", ["vm", "home", "seed"])
def test_every_child_says_whose_it_is(build: str) -> None:
    machine = a_machine()
    child = {
        "vm": lambda: build_vm(machine, DEFAULTS, home=HOME, run_strategy=RunStrategy.ON),
        "home": lambda: build_home(machine, name=HOME),
        "seed": lambda: build_seed(machine, DEFAULTS, HOST_KEY),
    }[build]()
    (owner,) = child["metadata"]["ownerReferences"]
    assert owner["uid"] == machine.metadata.uid
    assert owner["controller"] is True
    assert child["metadata"]["labels"]["machines.dedaluslabs.ai/uid"] == machine.metadata.uid
    assert child["metadata"]["labels"]["machines.dedaluslabs.ai/machine"] == "box"
    assert child["metadata"]["namespace"] == "ns"


# ---- home


def test_a_released_disk_has_neither_owner_nor_digest() -> None:
    body = released_home(a_machine(), name=HOME)
    assert "ownerReferences" not in body["metadata"]
    assert "annotations" not in body["metadata"]
    assert body["spec"] == build_home(a_machine(), name=HOME)["spec"]


def test_the_default_class_is_not_spelled_out() -> None:
    assert "storageClassName" not in build_home(a_machine(), name=HOME)["spec"]
