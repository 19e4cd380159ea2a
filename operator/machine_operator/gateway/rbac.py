"""What the gateway may do, and no more: the one source of its ClusterRole and its Role.

It reads and writes machines for its callers, whose rights it checks itself. Their namespaces are not known beforehand,
so most of its rights are cluster-wide. API keys are in its own namespace, and it can neither make nor delete any; of
those that are there it only ever writes an annotation, and digests and scopes are immutable even for it.
"""

from __future__ import annotations

from typing import Any

from machine_operator.api.names import GROUP
from machine_operator.gateway.orgs import TEMPLATE_KINDS

__all__ = ["NAMESPACE", "SERVICE_ACCOUNT", "gateway_own_rules", "gateway_rbac", "gateway_rules"]

Object = dict[str, Any]

NAMESPACE = "machine-operator"
SERVICE_ACCOUNT = "machine-operator-gateway"

_RBAC = "rbac.authorization.k8s.io"


def gateway_rules() -> list[Object]:
    """The rules for all namespaces, by API group."""
    kinds: dict[str, list[str]] = {}
    for kind in TEMPLATE_KINDS:
        kinds.setdefault(kind.group, []).append(kind.plural)
    return [
        _rule(GROUP, ["machines"], ["get", "list", "watch", "create", "patch", "delete"]),
        # Power requests and activity.
        _rule(GROUP, ["machines/status"], ["patch"]),
        # Orgs, and what they are equipped with at their first use.
        _rule("", ["namespaces"], ["get", "create"]),
        *(_rule(group, plurals, ["get", "create"]) for group, plurals in sorted(kinds.items())),
        _rule("subresources.kubevirt.io", ["virtualmachines/restart"], ["update"]),
        # The way into machines. It ends at their sshd, which asks for a certificate.
        _rule("subresources.kubevirt.io", ["virtualmachineinstances/portforward"], ["get"]),
    ]


def gateway_own_rules() -> list[Object]:
    """The rules for the gateway's own namespace: API keys, and a note on each of its last use."""
    return [_rule("", ["secrets"], ["get", "list", "watch", "patch"])]


def gateway_rbac() -> list[Object]:
    """ServiceAccount, ClusterRole and Role, and their bindings."""
    here = {"name": SERVICE_ACCOUNT, "namespace": NAMESPACE}
    subjects = [{"kind": "ServiceAccount", **here}]
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": here},
        _role("ClusterRole", {"name": SERVICE_ACCOUNT}, gateway_rules()),
        _binding("ClusterRole", {"name": SERVICE_ACCOUNT}, subjects),
        _role("Role", here, gateway_own_rules()),
        _binding("Role", here, subjects),
    ]


def _role(kind: str, metadata: Object, rules: list[Object]) -> Object:
    return {"apiVersion": f"{_RBAC}/v1", "kind": kind, "metadata": metadata, "rules": rules}


def _binding(role: str, metadata: Object, subjects: list[Object]) -> Object:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": f"{role}Binding",
        "metadata": metadata,
        "roleRef": {"apiGroup": _RBAC, "kind": role, "name": SERVICE_ACCOUNT},
        "subjects": subjects,
    }


def _rule(group: str, resources: list[str], verbs: list[str]) -> Object:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}
