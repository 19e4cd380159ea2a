"""Observe: from the caches, and where a decision asks, from the API server itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from machine_operator.api.machine import Machine
from machine_operator.controller.children import Children
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import NotFound
from machine_operator.kube.informer import Informer
from machine_operator.kube.resources import (
    EVENTS,
    PERSISTENT_VOLUME_CLAIMS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    Resource,
)
from machine_operator.kubevirt.home import home_digest
from machine_operator.kubevirt.names import child_names, home_name
from machine_operator.kubevirt.readers import read_claim, read_instance, read_vm
from machine_operator.kubevirt.seed import seed_digest
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.kubevirt.vm import vm_digests
from machine_operator.lifecycle.observation import Observation, Question, Wanted

__all__ = ["Observer"]

T = TypeVar("T")


class Observer:
    """Sees machines."""

    def __init__(
        self, client: KubeClient, *, children: Children, defaults: MachineDefaults
    ) -> None:
        self._client = client
        self._children = children
        self._defaults = defaults
        self._wanted: dict[str, tuple[int, str, Wanted]] = {}

    def observe(self, machine: Machine, *, fault: str | None = None) -> Observation:
        """What the caches know of this machine."""
        children = self._children
        home, instance = children.home(machine), children.instance(machine)
        return Observation(
            machine=machine,
            wanted=self._wanted_of(machine, home.name if home else None),
            virtual_machine=children.vm(machine),
            instance=instance,
            failed_instance=children.failed_instance(machine),
            home=home,
            seed=children.seed(machine),
            node=children.node(machine, instance),
            fault=fault,
        )

    def forget(self, machine: Machine) -> None:
        """The machine is gone."""
        self._wanted.pop(machine.metadata.uid, None)

    def _wanted_of(self, machine: Machine, found: str | None) -> Wanted:
        """The digests, computed once for each generation: they cost more than all the rest of a pass."""
        meta, name = machine.metadata, home_name(machine, found=found)
        known = self._wanted.get(meta.uid)
        if known is not None and known[:2] == (meta.generation, name):
            return known[2]
        whole, boot = vm_digests(machine, self._defaults, home=name)
        wanted = Wanted(
            virtual_machine=whole,
            boot=boot,
            home=home_digest(machine, name=name),
            home_name=name,
            seed=seed_digest(machine, self._defaults),
        )
        self._wanted[meta.uid] = (meta.generation, name, wanted)
        return wanted

    async def answer(self, seen: Observation, questions: frozenset[Question]) -> Observation:
        """The same observation with the questions answered.

        Raises:
            KubeError: the API server gave no answer.
        """
        names, children = child_names(seen.machine.metadata.uid), self._children
        # In this order: a VMI goes only after the start that follows it was planned, so a VM that was read before its
        # VMI was found gone, and has no start planned, rests.
        for question in (question for question in Question if question in questions):
            match question:
                case Question.VIRTUAL_MACHINE:
                    obj = await self._get(seen, VIRTUAL_MACHINES, names.vm, children.vms)
                    seen = replace(seen, virtual_machine=_read(obj, read_vm))
                case Question.INSTANCE:
                    resource = VIRTUAL_MACHINE_INSTANCES
                    obj = await self._get(seen, resource, names.vm, children.instances)
                    seen = replace(seen, instance=_read(obj, read_instance))
                case Question.HOME:
                    # Not into the cache: without its labels it does not belong there.
                    name = seen.wanted.home_name
                    obj = await self._get(seen, PERSISTENT_VOLUME_CLAIMS, name, None)
                    seen = replace(seen, home=_read(obj, read_claim))
                case Question.WHY_UNBOUND:
                    seen = replace(seen, unbound_because=await self._why_unbound(seen))
        return replace(seen, answered=seen.answered | questions)

    async def _get(
        self, seen: Observation, resource: Resource, name: str, cache: Informer[Any] | None
    ) -> dict[str, Any] | None:
        try:
            obj = await self._client.get(resource, name, namespace=seen.machine.metadata.namespace)
        except NotFound:
            return None
        if cache is not None:
            cache.wrote(obj)
        return obj

    async def _why_unbound(self, seen: Observation) -> str | None:
        """The newest warning about the claim: the only place where a provisioner tells what is wrong."""
        if seen.home is None:
            return None
        answer = await self._client.list(
            EVENTS,
            namespace=seen.machine.metadata.namespace,
            field_selector=f"involvedObject.uid={seen.home.uid},type=Warning",
        )
        warnings = sorted(
            answer.get("items") or [],
            key=lambda event: int(event["metadata"]["resourceVersion"]),
        )
        return str(warnings[-1].get("message") or "") or None if warnings else None


def _read(obj: dict[str, Any] | None, read: Callable[[dict[str, Any]], T]) -> T | None:
    return read(obj) if obj is not None else None
