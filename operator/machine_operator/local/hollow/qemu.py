"""A guest's plan, and the QEMU command line that it becomes.

The command line is for small guests under software emulation as much as for KVM: no default
devices, user-mode networking (no privileges needed but for low ports), a translation cache that
cannot eat the host, and `shutdown=pause`: a guest that powered off stays there, paused, until
somebody has seen it. So a power-off while the hollow node was away is told from a crash.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["QMP_SOCKET", "Disk", "GuestPlan", "command_line"]

QMP_SOCKET = "qmp.sock"
"""Name of the control socket in the run directory, which is QEMU's working directory."""

_TRANSLATION_CACHE_MIB = 64

DiskAccess = Literal["write", "read-only", "throw-away"]


@dataclass(frozen=True, slots=True)
class Disk:
    """One disk of a guest.

    Attributes:
        name: of the VMI's disk.
        path: image file.
        format: "raw" or "qcow2".
        access: "throw-away" keeps writes in an unlinked file that dies with QEMU; the image stays
            as it is.
        serial: what the guest sees as the disk's serial number.
    """

    name: str
    path: Path
    format: Literal["raw", "qcow2"]
    access: DiskAccess
    serial: str

    @property
    def drive(self) -> str:
        """What QEMU and QMP call it; an id must start with a letter, which a disk's name need not do."""
        return f"disk-{self.name}"


@dataclass(frozen=True, slots=True)
class GuestPlan:
    """Everything that QEMU is told about one guest.

    Attributes:
        name: for people (`ps`).
        uuid: SMBIOS system uuid.
        memory_mib: guest memory.
        cpus: virtual CPUs.
        disks: in the guest's order.
        kernel, initrd, append: direct kernel boot; None boots from the first disk by firmware.
        firmware: firmware file, None for QEMU's own.
        address: loopback address of the host on which `ports` are forwarded.
        ports: TCP ports, the same number outside and inside.
        mac: of the guest's interface; None where it has none.
        console: file that gets what the guest prints on its serial console.
        kvm: hardware virtualization instead of emulation.
    """

    name: str
    uuid: str
    memory_mib: int
    cpus: int
    disks: tuple[Disk, ...]
    kernel: Path | None
    initrd: Path | None
    append: str | None
    firmware: Path | None
    address: str
    ports: tuple[int, ...]
    mac: str | None
    console: Path
    kvm: bool = False


def command_line(plan: GuestPlan, *, binary: str = "qemu-system-x86_64") -> list[str]:
    """The arguments that run `plan` in its run directory."""
    argv = [
        binary,
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-name",
        _escaped(plan.name),
    ]
    argv += ["-M", "q35", *_accelerator(plan)]
    argv += ["-smp", str(plan.cpus), "-m", f"{plan.memory_mib}M", "-uuid", plan.uuid]
    argv += ["-action", "shutdown=pause"]
    argv += _boot(plan)
    argv += ["-chardev", f"file,id=console,path={_escaped(str(plan.console))},append=on"]
    argv += ["-serial", "chardev:console"]
    argv += ["-qmp", f"unix:{QMP_SOCKET},server=on,wait=off"]
    for disk in plan.disks:
        argv += _disk(disk)
    if plan.mac is not None:
        argv += _interface(plan)
    return argv


def _accelerator(plan: GuestPlan) -> list[str]:
    if plan.kvm:
        return ["-accel", "kvm", "-cpu", "host"]
    # `max` has RDRAND: without it a guest waits seconds for its random pool.
    return ["-accel", f"tcg,thread=multi,tb-size={_TRANSLATION_CACHE_MIB}", "-cpu", "max"]


def _boot(plan: GuestPlan) -> list[str]:
    argv: list[str] = []
    if plan.firmware is not None:
        # Split firmware (code apart from variables) only works from flash.
        if "CODE" in plan.firmware.name.upper():
            flash = f"if=pflash,unit=0,format=raw,readonly=on,file={_escaped(str(plan.firmware))}"
            argv += ["-drive", flash]
        else:
            argv += ["-bios", str(plan.firmware)]
    if plan.kernel is not None:
        argv += ["-kernel", str(plan.kernel)]
        if plan.initrd is not None:
            argv += ["-initrd", str(plan.initrd)]
        if plan.append:
            argv += ["-append", plan.append]
    return argv


def _disk(disk: Disk) -> list[str]:
    drive = f"if=none,id={disk.drive},format={disk.format},file={_escaped(str(disk.path))}"
    match disk.access:
        case "read-only":
            drive += ",readonly=on"
        case "throw-away":
            drive += ",snapshot=on"
        case "write":
            # What the guest discards becomes a hole in the sparse file again.
            drive += ",discard=unmap,detect-zeroes=unmap"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={disk.drive},serial={disk.serial}"]


def _interface(plan: GuestPlan) -> list[str]:
    forwards = "".join(f",hostfwd=tcp:{plan.address}:{port}-:{port}" for port in plan.ports)
    # romfile= : the network boot ROM is a package of its own, and nobody boots from the network
    # here.
    return [
        "-netdev",
        f"user,id=net0{forwards}",
        "-device",
        f"virtio-net-pci,netdev=net0,mac={plan.mac},romfile=",
    ]


def _escaped(value: str) -> str:
    return value.replace(",", ",,")
