"""The life of one machine with a real guest: log in, sleep, wake, grow, power off, and the end with its namespace.

The guest is the same one from test to test (each boot costs seconds); each test leaves it running, but for the last.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from machine_operator.kubevirt.names import child_names
from tests.cluster.host import guests_by_machine, one_guest_each
from tests.cluster.support import (
    MINUTE,
    Cluster,
    Completed,
    Machine,
    run,
    until,
)

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's own SSH key."""
    path = tmp_path_factory.mktemp("key") / "id"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", str(path)])
    return path


@pytest.fixture(scope="module")
def shared(qemu_cluster: Cluster, key: Path) -> Iterator[Machine]:
    """The machine, begun; `key` may log in to it."""
    public = key.with_suffix(".pub").read_text().strip()
    with qemu_cluster.namespace(f"test-{uuid4().hex[:8]}") as namespace:
        yield Machine(qemu_cluster, namespace).apply(ssh_authorized_keys=[public])


@pytest.fixture
def hello(shared: Machine) -> Machine:
    """The machine, running."""
    return shared.wait_ready(timeout=2 * MINUTE).wait_phase("running")


def test_a_new_machine_becomes_ready_and_is_logged_in_to(hello: Machine) -> None:
    said = hello.ssh("uname -sm; id -un; hostname; pwd; sudo id -u").stdout.split()
    assert said == ["Linux", "x86_64", "machine", "hello", "/home/machine", "0"]
    status = hello.status
    assert (status["phase"], status["reason"]) == ("running", "DesiredStateReached")
    assert status["effective"] == {"vcpu": 1, "memory_mib": 256, "storage_gib": 1}
    assert status["node"] == "hollow-0"
    assert len(hello.guests()) == 1
    row = hello.kubectl("get", "machines", "--no-headers").stdout.split()
    assert row[:-1] == ["hello", "running", "DesiredStateReached", "1", "256", "1", "never"]


def test_a_command_that_fails_in_the_machine_fails_here_alike(hello: Machine) -> None:
    done = hello.ssh("echo out; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_a_key_of_the_spec_logs_in(hello: Machine, key: Path) -> None:
    assert with_key(hello, key).stdout == "machine\n"


def test_the_home_disk_grows_while_it_is_in_use(hello: Machine) -> None:
    boot = hello.boot_id()
    assert home_gib(hello) < 1.1
    hello.apply(storage_gib=2)
    until(lambda: home_gib(hello) > 1.8, "the home's file system to grow")
    until(lambda: hello.status["effective"]["storage_gib"] == 2, "the status to say so")
    assert hello.condition("StorageReady")["status"] == "True"
    assert hello.boot_id() == boot


def test_sleep_and_wake_keep_the_home_and_the_host_key_but_not_a_removed_key(
    hello: Machine, key: Path
) -> None:
    boot, host_key = hello.boot_id(), served_host_key(hello)
    hello.run("echo kept > note; sudo touch /etc/forgotten")
    hello.patch(ssh_authorized_keys=[])

    hello.power("sleeping")
    assert hello.guests() == []
    assert hello.cluster.items("vmi,pods", namespace=hello.namespace) == []
    [vm] = hello.cluster.items("vm", namespace=hello.namespace)
    assert vm["spec"]["runStrategy"] == "Halted"
    [claim] = hello.cluster.items("pvc", namespace=hello.namespace)
    assert claim["status"]["phase"] == "Bound"
    assert "is sleeping" in hello.ssh("true", check=False).stderr
    assert hello.condition("Awake")["status"] == "False"

    hello.power("running")
    assert hello.boot_id() != boot
    assert (
        hello.run("sudo cat /root/note; ls /etc/forgotten 2>/dev/null || echo gone") == "kept\ngone"
    )
    assert served_host_key(hello) == host_key
    assert hello.status["wake_count"] == 1
    refused = with_key(hello, key, check=False)
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


def test_a_guest_that_powers_itself_off_sleeps_until_somebody_wakes_it(hello: Machine) -> None:
    boot = hello.boot_id()
    with one_guest_each():
        hello.run("echo kept > again; sync; sudo poweroff", check=False)
        hello.wait_phase("sleeping", timeout=MINUTE)
        request = hello.status["power_request"]
        assert (request["by"], request["state"]) == ("guest", "sleeping")
        wake = {"last_touch_at": "2026-03-01T10:00:00Z"}
        hello.kubectl(
            "patch", "machine", hello.name, "--subresource=status", "--type=merge",
            "--patch", json.dumps({"status": {"activity": wake}}),
        )  # fmt: skip
        until(lambda: hello.boot_id() != boot, "another boot", timeout=2 * MINUTE)
    assert hello.run("cat again") == "kept"
    hello.wait_phase("running").wait_ready()


def test_the_end_of_its_namespace_leaves_nothing(hello: Machine) -> None:
    uid = hello.uid
    [claim] = hello.cluster.items("pvc", namespace=hello.namespace)
    volume = claim["spec"]["volumeName"]
    files = hello.cluster.paths.node / "volumes" / volume
    assert files.is_dir()
    assert len(guests_by_machine()[uid]) == 1

    hello.kubectl("delete", "namespace", hello.namespace, "--timeout=90s")

    assert uid not in guests_by_machine()
    assert hello.kubectl("get", "namespace", hello.namespace, check=False).returncode == 1
    until(
        lambda: volume not in [v["metadata"]["name"] for v in hello.cluster.items("pv")],
        "the volume to be deleted",
        timeout=20,
    )
    assert not files.exists()
    runs = hello.cluster.paths.node / "run"
    until(lambda: not _mentions(runs, hello.namespace), "the guest's directory to go", timeout=20)


# ---- other machines


def test_a_machine_that_is_deleted_while_it_starts_leaves_nothing(machine: Machine) -> None:
    machine.apply()
    until(machine.guests, "its QEMU to be started")
    uid = machine.uid
    machine.delete()
    assert uid not in guests_by_machine()
    left = machine.cluster.items("vm,vmi,pods,pvc,secrets", namespace=machine.namespace)
    assert [item["metadata"]["name"] for item in left] == []


def test_an_image_that_is_not_in_the_store_is_told_and_corrected(machine: Machine) -> None:
    machine.apply(image="no-such-image:1")
    until(lambda: machine.status.get("phase") == "failed", "the machine to say that it failed")
    status = machine.status
    assert status["reason"] == "ImageNotAvailable"
    assert "no-such-image:1: not found in the image store" in status["last_error"]
    machine.patch(image=None)
    machine.wait_phase("running", timeout=2 * MINUTE).wait_ready()
    assert machine.answers()


# ---- helpers


def home_gib(machine: Machine) -> float:
    """The size of the home's file system."""
    return float(machine.run("df -k --output=size . | tail -n 1")) / 2**20


def served_host_key(machine: Machine) -> str:
    """What the guest's sshd has; that it is what the operator made, ssh checks at each login."""
    return machine.run("cat /etc/ssh/ssh_host_ed25519_key.pub").split()[1]


def with_key(machine: Machine, key: Path, *, check: bool = True) -> Completed:
    """Log in as people do who have only a key and the API: ssh through KubeVirt's port-forward."""
    cluster = machine.cluster
    names = child_names(machine.uid)
    port = str(cluster.settings.ssh_port)
    forward = cluster.command("forward", "--namespace", machine.namespace, names.vm, port)
    options = {
        "ProxyCommand": shlex.join(forward),
        "StrictHostKeyChecking": "no",
        "UserKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
    }
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    argv = ["ssh", "-F", "none", "-i", str(key), *flags, "machine@hello", "id -un"]
    return run(argv, check=check)


def _mentions(directory: Path, namespace: str) -> bool:
    return any(namespace in path.read_text() for path in directory.glob("*/guest.json"))
