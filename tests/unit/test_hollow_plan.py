"""From VMI to QEMU's command line: every field that matters, and what is refused."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from machine_operator.kubevirt.quantity import parse_quantity
from machine_operator.local.guest.store import Image
from machine_operator.local.hollow.plan import (
    PlanError,
    Source,
    guest_plan,
    image_source,
    interface_mac,
)
from machine_operator.local.hollow.qemu import Disk, GuestPlan, command_line
from machine_operator.local.hollow.seed import seed_of, seed_secrets

Object = dict[str, Any]

IMAGE = Image(
    name="machine-guest:12",
    version="1",
    root=Path("/images/root.erofs"),
    root_format="raw",
    root_readonly=True,
    kernel=Path("/images/vmlinux"),
    initrd=Path("/images/stage1.cpio"),
    append="console=ttyS0",
)


def vmi(**domain: Any) -> Object:
    return {
        "metadata": {
            "namespace": "acme",
            "name": "m-1",
            "uid": "7f3a9c21-1111-2222-3333-444455556666",
        },
        "spec": {
            "domain": {
                "cpu": {"sockets": 2, "cores": 1, "threads": 1},
                "memory": {"guest": "512Mi"},
                "firmware": {"uuid": "d8d7ac09-6524-4826-b4a4-31462d7e295d"},
                "devices": {
                    "disks": [
                        {"name": "root", "disk": {"bus": "virtio"}},
                        {"name": "0home", "disk": {"bus": "virtio"}, "serial": "home"},
                        {"name": "seed", "cdrom": {}},
                    ],
                    "interfaces": [{"name": "default", "masquerade": {}}],
                },
                **domain,
            },
            "networks": [{"name": "default", "pod": {}}],
            "readinessProbe": {"tcpSocket": {"port": 2222}},
        },
    }


SOURCES = {
    "root": image_source(IMAGE),
    "0home": Source(Path("/volumes/pvc,1/disk.img"), "raw", "write"),
    "seed": Source(Path("/run/seed.iso"), "raw", "read-only"),
}


def plan(item: Object | None = None, **changes: Any) -> GuestPlan:
    arguments: Object = {
        "sources": SOURCES,
        "images": [IMAGE],
        "address": "127.77.0.1",
        "console": Path("/logs/console.log"),
        "kvm": False,
    }
    return guest_plan(item or vmi(), **(arguments | changes))


def after(argv: list[str], flag: str) -> list[str]:
    return [value for option, value in pairwise(argv) if option == flag]


def test_the_plan_has_what_the_vmi_asks_for() -> None:
    found = plan()
    assert (found.memory_mib, found.cpus, found.ports) == (512, 2, (2222,))
    assert found.uuid == "d8d7ac09-6524-4826-b4a4-31462d7e295d"
    assert (found.kernel, found.append) == (IMAGE.kernel, "console=ttyS0")
    assert [(disk.name, disk.access, disk.serial) for disk in found.disks] == [
        ("root", "read-only", "root"),
        ("0home", "write", "home"),
        ("seed", "read-only", "seed"),
    ]


def test_the_command_line_of_an_emulated_guest() -> None:
    argv = command_line(plan())
    assert after(argv, "-accel") == ["tcg,thread=multi,tb-size=64"]
    assert after(argv, "-m") == ["512M"]
    assert after(argv, "-smp") == ["2"]
    assert after(argv, "-action") == ["shutdown=pause"]
    assert "-no-reboot" not in argv  # a reboot from inside keeps the VMI, as KubeVirt does
    assert after(argv, "-qmp") == ["unix:qmp.sock,server=on,wait=off"]
    assert after(argv, "-netdev") == ["user,id=net0,hostfwd=tcp:127.77.0.1:2222-:2222"]


def test_disks_keep_their_order_and_paths_are_escaped() -> None:
    argv = command_line(plan())
    assert after(argv, "-drive") == [
        "if=none,id=disk-root,format=raw,file=/images/root.erofs,readonly=on",
        "if=none,id=disk-0home,format=raw,file=/volumes/pvc,,1/disk.img,discard=unmap,detect-zeroes=unmap",
        "if=none,id=disk-seed,format=raw,file=/run/seed.iso,readonly=on",
    ]
    assert after(argv, "-device")[1] == "virtio-blk-pci,drive=disk-0home,serial=home"


def test_a_writable_root_is_thrown_away_after_one_boot() -> None:
    image = Image("x", "1", Path("/i/disk.qcow2"), "qcow2", root_readonly=False)
    found = plan(images=[image], sources=SOURCES | {"root": image_source(image)})
    drive = after(command_line(found), "-drive")[0]
    assert drive == "if=none,id=disk-root,format=qcow2,file=/i/disk.qcow2,snapshot=on"
    assert "-kernel" not in command_line(found)


def test_kvm_replaces_emulation() -> None:
    argv = command_line(plan(kvm=True))
    assert after(argv, "-accel") == ["kvm"]
    assert after(argv, "-cpu") == ["host"]


@pytest.mark.parametrize(
    ("firmware", "option"),
    [
        (
            "/f/OVMF_CODE.fd",
            ["-drive", "if=pflash,unit=0,format=raw,readonly=on,file=/f/OVMF_CODE.fd"],
        ),
        ("/f/bios.bin", ["-bios", "/f/bios.bin"]),
    ],
)
def test_firmware(firmware: str, option: list[str]) -> None:
    image = Image("x", "1", Path("/i"), "raw", root_readonly=True, firmware=Path(firmware))
    argv = command_line(plan(images=[image]))
    assert " ".join(option) in " ".join(argv)


def test_no_interface_means_no_network() -> None:
    item = vmi()
    item["spec"]["domain"]["devices"]["interfaces"] = []
    assert "-netdev" not in command_line(plan(item))


def test_the_mac_is_the_one_asked_for_else_it_follows_from_the_uid() -> None:
    assert interface_mac(vmi()) == interface_mac(vmi())
    assert str(interface_mac(vmi())).startswith("52:54:00:")
    item = vmi()
    item["spec"]["domain"]["devices"]["interfaces"][0]["macAddress"] = "02-AA-00-00-00-01"
    assert interface_mac(item) == "02:aa:00:00:00:01"


@pytest.mark.parametrize(
    ("domain", "cpus"),
    [
        ({"cpu": {"sockets": 2, "cores": 2, "threads": 2}}, 8),
        ({"cpu": None, "resources": {"limits": {"cpu": "1250m"}}}, 2),
        ({"cpu": {}, "resources": {"requests": {"cpu": "250m"}}}, 1),
        ({"cpu": None}, 1),
    ],
)
def test_cpus(domain: Object, cpus: int) -> None:
    assert plan(vmi(**domain)).cpus == cpus


def test_memory_falls_back_to_the_request() -> None:
    item = vmi(memory=None, resources={"requests": {"memory": "1G"}})
    assert plan(item).memory_mib == 954


@pytest.mark.parametrize(
    ("domain", "sentence"),
    [
        ({"memory": None}, "asks for no memory"),
        ({"memory": {"guest": "1Mi"}}, "too little"),
        ({"firmware": {"kernelBoot": {"container": {}}}}, "kernelBoot"),
    ],
)
def test_what_cannot_be_is_refused(domain: Object, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        plan(vmi(**domain))


def test_a_disk_without_volume_is_refused() -> None:
    with pytest.raises(PlanError, match="'0home' has no volume"):
        plan(sources={"root": SOURCES["root"], "seed": SOURCES["seed"]})


def test_serials_are_cut_to_what_virtio_holds() -> None:
    item = vmi()
    item["spec"]["domain"]["devices"]["disks"][1]["serial"] = "x" * 30
    assert plan(item).disks[1] == Disk(
        "0home", SOURCES["0home"].path, "raw", "write", serial="x" * 20
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("512Mi", 2**29),
        ("1.5G", 15 * 10**8),
        ("2", 2),
        ("1e3", 1000),
        ("1E", 10**18),
        ("1Ei", 2**60),
    ],
)
def test_quantities(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@pytest.mark.parametrize("text", ["", "Mi", "1 Gi", "five", "1Zi"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match=r"quantity|unknown unit"):
        parse_quantity(text)


def test_a_seed_from_a_secret() -> None:
    source = {"secretRef": {"name": "s"}, "networkDataSecretRef": {"name": "n"}}
    assert seed_secrets(source) == ("s", "n")
    secrets = {"s": {"userdata": b"#cloud-config\n"}, "n": {"networkdata": b"version: 2\n"}}
    seed = seed_of(vmi(), source, secrets=secrets)
    assert (seed.user_data, seed.network_config) == (b"#cloud-config\n", b"version: 2\n")
    # The VM's uuid, not the VMI's uid: the next boot is the same instance.
    assert json.loads(seed.meta_data) == {
        "instance-id": "d8d7ac09-6524-4826-b4a4-31462d7e295d",
        "local-hostname": "m-1",
    }


def test_an_inline_seed() -> None:
    item = copy.deepcopy(vmi())
    item["spec"]["hostname"] = "box"
    seed = seed_of(item, {"userDataBase64": "I2Nsb3Vk"}, secrets={})
    assert (seed.user_data, seed.network_config) == (b"#cloud", None)
    assert json.loads(seed.meta_data)["local-hostname"] == "box"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"secretRef": {"name": "s"}}, "Secret s has no key userdata; it has: other"),
        ({"userDataBase64": "%%%"}, "is not base64"),
        ({}, "neither user data nor network data"),
    ],
)
def test_a_seed_that_is_not_there(source: Object, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        seed_of(vmi(), source, secrets={"s": {"other": b""}})
