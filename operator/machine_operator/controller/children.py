"""The caches of what machines consist of: VMs, VMIs, home disks and seeds, and the nodes on which they run.

Each is kept by an informer as small views. A child that changes enqueues its Machine; a node that changes enqueues
the machines on it. The label names the Machine, its UID is the authority.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from machine_operator.api.machine import Machine
from machine_operator.api.names import ADOPT_ANNOTATION, NAME_LABEL, UID_LABEL
from machine_operator.kube.client import KubeClient
from machine_operator.kube.informer import Informer, Key
from machine_operator.kube.resources import (
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    SECRETS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    Resource,
)
from machine_operator.kubevirt.names import child_names
from machine_operator.kubevirt.readers import (
    machine_uid,
    read_claim,
    read_instance,
    read_node,
    read_seed,
    read_vm,
)
from machine_operator.lifecycle.observation import (
    ClaimView,
    InstancePhase,
    InstanceView,
    NodeView,
    SeedView,
    VirtualMachineView,
)

__all__ = ["Children"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Child(Generic[V]):
    """A view, and whose it is."""

    machine: Key
    uid: str
    view: V


class Children:
    """All children of all machines. `enqueue` is told the Machine of every child that changed."""

    def __init__(self, client: KubeClient, *, enqueue: Callable[[Key], None]) -> None:
        self._enqueue = enqueue
        self._home_names: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self.vms = self._informer(client, VIRTUAL_MACHINES, read_vm)
        self.instances = self._informer(client, VIRTUAL_MACHINE_INSTANCES, self._read_instance)
        self.homes = self._informer(client, PERSISTENT_VOLUME_CLAIMS, self._read_home)
        self.seeds = self._informer(client, SECRETS, read_seed)
        self.nodes: Informer[NodeView] = Informer(
            client, NODES, project=read_node, on_change=self._node_changed
        )

    def _informer(
        self, client: KubeClient, resource: Resource, read: Callable[[Mapping[str, Any]], V]
    ) -> Informer[_Child[V]]:
        def project(obj: dict[str, Any]) -> _Child[V]:
            meta = obj["metadata"]
            owner = Key(meta["namespace"], meta["labels"][NAME_LABEL])
            return _Child(machine=owner, uid=machine_uid(obj), view=read(obj))

        def changed(_: Key, old: _Child[V] | None, new: _Child[V] | None) -> None:
            for owner in {child.machine for child in (old, new) if child is not None}:
                self._enqueue(owner)

        return Informer(
            client,
            resource,
            project=project,
            on_change=changed,
            label_selector=f"{UID_LABEL},{NAME_LABEL}",
        )

    def _read_home(self, obj: Mapping[str, Any]) -> ClaimView:
        view = read_claim(obj)
        if view.name != child_names(view.machine_uid).home:
            self._home_names[view.machine_uid] = view.name  # adopted: it keeps its first name
        return view

    def _read_instance(self, obj: Mapping[str, Any]) -> InstanceView:
        view = read_instance(obj)
        if view.phase is InstancePhase.FAILED and not view.deleting:
            # KubeVirt replaces it within moments, which can be over before a worker looks.
            self._failed[machine_uid(obj)] = view.uid
        return view

    def _node_changed(self, key: Key, old: NodeView | None, new: NodeView | None) -> None:
        for child in self.instances:
            if child.view.node == key.name:
                self._enqueue(child.machine)

    def __iter__(self) -> Iterator[Informer[Any]]:
        return iter((self.vms, self.instances, self.homes, self.seeds, self.nodes))

    async def run(self) -> None:
        """Follow all kinds until cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in self:
                group.create_task(informer.run(), name=f"informer {informer.resource.plural}")

    @property
    def synced(self) -> bool:
        """Whether all caches are complete."""
        return all(informer.synced.is_set() for informer in self)

    async def wait_synced(self) -> None:
        """Return once all caches are complete: before that, "is not there" means nothing."""
        for informer in self:
            await informer.synced.wait()

    # ---- one machine's

    def vm(self, machine: Machine) -> VirtualMachineView | None:
        """The machine's VM."""
        return _of(machine, self.vms, child_names(machine.metadata.uid).vm)

    def instance(self, machine: Machine) -> InstanceView | None:
        """The machine's VMI, which has the name of its VM."""
        return _of(machine, self.instances, child_names(machine.metadata.uid).vm)

    def failed_instance(self, machine: Machine) -> str | None:
        """UID of the machine's VMI that failed last, which may be gone."""
        return self._failed.get(machine.metadata.uid)

    def home(self, machine: Machine) -> ClaimView | None:
        """The machine's home disk, or the retained one that it asks for by annotation."""
        meta, default = machine.metadata, child_names(machine.metadata.uid).home
        found = _of(machine, self.homes, self._home_names.get(meta.uid, default))
        named = meta.annotations.get(ADOPT_ANNOTATION)
        if found is not None or named is None:
            return found
        asked = self.homes.get(meta.namespace, named)
        return asked.view if asked is not None else None

    def seed(self, machine: Machine) -> SeedView | None:
        """The machine's seed."""
        return _of(machine, self.seeds, child_names(machine.metadata.uid).seed)

    def node(self, machine: Machine, instance: InstanceView | None) -> NodeView | None:
        """The node on which the machine runs, or ran last."""
        name = (instance.node if instance is not None else None) or machine.status.node
        return self.nodes.get("", name) if name else None

    def forget(self, machine: Machine) -> None:
        """The machine is gone."""
        self._home_names.pop(machine.metadata.uid, None)
        self._failed.pop(machine.metadata.uid, None)


def _of(machine: Machine, informer: Informer[_Child[V]], name: str) -> V | None:
    child = informer.get(machine.metadata.namespace, name)
    return child.view if child is not None and child.uid == machine.metadata.uid else None
