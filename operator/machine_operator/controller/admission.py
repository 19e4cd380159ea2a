"""What the API server itself does to new Machines: it puts the finalizer on, so that the operator need not.

A MutatingAdmissionPolicy (CEL, inside of kube-apiserver) saves one write for each machine, of five. Where a cluster has
none (before Kubernetes 1.36 they have to be switched on), or it fails, the operator writes the finalizer as before: it
looks at the object, not at the policy.
"""

from __future__ import annotations

from typing import Any, Final

from machine_operator.api.names import FINALIZER, GROUP, PLURAL, VERSION

__all__ = ["ADMISSION_VERSION", "admission_policy"]

Object = dict[str, Any]

ADMISSION_VERSION: Final = "admissionregistration.k8s.io/v1beta1"
_NAME: Final = f"finalizer.{GROUP}"

_PATCH: Final = f"""\
has(object.metadata.finalizers)
? [JSONPatch{{op: "add", path: "/metadata/finalizers/-", value: "{FINALIZER}"}}]
: [JSONPatch{{op: "add", path: "/metadata/finalizers", value: ["{FINALIZER}"]}}]
"""


def admission_policy() -> list[Object]:
    """The policy and its binding."""
    create = {
        "apiGroups": [GROUP],
        "apiVersions": [VERSION],
        "operations": ["CREATE"],
        "resources": [PLURAL],
    }
    absent = f'!has(object.metadata.finalizers) || !("{FINALIZER}" in object.metadata.finalizers)'
    policy = {
        # Without it the operator does it, only later.
        "failurePolicy": "Ignore",
        "reinvocationPolicy": "Never",
        "matchConstraints": {"resourceRules": [create]},
        "matchConditions": [{"name": "absent", "expression": absent}],
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": _PATCH}}],
    }
    return [
        _object("MutatingAdmissionPolicy", policy),
        _object("MutatingAdmissionPolicyBinding", {"policyName": _NAME}),
    ]


def _object(kind: str, spec: Object) -> Object:
    return {
        "apiVersion": ADMISSION_VERSION,
        "kind": kind,
        "metadata": {"name": _NAME},
        "spec": spec,
    }
