"""KubeVirt, its node and a storage provisioner, simulated over a FakeApi: objects move as the real ones do.

VM -> VMI -> Pending, Scheduling, Scheduled, Running, Ready; a stop deletes the VMI, which ends after a while; a VMI
that ended is replaced while the VM is `Always`. Disks are bound by their first consumer, grow, and are protected while
in use. What can go wrong is switched on by the attributes.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from tests.support.apiserver import FakeApi, Object, Stored, copied

__all__ = ["FakeKubeVirt"]

VMS, VMIS, CLAIMS = "virtualmachines", "virtualmachineinstances", "persistentvolumeclaims"
_VM_FINALIZER = "kubevirt.io/virtualMachineControllerFinalize"
_VMI_FINALIZER = "foregroundDeleteVirtualMachine"
_CLAIM_FINALIZER = "kubernetes.io/pvc-protection"
_FINAL = ("Succeeded", "Failed")


class FakeKubeVirt:
    """The simulation; it lives as long as the loop.

    Attributes:
        bad_images: images that cannot be pulled.
        unschedulable: the scheduler's message, or None while there is room.
        pod_quota: the quota's text with which launcher pods are refused, or None.
        refuses: the text with which a webhook refuses VMIs, or None.
        boot, stop: seconds.
        starts: names of the VMs of all VMIs that were ever made.
    """

    def __init__(self, api: FakeApi, *, boot: float = 2.0, stop: float = 1.0) -> None:
        self.api = api
        self.boot, self.stop = boot, stop
        self.bad_images: set[str] = set()
        self.unschedulable: str | None = None
        self.pod_quota: str | None = None
        self.refuses: str | None = None
        self.answers = True
        self.starts: list[str] = []
        self.most_instances = 0
        self._loop = asyncio.get_running_loop()
        api.listeners.append(self._changed)

    def crash(self, name: str) -> None:
        """The guest dies."""
        self.api.edit(VMIS, name, lambda vmi: vmi["status"].update(phase="Failed"))

    def _changed(self, kind: str, plural: str, body: Object) -> None:
        if plural in (VMS, VMIS, CLAIMS):
            name = body["metadata"]["name"].removesuffix("-home")
            self._loop.call_later(0.05, self._sync, name)

    def _get(self, plural: str, name: str) -> Object | None:
        stored = self.api.objects.get((plural, "ns", name))
        return copied(stored.body) if stored else None

    def _sync(self, name: str) -> None:
        self._sync_claim(f"{name}-home", name)
        vm, vmi = self._get(VMS, name), self._get(VMIS, name)
        if vmi is not None and self._ended(name, vmi):
            vmi = self._get(VMIS, name)
        if vm is None:
            return
        meta, on = vm["metadata"], vm["spec"]["runStrategy"] == "Always"
        if "deletionTimestamp" in meta:
            if vmi is None:
                self._finalizer(VMS, name, _VM_FINALIZER, keep=False)
                return
            on = False
        else:
            self._finalizer(VMS, name, _VM_FINALIZER, keep=True)
        if on and vmi is None:
            self._start(name, vm)
        elif vmi is not None and not on and "deletionTimestamp" not in vmi["metadata"]:
            self.api.remove(VMIS, name)
        self._show(name)

    def _finalizer(self, plural: str, name: str, finalizer: str, *, keep: bool) -> None:
        def change(obj: Object) -> None:
            have = [f for f in obj["metadata"].get("finalizers") or [] if f != finalizer]
            obj["metadata"]["finalizers"] = [*have, finalizer] if keep else have

        self.api.edit(plural, name, change)

    # ---- instances

    def _start(self, name: str, vm: Object) -> None:
        if self.refuses is not None:
            message = f"admission webhook denied the request: {self.refuses}"
            failure = {
                "type": "Failure",
                "status": "True",
                "reason": "FailedCreate",
                "message": message,
            }
            self._vm_status(name, conditions=[failure])
            self._loop.call_later(1.0, self._sync, name)
            return
        template = copied(vm["spec"]["template"])
        meta = {
            **template.get("metadata", {}),
            "name": name,
            "namespace": "ns",
            "finalizers": [_VMI_FINALIZER],
            "ownerReferences": [
                {"kind": "VirtualMachine", "uid": vm["metadata"]["uid"], "name": name}
            ],
            "uid": str(uuid.uuid4()),
        }
        body = {"metadata": meta, "spec": template["spec"], "status": {"phase": "Pending"}}
        self.starts.append(name)
        self.api._new((VMIS, "ns", name), Stored(body))
        count = sum(vmi["metadata"]["name"] == name for vmi in self.api.all(VMIS))
        self.most_instances = max(self.most_instances, count)
        self._loop.call_later(0.1, self._advance, name, meta["uid"])

    def _advance(self, name: str, uid: str) -> None:
        vmi = self._get(VMIS, name)
        if vmi is None or vmi["metadata"]["uid"] != uid or "deletionTimestamp" in vmi["metadata"]:
            return
        phase, status = vmi["status"]["phase"], dict(vmi["status"])
        wait = 0.2
        trouble = self._trouble(name, vmi) if phase in ("Pending", "Scheduling") else None
        if trouble is not None:
            status |= trouble
            wait = 1.0
        elif phase in ("Pending", "Scheduling"):
            self._bind(f"{name}-home")
            status = {"phase": "Scheduled", "nodeName": "node-1", "conditions": [_silent()]}
        elif phase == "Scheduled":
            address = {"name": "default", "ipAddress": "10.0.0.7", "ipAddresses": ["10.0.0.7"]}
            status |= {"phase": "Running", "interfaces": [address]}
            wait = self.boot
        elif phase == "Running" and self.answers:
            status["conditions"] = [{"type": "Ready", "status": "True"}]
            wait = 0.0
        self.api.edit(VMIS, name, lambda obj: obj.update(status=status))
        if wait:
            self._loop.call_later(wait, self._advance, name, uid)

    def _trouble(self, name: str, vmi: Object) -> Object | None:
        image = next(v for v in vmi["spec"]["volumes"] if v["name"] == "root")["containerDisk"]
        if self.pod_quota is not None:
            return {"phase": "Pending", "conditions": [_unsynced("FailedCreate", self.pod_quota)]}
        if self._get(CLAIMS, f"{name}-home") is None:
            missing = f"PVC ns/{name}-home does not exist, waiting for it to appear"
            return {"phase": "Pending", "conditions": [_unsynced("FailedPvcNotFound", missing)]}
        if self.unschedulable is not None:
            full = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": self.unschedulable,
            }
            return {"phase": "Scheduling", "conditions": [full]}
        if image["image"] in self.bad_images:
            text = f'Back-off pulling image "{image["image"]}"'
            return {"phase": "Scheduling", "conditions": [_unsynced("ImagePullBackOff", text)]}
        return None

    def _ended(self, name: str, vmi: Object) -> bool:
        """Move a VMI on that is deleted or has ended; whether it may be gone now."""
        uid, phase = vmi["metadata"]["uid"], vmi["status"]["phase"]
        if "deletionTimestamp" not in vmi["metadata"]:
            if phase in _FINAL:
                self.api.remove(VMIS, name)
            return True
        if phase in _FINAL:
            self._finalizer(VMIS, name, _VMI_FINALIZER, keep=False)
            return True
        self._loop.call_later(self.stop, self._power_off, name, uid)
        return False

    def _power_off(self, name: str, uid: str) -> None:
        vmi = self._get(VMIS, name)
        if vmi is not None and vmi["metadata"]["uid"] == uid:
            self.api.edit(VMIS, name, lambda obj: obj["status"].update(phase="Succeeded"))

    # ---- what the VM shows

    def _show(self, name: str) -> None:
        vm, vmi = self._get(VMS, name), self._get(VMIS, name)
        if vm is None:
            return
        conditions = list((vmi or {}).get("status", {}).get("conditions") or [])
        if vmi is None and self.refuses is not None:
            return
        self._vm_status(name, printableStatus=_printable(vm, vmi), conditions=conditions)

    def _vm_status(self, name: str, **fields: Any) -> None:
        self.api.edit(VMS, name, lambda vm: vm.setdefault("status", {}).update(fields))

    # ---- disks

    def _sync_claim(self, name: str, vm: str) -> None:
        claim = self._get(CLAIMS, name)
        if claim is None:
            return
        deleting = "deletionTimestamp" in claim["metadata"]
        used = self._get(VMIS, vm) is not None
        self._finalizer(CLAIMS, name, _CLAIM_FINALIZER, keep=not deleting or used)
        if (claim.get("status") or {}).get("phase") == "Bound" and not deleting:
            size = claim["spec"]["resources"]["requests"]["storage"]
            self.api.edit(CLAIMS, name, lambda c: c["status"].update(capacity={"storage": size}))

    def _bind(self, name: str) -> None:
        def bound(claim: Object) -> None:
            size = claim["spec"]["resources"]["requests"]["storage"]
            claim["spec"]["volumeName"] = "pv-" + claim["metadata"]["uid"][:8]
            claim["status"] = {"phase": "Bound", "capacity": {"storage": size}}

        claim = self._get(CLAIMS, name)
        if claim is not None and (claim.get("status") or {}).get("phase") != "Bound":
            self.api.edit(CLAIMS, name, bound)


def _silent() -> Object:
    return {"type": "Ready", "status": "False", "reason": "GuestNotRunning"}


def _unsynced(reason: str, message: str) -> Object:
    return {"type": "Synchronized", "status": "False", "reason": reason, "message": message}


def _printable(vm: Object, vmi: Object | None) -> str:
    if "deletionTimestamp" in vm["metadata"]:
        return "Terminating"
    if vmi is None:
        return "Stopped"
    if "deletionTimestamp" in vmi["metadata"]:
        return "Stopping"
    return "Running" if vmi["status"]["phase"] == "Running" else "Starting"
