"""Carries out what was decided: each action is one write, and its answer goes into the caches at once."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

from machine_operator.api.machine import Machine, MachineStatus, PowerRequest
from machine_operator.api.names import FINALIZER
from machine_operator.controller.children import Children
from machine_operator.controller.hostkeys import certified, kept_host_key, new_host_key
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import AlreadyExists, NotFound
from machine_operator.kube.informer import Informer
from machine_operator.kube.resources import (
    MACHINES,
    PERSISTENT_VOLUME_CLAIMS,
    SECRETS,
    VIRTUAL_MACHINES,
    Resource,
)
from machine_operator.kubevirt.home import build_home, released_home
from machine_operator.kubevirt.names import child_names, home_name
from machine_operator.kubevirt.seed import HOST_PRIVATE_KEY, HostKey, build_seed
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.kubevirt.vm import build_vm
from machine_operator.lifecycle import actions as do

__all__ = ["FIELD_MANAGER", "POWER_MANAGER", "Actor"]

FIELD_MANAGER = "machine-operator"
"""Owns the children, and the controller's part of the status."""

POWER_MANAGER = "machine-operator-power"
"""Owns `status.power_request` where the newest request is the operator's own: gateways own it else."""

_OTHERS = {"power_request": None, "activity": None}
"""The members of the status that are not the controller's."""

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
        names, children = child_names(machine.metadata.uid), self._children
        match action:
            case do.AddFinalizer():
                await self._set_finalizers(machine, {*machine.metadata.finalizers, FINALIZER})
            case do.RemoveFinalizer():
                await self._set_finalizers(machine, {*machine.metadata.finalizers} - {FINALIZER})
            case do.RequestPower(request):
                await self._request_power(machine, request)
            case do.ApplyHome(name):
                body = build_home(machine, name=name)
                answer = await self._apply(PERSISTENT_VOLUME_CLAIMS, machine, body)
                children.homes.wrote(answer)
            case do.ApplySeed():
                await self._apply_seed(machine)
            case do.ApplyVirtualMachine(run_strategy, drop_start):
                if drop_start:
                    await self._drop_start(machine, names.vm)
                home = self._home_of(machine)
                body = build_vm(machine, self._defaults, home=home, run_strategy=run_strategy)
                children.vms.wrote(await self._apply(VIRTUAL_MACHINES, machine, body))
            case do.DeleteVirtualMachine(uid):
                await self._delete(children.vms, machine, names.vm, uid)
            case do.DeleteInstance(uid):
                await self._delete(children.instances, machine, names.vm, uid)
            case do.DeleteHome(name, uid):
                await self._delete(children.homes, machine, name, uid)
            case do.ReleaseHome(name):
                body = released_home(machine, name=name)
                answer = await self._apply(PERSISTENT_VOLUME_CLAIMS, machine, body)
                children.homes.wrote(answer)
            case do.DeleteSeed(uid):
                await self._delete(children.seeds, machine, names.seed, uid)

    def differs(self, machine: Machine, status: MachineStatus) -> bool:
        """Whether a report would write anything."""
        return _ours(machine.status) != status

    async def report(self, machine: Machine, status: MachineStatus) -> bool:
        """Write the status, if it differs from the one that is there; tells whether it did.

        Raises:
            NotFound: the Machine is gone.
        """
        if not self.differs(machine, status):
            return False
        meta, wanted = machine.metadata, status.to_dict()
        answer = await self._client.apply(
            MACHINES,
            meta.name,
            # The uid keeps the status off another Machine that has got the name meanwhile.
            {"metadata": {"uid": meta.uid}, "status": wanted},
            namespace=meta.namespace,
            subresource="status",
            manager=FIELD_MANAGER,
        )
        strange = _strange(answer.get("status") or {}, wanted)
        if strange:
            # Somebody else owns these, so applying ours does not remove them.
            body = {"metadata": {"uid": meta.uid}, "status": strange}
            answer = await self._client.merge_patch(
                MACHINES, meta.name, body, namespace=meta.namespace, subresource="status"
            )
        self._wrote_machine(answer)
        return True

    async def _request_power(self, machine: Machine, request: PowerRequest) -> None:
        meta = machine.metadata
        # The resourceVersion makes it a conflict where somebody has touched the machine meanwhile: the touch wins.
        answer = await self._client.apply(
            MACHINES,
            meta.name,
            {
                "metadata": {"uid": meta.uid, "resourceVersion": meta.resourceVersion},
                "status": {"power_request": request.to_dict()},
            },
            namespace=meta.namespace,
            subresource="status",
            manager=POWER_MANAGER,
        )
        self._wrote_machine(answer)

    async def _drop_start(self, machine: Machine, name: str) -> None:
        await self._client.merge_patch(
            VIRTUAL_MACHINES,
            name,
            {"status": {"stateChangeRequests": None}},
            namespace=machine.metadata.namespace,
            subresource="status",
        )

    def _home_of(self, machine: Machine) -> str:
        home = self._children.home(machine)
        return home_name(machine, found=home.name if home is not None else None)

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
        if self._children.seed(machine) is None and await self._create_seed(machine):
            return
        key = await self._present_host_key(machine) or self._host_key()
        body = self._seed_with(machine, key)
        self._children.seeds.wrote(await self._apply(SECRETS, machine, body))

    async def _create_seed(self, machine: Machine) -> bool:
        """Make it with a new key; False where there is one.

        Created, not applied: of two operators for a moment, one is refused and takes over the other's key.
        """
        body = self._seed_with(machine, self._host_key())
        try:
            namespace = machine.metadata.namespace
            answer = await self._client.create(SECRETS, body, namespace=namespace)
        except AlreadyExists:
            return False
        self._children.seeds.wrote(answer)
        return True

    def _seed_with(self, machine: Machine, key: HostKey) -> Object:
        vm, authority = child_names(machine.metadata.uid).vm, self._defaults.host_authority
        return build_seed(machine, self._defaults, certified(key, vm=vm, authority=authority))

    async def _present_host_key(self, machine: Machine) -> HostKey | None:
        """The key that the machine has: people's known_hosts hang on it, so it is never made twice."""
        names = child_names(machine.metadata.uid)
        try:
            secret = await self._client.get(
                SECRETS, names.seed, namespace=machine.metadata.namespace
            )
        except NotFound:
            return None
        stored = (secret.get("data") or {}).get(HOST_PRIVATE_KEY, "")
        return kept_host_key(base64.b64decode(stored))

    async def _delete(self, cache: Informer[Any], machine: Machine, name: str, uid: str) -> None:
        namespace, resource = machine.metadata.namespace, cache.resource
        try:
            answer = await self._client.delete(resource, name, namespace=namespace, uid=uid)
        except NotFound:
            return  # gone already; the watch will say so
        if answer.get("kind") == resource.kind:
            cache.wrote(answer)  # it has finalizers, and is on its way


def _ours(status: MachineStatus) -> MachineStatus:
    return status.model_copy(update=_OTHERS)


def _strange(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Object:
    """What a stored status has besides the wanted one, as a merge patch that removes it."""
    patch: Object = {name: None for name in stored if name not in wanted and name not in _OTHERS}
    kinds = {condition["type"] for condition in wanted.get("conditions") or []}
    if any(c.get("type") not in kinds for c in stored.get("conditions") or []):
        patch["conditions"] = wanted["conditions"]
    return patch
