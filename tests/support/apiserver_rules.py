"""What kube-apiserver refuses by itself, as far as the operator can run into it."""

from __future__ import annotations

from typing import Any

from machine_operator.kube.errors import ApiError, from_status
from machine_operator.kubevirt.quantity import parse_quantity

__all__ = ["failure", "refused_change", "refused_creation"]

Object = dict[str, Any]


def failure(code: int, reason: str, message: str, **details: Any) -> ApiError:
    """The error that a client makes of such an answer."""
    status = {"kind": "Status", "reason": reason, "message": message, "code": code}
    return from_status(code, {**status, **({"details": details} if details else {})})


def refused_creation(plural: str, body: Object, *, terminating: set[str]) -> ApiError | None:
    """Why a new object cannot be, or None."""
    meta = body["metadata"]
    if meta.get("namespace") in terminating:
        message = (
            f"{plural} {meta['name']!r} is forbidden: unable to create new content in namespace "
            f"{meta['namespace']} because it is being terminated"
        )
        cause = {"reason": "NamespaceTerminating", "field": "metadata.namespace"}
        return failure(403, "Forbidden", message, causes=[cause])
    return _two_controllers(plural, body)


def refused_change(plural: str, before: Object, after: Object) -> ApiError | None:
    """Why an object cannot become like this, or None."""
    meta, was = after["metadata"], before["metadata"]
    added = set(meta.get("finalizers") or []) - set(was.get("finalizers") or [])
    if "deletionTimestamp" in was and added:
        text = "no new finalizers can be added if the object is being deleted"
        return _invalid(plural, after, f"metadata.finalizers: Forbidden: {text}")
    if plural == "persistentvolumeclaims":
        return _claim(before, after) or _two_controllers(plural, after)
    if plural == "secrets" and before.get("type", "Opaque") != after.get("type", "Opaque"):
        return _invalid(plural, after, "type: Invalid value: field is immutable")
    return _two_controllers(plural, after)


def _claim(before: Object, after: Object) -> ApiError | None:
    """The spec never changes, but a bound claim may ask for more."""
    old, new = before.get("spec") or {}, after.get("spec") or {}
    bound = (before.get("status") or {}).get("phase") == "Bound"
    if old == new:
        return None
    fixed = ("accessModes", "volumeMode", "storageClassName", "resources", "selector")
    differ = [name for name in fixed if old.get(name) != new.get(name)]
    if differ and not (bound and differ == ["resources"]):
        text = (
            "spec is immutable after creation except resources.requests and "
            "volumeAttributesClassName for bound claims"
        )
        return _invalid("persistentvolumeclaims", after, f"spec: Forbidden: {text}")
    size, less = (spec["resources"]["requests"]["storage"] for spec in (old, new))
    if parse_quantity(less) < parse_quantity(size):
        text = "field can not be less than status.capacity"
        where = "spec.resources.requests.storage"
        return _invalid("persistentvolumeclaims", after, f"{where}: Forbidden: {text}")
    return None


def _two_controllers(plural: str, body: Object) -> ApiError | None:
    owners = body["metadata"].get("ownerReferences") or []
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        text = "Only one reference can have Controller set to true"
        return _invalid(plural, body, f"metadata.ownerReferences: Invalid value: {text}")
    return None


def _invalid(plural: str, body: Object, text: str) -> ApiError:
    return failure(422, "Invalid", f"{plural} {body['metadata']['name']!r} is invalid: {text}")
