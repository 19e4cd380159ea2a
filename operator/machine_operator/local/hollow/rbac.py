"""What the hollow node's users may do, beyond what Kubernetes and KubeVirt bring.

kubelet's rights come from the Node authorizer, virt-handler's from KubeVirt's own role. The
provisioner has those of any external provisioner that also resizes.
"""

from __future__ import annotations

from typing import Any

__all__ = ["PROVISIONER_ACCOUNT", "objects"]

PROVISIONER_ACCOUNT = "local-provisioner"

_NAMESPACE = "kube-system"
_ROLE = "machines.dedaluslabs.ai:local-provisioner"
_RBAC = "rbac.authorization.k8s.io/v1"

_RULES = [
    {
        "apiGroups": [""],
        "resources": ["persistentvolumes"],
        "verbs": ["get", "list", "watch", "create", "patch", "delete"],
    },
    {
        "apiGroups": [""],
        "resources": ["persistentvolumeclaims"],
        "verbs": ["get", "list", "watch"],
    },
    {"apiGroups": [""], "resources": ["persistentvolumeclaims/status"], "verbs": ["patch"]},
    {"apiGroups": ["storage.k8s.io"], "resources": ["storageclasses"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create"]},
]


def objects() -> list[dict[str, Any]]:
    """The objects, in an order in which they can be created."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": PROVISIONER_ACCOUNT, "namespace": _NAMESPACE},
            "automountServiceAccountToken": False,
        },
        {
            "apiVersion": _RBAC,
            "kind": "ClusterRole",
            "metadata": {"name": _ROLE},
            "rules": _RULES,
        },
        {
            "apiVersion": _RBAC,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": _ROLE},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": _ROLE,
            },
            "subjects": [
                {
                    "kind": "ServiceAccount",
                    "namespace": _NAMESPACE,
                    "name": PROVISIONER_ACCOUNT,
                }
            ],
        },
    ]
