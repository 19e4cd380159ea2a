"""The CRD: the committed file is what the models make, and it is complete for people."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from machine_operator.api import names
from machine_operator.api.crd import machine_crd, render
from machine_operator.api.machine import MachineSpec, MachineStatus, read_machine

ROOT = Path(__file__).parents[2]
VERSION: dict[str, Any] = machine_crd()["spec"]["versions"][0]
SCHEMA: dict[str, Any] = VERSION["schema"]["openAPIV3Schema"]
SPEC: dict[str, Any] = SCHEMA["properties"]["spec"]
STATUS: dict[str, Any] = SCHEMA["properties"]["status"]


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")


NODES = [*walk(SPEC, "spec"), *walk(STATUS, "status")]


def resolve(json_path: str) -> str:
    """The type of the schema node which a simple JSON path leads to."""
    node = SCHEMA
    for step in json_path.removeprefix(".").split("."):
        name, bracket, _ = step.partition("[")
        node = node["properties"][name]
        if bracket:
            node = node["items"]
    return str(node.get("format") or node["type"])


def test_the_committed_file_is_up_to_date() -> None:
    committed = (ROOT / "crds" / "machines.yaml").read_text()
    assert committed == render(machine_crd()), (
        "crds/machines.yaml is not what the models make: run `machine-operator crds`"
    )


def test_rendering_is_deterministic_and_loses_nothing() -> None:
    text = render(machine_crd())
    assert text == render(machine_crd())
    assert yaml.safe_load(text) == machine_crd()
    assert "machine-operator crds" in text.splitlines()[0]
    assert not any(token in text for token in ("&id", "*id"))


def test_every_node_is_described() -> None:
    bare = [path for path, node in NODES if not node.get("description", "").endswith(".")]
    assert bare == []


def test_sizes_and_durations_tell_their_units() -> None:
    fields = SPEC["properties"]
    assert "vCPU" in fields["vcpu"]["description"]
    assert "MiB" in fields["memory_mib"]["description"]
    assert "GiB" in fields["storage_gib"]["description"]
    assert "w, d, h, m, s" in fields["autosleep"]["description"]


def test_every_node_is_structural() -> None:
    for path, node in NODES:
        assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
        assert not {"$ref", "anyOf", "title", "additionalProperties"} & set(node), path
        assert (node["type"] == "array") == ("items" in node), path


def test_schema_and_models_have_the_same_fields() -> None:
    assert list(SPEC["properties"]) == list(MachineSpec.model_fields)
    assert list(STATUS["properties"]) == list(MachineStatus.model_fields)
    assert SPEC["required"] == ["vcpu", "memory_mib", "storage_gib"]


def test_status_requires_nothing_and_defaults_nothing() -> None:
    assert "required" not in STATUS
    assert [path for path, node in walk(STATUS, "status") if "default" in node] == []


def test_defaults_of_the_schema_are_those_of_the_model() -> None:
    sizes = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1}
    defaults = {k: v["default"] for k, v in SPEC["properties"].items() if "default" in v}
    assert MachineSpec.model_validate(sizes) == MachineSpec.model_validate(sizes | defaults)
    assert defaults == {"autosleep": "5m", "desired_state": "running", "reclaim_policy": "Delete"}


def test_lists_which_several_writers_share_are_maps() -> None:
    conditions = STATUS["properties"]["conditions"]
    holds = STATUS["properties"]["activity"]["properties"]["holds"]
    for node, key in ((conditions, "type"), (holds, "id")):
        assert node["x-kubernetes-list-type"] == "map"
        assert node["x-kubernetes-list-map-keys"] == [key]
        assert key in node["items"]["required"]


def test_every_rule_has_a_message_and_no_unbounded_input() -> None:
    ruled = [(path, node) for path, node in NODES if "x-kubernetes-validations" in node]
    assert len(ruled) == 8
    for path, node in ruled:
        for rule in node["x-kubernetes-validations"]:
            assert rule["message"], path
            assert "\n" not in rule["message"], path
        if node["type"] == "string" and "enum" not in node:
            assert "maxLength" in node, path
    assert all("maxItems" in node for _, node in NODES if node["type"] == "array")


def test_names() -> None:
    crd = machine_crd()
    assert crd["metadata"]["name"] == "machines.machines.dedaluslabs.ai"
    assert crd["spec"]["names"]["shortNames"] == ["dm"]
    assert crd["spec"]["names"]["categories"] == ["all"]
    assert VERSION["subresources"] == {"status": {}}
    assert names.FINALIZER == "machines.dedaluslabs.ai/machine"


def test_columns_read_fields_which_exist() -> None:
    columns = VERSION["additionalPrinterColumns"]
    assert [c["name"] for c in columns if c["priority"] == 0] == [
        "Phase",
        "Reason",
        "vCPU",
        "Memory MiB",
        "Storage GiB",
        "Autosleep",
        "Age",
    ]
    assert [c["name"] for c in columns if c["priority"] == 1] == [
        "Node",
        "IP",
        "Last activity",
        "Sleeps at",
    ]
    for column in columns:
        if column["jsonPath"].startswith(".metadata"):
            continue
        found = resolve(column["jsonPath"])
        fits = {
            "string": {"string", "date-time"},
            "number": {"double"},
            "integer": {"int64"},
            "date": {"date-time"},
        }
        assert found in fits[column["type"]], column
    # A date column shows how long ago: for a moment to come that is <invalid>.
    assert {c["name"]: c["type"] for c in columns}["Sleeps at"] == "string"


def test_selectable_fields_exist() -> None:
    assert [f["jsonPath"] for f in VERSION["selectableFields"]] == [
        ".spec.desired_state",
        ".status.phase",
    ]
    for field in VERSION["selectableFields"]:
        assert resolve(field["jsonPath"]) == "string"


def test_the_example_is_a_machine_with_the_three_sizes_only() -> None:
    example = yaml.safe_load((ROOT / "examples" / "machine.yaml").read_text())
    assert example["spec"] == {"vcpu": 1, "memory_mib": 256, "storage_gib": 1}
    example["metadata"] |= {"namespace": "default", "uid": "u"}
    assert read_machine(example).metadata.name == "hello"
