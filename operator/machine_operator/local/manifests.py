"""KubeVirt's own manifests, bent to processes on loopback, and the few objects that the local cluster adds.

What changes: webhooks call a URL instead of a Service, and the aggregated API's Service is an ExternalName to
localhost, since there is no pod network. Rules, scopes and failure policies stay as KubeVirt ships them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine_operator.gateway.orgs import ORG_LABEL
from machine_operator.local.paths import ClusterPaths
from machine_operator.local.settings import ClusterSettings

__all__ = [
    "LOCAL_ORG",
    "STORAGE_CLASS",
    "Manifests",
    "kubevirt_cr",
    "load_manifests",
    "namespaces",
    "storage_class",
]

Object = dict[str, Any]

STORAGE_CLASS = "local"
LOCAL_ORG = "default"


class Manifests:
    """The objects by the step in which they are applied."""

    def __init__(self, items: list[Object]) -> None:
        self._items = items

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds, in the printed order."""
        return [item for item in self._items if item["kind"] in kinds]

    def rbac(self) -> list[Object]:
        """Service accounts, roles and bindings."""
        return self.of("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")

    def crds(self) -> list[Object]:
        """KubeVirt's kinds."""
        return self.of("CustomResourceDefinition")

    def webhooks(self) -> list[Object]:
        """Admission of virtual machines and launcher pods."""
        return self.of("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")

    def api_services(self) -> list[Object]:
        """`subresources.kubevirt.io`, served by virt-api."""
        return self.of("APIService")


def load_manifests(settings: ClusterSettings, paths: ClusterPaths) -> Manifests:
    """Read what `kubevirt-manifests` printed, and adapt it to this cluster's ports and certificates."""
    items = json.loads(Path(settings.binaries, "kubevirt.json").read_text())["items"]
    authority = base64.b64encode((paths.pki / "kubevirt-ca.crt").read_bytes()).decode()
    port = settings.ports["virt-api"]
    for item in items:
        item.pop("status", None)
        if item["kind"] == "APIService":
            item["spec"]["service"]["port"] = port
            item["spec"]["caBundle"] = authority
        for hook in item.get("webhooks") or []:
            service = hook["clientConfig"].pop("service")
            hook["clientConfig"] = {
                "url": f"https://127.0.0.1:{port}/{service['path'].lstrip('/')}",
                "caBundle": authority,
            }
    return Manifests(items)


def namespaces(settings: ClusterSettings, paths: ClusterPaths) -> list[Object]:
    """Namespaces, KubeVirt's authority, and the Service that stands for virt-api."""
    return [
        _object("v1", "Namespace", "kubevirt"),
        _object("v1", "Namespace", "machine-operator"),
        # Its machines are those of the organisation `default`, so that kubectl and REST show the same ones.
        _object("v1", "Namespace", LOCAL_ORG, labels={ORG_LABEL: LOCAL_ORG}),
        _object(
            "v1",
            "ConfigMap",
            "kubevirt-ca",
            namespace="kubevirt",
            data={"ca-bundle": (paths.pki / "kubevirt-ca.crt").read_text()},
        ),
        _object(
            "v1",
            "Service",
            "virt-api",
            namespace="kubevirt",
            spec={
                "type": "ExternalName",
                "externalName": "localhost",
                "ports": [{"port": settings.ports["virt-api"]}],
            },
        ),
    ]


def kubevirt_cr() -> Object:
    """The KubeVirt object: emulation is allowed where there is no KVM."""
    return _object(
        "kubevirt.io/v1",
        "KubeVirt",
        "kubevirt",
        namespace="kubevirt",
        spec={"configuration": {"developerConfiguration": {"useEmulation": True}}},
    )


def storage_class() -> Object:
    """The default class: sparse files of the hollow node, which grow online."""
    return _object(
        "storage.k8s.io/v1",
        "StorageClass",
        STORAGE_CLASS,
        annotations={"storageclass.kubernetes.io/is-default-class": "true"},
        provisioner="machines.dedaluslabs.ai/local",
        reclaimPolicy="Delete",
        volumeBindingMode="Immediate",
        allowVolumeExpansion=True,
    )


def _object(
    api_version: str,
    kind: str,
    name: str,
    *,
    namespace: str | None = None,
    annotations: Mapping[str, str] | None = None,
    labels: Mapping[str, str] | None = None,
    **rest: Any,
) -> Object:
    metadata: Object = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = dict(labels)
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}
