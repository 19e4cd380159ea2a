"""The caches of a machine's children: VMs, VMIs, home disks and seeds, each kept by an informer as a small view."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from machine_operator.api.machine import Machine
from machine_operator.api.names import NAME_LABEL, UID_LABEL
from machine_operator.kube.client import KubeClient
from machine_operator.kube.informer import Informer, Key
from machine_operator.kube.resources import (
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
    read_seed,
    read_vm,
)
from machine_operator.lifecycle.observation import (
    ClaimView,
    InstanceView,
    SeedView,
    VirtualMachineView,
)

__all__ = ["Children"]

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Child(Generic[V]):
    """A view, and whose it is: the label names the Machine, its UID is the authority."""

    machine: Key
    uid: str
    view: V


class Children:
    """All children of all machines. `enqueue` is told the Machine of every child that changed."""

    def __init__(self, client: KubeClient, *, enqueue: Callable[[Key], None]) -> None:
        self._enqueue = enqueue
        self.vms = self._informer(client, VIRTUAL_MACHINES, read_vm)
        self.instances = self._informer(client, VIRTUAL_MACHINE_INSTANCES, read_instance)
        self.homes = self._informer(client, PERSISTENT_VOLUME_CLAIMS, read_claim)
        self.seeds = self._informer(client, SECRETS, read_seed)

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

    async def run(self) -> None:
        """Follow all four kinds until cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in (self.vms, self.instances, self.homes, self.seeds):
                group.create_task(informer.run(), name=f"informer {informer.resource.plural}")

    @property
    def synced(self) -> bool:
        """Whether all caches are complete."""
        return all(i.synced.is_set() for i in (self.vms, self.instances, self.homes, self.seeds))

    async def wait_synced(self) -> None:
        """Return once all caches are complete: before that, "is not there" means nothing."""
        for informer in (self.vms, self.instances, self.homes, self.seeds):
            await informer.synced.wait()

    def vm(self, machine: Machine) -> VirtualMachineView | None:
        """The machine's VM."""
        return _of(machine, self.vms, child_names(machine.metadata.uid).vm)

    def instance(self, machine: Machine) -> InstanceView | None:
        """The machine's VMI, which has the name of its VM."""
        return _of(machine, self.instances, child_names(machine.metadata.uid).vm)

    def home(self, machine: Machine) -> ClaimView | None:
        """The machine's home disk."""
        return _of(machine, self.homes, child_names(machine.metadata.uid).home)

    def seed(self, machine: Machine) -> SeedView | None:
        """The machine's seed."""
        return _of(machine, self.seeds, child_names(machine.metadata.uid).seed)


def _of(machine: Machine, informer: Informer[_Child[V]], name: str) -> V | None:
    child = informer.get(machine.metadata.namespace, name)
    return child.view if child is not None and child.uid == machine.metadata.uid else None
