"""An org is a namespace, made at its first use where that is allowed.

The namespace carries a label with the org's name, a NetworkPolicy that keeps other namespaces out, and what the
administrator's template adds, such as a ResourceQuota. All of it is looked for before it is made, one object after
the other: replicas that do the same at once meet as AlreadyExists, and what a process that died left half-made is
completed by the next one. The label comes with the namespace, and no org is used before everything is there.

A namespace that somebody else made is never taken over: the administrator hands it over by putting the label on it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import yaml

from machine_operator.api.names import GROUP, MANAGED_BY, MANAGED_BY_LABEL
from machine_operator.gateway.failures import org_mismatch, runtime_unavailable
from machine_operator.gateway.problems import Coded, GatewayError
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import AlreadyExists, Invalid, NotFound
from machine_operator.kube.resources import NAMESPACES, Resource

__all__ = ["ORG_LABEL", "TEMPLATE_KINDS", "Orgs", "TemplateError", "load_template", "org_fault"]

log = logging.getLogger(__name__)

Object = dict[str, Any]

ORG_LABEL: Final = f"{GROUP}/org"
"""On the namespace of an org, and on its API keys: the name of the org."""

_NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")

TEMPLATE_KINDS: Final = (
    _NETWORK_POLICIES,
    Resource("", "v1", "resourcequotas", "ResourceQuota"),
    Resource("", "v1", "limitranges", "LimitRange"),
)
"""What a template may have. All of them only limit: a template with Roles could hand out rights."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_MOST_KNOWN = 10_000
"""Orgs that are remembered as ready; of more than that some are looked at again."""
_MOST_TOLD = 1_000


class TemplateError(Exception):
    """The template for new orgs cannot be used; the message says what is wrong with it."""


def org_fault(name: str) -> str | None:
    """Why `name` cannot be an org, as the end of a sentence, or None."""
    if not _NAME.fullmatch(name):
        return "an org is 1 to 63 lower-case letters, digits and dashes, with no dash at either end"
    if name.startswith("kube-"):
        return "names that begin with kube- belong to Kubernetes"
    return None


def load_template(path: Path) -> list[Object]:
    """The objects that each new org gets: YAML, a list of objects or one document for each.

    Raises:
        TemplateError: the file cannot be read, or has something else in it.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise TemplateError(f"{path}: the template for orgs cannot be read: {error}") from error
    found: list[Object] = []
    for document in documents:
        found += document if isinstance(document, list) else [] if document is None else [document]
    names = set()
    for number, item in enumerate(found, start=1):
        fault = _template_fault(item)
        if fault is None and (name := (item["kind"], item["metadata"]["name"])) in names:
            fault = f"{name[0]} {name[1]} is there twice"
        if fault is not None:
            raise TemplateError(f"{path}: object {number} of the template for orgs: {fault}")
        names.add((item["kind"], item["metadata"]["name"]))
    return found


def _template_fault(item: Any) -> str | None:
    if not isinstance(item, dict):
        return "it is no Kubernetes object"
    if _resource(item) is None:
        allowed = ", ".join(f"{kind.kind} ({kind.api_version})" for kind in TEMPLATE_KINDS)
        return f"a {item.get('kind')} ({item.get('apiVersion')}) is not allowed; allowed: {allowed}"
    metadata = item.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return "it has no metadata.name"
    if "namespace" in metadata:
        return "it has a metadata.namespace; leave that out, the org's is put in"
    return None


def _resource(item: Object) -> Resource | None:
    for kind in TEMPLATE_KINDS:
        if (kind.kind, kind.api_version) == (item.get("kind"), item.get("apiVersion")):
            return kind
    return None


class Orgs:
    """Sees to it that orgs are there.

    Args:
        client: the connection and identity.
        create: whether orgs are made at their first use. Otherwise the administrator makes and equips them, and
            only the label is looked at.
        template: a file with more objects for each new org, or None; see `load_template`.

    Raises:
        TemplateError: the template cannot be used.
    """

    def __init__(self, client: KubeClient, *, create: bool, template: Path | None) -> None:
        self._client = client
        self._create = create
        self._equipment = _equipment(load_template(template) if template is not None else [])
        self._ready: dict[str, None] = {}
        self._told: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ensure(self, org: str) -> None:
        """Return once `org` can have machines.

        Raises:
            Coded: 403 `ORG_NOT_ADMITTED` (it is not there, and is not made), 403 `AUTH_ORG_MISMATCH` (the namespace
                is somebody else's), 503 (it is being removed, or the template is no good).
            KubeError: the API server failed.
        """
        if org in self._ready:
            return
        fault = org_fault(org)
        if fault is not None:
            self._tell(org, f"org {org[:63]!r} is refused: {fault}")
            raise _not_admitted()
        lock = self._locks.setdefault(org, asyncio.Lock())
        async with lock:
            if org not in self._ready:
                await self._look(org)
                self._told.discard(org)
                while len(self._ready) >= _MOST_KNOWN:
                    del self._ready[next(iter(self._ready))]
                self._ready[org] = None

    def forget(self, org: str) -> None:
        """Look at it again at the next use: a request found that the namespace is gone."""
        self._ready.pop(org, None)

    async def _look(self, org: str) -> None:
        namespace = await self._namespace(org)
        metadata = namespace["metadata"]
        if (metadata.get("labels") or {}).get(ORG_LABEL) != org:
            raise self._foreign(org)
        if metadata.get("deletionTimestamp"):
            self._tell(org, f"namespace {org} is being deleted; until it is gone, org {org} waits")
            raise runtime_unavailable()
        if not self._create:
            return
        for resource, item in self._equipment:
            await self._equip(org, resource, item)

    async def _namespace(self, org: str) -> Object:
        try:
            return await self._client.get(NAMESPACES, org)
        except NotFound:
            if not self._create:
                self._tell(
                    org,
                    f"org {org} is refused: there is no namespace {org}, and orgs are not made by themselves here. "
                    f"To admit it: kubectl create namespace {org} && "
                    f"kubectl label namespace {org} {ORG_LABEL}={org}",
                )
                raise _not_admitted() from None
        labels = {ORG_LABEL: org, MANAGED_BY_LABEL: MANAGED_BY}
        try:
            made = await self._client.create(
                NAMESPACES, {"metadata": {"name": org, "labels": labels}}
            )
        except AlreadyExists:
            return await self._client.get(NAMESPACES, org)
        log.info("org %s: made its namespace", org)
        return made

    async def _equip(self, org: str, resource: Resource, item: Object) -> None:
        name = item["metadata"]["name"]
        try:
            await self._client.get(resource, name, namespace=org)
            return
        except NotFound:
            pass
        try:
            await self._client.create(resource, item, namespace=org)
        except AlreadyExists:
            return
        except Invalid as error:
            log.error("org %s: %s %s cannot be made: %s", org, resource.kind, name, error)
            raise runtime_unavailable() from error
        log.info("org %s: made %s %s", org, resource.kind, name)

    def _foreign(self, org: str) -> GatewayError:
        self._tell(
            org,
            f"org {org} is refused: the namespace {org} is there, but does not carry the label of the org. "
            f"To hand it over: kubectl label namespace {org} {ORG_LABEL}={org}",
        )
        return org_mismatch()

    def _tell(self, org: str, sentence: str) -> None:
        """Once for each org, as its clients may ask any number of times."""
        if org in self._told:
            return
        if len(self._told) >= _MOST_TOLD:
            self._told.clear()
        self._told.add(org)
        log.warning("%s", sentence)


def _equipment(template: list[Object]) -> list[tuple[Resource, Object]]:
    """What each org has: ours first, as nothing may run before it; the template may have its own in its place."""
    found = {}
    for item in [_default_deny(), *template]:
        resource = _resource(item)
        assert resource is not None, item  # noqa: S101 - load_template has seen to it
        found[resource.kind, item["metadata"]["name"]] = (resource, item)
    return list(found.values())


def _default_deny() -> Object:
    """Machines of one org reach each other; from other namespaces nothing reaches them."""
    return {
        "apiVersion": _NETWORK_POLICIES.api_version,
        "kind": _NETWORK_POLICIES.kind,
        "metadata": {
            "name": "machine-operator-default-deny",
            "labels": {MANAGED_BY_LABEL: MANAGED_BY},
        },
        "spec": {
            "podSelector": {},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}]}],
        },
    }


def _not_admitted() -> Coded:
    message = "this organization has not been admitted; ask the administrator of the service"
    return Coded(403, "ORG_NOT_ADMITTED", message, retryable=False)
