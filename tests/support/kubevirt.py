"""KubeVirt, its nodes and a storage provisioner, simulated over a FakeApi: objects move as the real ones do.

VM -> VMI -> Pending, Scheduling, Scheduled, Running, Ready; a stop deletes the VMI, which ends after a while. Whether
one that ended is replaced depends on the run strategy, with the semantics of virt-controller 1.8 (`kubevirt_vms.py`).
What can go wrong is switched on by the attributes, or happens by a call.
"""

from __future__ import annotations

import asyncio
from typing import Any

from machine_operator.kube.errors import ApiError
from tests.support.apiserver import FakeApi, Object, Request, copied, failure
from tests.support.kubevirt_claims import Claims
from tests.support.kubevirt_instances import Guests, Instances
from tests.support.kubevirt_vms import VirtualMachines

__all__ = ["FakeKubeVirt"]

VMS, VMIS, CLAIMS = "virtualmachines", "virtualmachineinstances", "persistentvolumeclaims"

_WEBHOOK = (
    'Internal error occurred: failed calling webhook "virtualmachines-mutator.kubevirt.io": failed '
    'to call webhook: Post "https://virt-api.kubevirt.svc:443/virtualmachines-mutate?timeout=10s": '
    "dial tcp 10.96.0.12:443: connect: connection refused"
)


class FakeKubeVirt:
    """The simulation; it lives as long as the loop. VMs and VMIs of one machine have one name.

    Attributes:
        boot, stop: seconds.
        answers: whether guests answer at all.
        guests: what single guests do.
        bad_images: images that cannot be pulled.
        unschedulable: the scheduler's message, or None while there is room.
        pod_quota: the quota's text with which launcher pods are refused, or None.
        refuses: the text with which a webhook refuses VMIs, or None.
        virt_api_away: every write of a VM or VMI is answered with 500, as without its webhook.
        live_memory: whether KubeVirt can change the memory of a running VM.
        unbound: why the provisioner makes no volume, or None.
        storage_classes: the classes that exist, or None for any.
        grows: whether volumes grow when their claims ask for more.
        node_names, lost_nodes, cordoned: the nodes, and what is wrong with them.
        starts: names of the VMs of all VMIs that were ever made.
    """

    def __init__(self, api: FakeApi, *, boot: float = 2.0, stop: float = 1.0) -> None:
        self.api = api
        self.boot, self.stop = boot, stop
        self.answers = True
        self.guests = Guests()
        self.bad_images: set[str] = set()
        self.unschedulable: str | None = None
        self.pod_quota: str | None = None
        self.refuses: str | None = None
        self.virt_api_away = False
        self.live_memory = False
        self.unbound: str | None = None
        self.storage_classes: set[str] | None = None
        self.grows = True
        self.node_names: tuple[str, ...] = ("node-1", "node-2")
        self.lost_nodes: set[str] = set()
        self.cordoned: set[str] = set()
        self.starts: list[str] = []
        self._loop = asyncio.get_running_loop()
        self._due: dict[str, float] = {}
        self._claims = Claims(api, self)
        self._vms = VirtualMachines(api, self)
        self._instances = Instances(api, self, self.guests, self._claims)
        for name in self.node_names:
            api.put("nodes", _node(name))
        api.listeners.append(self._changed)
        api.refuse.append(self._webhook)

    # ---- guests

    def power_off(self, name: str) -> None:
        """The guest shuts down by itself."""
        self._instances.end(name, "Succeeded")

    def crash(self, name: str) -> None:
        """The guest dies."""
        self._instances.end(name, "Failed")

    def crash_loop(self, name: str, when: str | None) -> None:
        """The guest dies on each boot, `early` (before it is up) or `late` (right after); None: no more."""
        if when is None:
            self.guests.dying.pop(name, None)
        else:
            self.guests.dying[name] = when
            self._instances.look(name)

    def silence(self, name: str, *, on: bool = True) -> None:
        """The guest does not answer (any more), or does so again."""
        (self.guests.silent.add if on else self.guests.silent.discard)(name)
        self._instances.look(name)

    def io_error(self, name: str, *, on: bool = True) -> None:
        """The VM is paused because of its disk, or goes on."""
        (self.guests.broken_disks.add if on else self.guests.broken_disks.discard)(name)
        self._instances.look(name)

    # ---- nodes

    def lose_node(self, node: str = "node-1") -> None:
        """The node answers no more: nothing there can be stopped, and Kubernetes calls it NotReady."""
        self.lost_nodes.add(node)
        self._node_ready(
            node, "Unknown", "NodeStatusUnknown", "Kubelet stopped posting node status."
        )
        for name in self._on(node):
            self._instances.look(name)

    def node_back(self, node: str = "node-1") -> None:
        """The node is well again, and not cordoned."""
        self.lost_nodes.discard(node)
        self.cordoned.discard(node)
        self._node_ready(node, "True", "KubeletReady", "kubelet is posting ready status")
        self.api.edit("nodes", node, lambda obj: obj["spec"].pop("unschedulable", None))
        self._instances.release(node)

    def fence(self, node: str = "node-1") -> None:
        """Somebody makes sure that the node is off and deletes its pods: what ran there has failed."""
        for name in self._on(node):
            self._instances.end(name, "Failed", reason="NodeUnresponsive")

    def drain(self, node: str = "node-1") -> None:
        """`kubectl drain`: the node takes nothing any more, and what runs there is shut down."""
        self.cordoned.add(node)
        self.api.edit("nodes", node, lambda obj: obj["spec"].update(unschedulable=True))
        for name in self._on(node):
            self._instances.end(name, "Succeeded")

    def _on(self, node: str) -> list[str]:
        return [
            vmi["metadata"]["name"]
            for vmi in self.api.all(VMIS)
            if vmi["status"].get("nodeName") == node
            and vmi["status"].get("phase") in ("Scheduled", "Running")
        ]

    def _node_ready(self, node: str, status: str, reason: str, message: str) -> None:
        ready = {"type": "Ready", "status": status, "reason": reason, "message": message}
        self.api.edit("nodes", node, lambda obj: obj["status"].update(conditions=[ready]))

    # ---- the simulation

    def later(self, seconds: float, name: str) -> None:
        """Look at a machine's objects in so many seconds, or earlier where that was asked for."""
        due = self._loop.time() + seconds
        if self._due.get(name, float("inf")) > due:
            self._due[name] = due
            self._loop.call_at(due, self._sync, name, due)

    def _changed(self, kind: str, plural: str, body: Object) -> None:
        if plural in (VMS, VMIS, CLAIMS):
            name = body["metadata"]["name"]
            # A claim is named after its VM, unless it was adopted from another machine.
            self.later(0.05, name.removesuffix("-home") if plural == CLAIMS else name)
            if plural == VMIS and kind == "DELETED":
                for volume in body["spec"].get("volumes") or []:
                    used = (volume.get("persistentVolumeClaim") or {}).get("claimName")
                    if used is not None:
                        self.later(0.05, used.removesuffix("-home"))

    def _get(self, plural: str, name: str) -> Object | None:
        stored = self.api.objects.get((plural, "ns", name))
        return copied(stored.body) if stored else None

    def _sync(self, name: str, due: float) -> None:
        if self._due.get(name) != due:
            return  # an earlier look has taken its place
        del self._due[name]
        self._claims.sync(f"{name}-home", name)
        self._instances.sync(name)
        vm = self._get(VMS, name)
        if vm is not None:
            self._vms.sync(name, vm, self._get(VMIS, name))

    def _webhook(self, request: Request) -> ApiError | None:
        mine = request.plural in (VMS, VMIS) and request.subresource != "status"
        # VMs are also checked on deletion, VMIs are not.
        hit = request.writes and (request.verb != "delete" or request.plural == VMS)
        if self.virt_api_away and mine and hit:
            return failure(500, "InternalError", _WEBHOOK)
        return None


def _node(name: str) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
    return {"metadata": {"name": name}, "spec": {}, "status": {"conditions": [ready]}}
