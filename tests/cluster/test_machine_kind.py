"""The Machine kind as a real API server sees it: defaults, refusals, the table, the status."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from machine_operator.api.machine import MachineSpec, MachineStatus
from machine_operator.api.names import PAUSED_ANNOTATION
from tests.cluster.support import Cluster, Completed

pytestmark = pytest.mark.cluster

Kubectl = Callable[..., Completed]

EXAMPLE = Path(__file__).parents[2] / "examples" / "machine.yaml"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2v3Vd7S0aW4Rz9p me@here"
THEN = "2026-03-01T10:00:00Z"


class Machines:
    """Applies and reads Machines of one namespace."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl = kubectl
        self._namespace = namespace

    def run(self, *args: str, text: str | None = None, check: bool = True) -> Completed:
        return self._kubectl("--namespace", self._namespace, *args, input=text, check=check)

    def manifest(self, *, name: str = "hello", **spec: object) -> str:
        sizes: dict[str, object] = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1}
        return json.dumps(
            {
                "apiVersion": "machines.dedaluslabs.ai/v1alpha1",
                "kind": "Machine",
                # Paused, so that a running controller keeps its hands off.
                "metadata": {"name": name, "annotations": {PAUSED_ANNOTATION: "true"}},
                "spec": sizes | spec,
            }
        )

    def apply(self, *args: str, name: str = "hello", **spec: object) -> None:
        self.run("apply", *args, "-f", "-", text=self.manifest(name=name, **spec))

    def refusal(self, *args: str, name: str = "hello", **spec: object) -> str:
        """What a person reads when such a machine is refused."""
        text = self.manifest(name=name, **spec)
        done = self.run("apply", *args, "-f", "-", text=text, check=False)
        assert done.returncode != 0, f"this was accepted: {text}\n{done.stdout}"
        return done.stderr

    def get(self, name: str = "hello") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("get", "machine", name, "-o", "json").stdout)
        return found

    def apply_status(self, status: object, *, manager: str, check: bool = True) -> str:
        """With `check` unset also against the will of other managers; returns what a person reads."""
        obj = json.loads(self.manifest()) | {"metadata": {"name": "hello"}, "status": status}
        del obj["spec"]
        done = self.run(
            *("apply", "--server-side", "--subresource=status", f"--field-manager={manager}"),
            *("-f", "-", *([] if check else ["--force-conflicts"])),
            text=json.dumps(obj),
            check=check,
        )
        return done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture
def cluster(hollow_cluster: Cluster) -> Cluster:
    """What the API server says has nothing to do with guests."""
    return hollow_cluster


@pytest.fixture
def machines(kubectl: Kubectl, namespace: str) -> Machines:
    return Machines(kubectl, namespace)


@pytest.fixture(scope="module")
def refused(hollow_cluster: Cluster) -> Iterator[Machines]:
    """In one namespace for all: nothing that is refused is ever there."""
    with hollow_cluster.namespace(f"test-{uuid4().hex[:8]}") as name:
        machines = Machines(hollow_cluster.kubectl, name)
        yield machines
        left = machines.run("get", "machines,vm,pvc,secrets", "-o", "name").stdout
        assert left == "", f"something was created by a refused manifest: {left}"


def test_the_example_gets_its_defaults(machines: Machines) -> None:
    machines.run("apply", "-f", str(EXAMPLE))
    assert machines.get()["spec"] == {
        "vcpu": 1,
        "memory_mib": 256,
        "storage_gib": 1,
        "autosleep": "5m",
        "desired_state": "running",
        "reclaim_policy": "Delete",
    }


def test_a_full_spec_is_accepted(machines: Machines) -> None:
    machines.apply(
        vcpu=2.75,
        autosleep=" 1W3D ",
        desired_state="sleeping",
        image="quay.io/containerdisks/debian:13",
        ssh_authorized_keys=[KEY],
        storage_class="fast",
        reclaim_policy="Retain",
    )
    assert machines.get()["spec"]["vcpu"] == 2.75


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"vcpu": 0.3}, "vcpu 0.3 is not a multiple of 0.25; the nearest are 0.25 and 0.50"),
        ({"vcpu": 0.1}, "spec.vcpu in body should be greater than or equal to 0.25"),
        ({"vcpu": 1000}, "spec.vcpu in body should be less than or equal to 128"),
        ({"memory_mib": 0}, "spec.memory_mib in body should be greater than or equal to 128"),
        ({"memory_mib": "1Gi"}, "spec.memory_mib in body must be of type integer"),
        ({"memory_mib": None}, "spec.memory_mib: Required value"),
        ({"storage_gib": 0}, "spec.storage_gib in body should be greater than or equal to 1"),
        ({"autosleep": "9223372037"}, "autosleep is longer than 9223372036 seconds"),
        ({"autosleep": "15250w1d23h47m17s"}, "use never to stay awake"),
        ({"autosleep": 1800}, "spec.autosleep in body must be of type string"),
        ({"desired_state": "on"}, 'supported values: "running", "sleeping", "destroyed"'),
        ({"reclaim_policy": "Keep"}, 'supported values: "Delete", "Retain"'),
        ({"image": "my image"}, "image must be an image reference such as"),
        ({"storage_class": "Fast one"}, "storage_class must be the name of a StorageClass"),
        ({"ssh_authorized_keys": ["nope"]}, "an SSH key must be one line of a public key file"),
        ({"ssh_authorized_keys": [KEY + "\n"]}, "without a line break at its end"),
        ({"ssh_authorized_keys": [KEY, KEY]}, "Duplicate value"),
        ({"autoslep": "5m"}, 'unknown field "spec.autoslep"'),
    ],
)
def test_refusals_say_what_to_do(refused: Machines, spec: dict[str, Any], told: str) -> None:
    assert told in refused.refusal(**spec)


@pytest.mark.parametrize("text", ["", "soon", "5x", "3m4h", "30s junk", "-5s", "00000000005s"])
def test_autosleep_refused(refused: Machines, text: str) -> None:
    assert (
        "autosleep must be a duration such as 5m, 2h30m, 1w3d, a number of seconds such as 1800, "
        f'or never (got "{text}")'
    ) in refused.refusal(autosleep=text)


@pytest.mark.parametrize("text", ["30s", "7d3h4s", "1800", " 5M\n", "never", "15250w1d23h47m16s"])
def test_autosleep_accepted(refused: Machines, text: str) -> None:
    refused.apply("--dry-run=server", autosleep=text)


@pytest.mark.parametrize("name", ["a.b", "a" * 64])
def test_a_name_must_be_a_host_name(refused: Machines, name: str) -> None:
    told = refused.refusal(name=name)
    assert "metadata.name" in told
    assert f'"{name}" must have at most 63 characters and no dots; use dashes' in told


def test_the_longest_name_is_accepted(refused: Machines) -> None:
    refused.apply("--dry-run=server", name="a" * 63)


def test_storage_grows_and_never_shrinks(machines: Machines) -> None:
    machines.apply(storage_gib=10)
    assert "it is 10, so use 10 or more, not 5" in machines.refusal(storage_gib=5)
    machines.apply(storage_gib=11)
    assert machines.get()["spec"]["storage_gib"] == 11


@pytest.mark.parametrize("state", ["running", "sleeping"])
def test_a_destroyed_machine_stays_destroyed(machines: Machines, state: str) -> None:
    machines.apply(desired_state="destroyed")
    assert "a destroyed machine cannot come back" in machines.refusal(desired_state=state)


def test_destroyed_cannot_be_left_by_leaving_it_out(machines: Machines) -> None:
    machines.apply(desired_state="destroyed")
    assert "a destroyed machine cannot come back" in machines.refusal()


def test_storage_class_can_be_set_once(machines: Machines) -> None:
    machines.apply()
    machines.apply(storage_class="fast")
    for refused in (machines.refusal(storage_class="slow"), machines.refusal()):
        assert 'spec.storage_class: Invalid value: "object": storage_class cannot' in refused
        assert 'restore "fast"' in refused


def test_an_unknown_field_is_pruned_for_a_client_which_does_not_ask_for_strict(
    machines: Machines,
) -> None:
    """What machine.py says about fieldValidation; should this change, its docstring must."""
    done = machines.run(
        *("create", "--validate=warn", "-f", "-"), text=machines.manifest(autoslep="1m")
    )
    assert 'unknown field "spec.autoslep"' in done.stderr
    assert "autoslep" not in machines.get()["spec"]


def test_status_is_shared_by_field_managers(machines: Machines) -> None:
    machines.apply(desired_state="sleeping")
    request = {
        "state": "running",
        "by": "ada",
        "at": THEN,
        "sequence": 1,
        "spec_desired_state": "sleeping",
    }
    hold = {"id": "a", "kind": "ssh", "since": THEN, "expires_at": THEN}
    machines.apply_status({"power_request": request}, manager="test-requests")
    machines.apply_status({"activity": {"holds": [hold]}}, manager="test-gateway-a")
    machines.apply_status({"activity": {"holds": [hold | {"id": "b"}]}}, manager="test-gateway-b")
    status = machines.get()["status"]
    assert status["power_request"] == request
    assert [h["id"] for h in status["activity"]["holds"]] == ["a", "b"]

    machines.apply_status({}, manager="test-gateway-a")
    status = machines.get()["status"]
    assert status["power_request"] == request
    assert [h["id"] for h in status["activity"]["holds"]] == ["b"]


def test_a_status_with_a_wrong_phase_is_refused(machines: Machines) -> None:
    machines.apply()
    told = machines.apply_status({"phase": "dozing"}, manager="test", check=False)
    assert 'Unsupported value: "dozing"' in told


def test_the_status_cannot_be_written_with_the_spec(machines: Machines) -> None:
    machines.apply()
    patch = {"spec": {"vcpu": 2}, "status": {"node": "elsewhere"}}
    machines.run("patch", "machine", "hello", "--type=merge", "--patch", json.dumps(patch))
    found = machines.get()
    assert found["spec"]["vcpu"] == 2
    assert found.get("status", {}).get("node") != "elsewhere"


def test_the_table(machines: Machines) -> None:
    machines.apply(desired_state="sleeping", vcpu=0.5, storage_gib=2)
    header, row = machines.run("get", "machines").stdout.splitlines()
    assert " ".join(header.split()) == (
        "NAME PHASE REASON VCPU MEMORY MIB STORAGE GIB AUTOSLEEP AGE"
    )
    cells = {"VCPU": "0.5", "MEMORY MIB": "256", "STORAGE GIB": "2", "AUTOSLEEP": "5m"}
    for title, value in cells.items():
        assert row[header.index(title) :].split()[0] == value, f"{title}:\n{header}\n{row}"
    wide = machines.run("get", "dm", "-o", "wide").stdout.splitlines()[0]
    assert " ".join(wide.split()).endswith("AGE NODE IP LAST ACTIVITY SLEEPS AT")


def test_machines_are_selected_by_desired_state(machines: Machines) -> None:
    machines.apply(name="awake")
    machines.apply(name="asleep", desired_state="sleeping")
    found = machines.run(
        *("get", "machines", "--field-selector=spec.desired_state=sleeping", "-o", "name")
    )
    assert found.stdout.split() == ["machine.machines.dedaluslabs.ai/asleep"]


@pytest.mark.parametrize(("part", "model"), [("spec", MachineSpec), ("status", MachineStatus)])
def test_explain_tells_every_field(
    machines: Machines, part: str, model: type[MachineSpec] | type[MachineStatus]
) -> None:
    told = machines.run("explain", f"machine.{part}").stdout
    assert "<no description>" not in told
    for name, field in model.model_fields.items():
        assert f"  {field.alias or name}\t" in told, f"{name} is not in:\n{told}"
