"""Carries out what was decided: each action is one write, and its answer goes into the caches at once."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from machine_operator.api.machine import Machine, MachineStatus
from machine_operator.api.names import FINALIZER
from machine_operator.controller.children import Children
from machine_operator.controller.hostkeys import new_host_key
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import NotFound
from machine_operator.kube.resources import (
    MACHINES,
    PERSISTENT_VOLUME_CLAIMS,
    SECRETS,
    VIRTUAL_MACHINES,
    Resource,
)
from machine_operator.kubevirt.home import build_home, released_home
from machine_operator.kubevirt.names import child_names
from machine_operator.kubevirt.seed import HOST_PRIVATE_KEY, HOST_PUBLIC_KEY, HostKey, build_seed
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.kubevirt.vm import build_vm
from machine_operator.lifecycle import actions as do

__all__ = ["FIELD_MANAGER", "Actor"]

FIELD_MANAGER = "machine-operator"

Object = dict[str, Any]


class Actor:
    """Writes, as the operator's field manager.

    Args:
        wrote_machine: told the Machine as the API server answered it after a write.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        children: Children,
        defaults: MachineDefaults,
        wrote_machine: Callable[[Object], None],
        host_key: Callable[[], HostKey] = new_host_key,
    ) -> None:
        self._client = client
        self._children = children
        self._defaults = defaults
        self._wrote_machine = wrote_machine
        self._host_key = host_key

    async def perform(self, machine: Machine, action: do.Action) -> None:
        """Do one thing.

        Raises:
            KubeError: it could not be done; nothing is half done, and doing it again is safe.
        """
        names = child_names(machine.metadata.uid)
        match action:
            case do.AddFinalizer():
                await self._set_finalizers(machine, {*machine.metadata.finalizers, FINALIZER})
            case do.RemoveFinalizer():
                await self._set_finalizers(machine, {*machine.metadata.finalizers} - {FINALIZER})
            case do.ApplyHome():
                body = build_home(machine)
                answer = await self._apply(PERSISTENT_VOLUME_CLAIMS, machine, body)
                self._children.homes.wrote(answer)
            case do.ApplySeed():
                await self._apply_seed(machine)
            case do.ApplyVirtualMachine(run_strategy):
                body = build_vm(machine, self._defaults, run_strategy=run_strategy)
                self._children.vms.wrote(await self._apply(VIRTUAL_MACHINES, machine, body))
            case do.DeleteVirtualMachine(uid):
                await self._delete(VIRTUAL_MACHINES, machine, names.vm, uid)
            case do.DeleteHome(uid):
                await self._delete(PERSISTENT_VOLUME_CLAIMS, machine, names.home, uid)
            case do.ReleaseHome():
                body = released_home(machine)
                answer = await self._apply(PERSISTENT_VOLUME_CLAIMS, machine, body)
                self._children.homes.wrote(answer)
            case do.DeleteSeed(uid):
                await self._delete(SECRETS, machine, names.seed, uid)

    async def report(self, machine: Machine, status: MachineStatus) -> bool:
        """Write the status, if it differs from the one that is there; tells whether it did.

        Raises:
            NotFound: the Machine is gone.
        """
        # Gateways write these two, under their own field manager.
        ours = machine.status.model_copy(update={"power_request": None, "activity": None})
        if ours == status:
            return False
        answer = await self._client.apply(
            MACHINES,
            machine.metadata.name,
            # The uid keeps the status off another Machine that has got the name meanwhile.
            {"metadata": {"uid": machine.metadata.uid}, "status": status.to_dict()},
            namespace=machine.metadata.namespace,
            subresource="status",
            manager=FIELD_MANAGER,
        )
        self._wrote_machine(answer)
        return True

    async def _set_finalizers(self, machine: Machine, finalizers: set[str]) -> None:
        meta = machine.metadata
        # The resourceVersion makes it a conflict where somebody else changed the list meanwhile.
        body = {
            "metadata": {
                "finalizers": sorted(finalizers),
                "resourceVersion": meta.resourceVersion,
            }
        }
        answer = await self._client.merge_patch(MACHINES, meta.name, body, namespace=meta.namespace)
        if finalizers or meta.deletionTimestamp is None:
            self._wrote_machine(answer)  # without finalizers a deleted object is gone already

    async def _apply(self, resource: Resource, machine: Machine, body: Object) -> Object:
        return await self._client.apply(
            resource,
            body["metadata"]["name"],
            body,
            namespace=machine.metadata.namespace,
            manager=FIELD_MANAGER,
        )

    async def _apply_seed(self, machine: Machine) -> None:
        key = await self._present_host_key(machine)
        if key is not None:
            body = build_seed(machine, self._defaults, key)
            self._children.seeds.wrote(await self._apply(SECRETS, machine, body))
            return
        # A new key is created, not applied: of two operators for a moment, one is refused and takes over the other's.
        body = build_seed(machine, self._defaults, self._host_key())
        namespace = machine.metadata.namespace
        self._children.seeds.wrote(await self._client.create(SECRETS, body, namespace=namespace))

    async def _present_host_key(self, machine: Machine) -> HostKey | None:
        """The key that the machine has: people's known_hosts hang on it, so it is never made twice."""
        names = child_names(machine.metadata.uid)
        try:
            secret = await self._client.get(
                SECRETS, names.seed, namespace=machine.metadata.namespace
            )
        except NotFound:
            return None
        data = secret.get("data") or {}
        if HOST_PRIVATE_KEY not in data or HOST_PUBLIC_KEY not in data:
            return None
        return HostKey(
            private=base64.b64decode(data[HOST_PRIVATE_KEY]).decode(),
            public=base64.b64decode(data[HOST_PUBLIC_KEY]).decode(),
        )

    async def _delete(self, resource: Resource, machine: Machine, name: str, uid: str) -> None:
        try:
            await self._client.delete(resource, name, namespace=machine.metadata.namespace, uid=uid)
        except NotFound:
            return  # gone already; the watch will say so
