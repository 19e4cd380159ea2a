"""What the operator may do, and no more: the one source of its ClusterRole."""

from __future__ import annotations

from typing import Any

from machine_operator.api.names import GROUP

__all__ = ["NAMESPACE", "SERVICE_ACCOUNT", "operator_rbac", "operator_rules"]

Object = dict[str, Any]

NAMESPACE = "machine-operator"
SERVICE_ACCOUNT = "machine-operator"


def operator_rules() -> list[Object]:
    """The rules, by API group. Machines are never created, deleted, or written but for finalizers and status."""
    return [
        _rule(GROUP, ["machines"], ["get", "list", "watch", "patch"]),
        _rule(GROUP, ["machines/status"], ["patch"]),
        # blockOwnerDeletion on a child needs this where OwnerReferencesPermissionEnforcement is on.
        _rule(GROUP, ["machines/finalizers"], ["update"]),
        _rule(
            "kubevirt.io",
            ["virtualmachines"],
            ["get", "list", "watch", "create", "patch", "delete"],
        ),
        # Only to take back a start that KubeVirt has planned.
        _rule("kubevirt.io", ["virtualmachines/status"], ["patch"]),
        # Deleted only where its VM was deleted from above it.
        _rule("kubevirt.io", ["virtualmachineinstances"], ["get", "list", "watch", "delete"]),
        _rule(
            "",
            ["persistentvolumeclaims", "secrets"],
            ["get", "list", "watch", "create", "patch", "delete"],
        ),
        # Listed for one claim at a time: a provisioner tells nowhere else why there is no volume.
        _rule("", ["events"], ["list", "create", "patch"]),
        _rule("", ["nodes"], ["get", "list", "watch"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "create", "update"]),
    ]


def operator_rbac() -> list[Object]:
    """ServiceAccount, ClusterRole and binding."""
    meta = {"name": SERVICE_ACCOUNT}
    rbac = "rbac.authorization.k8s.io"
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {**meta, "namespace": NAMESPACE},
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": meta,
            "rules": operator_rules(),
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": SERVICE_ACCOUNT},
            "subjects": [
                {"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": NAMESPACE}
            ],
        },
    ]


def _rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}
