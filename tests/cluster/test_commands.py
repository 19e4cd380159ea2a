"""The commands: what they print, and what they make of two at once, a taken port, a killed start, missing things."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from machine_operator.local import cluster as local_cluster
from machine_operator.local.paths import cluster_paths
from machine_operator.local.processes import marked_processes
from tests.cluster.host import listeners
from tests.cluster.support import COMPONENTS, MINUTE, Cluster, Machine, run, until

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "machine_operator.cli.main")


@pytest.fixture(scope="module")
def spare(spare_cluster: Cluster) -> Cluster:
    """A cluster that was brought up by two commands at the same time."""
    starts = [
        subprocess.Popen(
            spare_cluster.command("up", "--hollow"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=3 * MINUTE)[0] for process in starts]
    assert [process.returncode for process in starts] == [0, 0], "\n----\n".join(said)
    return spare_cluster


@pytest.fixture
def up_again(spare: Cluster) -> Iterator[Cluster]:
    """The same, for a test that takes it down."""
    yield spare
    spare.local("up", "--hollow")


def test_two_starts_at_once_make_one_cluster(spare: Cluster) -> None:
    names = [
        Path(f"/proc/{record.pid}/cmdline").read_bytes().split(b"\0")[:3]
        for record in marked_processes(spare.paths.data)
    ]
    # The supervisor has no mark of its own: it is who gives it.
    assert len(names) == len(COMPONENTS), names
    assert {row["restarts"] for row in spare.state()["components"].values()} == {0}


def test_up_on_a_running_cluster_changes_nothing(spare: Cluster) -> None:
    before = spare.state()
    spare.local("up", "--hollow")
    assert spare.state() == before


def test_up_with_other_options_is_refused(spare: Cluster) -> None:
    done = spare.local("up", check=False, timeout=10 * MINUTE)
    assert done.returncode == 1
    assert "runs already, without QEMU (--hollow). Run `machine-operator local down` first" in (
        done.stderr
    )


def test_status_tells_each_process(spare: Cluster) -> None:
    told = spare.local("status").stdout
    assert told.startswith(f"ready: {spare.settings.server}")
    assert set(told.split()) >= set(COMPONENTS)
    seen = json.loads(spare.local("status", "--json").stdout)
    assert seen["phase"] == "ready"
    assert set(seen["components"]) == set(COMPONENTS)
    assert all(row["alive"] and row["memory_mib"] > 10 for row in seen["components"].values())


def test_env_points_a_shell_at_the_cluster(spare: Cluster) -> None:
    script = f'eval "$({" ".join(spare.command("env"))})" && command -v kubectl && kubectl get nodes -o name'
    kubectl, node = run(["bash", "-c", script]).stdout.split()
    assert (kubectl, node) == (str(spare.paths.bin / "kubectl"), "node/hollow-0")
    variables = json.loads(spare.local("env", "--json").stdout)
    assert variables["KUBECONFIG"] == str(spare.paths.kubeconfig)
    assert variables["DEDALUS_BASE_URL"] == spare.settings.rest
    assert variables["DEDALUS_API_KEY"].startswith("dsk-")
    assert spare.paths.api_key.stat().st_mode & 0o777 == 0o600


def test_logs_are_found_by_component(spare: Cluster) -> None:
    assert set(spare.local("logs").stdout.split()) == set(COMPONENTS) | {"supervisor"}
    lines = spare.local("logs", "supervisor", "-n", "2").stdout.splitlines()
    assert len(lines) == 2
    refused = spare.local("logs", "nobody", check=False)
    assert refused.returncode == 1
    assert "no log of 'nobody'; there are: controller, etcd," in refused.stderr


def test_ssh_says_why_it_cannot(spare: Cluster) -> None:
    with spare.namespace(f"test-{uuid4().hex[:8]}") as namespace:
        machine = Machine(spare, namespace)
        assert f"there is no machine 'hello' in namespace '{namespace}'" in (
            machine.ssh("true", check=False).stderr
        )
        machine.apply(desired_state="sleeping").wait_phase("sleeping")
        told = machine.ssh("true", check=False).stderr
        assert f"machine {namespace}/hello is sleeping" in told
        assert f"wake it: kubectl -n {namespace} patch machine hello" in told


def test_without_a_cluster_the_commands_say_so(tmp_path: Path) -> None:
    absent = Cluster(cluster_paths("absent", data=tmp_path / "absent"))
    status = absent.local("status", check=False)
    assert (status.returncode, status.stdout) == (1, f"absent: no cluster in {absent.paths.data}\n")
    for verb, args in (("env", ()), ("ssh", ("hello",))):
        done = absent.local(verb, *args, check=False)
        assert done.returncode == 1
        assert "run `machine-operator local up`" in done.stderr
    absent.local("down", "--purge")
    assert not absent.paths.data.exists()


def test_crds_prints_what_is_in_the_repository() -> None:
    assert run([*PROGRAM, "crds"]).stdout == (ROOT / "crds" / "machines.yaml").read_text()


def test_a_name_that_cannot_be_used_is_refused() -> None:
    done = run([*PROGRAM, "local", "status", "--name", "A/b"], check=False)
    assert done.returncode == 1
    assert "take up to 40 lower-case letters, digits and hyphens" in done.stderr


def test_missing_packages_are_told_with_the_command_that_installs_them(tmp_path: Path) -> None:
    paths = cluster_paths("poor", data=tmp_path / "poor")
    done = run(Cluster(paths).command("up"), env={**os.environ, "PATH": str(tmp_path)}, check=False)
    assert done.returncode == 1
    assert "sudo apt-get install --no-install-recommends " in done.stderr
    assert "qemu-system-x86" in done.stderr
    assert not paths.data.exists()


def test_a_full_disk_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**40, 2**40, 5 * 2**20))
    poor = Cluster(cluster_paths("poor", data=tmp_path / "poor"), qemu=False)
    with pytest.raises(local_cluster.ClusterError, match=r"5 MiB left; the cluster needs 1024"):
        poor.up()
    assert not poor.paths.state.exists()


# ---- what takes it down


@contextmanager
def occupied(port: int) -> Iterator[None]:
    """Somebody else listens there."""
    with socket.create_server(("127.0.0.1", port)):
        yield


def test_down_leaves_nothing_and_a_taken_port_is_avoided(up_again: Cluster) -> None:
    spare, before = up_again, up_again.settings
    kept = Machine(spare, "default", "kept").apply().wait_ready()
    uid = kept.uid
    supervisor = spare.state()["supervisor"]["pid"]
    assert len(listeners(before)) >= 8

    spare.local("down")
    assert marked_processes(spare.paths.data) == []
    assert listeners(before) == []
    assert not spare.paths.scratch.exists()
    assert not _runs(supervisor)
    assert spare.local("status", check=False).stdout.strip() == "stopped"
    spare.local("down")  # harmless

    with occupied(before.ports["kube-apiserver"]), occupied(before.ports["virt-api"]):
        spare.local("up", "--hollow")
        after = spare.settings
        changed = {name for name, port in after.ports.items() if before.ports[name] != port}
        assert changed == {"kube-apiserver", "virt-api"}
        # The old machine is there, and new ones pass KubeVirt's webhooks at their new address.
        assert kept.wait_ready().uid == uid
        Machine(spare, "default", "new").apply().wait_ready()


@pytest.mark.parametrize("who", ["command", "supervisor"])
def test_a_start_that_was_killed_half_way_is_taken_up(up_again: Cluster, who: str) -> None:
    spare = up_again
    spare.local("down", "--purge")
    start = subprocess.Popen(
        spare.command("up", "--hollow"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        # By then there are processes, certificates and half of the objects.
        until(lambda: "virt-api" in spare.state().get("components", {}), "virt-api to be started")
        victim = start.pid if who == "command" else spare.state()["supervisor"]["pid"]
        os.kill(victim, signal.SIGKILL)
        assert start.wait(MINUTE) != 0
    finally:
        start.kill()
        start.wait()
    spare.local("up", "--hollow")
    Machine(spare, "default", "hello").apply().wait_ready()
    assert len(marked_processes(spare.paths.data)) == len(COMPONENTS)


def test_down_after_the_supervisor_was_killed_ends_its_processes(up_again: Cluster) -> None:
    spare = up_again
    os.kill(spare.state()["supervisor"]["pid"], signal.SIGKILL)
    until(lambda: spare.local("status", check=False).stdout.startswith("orphaned"), "orphaned")
    assert len(marked_processes(spare.paths.data)) == len(COMPONENTS)
    spare.local("down")
    assert marked_processes(spare.paths.data) == []
    assert listeners(spare.settings) == []
    assert not spare.paths.scratch.exists()


def test_purge_removes_the_data(up_again: Cluster) -> None:
    up_again.local("down", "--purge")
    assert not up_again.paths.data.exists()


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
