"""The Node object: registered, kept ready by kubelet's Lease, kept schedulable by virt-handler.

Without its Lease the node is taken for dead after some 50 s. After such a time the node controller
has written Ready=Unknown, and only kubelet can take that back: so the Node is looked at with each
renewal, and its status is written again where it does not say what is true.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
from collections.abc import Awaitable, Callable
from typing import Any

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import AlreadyExists, KubeError, NotFound
from machine_operator.kube.resources import LEASES, NODES
from machine_operator.kubevirt.quantity import parse_quantity
from machine_operator.local.hollow.config import NodeConfig
from machine_operator.local.hollow.times import micro_time, now, timestamp

__all__ = ["Node"]

log = logging.getLogger(__name__)

_LEASE_NAMESPACE = "kube-node-lease"
_RENEW = 10.0
_LEASE_SECONDS = 40
_HEARTBEAT = 60.0
_RETRY = 1.0

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_BOUNDLESS_CPU = 100_000
_BOUNDLESS_MEMORY_MIB = 256 * 2**20
"""What a node without guests offers: nothing of it is ever used."""

Object = dict[str, Any]


class Node:
    """This node's objects.

    Args:
        kubelet: system:node:NAME.
        handler: KubeVirt's virt-handler.
    """

    def __init__(self, config: NodeConfig, *, kubelet: KubeClient, handler: KubeClient) -> None:
        self._config = config
        self._name = config.name
        self._kubelet = kubelet
        self._handler = handler
        self._registered = asyncio.Event()

    async def run(self) -> None:
        """Register, then keep alive until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forever(self._renew, every=_RENEW))
            group.create_task(self._forever(self._beat, every=_HEARTBEAT))

    async def _forever(self, work: Callable[[], Awaitable[None]], *, every: float) -> None:
        while True:
            pause = every
            try:
                await work()
            except KubeError as error:
                log.warning("node %s: %s", self._name, error)
                pause = _RETRY
            await asyncio.sleep(pause)

    # ---- kubelet

    async def _renew(self) -> None:
        try:
            node = await self._kubelet.get(NODES, self._name)
        except NotFound:
            node = await self._register()
        self._registered.set()
        patch = self._status_patch(node)
        if patch:
            await self._kubelet.merge_patch(
                NODES, self._name, {"status": patch}, subresource="status", strategic=True
            )
            log.info("node %s: status written", self._name)
        await self._renew_lease(node)

    async def _register(self) -> Object:
        arch = _ARCHITECTURES.get(platform.machine(), platform.machine())
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self._name,
                "labels": {
                    "kubernetes.io/hostname": self._name,
                    "kubernetes.io/arch": arch,
                    "kubernetes.io/os": "linux",
                    "machines.dedaluslabs.ai/cluster": self._config.cluster,
                },
            },
        }
        try:
            return await self._kubelet.create(NODES, body)
        except AlreadyExists:
            return await self._kubelet.get(NODES, self._name)

    async def _renew_lease(self, node: Object) -> None:
        spec = {
            "holderIdentity": self._name,
            "leaseDurationSeconds": _LEASE_SECONDS,
            "renewTime": micro_time(now()),
        }
        try:
            await self._kubelet.merge_patch(
                LEASES, self._name, {"spec": spec}, namespace=_LEASE_NAMESPACE
            )
        except NotFound:
            owner = {
                "apiVersion": "v1",
                "kind": "Node",
                "name": self._name,
                "uid": node["metadata"]["uid"],
            }
            body = {
                "apiVersion": LEASES.api_version,
                "kind": LEASES.kind,
                "metadata": {"name": self._name, "ownerReferences": [owner]},
                "spec": spec,
            }
            await self._kubelet.create(LEASES, body, namespace=_LEASE_NAMESPACE)

    def _status_patch(self, node: Object) -> Object:
        current = node.get("status") or {}
        wanted: Object = {
            "capacity": self._capacity(),
            "allocatable": self._capacity(),
            "addresses": [
                {"type": "InternalIP", "address": "127.0.0.1"},
                {"type": "Hostname", "address": self._name},
            ],
        }
        patch = {key: value for key, value in wanted.items() if not _same(current.get(key), value)}
        if current.get("nodeInfo", {}).get("bootID") != _boot_id():
            patch["nodeInfo"] = _node_info()
        known = {item["type"]: item for item in current.get("conditions") or []}
        conditions = [
            condition
            for condition in _conditions(timestamp(now()))
            if known.get(condition["type"], {}).get("status") != condition["status"]
        ]
        if conditions:
            patch["conditions"] = conditions
        return patch

    def _capacity(self) -> Object:
        config = self._config
        cpu = config.cpu if config.qemu else _BOUNDLESS_CPU
        memory = config.memory_mib if config.qemu else _BOUNDLESS_MEMORY_MIB
        return {
            "cpu": str(cpu),
            "memory": f"{memory * 1024}Ki",
            "pods": "500" if config.qemu else "100000",
            "ephemeral-storage": f"{64 * 2**30}Ki",
            # Devices are what virt-handler's device plugins would offer; nothing is behind them.
            "devices.kubevirt.io/kvm": "110k",
            "devices.kubevirt.io/tun": "110k",
            "devices.kubevirt.io/vhost-net": "110k",
        }

    # ---- virt-handler

    async def _beat(self) -> None:
        await self._registered.wait()
        await self._handler.merge_patch(
            NODES,
            self._name,
            {
                "metadata": {
                    "labels": {
                        "kubevirt.io/schedulable": "true",
                        "machine-type.node.kubevirt.io/q35": "true",
                        "cpumanager": "false",
                    },
                    "annotations": {"kubevirt.io/heartbeat": timestamp(now())},
                }
            },
        )


def _same(current: Any, wanted: Any) -> bool:
    """Whether what is stored says `wanted`; the API server writes quantities in its own way."""
    if isinstance(wanted, dict) and isinstance(current, dict):
        return current.keys() == wanted.keys() and all(
            parse_quantity(current[key]) == parse_quantity(value) for key, value in wanted.items()
        )
    return bool(current == wanted)


def _conditions(moment: str) -> list[Object]:
    fine = {
        "MemoryPressure": ("KubeletHasSufficientMemory", "the hollow node does not measure memory"),
        "DiskPressure": ("KubeletHasNoDiskPressure", "the hollow node does not measure disks"),
        "PIDPressure": ("KubeletHasSufficientPID", "the hollow node does not count processes"),
    }
    conditions = [
        {"type": kind, "status": "False", "reason": reason, "message": message}
        for kind, (reason, message) in fine.items()
    ]
    conditions.append(
        {
            "type": "Ready",
            "status": "True",
            "reason": "KubeletReady",
            "message": "the hollow node is running",
        }
    )
    return [
        {**condition, "lastHeartbeatTime": moment, "lastTransitionTime": moment}
        for condition in conditions
    ]


def _node_info() -> Object:
    return {
        "machineID": "",
        "systemUUID": "",
        "bootID": _boot_id(),
        "kernelVersion": os.uname().release,
        "osImage": "hollow node",
        "containerRuntimeVersion": "qemu://local",
        "kubeletVersion": "v1.34.2",
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
    }


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
