"""The hollow node's small parts: configuration, addresses, images, console, run directories, rights."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from machine_operator.local.guest.image import CONSOLE_MARKER
from machine_operator.local.hollow import console, rbac
from machine_operator.local.hollow.config import ConfigError, NodeConfig
from machine_operator.local.hollow.images import Images, pod_images
from machine_operator.local.hollow.network import Addresses, AddressesError, can_bind, vmi_ports
from machine_operator.local.hollow.probes import probe_of
from machine_operator.local.hollow.rundir import (
    DiskRecord,
    GuestRecord,
    Outcome,
    RunDirectory,
    run_directories,
)
from machine_operator.local.hollow.volume_files import VolumeError, VolumeFiles
from machine_operator.local.processes import ProcessRecord

Object = dict[str, Any]


# ---- configuration


def config_json(tmp_path: Path, **changes: Any) -> Path:
    pair = {"certificate": "/pki/a.crt", "key": "/pki/a.key"}
    value = {
        "name": "hollow-0",
        "cluster": "default",
        "server": "https://127.0.0.1:6443",
        "ca": "/pki/ca.crt",
        "identities": {"kubelet": pair, "virt_handler": pair, "provisioner": pair},
        "data": str(tmp_path),
        "images": str(tmp_path / "images"),
        "qemu": True,
        "cpu": 2,
        "memory_mib": 4096,
        "network": "127.77.0.0/16",
    }
    path = tmp_path / "node.json"
    path.write_text(json.dumps(value | changes))
    return path


def test_a_configuration(tmp_path: Path) -> None:
    found = NodeConfig.load(config_json(tmp_path))
    assert found.network == IPv4Network("127.77.0.0/16")
    assert found.identities.kubelet.key == Path("/pki/a.key")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"network": "10.0.0.0/16"}, "must lie within 127"),
        ({"cpu": "many"}, "not a hollow node's configuration"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_bad_configuration(tmp_path: Path, changes: Object, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        NodeConfig.load(config_json(tmp_path, **changes))


def test_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        NodeConfig.load(tmp_path / "absent.json")


# ---- addresses


def test_addresses_are_kept_and_not_reused_at_once() -> None:
    addresses = Addresses(IPv4Network("127.77.0.0/24"), free=lambda address, ports: True)
    assert addresses.claim("a", (22,)) == "127.77.0.1"
    assert addresses.claim("a", (22,)) == "127.77.0.1"
    addresses.release("a")
    assert addresses.claim("b", (22,)) == "127.77.0.2"
    assert addresses.of("a") is None


def test_what_is_taken_is_passed_over_and_the_end_is_said() -> None:
    addresses = Addresses(
        IPv4Network("127.77.0.0/29"), free=lambda address, ports: address != "127.77.0.2"
    )
    addresses.restore("old", "127.77.0.3")
    found = [addresses.claim(owner, (22,)) for owner in "abcde"]
    assert sorted(found) == [f"127.77.0.{number}" for number in (1, 4, 5, 6, 7)]
    with pytest.raises(AddressesError, match=r"no address of 127\.77\.0\.0/29 is free"):
        addresses.claim("f", (22,))


def test_can_bind_sees_a_listener() -> None:
    with socket.socket() as taken:
        taken.bind(("127.77.201.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert not can_bind("127.77.201.1", (port,))
        assert can_bind("127.77.201.2", (port,))


def test_a_refused_port_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def bind(self, address: Any) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(AddressesError, match="ip_unprivileged_port_start=22"):
        can_bind("127.77.0.1", (22,))


@pytest.mark.parametrize(
    ("interfaces", "probe", "ports"),
    [
        ([], None, (22,)),
        ([{"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}], None, (80,)),
        ([{"ports": [{"port": 80}]}], {"tcpSocket": {"port": 22}}, (22, 80)),
        ([], {"httpGet": {"port": 8080}}, (8080,)),
        ([], {"tcpSocket": {"port": "ssh"}}, (22,)),
    ],
)
def test_forwarded_ports(
    interfaces: list[Object], probe: Object | None, ports: tuple[int, ...]
) -> None:
    spec = {"domain": {"devices": {"interfaces": interfaces}}, "readinessProbe": probe}
    assert vmi_ports({"spec": spec}) == ports


# ---- images


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_missing_image_backs_off_and_is_found_later(tmp_path: Path) -> None:
    clock = Clock()
    images = Images(tmp_path, real=True, clock=clock)
    seen = []
    for _ in range(12):
        pull = images.pull("pod", "debian:12")
        assert pull is not None
        seen.append((pull.reason, pull.again))
        clock.now += pull.again
    assert seen[:6] == [
        ("ErrImagePull", 3.0),
        ("ImagePullBackOff", 7.0),
        ("ErrImagePull", 3.0),
        ("ImagePullBackOff", 17.0),
        ("ErrImagePull", 3.0),
        ("ImagePullBackOff", 37.0),
    ]
    assert seen[-1] == ("ImagePullBackOff", 297.0)

    home = tmp_path / "debian%3A12"
    home.mkdir()
    (home / "root.img").touch()
    (home / "image.json").write_text('{"name": "debian:12", "root": "root.img"}')
    clock.now += 400
    assert images.pull("pod", "debian:12") is None


def test_a_broken_image_says_why(tmp_path: Path) -> None:
    home = tmp_path / "debian%3A12"
    home.mkdir()
    (home / "image.json").write_text('{"name": "debian:12", "root": "root.img"}')
    pull = Images(tmp_path, real=True).pull("pod", "debian:12")
    assert pull is not None
    assert "has no root.img" in pull.message


def test_without_guests_only_impossible_images_are_missing(tmp_path: Path) -> None:
    images = Images(tmp_path, real=False)
    assert images.pull("pod", "anything:1") is None
    assert images.pull("pod", "registry.invalid/x:1") is not None
    assert images.pull("pod", "registry.invalid:5000/x") is not None


def test_which_images_a_launcher_pod_needs() -> None:
    spec = {
        "initContainers": [
            {"name": "container-disk-binary", "image": "launcher"},
            {"name": "volumeroot-init", "image": "guest:1"},
        ],
        "containers": [
            {"name": "compute", "image": "launcher"},
            {"name": "volumeroot", "image": "guest:1"},
        ],
    }
    launcher = {"metadata": {"labels": {"kubevirt.io": "virt-launcher"}}, "spec": spec}
    assert list(pod_images(launcher)) == [("volumeroot-init", "guest:1"), ("volumeroot", "guest:1")]
    assert len(list(pod_images({"metadata": {}, "spec": spec}))) == 4


# ---- console


def test_the_last_boots_are_kept(tmp_path: Path) -> None:
    path = console.log_path(tmp_path, namespace="acme", name="m-1")
    for boot in range(4):
        console.rotate(path)
        path.write_text(f"boot {boot}")
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {
        "console.log": "boot 3",
        "console.log.1": "boot 2",
        "console.log.2": "boot 1",
    }


def test_a_log_is_bounded_and_an_old_one_goes(tmp_path: Path) -> None:
    path = console.log_path(tmp_path, namespace="acme", name="m-1")
    console.rotate(path)
    path.write_bytes(b"x" * 100)
    console.bound(tmp_path, limit=10)
    assert (path.stat().st_size, path.with_name("console.log.1").stat().st_size) == (0, 100)
    console.prune(tmp_path, max_age=60)
    assert path.exists()
    for file in path.parent.iterdir():
        os.utime(file, (0, 0))
    console.prune(tmp_path, max_age=60)
    assert not path.parent.exists()


async def test_the_marker_is_found_across_reads_and_only_after_a_reset(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    watch = console.ConsoleWatch(path)
    half = len(CONSOLE_MARKER) // 2
    path.write_text("booting\n" + CONSOLE_MARKER[:half])
    finding = asyncio.create_task(watch.marker(interval=0.001))
    await asyncio.sleep(0)
    with path.open("a") as file:
        file.write(CONSOLE_MARKER[half:])
    await asyncio.wait_for(finding, 5)

    watch.forget()
    again = asyncio.create_task(watch.marker(interval=0.001))
    done, _ = await asyncio.wait({again}, timeout=0.02)
    assert not done
    with path.open("a") as file:
        file.write("\nDebian GNU/Linux 12 box ttyS0\n\nbox login: ")
    await asyncio.wait_for(again, 5)


# ---- probes


@pytest.mark.parametrize(
    ("probe", "kind", "period"),
    [
        ({"tcpSocket": {"port": 22}, "periodSeconds": 5}, "speaks", 5.0),
        ({"tcpSocket": {"port": 8080}}, "answers", 10.0),
        ({"httpGet": {"port": 80, "path": "/up"}}, "http", 10.0),
    ],
)
def test_probes(probe: Object, kind: str, period: float) -> None:
    found = probe_of({"spec": {"readinessProbe": probe}})
    assert found is not None
    assert (found.kind, found.period) == (kind, period)


@pytest.mark.parametrize("probe", [None, {"guestAgentPing": {}}, {"exec": {"command": ["true"]}}])
def test_no_probe_that_we_can_do(probe: Object | None) -> None:
    assert probe_of({"spec": {"readinessProbe": probe}}) is None


# ---- run directories


def record(process: ProcessRecord | None = None) -> GuestRecord:
    disks = (DiskRecord("disk-home", Path("/volumes/1/disk.img")),)
    return GuestRecord("u1", "acme", "m-1", "127.77.0.1", disks, Path("/logs/console.log"), process)


def test_a_record_survives(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run" / "u1")
    directory.path.mkdir(parents=True)
    assert directory.record() is None
    whole = record().running_as(ProcessRecord(pid=7, started=1, boot="b"))
    directory.write_record(whole)
    assert directory.record() == whole
    assert [item.uid for item in run_directories(tmp_path)] == ["u1"]


def test_the_first_word_about_the_end_stands(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.write_outcome(Outcome.KILLED)
    directory.write_outcome(Outcome.CRASHED)
    assert directory.outcome() is Outcome.KILLED


def test_one_lock_per_guest(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    held = directory.lock()
    assert held is not None
    assert directory.held()
    assert directory.lock() is None
    os.close(held)
    assert not directory.held()


# ---- volumes


def test_a_volume_is_sparse_and_only_grows(tmp_path: Path) -> None:
    files = VolumeFiles(tmp_path / "volumes")
    files.create("pvc-1", 2**30)
    image = files.image("pvc-1")
    image.open("r+b").close()
    assert (image.stat().st_size, image.stat().st_blocks) == (2**30, 0)
    assert image.stat().st_mode & 0o777 == 0o600
    files.create("pvc-1", 2**20)
    assert image.stat().st_size == 2**30
    files.grow("pvc-1", 2**31)
    assert image.stat().st_size == 2**31
    files.delete("pvc-1")
    files.delete("pvc-1")
    assert not files.directory("pvc-1").exists()


def test_a_volume_that_can_never_fit(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="ask for less"):
        VolumeFiles(tmp_path).create("pvc-1", 2**62)
    with pytest.raises(VolumeError, match="not there any more"):
        VolumeFiles(tmp_path).grow("pvc-2", 2**20)


# ---- rights


def test_the_provisioner_may_do_what_it_does_and_no_more() -> None:
    role = next(item for item in rbac.objects() if item["kind"] == "ClusterRole")
    allowed = {
        (resource, verb)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert ("persistentvolumes", "create") in allowed
    assert ("persistentvolumeclaims/status", "patch") in allowed
    assert not any(verb == "*" or "secrets" in resource for resource, verb in allowed)
    binding = next(item for item in rbac.objects() if item["kind"] == "ClusterRoleBinding")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "namespace": "kube-system", "name": "local-provisioner"}
    ]
