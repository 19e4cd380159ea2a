"""What virt-launcher does: make everything that a guest needs, and start it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine_operator.kube.client import KubeClient
from machine_operator.local.hollow import console
from machine_operator.local.hollow.guest import Guest
from machine_operator.local.hollow.guests import Guests
from machine_operator.local.hollow.images import Images
from machine_operator.local.hollow.kvm import Accelerator
from machine_operator.local.hollow.mounts import mount
from machine_operator.local.hollow.network import Addresses, AddressesError, can_bind, vmi_ports
from machine_operator.local.hollow.plan import guest_plan
from machine_operator.local.hollow.qemu import GuestPlan
from machine_operator.local.hollow.rundir import DiskRecord, GuestRecord
from machine_operator.local.hollow.sources import prepare_sources

__all__ = ["Launcher"]


class Launcher:
    """Starts guests.

    Args:
        kubelet: reads Secrets and claims; virt-handler may not.
        data: the node's directory.
    """

    def __init__(
        self,
        kubelet: KubeClient,
        *,
        data: Path,
        guests: Guests,
        images: Images,
        addresses: Addresses,
        accelerator: Accelerator,
    ) -> None:
        self.guests = guests
        self.logs = data / "consoles"
        self._kubelet = kubelet
        self._images = images
        self._addresses = addresses
        self._accelerator = accelerator

    async def launch(self, vmi: Mapping[str, Any], pod: Mapping[str, Any]) -> Guest:
        """Start the guest of `vmi`, whose launcher pod is `pod`.

        Raises:
            PlanError: it asks for something that is not to be had here.
            MountError: a Secret or claim is not there.
            AddressesError: its address or a port cannot be used.
            GuestStartError: QEMU did not start.
        """
        metadata = vmi["metadata"]
        uid = metadata["uid"]
        directory = self.guests.directory(uid)
        directory.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        mounts = await mount(self._kubelet, pod)
        address = self._address(uid, vmi, pod)
        sources, images = await prepare_sources(
            vmi, mounts=mounts, images=self._images, directory=directory
        )
        log = console.log_path(self.logs, namespace=metadata["namespace"], name=metadata["name"])
        plan = guest_plan(
            vmi,
            sources=sources,
            images=images,
            address=address,
            console=log,
            kvm=await self._accelerator.usable(images[0] if images else None),
        )
        console.rotate(log)
        return await self.guests.start(plan, _record(vmi, plan))

    def _address(self, uid: str, vmi: Mapping[str, Any], pod: Mapping[str, Any]) -> str:
        given = (pod.get("status") or {}).get("podIP")
        if given:
            self._addresses.restore(uid, given)
        ports = vmi_ports(vmi)
        address = self._addresses.claim(uid, ports)
        if not can_bind(address, ports):
            raise AddressesError(
                f"a port of {', '.join(map(str, ports))} on {address} is taken by another process"
            )
        return address


def _record(vmi: Mapping[str, Any], plan: GuestPlan) -> GuestRecord:
    metadata = vmi["metadata"]
    return GuestRecord(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        address=plan.address,
        disks=tuple(
            DiskRecord(disk.drive, disk.path) for disk in plan.disks if disk.access == "write"
        ),
        console=plan.console,
    )
