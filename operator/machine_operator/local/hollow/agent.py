"""The hollow node's process: everything wired together, until it is told to leave.

Leaving never stops a guest: the next start adopts it. Whoever wants the guests gone too calls
`stop_guests` afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path

from machine_operator.kube.client import KubeClient
from machine_operator.local.hollow import console
from machine_operator.local.hollow.config import Identity, NodeConfig
from machine_operator.local.hollow.events import Events
from machine_operator.local.hollow.guests import Guests
from machine_operator.local.hollow.images import Images
from machine_operator.local.hollow.instances import Instances
from machine_operator.local.hollow.kvm import Accelerator
from machine_operator.local.hollow.launcher import Launcher
from machine_operator.local.hollow.network import Addresses, can_bind
from machine_operator.local.hollow.node import Node
from machine_operator.local.hollow.pods import Pods
from machine_operator.local.hollow.provisioner import Provisioner
from machine_operator.local.hollow.qmp import QmpError
from machine_operator.local.hollow.volume_files import VolumeError, VolumeFiles

__all__ = ["HollowNode"]

log = logging.getLogger(__name__)

_HOUSEKEEPING = 30.0


class HollowNode:
    """One node; use it once."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._guests: Guests | None = None

    async def run(self) -> None:
        """Be a node until cancelled. Guests go on running.

        Raises:
            ExceptionGroup: something failed that is not the API server's absence; start again.
        """
        async with AsyncExitStack() as stack:
            identities = self._config.identities
            kubelet = await stack.enter_async_context(self._client(identities.kubelet, "kubelet"))
            handler = await stack.enter_async_context(
                self._client(identities.virt_handler, "virt-handler")
            )
            provisioner = await stack.enter_async_context(
                self._client(identities.provisioner, "provisioner")
            )
            try:
                await self._serve(kubelet, handler, provisioner)
            finally:
                if self._guests is not None:
                    await self._guests.let_go()

    async def _serve(
        self, kubelet: KubeClient, handler: KubeClient, provisioner: KubeClient
    ) -> None:
        config = self._config
        images = Images(config.images, real=config.qemu)
        addresses = Addresses(config.network, free=can_bind if config.qemu else _always)
        pods = Pods(
            kubelet,
            node=config.name,
            images=images,
            addresses=addresses,
            events=self._events(kubelet, "kubelet"),
            mounts=config.qemu,
        )
        launcher = await self._launcher(kubelet, images=images, addresses=addresses)
        instances = Instances(
            handler,
            node=config.name,
            launcher=launcher,
            addresses=addresses,
            pods=pods,
            events=self._events(handler, "virt-handler"),
        )
        if launcher is not None:
            # What ended before this line is found by its outcome.
            launcher.guests.on_change = instances.look_at
        volumes = Provisioner(
            provisioner,
            node=config.name,
            files=VolumeFiles(config.data / "volumes"),
            resize=self._resize,
            events=self._events(provisioner, "machines.dedaluslabs.ai/local"),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(Node(config, kubelet=kubelet, handler=handler).run())
            group.create_task(pods.run())
            group.create_task(instances.run())
            group.create_task(volumes.run())
            if launcher is not None:
                group.create_task(_keep_house(launcher.logs))

    async def _launcher(
        self, kubelet: KubeClient, *, images: Images, addresses: Addresses
    ) -> Launcher | None:
        config = self._config
        if not config.qemu:
            return None
        guests = Guests(config.data)
        self._guests = guests
        await guests.adopt()
        for guest in guests:
            addresses.restore(guest.uid, guest.record.address)
        return Launcher(
            kubelet,
            data=config.data,
            guests=guests,
            images=images,
            addresses=addresses,
            accelerator=Accelerator(config.data),
        )

    async def _resize(self, path: Path, size: int) -> None:
        for guest in self._guests or ():
            if guest.ended.is_set():
                continue
            try:
                if await guest.resize(path, size):
                    return
            except QmpError as error:
                raise VolumeError(f"the running guest could not be told: {error}") from error

    def _client(self, identity: Identity, role: str) -> KubeClient:
        return KubeClient(self._config.connection(identity), user_agent=f"hollow-{role}")

    def _events(self, client: KubeClient, component: str) -> Events:
        return Events(client, component=component, node=self._config.name)


def _always(address: str, ports: object) -> bool:
    return True


async def _keep_house(logs: Path) -> None:
    console.prune(logs)
    while True:
        console.bound(logs)
        await asyncio.sleep(_HOUSEKEEPING)
