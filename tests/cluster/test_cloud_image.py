"""A stock Debian cloud image, with cloud-init and systemd, takes the operator's own seed."""

from __future__ import annotations

import os

import pytest

from machine_operator.local.guest.cloud import CLOUD_IMAGE, ensure_cloud_guest
from machine_operator.local.paths import cache_directory
from tests.cluster.support import MINUTE, Machine, until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1200, func_only=True),
    pytest.mark.skipif(os.geteuid() != 0, reason="mmdebstrap makes the image as root"),
]


def test_a_stock_image_is_a_machine(machine: Machine) -> None:
    ensure_cloud_guest(cache_directory(), progress=print)
    machine.apply(image=CLOUD_IMAGE, memory_mib=512)
    settle(machine.wait_ready(timeout=5 * MINUTE))
    said = machine.ssh("id -un; hostname; pwd; sudo id -u; cat /proc/1/comm").stdout.split()
    assert said == ["machine", "hello", "/home/machine", "0", "systemd"]
    boot = machine.boot_id()
    machine.ssh("mountpoint -q . && echo kept > note; sudo touch /etc/forgotten")

    machine.power("sleeping", timeout=2 * MINUTE)
    settle(machine.power("running", timeout=5 * MINUTE))

    said = machine.ssh(
        "sudo cat /root/note; ls /etc/forgotten 2>/dev/null || echo gone"
    ).stdout.split()
    assert said == ["kept", "gone"]
    assert machine.boot_id() != boot


def settle(machine: Machine) -> None:
    """Wait for the end of cloud-init, which restarts sshd after that has answered for the first time."""
    until(
        lambda: "status: done" in machine.run("cloud-init status"),
        "cloud-init to be done",
        timeout=3 * MINUTE,
    )
