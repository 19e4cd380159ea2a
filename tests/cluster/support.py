"""What the cluster tests work with: a local cluster of their own, and machines in it.

Everything goes the way that people go: `kubectl` and the command line in processes of their own. Whatever is waited
for is waited for with a deadline, and a wait that fails says what it saw last.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from machine_operator.kubevirt.names import child_names
from machine_operator.local import cluster as local_cluster
from machine_operator.local.logfiles import tail
from machine_operator.local.paths import ClusterPaths, cache_directory
from machine_operator.local.processes import ProcessRecord
from machine_operator.local.progress import progress_for
from machine_operator.local.settings import ClusterSettings, read_json
from machine_operator.local.ssh import SshError, ssh_command
from tests.cluster.host import guests_by_machine

__all__ = [
    "COMPONENTS",
    "IMPATIENT",
    "MINUTE",
    "Cluster",
    "Completed",
    "Machine",
    "Object",
    "fetch",
    "run",
    "until",
]

Object = dict[str, Any]
Completed = subprocess.CompletedProcess[str]
T = TypeVar("T")

IMPATIENT = {
    "MACHINE_OPERATOR_GRACE_SECONDS": "1",
    "MACHINE_OPERATOR_STOP_TIMEOUT": "2s",
    "MACHINE_OPERATOR_MINIMUM_AWAKE": "3s",
}
"""Environment of the operators of the impatient cluster."""

MINUTE = 60.0
"""Seconds. A guest boots in a tenth of that where nothing else runs."""

_POLL = 0.1

COMPONENTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "virt-api",
    "virt-controller",
    "hollow-node",
    "controller",
    "gateway",
)
"""All processes of a whole cluster, but for the supervisor."""


def until(check: Callable[[], T], what: str, *, timeout: float = MINUTE) -> T:
    """The first true value of `check`; an AssertionError in it means "not yet", and why.

    Raises:
        AssertionError: after `timeout` seconds; it holds the last value or error.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            seen: object = check()
            if seen:
                return seen  # type: ignore[return-value]
        except AssertionError as error:
            seen = error
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:.0f} s for {what}; the last look gave: {seen}")
        time.sleep(_POLL)


def run(
    argv: Sequence[str],
    *,
    input: str | None = None,
    check: bool = True,
    timeout: float = MINUTE,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """A program's output as text.

    Raises:
        AssertionError: it failed and `check` is set, or took longer than `timeout` seconds; with all that it said.
    """
    try:
        done = subprocess.run(
            argv, input=input, check=False, timeout=timeout, env=env, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired as error:
        said = (error.stdout, error.stderr)
        raise AssertionError(f"{list(argv)} took over {timeout:.0f} s; it said: {said}") from error
    if check and done.returncode != 0:
        raise AssertionError(
            f"{list(argv)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done


def fetch(url: str) -> tuple[int, str]:
    """What a URL of plain HTTP answers: status and text."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - ours, on loopback
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError as error:
        raise AssertionError(f"{url}: {error}") from error


@dataclass(frozen=True)
class Cluster:
    """One local cluster: the same code as `machine-operator local`, in a data directory of the tests' own."""

    paths: ClusterPaths
    qemu: bool = True
    prefix: tuple[str, ...] = ()
    """Put before every `machine-operator`: how to become the user whose cluster it is."""

    def up(self) -> None:
        """As `local up` does; in this process, so that the first build shows its progress."""
        local_cluster.up(
            self.paths,
            cache=cache_directory(),
            wanted=local_cluster.Wanted(qemu=self.qemu),
            progress=progress_for(sys.stderr),
        )

    def purge(self) -> None:
        """As `local down --purge` does."""
        local_cluster.down(self.paths, say=print)
        shutil.rmtree(self.paths.data, ignore_errors=True)

    @property
    def settings(self) -> ClusterSettings:
        """What it was asked to be, and its ports."""
        found = ClusterSettings.load(self.paths.settings)
        assert found is not None, f"there is no cluster in {self.paths.data}"
        return found

    def state(self) -> Object:
        """What its supervisor wrote down last."""
        return read_json(self.paths.state) or {}

    def command(self, verb: str, *args: str) -> list[str]:
        """The argv of `machine-operator local VERB` for this cluster."""
        which = ["--name", self.paths.name, "--data", str(self.paths.data)]
        program = [sys.executable, "-m", "machine_operator.cli.main"]
        return [*self.prefix, *program, "local", verb, *which, *args]

    def local(
        self, verb: str, *args: str, check: bool = True, timeout: float = 3 * MINUTE
    ) -> Completed:
        """Run `machine-operator local VERB`."""
        return run(self.command(verb, *args), check=check, timeout=timeout)

    def kubectl(
        self, *args: str, input: str | None = None, check: bool = True, timeout: float = 3 * MINUTE
    ) -> Completed:
        """Run the cluster's kubectl as its administrator."""
        environment = {**os.environ, "KUBECONFIG": str(self.paths.kubeconfig)}
        argv = [str(self.paths.bin / "kubectl"), *args]
        return run(argv, input=input, check=check, timeout=timeout, env=environment)

    def items(self, kinds: str, *, namespace: str | None = None) -> list[Object]:
        """All objects of some kinds, such as `vm,vmi,pvc`."""
        where = ["--all-namespaces"] if namespace is None else ["--namespace", namespace]
        found: Object = json.loads(self.kubectl("get", kinds, *where, "-o", "json").stdout)
        items: list[Object] = found["items"]
        return items

    @contextmanager
    def namespace(self, name: str) -> Iterator[str]:
        """A fresh namespace. Its end is begun and not waited for: that takes Kubernetes a quarter of a minute."""
        self.kubectl("create", "namespace", name)
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, "--wait=false", check=False)

    def acts(self, identity: str, *args: str, **how: Any) -> Completed:
        """Run kubectl with the certificate of one of the cluster's own identities, such as `virt-handler`."""
        kubeconfig = self.paths.kubeconfigs / f"{identity}.yaml"
        return self.kubectl("--kubeconfig", str(kubeconfig), *args, **how)

    def process(self, component: str) -> ProcessRecord:
        """The process of a component, as its supervisor wrote it down."""
        return ProcessRecord.from_json(self.state()["components"][component]["process"])

    @contextmanager
    def frozen(self, *components: str) -> Iterator[None]:
        """Whoever asks these gets no answer; afterwards they go on as if nothing had been."""
        records = [self.process(component) for component in components]
        try:
            for record in records:
                assert record.signal(signal.SIGSTOP), f"{record} is not there"
            yield
        finally:
            for record in records:
                record.signal(signal.SIGCONT)

    def controller(self, path: str) -> tuple[int, str]:
        """What the controller answers on its metrics port: status and text."""
        return fetch(f"http://127.0.0.1:{self.settings.ports['controller']}{path}")

    def gateway(self, path: str) -> tuple[int, str]:
        """What the gateway answers on its metrics port: status and text."""
        return fetch(f"http://127.0.0.1:{self.settings.ports['gateway-metrics']}{path}")

    def describe(self) -> str:
        """What a failed test shows of the cluster."""
        if not self.paths.kubeconfig.exists():
            return f"there is no cluster in {self.paths.data}"
        kinds = "machines,vm,vmi,pods,pvc,pv"
        parts = [
            self.local("status", check=False).stdout,
            self.kubectl("get", kinds, "-A", "-o", "wide", check=False, timeout=20).stdout,
        ]
        for component in ("controller", "hollow-node", "supervisor"):
            log = self.paths.logs / f"{component}.log"
            parts.append(f"--- {component}\n{tail(log, lines=25) if log.exists() else 'no log'}")
        return "\n".join(parts)


@dataclass
class Machine:
    """One Machine, by its name; it need not exist (any more, or yet)."""

    cluster: Cluster
    namespace: str
    name: str = "hello"
    spec: Object = field(default_factory=dict)
    """What its manifest says beside the smallest sizes."""

    def kubectl(self, *args: str, **how: Any) -> Completed:
        """Run kubectl in its namespace."""
        return self.cluster.kubectl("--namespace", self.namespace, *args, **how)

    def manifest(self) -> str:
        """As it is applied."""
        small = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1, "autosleep": "never"}
        return json.dumps(
            {
                "apiVersion": "machines.dedaluslabs.ai/v1alpha1",
                "kind": "Machine",
                "metadata": {"name": self.name},
                "spec": small | self.spec,
            }
        )

    def apply(self, **spec: object) -> Machine:
        """`kubectl apply`, with these fields of the spec changed for good."""
        self.spec |= spec
        self.kubectl("apply", "-f", "-", input=self.manifest())
        return self

    def patch(self, **spec: object) -> None:
        """`kubectl patch`; None removes a field."""
        body = json.dumps({"spec": spec})
        self.kubectl("patch", "machine", self.name, "--type=merge", "--patch", body)

    def delete(self, *, timeout: float = MINUTE) -> None:
        """`kubectl delete`, which waits until the object is gone."""
        self.kubectl("delete", "machine", self.name, f"--timeout={timeout:.0f}s")

    def get(self) -> Object:
        """The object."""
        found: Object = json.loads(self.kubectl("get", "machine", self.name, "-o", "json").stdout)
        return found

    @property
    def uid(self) -> str:
        """Of the object."""
        return str(self.get()["metadata"]["uid"])

    @property
    def status(self) -> Object:
        """Of the object; empty before the controller has looked."""
        status: Object = self.get().get("status") or {}
        return status

    def condition(self, kind: str) -> Object:
        """One of its conditions."""
        found = [c for c in self.status.get("conditions", []) if c["type"] == kind]
        assert found, f"{self.name} has no condition {kind}: {self.status}"
        condition: Object = found[0]
        return condition

    def child(self, kind: str) -> Object:
        """Its `vm`, `vmi` or `pvc`, which exists."""
        names = child_names(self.uid)
        name = names.home if kind == "pvc" else names.vm
        found: Object = json.loads(self.kubectl("get", kind, name, "-o", "json").stdout)
        return found

    def events(self, reason: str) -> list[Object]:
        """The Events of this reason about it."""
        about = f"involvedObject.kind=Machine,involvedObject.name={self.name},reason={reason}"
        said = self.kubectl("get", "events", "--field-selector", about, "-o", "json").stdout
        events: list[Object] = json.loads(said)["items"]
        return events

    def wait_ready(self, *, timeout: float = MINUTE) -> Machine:
        """`kubectl wait`, as people do it."""
        limit = f"--timeout={timeout:.0f}s"
        self.kubectl("wait", "--for=condition=Ready", f"machine/{self.name}", limit)
        return self

    def wait_phase(self, phase: str, *, timeout: float = MINUTE) -> Machine:
        """Wait until its phase is this one, for the spec that it has."""

        def settled() -> bool:
            found = self.get()
            status = found.get("status") or {}
            assert status.get("phase") == phase, f"{self.name}: {status}"
            seen = status["observedGeneration"]
            assert seen == found["metadata"]["generation"], f"{self.name} looked at {seen}"
            return True

        until(settled, f"{self.name} to be {phase}", timeout=timeout)
        return self

    def power(self, state: str, *, timeout: float = MINUTE) -> Machine:
        """Set `desired_state` to `running` or `sleeping`, and wait until it is."""
        self.patch(desired_state=state)
        return self.wait_phase(state, timeout=timeout).wait_ready()

    def ssh(self, *command: str, check: bool = True) -> Completed:
        """`local ssh NAME -- COMMAND`."""
        where = ("--namespace", self.namespace, self.name)
        return self.cluster.local("ssh", *where, "--", *command, check=check, timeout=MINUTE)

    def run(self, command: str, *, check: bool = True) -> str:
        """What a command in the guest prints, by the short way: straight to its address.

        The same login as `ssh` with the same keys, but without the two Python processes of that.
        """
        login = ssh_command(
            self.cluster.paths, namespace=self.namespace, machine=self.name, command=[command]
        )
        try:
            argv = asyncio.run(login)
        except SshError as error:
            raise AssertionError(str(error)) from error
        [proxy] = [at for at, word in enumerate(argv) if word.startswith("ProxyCommand=")]
        addresses = self.status.get("addresses")
        assert addresses, f"{self.name} has no address"
        argv[proxy] = f"HostName={addresses[0]}"
        port = str(self.cluster.settings.ssh_port)
        argv[1:1] = ["-p", port, "-o", "ConnectTimeout=20", "-o", "BatchMode=yes"]
        return run(argv, check=check, timeout=MINUTE).stdout.strip()

    def boot_id(self) -> str:
        """Differs from boot to boot of the guest."""
        return self.run("cat /proc/sys/kernel/random/boot_id")

    def answers(self) -> bool:
        """Whether it can be logged in to with `local ssh`; an AssertionError says why not."""
        return self.ssh("echo here").stdout.strip() == "here"

    def guests(self) -> list[int]:
        """The pids of its QEMU processes."""
        return guests_by_machine().get(self.uid, [])

    def children(self) -> list[str]:
        """What the operator and KubeVirt have made for it, as `Kind name`."""
        uid = self.uid
        marks = {child_names(uid).vm, child_names(uid).home, child_names(uid).seed}
        return [
            f"{item['kind']} {item['metadata']['name']}"
            for item in self.cluster.items("vm,vmi,pods,pvc,secrets", namespace=self.namespace)
            if item["metadata"]["name"] in marks or uid in json.dumps(item["metadata"])
        ]
