"""From a VMI and what its volumes turned out to be to the plan of its guest. Pure.

What we cannot do is refused with a sentence, never left out silently: a machine without its disk
would start empty.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from machine_operator.kubevirt.quantity import parse_quantity
from machine_operator.local.guest.store import Image
from machine_operator.local.hollow.network import vmi_ports
from machine_operator.local.hollow.qemu import Disk, DiskAccess, GuestPlan

__all__ = ["PlanError", "Source", "guest_plan", "image_source", "interface_mac"]

_LEAST_MIB = 32


class PlanError(Exception):
    """The VMI asks for something that a guest here cannot have."""


@dataclass(frozen=True, slots=True)
class Source:
    """What stands behind one volume of a VMI."""

    path: Path
    format: Literal["raw", "qcow2"]
    access: DiskAccess


def image_source(image: Image) -> Source:
    """The root disk of an image: shared where nobody may write it, else private to one boot."""
    access: DiskAccess = "read-only" if image.root_readonly else "throw-away"
    return Source(path=image.root, format=image.root_format, access=access)


def guest_plan(
    vmi: Mapping[str, Any],
    *,
    sources: Mapping[str, Source],
    images: Sequence[Image],
    address: str,
    console: Path,
    kvm: bool,
) -> GuestPlan:
    """The plan of a VMI's guest.

    Args:
        vmi: the object.
        sources: volume name -> what is behind it.
        images: of its container disks, in the order of the volumes; the first with a kernel boots.
        address: the loopback address that it has.
        console: the console log.
        kvm: whether hardware virtualization works here.

    Raises:
        PlanError: it cannot be run.
    """
    metadata, spec = vmi["metadata"], vmi["spec"]
    domain = spec["domain"]
    boot = next((image for image in images if image.kernel is not None), None)
    if (domain.get("firmware") or {}).get("kernelBoot"):
        raise PlanError("firmware.kernelBoot is not supported here: the image brings its kernel")
    firmware = next((image.firmware for image in images if image.firmware is not None), None)
    return GuestPlan(
        name=f"{metadata['namespace']}/{metadata['name']}",
        uuid=str((domain.get("firmware") or {}).get("uuid") or metadata["uid"]),
        memory_mib=_memory_mib(domain),
        cpus=_cpus(domain),
        disks=_disks(spec, sources=sources),
        kernel=boot.kernel if boot else None,
        initrd=boot.initrd if boot else None,
        append=boot.append if boot else None,
        firmware=firmware,
        address=address,
        ports=vmi_ports(vmi),
        mac=interface_mac(vmi),
        console=console,
        kvm=kvm,
    )


def interface_mac(vmi: Mapping[str, Any]) -> str | None:
    """The MAC address of the VMI's interface: the one asked for, else one that follows from its uid."""
    devices = vmi["spec"]["domain"].get("devices") or {}
    interfaces = devices.get("interfaces") or []
    if not interfaces:
        return None
    asked = interfaces[0].get("macAddress")
    if asked:
        return str(asked).replace("-", ":").lower()
    digest = hashlib.sha256(vmi["metadata"]["uid"].encode()).hexdigest()
    return "52:54:00:" + ":".join(digest[index : index + 2] for index in (0, 2, 4))


def _memory_mib(domain: Mapping[str, Any]) -> int:
    resources = domain.get("resources") or {}
    asked = (
        (domain.get("memory") or {}).get("guest")
        or (resources.get("requests") or {}).get("memory")
        or (resources.get("limits") or {}).get("memory")
    )
    if asked is None:
        raise PlanError("the VMI asks for no memory")
    mib = math.ceil(parse_quantity(str(asked)) / 2**20)
    if mib < _LEAST_MIB:
        raise PlanError(
            f"{asked} of memory are too little for any guest: ask for {_LEAST_MIB}Mi or more"
        )
    return mib


def _cpus(domain: Mapping[str, Any]) -> int:
    cpu = domain.get("cpu") or {}
    topology = [int(cpu.get(part) or 1) for part in ("sockets", "cores", "threads")]
    if any(cpu.get(part) for part in ("sockets", "cores", "threads")):
        return math.prod(topology)
    resources = domain.get("resources") or {}
    asked = (resources.get("limits") or {}).get("cpu") or (resources.get("requests") or {}).get(
        "cpu"
    )
    return max(1, math.ceil(parse_quantity(str(asked)))) if asked else 1


def _disks(spec: Mapping[str, Any], *, sources: Mapping[str, Source]) -> tuple[Disk, ...]:
    devices = spec["domain"].get("devices") or {}
    disks = []
    for disk in devices.get("disks") or []:
        name = str(disk["name"])
        source = sources.get(name)
        if source is None:
            raise PlanError(f"disk {name!r} has no volume of that name")
        target = disk.get("disk") or disk.get("cdrom") or disk.get("lun") or {}
        access = "read-only" if target.get("readonly") or "cdrom" in disk else source.access
        disks.append(
            Disk(
                name=name,
                path=source.path,
                format=source.format,
                access=access,
                # virtio-blk holds 20 bytes. The name stands in where no serial is asked for.
                serial=str(disk.get("serial") or name)[:20],
            )
        )
    return tuple(disks)
