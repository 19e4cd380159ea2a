"""A control plane for measuring the operator alone: etcd and kube-apiserver, with the kinds of KubeVirt and ours.

No webhooks, no virt-controller, no controller-manager: nobody but the stub and the measured process acts. The flags,
certificates and kubeconfigs are those of local mode; added is an audit log of what the operator's user does. A plane
costs seconds, since its etcd starts from a copy in which the kinds are already there; so each round gets a new one,
and no round pays for what the round before has left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clusters import BenchError, processor_seconds, progress

from machine_operator.api.crd import machine_crd
from machine_operator.controller.rbac import operator_rbac
from machine_operator.gateway.rbac import gateway_rbac
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.errors import KubeError
from machine_operator.kube.resources import MACHINES, VIRTUAL_MACHINE_INSTANCES, VIRTUAL_MACHINES
from machine_operator.local.binaries import ensure_binaries
from machine_operator.local.certificates import CLIENTS, create_certificates
from machine_operator.local.components import components
from machine_operator.local.kubeconfig import write_kubeconfigs
from machine_operator.local.logfiles import open_log, tail
from machine_operator.local.manifests import load_manifests, namespaces
from machine_operator.local.paths import ClusterPaths, cache_directory
from machine_operator.local.ports import choose_ports
from machine_operator.local.processes import ProcessRecord, end_processes, record_of
from machine_operator.local.progress import progress_for
from machine_operator.local.settings import PORTS, ClusterSettings

__all__ = ["OPERATOR_USER", "Plane", "Process", "prepare"]

OPERATOR_USER = CLIENTS["operator"][0]
"""Who the operator is, and the floor as well: what they do is audited."""

_START_LIMIT = 90.0
_GRACE = 10.0
"""Seconds that a process gets to end by itself."""

_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [OPERATOR_USER]}, {"level": "None"}],
}


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the benchmark's own, and how to look at it from outside."""

    name: str
    record: ProcessRecord
    popen: subprocess.Popen[bytes]
    log: Path

    @property
    def processor_seconds(self) -> float:
        """What it has used so far, in seconds of one processor."""
        self.check()
        return processor_seconds(self.record.pid)

    def resident_mib(self, field: str = "VmRSS") -> float:
        """Resident memory in MiB: now, or with `VmHWM` the most that it has ever been."""
        self.check()
        for line in Path(f"/proc/{self.record.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        raise BenchError(f"{self.name}: /proc tells no {field}")

    def check(self) -> None:
        """Raise BenchError where it has ended."""
        code = self.popen.poll()
        if code is not None:
            last = tail(self.log, lines=15)
            raise BenchError(f"{self.name} ended with code {code}. Its last words:\n{last}")

    def end(self, *, grace: float = _GRACE) -> None:
        """SIGTERM (nothing but SIGKILL with `grace=0`), and wait until it is gone."""
        end_processes([self.record], grace=grace)
        self.popen.wait(timeout=5)


class Plane:
    """One control plane; as a context manager it is up inside, and gone with all its processes afterwards.

    Args:
        directory: gets its data; it is removed at the end.
        template: what `prepare` has made, or None to start from nothing.
    """

    def __init__(self, directory: Path, *, binaries: Path, template: Path | None) -> None:
        self.paths = ClusterPaths(name="bench", data=directory)
        self.settings = ClusterSettings(
            name="bench",
            ports=choose_ports((*PORTS, "standby")),
            binaries=str(binaries),
            images="",
            qemu=False,
        )
        self.audit = directory / "audit.log"
        self._template = template
        self._processes: list[Process] = []

    def __enter__(self) -> Plane:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # All at once and without a grace: nothing of it is kept.
        end_processes([process.record for process in self._processes], grace=0)
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.popen.wait(timeout=5)  # nothing survives SIGKILL but in the kernel
        self._processes.clear()
        shutil.rmtree(self.paths.data, ignore_errors=True)

    def start(
        self, name: str, command: Sequence[str], *, ready: Path | None = None, limit: float = 30.0
    ) -> Process:
        """Start a process that ends with the plane; with `ready`, return once it has made that file."""
        with open_log(self.paths.logs, name) as output:
            popen = subprocess.Popen(
                [*command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.paths.data,
                # Ctrl-C at the terminal is for us, who end it in order.
                start_new_session=True,
            )
        record = record_of(popen.pid) or ProcessRecord(pid=popen.pid, started=-1, boot="")
        process = Process(name, record, popen, self.paths.logs / f"{name}.log")
        self._processes.append(process)
        deadline = time.monotonic() + limit
        while ready is not None and not ready.exists():
            process.check()
            if time.monotonic() > deadline:
                raise BenchError(f"{name} was not ready after {limit:.0f} s")
            time.sleep(0.02)
        return process

    def forget(self, process: Process, *, grace: float = _GRACE) -> None:
        """End a process before the plane itself ends."""
        process.end(grace=grace)
        self._processes.remove(process)

    def process(self, name: str) -> Process:
        """The newest process of that name."""
        return next(p for p in reversed(self._processes) if p.name == name)

    def kubeconfig(self, identity: str) -> str:
        """The kubeconfig file of an identity of local mode, such as `admin` or `operator`."""
        return str(self.paths.kubeconfigs / f"{identity}.yaml")

    # ---- the start

    def _start(self) -> None:
        paths = self.paths
        if self._template is not None:
            shutil.copytree(self._template, paths.data)
        paths.data.mkdir(parents=True, exist_ok=True)
        create_certificates(paths.pki)
        write_kubeconfigs(
            paths.kubeconfigs, pki=paths.pki, server=self.settings.server, cluster="bench"
        )
        policy = paths.data / "audit-policy.json"
        policy.write_text(json.dumps(_POLICY))
        commands = {name: c.command for name, c in components(self.settings, paths).items()}
        self.start("etcd", commands["etcd"])
        extra = [
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.audit}",
            "--audit-log-maxsize=10000",  # MiB; it is read by offsets, and must not be rotated
            # Its finalizer would stay on deleted disks: who takes it off is not here.
            "--disable-admission-plugins=StorageObjectInUseProtection",
        ]
        self.start("kube-apiserver", [*commands["kube-apiserver"], *extra])
        asyncio.run(self._until_served("/readyz"))
        if self._template is None:
            self._put_objects()
        for kind in (MACHINES, VIRTUAL_MACHINES, VIRTUAL_MACHINE_INSTANCES):
            asyncio.run(self._until_served(kind.path()))

    async def _until_served(self, path: str) -> None:
        deadline = time.monotonic() + _START_LIMIT
        async with KubeClient(await connect(self.kubeconfig("admin"))) as client:
            while True:
                for process in self._processes:
                    process.check()
                try:
                    await client.request("GET", path, params={"limit": "1"}, timeout=5)
                    return
                except KubeError as error:
                    if time.monotonic() > deadline:
                        raise BenchError(f"kube-apiserver did not serve {path}: {error}") from error
                await asyncio.sleep(0.05)

    def _put_objects(self) -> None:
        objects = load_manifests(self.settings, self.paths)
        first = [*namespaces(self.settings, self.paths), *objects.rbac()]
        items = [*first, *operator_rbac(), *gateway_rbac(), *objects.crds(), machine_crd()]
        whole = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        # Not `create`: the API server makes the namespace `default` itself; here it gets a label.
        self._kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=whole)
        deadline = time.monotonic() + _START_LIMIT
        while True:
            try:
                self._kubectl("wait", "--for=condition=Established", "crd", "--all")
                return
            except BenchError:  # it trips over `conditions: null`, which is there for a moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _kubectl(self, *words: str, stdin: str = "") -> None:
        program = Path(self.settings.binaries, "kubectl")
        answer = subprocess.run(
            [str(program), f"--kubeconfig={self.kubeconfig('admin')}", *words],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if answer.returncode != 0:
            raise BenchError(f"kubectl {' '.join(words)}: {answer.stderr.strip()[-2000:]}")


def prepare(directory: Path) -> tuple[Path, Path]:
    """The control plane's executables (built where they are missing), and a template that planes start from."""
    steps = progress_for(sys.stderr)
    binaries = ensure_binaries(cache_directory(), source=None, prebuilt=None, progress=steps)
    progress("a first control plane, not counted: its etcd is what the others start from")
    template = directory / "template"
    with Plane(directory / "first", binaries=binaries, template=None) as plane:
        plane.forget(plane.process("kube-apiserver"), grace=0)
        plane.forget(plane.process("etcd"))
        template.mkdir()
        for part in ("etcd", "pki"):
            shutil.copytree(plane.paths.data / part, template / part)
    return binaries, template
