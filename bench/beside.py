"""On a full local cluster without QEMU: Machines beside bare VirtualMachines of the same content, in turns.

KubeVirt's own controllers, admission, the scheduler and the node agent do their work in every arm. A bare VM finds its
disk and its seed made and bound beforehand, untimed. A VM by hand is what somebody without the operator creates for
the same result: seed, disk and VM, all timed; what a Machine takes more than that is what the operator adds.
"""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from arms import load, machines
from clusters import BenchError, Cluster, progress
from figures import Report, measured, percentile
from load import COMPANIONS, Taken

from machine_operator.api.machine import Machine, read_machine
from machine_operator.api.names import API_VERSION, KIND
from machine_operator.controller.hostkeys import new_host_key
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.errors import NotFound
from machine_operator.kube.resources import (
    MACHINES,
    NAMESPACES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    SECRETS,
    VIRTUAL_MACHINE_INSTANCES,
    VIRTUAL_MACHINES,
    Resource,
)
from machine_operator.kubevirt.home import build_home
from machine_operator.kubevirt.names import child_names
from machine_operator.kubevirt.seed import build_seed
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.kubevirt.vm import build_vm
from machine_operator.lifecycle.observation import RunStrategy

__all__ = ["measure"]

_P50, _P99, _SPAN = 1.5, 2.0, 1.15
_AT_A_TIME = 8
_LIMIT = 240.0
_BARE, _BY_HAND, _MACHINE = "bare VM", "VM with disk and seed by hand", "Machine"
_ARMS = (_BARE, _BY_HAND, _MACHINE)

Object = dict[str, Any]


def measure(
    report: Report, directory: Path, *, repeats: int, few: int = 60, many: int = 200
) -> None:
    """`few` at 3/s for the times, `many` at 20/s for the throughput; `repeats` times both arms."""
    taken: dict[tuple[str, float], list[Taken]] = {}
    with Cluster(directory, "--hollow") as cluster:
        progress("cluster: starting one")
        cluster.up()
        for arm in _ARMS:
            _round(cluster, arm, 10, rate=3.0, name="warm-up")
        for number in range(repeats):
            for count, rate in ((few, 3.0), (many, 20.0)):
                for arm in _ARMS if number % 2 else reversed(_ARMS):
                    found = _round(cluster, arm, count, rate=rate, name=f"{number}-{rate:.0f}")
                    taken.setdefault((arm, rate), []).append(found)
                    progress(
                        f"cluster {number + 1}/{repeats}, {count} at {rate:g}/s, {arm}: p50 "
                        f"{percentile(found.latencies, 50):.3f} s, all after {found.span:.1f} s"
                    )
            report.note_load(f"after cluster {number + 1}")
    _report(report, taken, few=few, many=many)


def _report(
    report: Report, taken: dict[tuple[str, float], list[Taken]], *, few: int, many: int
) -> None:
    def p50(of: Taken) -> float:
        return percentile(of.latencies, 50)

    def p99(of: Taken) -> float:
        return percentile(of.latencies, 99)

    def span(of: Taken) -> float:
        return of.span

    raw: dict[str, Any] = {}
    for title, limit, rate, value in (
        (f"{few} at 3/s on the full cluster, p50", _P50, 3.0, p50),
        (f"{few} at 3/s on the full cluster, p99", _P99, 3.0, p99),
        (f"{many} at 20/s on the full cluster, until all run", _SPAN, 20.0, span),
    ):
        values = {arm: [value(t) for t in taken[arm, rate]] for arm in _ARMS}
        for floor in (_BARE, _BY_HAND):
            ratios = [m / b for m, b in zip(values[_MACHINE], values[floor], strict=True)]
            report.add(measured(f"{title}, Machine over {floor}", ratios, "x", limit=limit))
        report.add(*(measured(f"  {arm}", values[arm], "s") for arm in _ARMS))
        raw[title] = values
    report.raw["cluster"] = raw


def _round(cluster: Cluster, arm: str, count: int, *, rate: float, name: str) -> Taken:
    namespace = f"arm-{_ARMS.index(arm)}-{name}"
    bodies = machines(count)
    asyncio.run(_with_client(cluster, lambda client: _namespace(client, namespace)))
    if arm != _MACHINE:
        bodies = _vms(cluster, bodies, namespace=namespace)
    if arm == _BARE:
        before = [body.pop(COMPANIONS) for body in bodies]
        asyncio.run(
            _with_client(cluster, lambda client: _premake(client, before, namespace=namespace))
        )
    cluster.wait_quiet()
    found = load(
        str(cluster.paths.kubeconfig),
        bodies,
        scratch=cluster.paths.data,
        namespace=namespace,
        rate=rate,
        end="machine-running" if arm == _MACHINE else "vm-ready",
        limit=_LIMIT,
    )
    if found.lost:
        why = found.failures[0] if found.failures else "no create failed"
        raise BenchError(f"{found.lost} of {count} ({arm}) did not run after {_LIMIT:.0f} s; {why}")
    asyncio.run(_with_client(cluster, lambda client: _clean(client, namespace)))
    cluster.wait_quiet()
    return found


async def _with_client(cluster: Cluster, work: Callable[[KubeClient], Awaitable[None]]) -> None:
    async with KubeClient(await connect(str(cluster.paths.kubeconfig))) as client:
        await work(client)


async def _namespace(client: KubeClient, namespace: str) -> None:
    """Make it, and wait until pods can be made there."""
    body = {"metadata": {"name": namespace}}
    await client.apply(NAMESPACES, namespace, body, manager="bench-load")
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    await _until("its service account", namespace, lambda: _there(client, account))


async def _there(client: KubeClient, path: str) -> bool:
    try:
        await client.request("GET", path)
    except NotFound:
        return False
    return True


def _model(body: Object, namespace: str) -> Machine:
    """A Machine that is nowhere but here, for the builders."""
    metadata = {**body["metadata"], "namespace": namespace, "uid": str(uuid.uuid4())}
    whole = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": body["spec"]}
    return read_machine(whole)


def _bared(child: Object) -> Object:
    """Without an owner, who would be missed at once, and without the labels that the operator looks for."""
    metadata = child["metadata"]
    for key in ("ownerReferences", "labels", "annotations"):
        metadata.pop(key, None)
    template = child.get("spec", {}).get("template")
    if template is not None:
        template["metadata"] = {}
    return child


def _vms(cluster: Cluster, bodies: list[Object], *, namespace: str) -> list[Object]:
    """What the operator would make of these Machines: VMs, each with its seed and its disk as companions."""
    settings = cluster.settings
    defaults = MachineDefaults(
        image=settings.default_image,
        ssh_port=settings.ssh_port,
        ssh_user_ca=(cluster.paths.pki / "ssh-user-ca.pub").read_text(),
    )

    def one(model: Machine) -> Object:
        home = child_names(model.metadata.uid).home
        vm = _bared(build_vm(model, defaults, home=home, run_strategy=RunStrategy.ON))
        companions = {
            SECRETS.plural: _bared(build_seed(model, defaults, new_host_key())),
            PERSISTENT_VOLUME_CLAIMS.plural: _bared(build_home(model, name=home)),
        }
        return {**vm, COMPANIONS: companions}

    return [one(_model(body, namespace)) for body in bodies]


async def _premake(client: KubeClient, before: list[dict[str, Object]], *, namespace: str) -> None:
    slots = asyncio.Semaphore(_AT_A_TIME)

    async def one(made: dict[str, Object]) -> None:
        async with slots:
            for kind in (SECRETS, PERSISTENT_VOLUME_CLAIMS):
                await client.create(kind, made[kind.plural], namespace=namespace)

    async def bound() -> bool:
        found = await client.list(PERSISTENT_VOLUME_CLAIMS, namespace=namespace)
        return all((item.get("status") or {}).get("phase") == "Bound" for item in found["items"])

    await asyncio.gather(*(one(made) for made in before))
    await _until("all disks to be bound", namespace, bound)


async def _clean(client: KubeClient, namespace: str) -> None:
    """Delete everything in the order in which it hangs together, and wait for each."""
    steps: Iterable[tuple[Resource, ...]] = (
        (MACHINES, VIRTUAL_MACHINES),
        (VIRTUAL_MACHINE_INSTANCES, PODS),
        (SECRETS, PERSISTENT_VOLUME_CLAIMS),
    )
    for kinds in steps:
        for kind in kinds:
            await client.request("DELETE", kind.path(namespace=namespace), timeout=60.0)
        for kind in kinds:
            gone = functools.partial(_none, client, kind, namespace)
            await _until(f"no {kind.plural}", namespace, gone)


async def _none(client: KubeClient, kind: Resource, namespace: str) -> bool:
    return not (await client.list(kind, namespace=namespace))["items"]


async def _until(what: str, where: str, check: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + _LIMIT
    while not await check():
        if time.monotonic() > deadline:
            raise BenchError(f"gave up waiting for {what} in namespace {where}")
        await asyncio.sleep(0.3)
