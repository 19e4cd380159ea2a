"""The CustomResourceDefinition of Machine, made from the models in `machine.py`.

`machine-operator crds` writes it to crds/machines.yaml, and a test holds that file equal to what is
made here. Printer columns show what the API server can see: a JSON path gives one plain value, so
the unit stands in the column's name, and a moment in the future has to be a string (a date column
shows ages only).
"""

import json
from typing import Any, Final

import yaml

from machine_operator.api import names, rules
from machine_operator.api.machine import MachineSpec, MachineStatus
from machine_operator.api.schema import structural_schema

__all__ = ["machine_crd", "render"]

_HEADER: Final = """\
# The Machine kind. Written by the command `machine-operator crds`: change the models in
# operator/machine_operator/api instead of this file.
"""

_ONE_LINE: Final = 100_000  # A folded regular expression is hard to read and to search for.

_DESCRIPTION: Final = (
    "A persistent Linux VM which costs no compute while nobody uses it. It sleeps when it is idle, "
    "wakes when it is used, and keeps its home disk."
)

# name, type, JSON path, description, priority (0: always shown, 1: with -o wide)
_COLUMNS: Final = (
    ("Phase", "string", ".status.phase", "Where the machine is in its life.", 0),
    ("Reason", "string", ".status.reason", "Why; DesiredStateReached when all is well.", 0),
    ("vCPU", "number", ".spec.vcpu", "Processors asked for, in vCPUs.", 0),
    ("Memory MiB", "integer", ".spec.memory_mib", "Memory asked for, in MiB.", 0),
    ("Storage GiB", "integer", ".spec.storage_gib", "Home disk asked for, in GiB.", 0),
    ("Autosleep", "string", ".spec.autosleep", "How long it may idle before it sleeps.", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Time since the machine was created.", 0),
    ("Node", "string", ".status.node", "The node which runs the machine.", 1),
    ("IP", "string", ".status.addresses[0]", "Main address of the running machine.", 1),
    (
        "Last activity",
        "date",
        ".status.activity.last_touch_at",
        "Time since somebody last used the machine.",
        1,
    ),
    ("Sleeps at", "string", ".status.next_sleep_at", "When autosleep is due (UTC).", 1),
)


def machine_crd() -> dict[str, Any]:
    """The CustomResourceDefinition as JSON-ready values; each call makes a new one."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "kind": names.KIND,
                "listKind": names.LIST_KIND,
                "plural": names.PLURAL,
                "singular": names.SINGULAR,
                "shortNames": list(names.SHORT_NAMES),
                "categories": ["all"],
            },
            "scope": "Namespaced",
            "versions": [_version()],
        },
    }


def render(crd: dict[str, Any]) -> str:
    """`crd` as YAML under a header which says where it comes from; equal input gives equal text."""
    # A copy in which nothing is shared: YAML would write shared values as anchors and aliases.
    copy = json.loads(json.dumps(crd))
    body = yaml.safe_dump(copy, sort_keys=False, width=_ONE_LINE, allow_unicode=True)
    return f"{_HEADER}{body}"


def _version() -> dict[str, Any]:
    return {
        "name": names.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "selectableFields": [
            {"jsonPath": ".spec.desired_state"},
            {"jsonPath": ".status.phase"},
        ],
        "additionalPrinterColumns": [
            {
                "name": name,
                "type": kind,
                "jsonPath": path,
                "description": text,
                "priority": priority,
            }
            for name, kind, path, text, priority in _COLUMNS
        ],
        "schema": {"openAPIV3Schema": _root()},
    }


def _root() -> dict[str, Any]:
    return {
        "description": _DESCRIPTION,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {
                "description": "Group and version of this object's schema.",
                "type": "string",
            },
            "kind": {"description": "The kind of this object.", "type": "string"},
            # `name` is declared for the rule below, whose error then points to it.
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": structural_schema(MachineSpec),
            # No defaults there: a value which the API server fills in has no field manager.
            "status": structural_schema(MachineStatus),
        },
        **rules.kubernetes(rules.NAME),
    }
