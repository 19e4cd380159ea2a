"""Label and field selectors, with the field labels that kube-apiserver supports and no others."""

from __future__ import annotations

import re
from typing import Any

from machine_operator.kube.errors import ApiError, from_status

__all__ = ["matches", "refusal"]

Object = dict[str, Any]

_EVERYWHERE = {"metadata.name", "metadata.namespace"}
_FIELDS = {
    "events": {
        "involvedObject.kind", "involvedObject.namespace", "involvedObject.name",
        "involvedObject.uid", "involvedObject.apiVersion", "involvedObject.resourceVersion",
        "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type",
    },
    "nodes": {"spec.unschedulable"},
    "pods": {"spec.nodeName", "status.phase", "status.podIP", "spec.serviceAccountName"},
    "secrets": {"type"},
}  # fmt: skip
_SET = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^)]*)\)$")


def matches(body: Object, *, labels: str | None, fields: str | None, namespace: str | None) -> bool:
    """Whether an object is among those that were asked for."""
    meta = body["metadata"]
    if namespace is not None and meta.get("namespace", "") != namespace:
        return False
    have = meta.get("labels") or {}
    return all(_label(have, term) for term in _terms(labels)) and all(
        _field(body, term) for term in _terms(fields)
    )


def refusal(plural: str, fields: str | None) -> ApiError | None:
    """The server's answer to a field label which it does not know."""
    for term in _terms(fields):
        name = re.split(r"!=|==|=", term)[0]
        if name not in _EVERYWHERE | _FIELDS.get(plural, set()):
            message = f"field label not supported: {name}"
            return from_status(400, {"reason": "BadRequest", "message": message})
    return None


def _terms(selector: str | None) -> list[str]:
    # Commas inside of `in (a,b)` do not separate.
    return [term.strip() for term in re.split(r",(?![^(]*\))", selector or "") if term.strip()]


def _label(labels: dict[str, str], term: str) -> bool:
    listed = _SET.match(term)
    if listed is not None:
        values = {value.strip() for value in listed[3].split(",")}
        return (labels.get(listed[1]) in values) == (listed[2] == "in")
    if "!=" in term:
        name, _, value = term.partition("!=")
        return labels.get(name) != value
    if "=" in term:
        name, value = re.split(r"==|=", term, maxsplit=1)
        return labels.get(name) == value
    if term.startswith("!"):
        return term[1:] not in labels
    return term in labels


def _field(body: Object, term: str) -> bool:
    name, value = re.split(r"!=|==|=", term, maxsplit=1)
    node: Any = body
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, bool):
        node = str(node).lower()
    if name == "spec.unschedulable":
        node = node or "false"
    return (str(node or "") == value) != ("!=" in term)
