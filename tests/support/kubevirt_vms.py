"""virt-controller's part for VirtualMachines, as of KubeVirt 1.8: run strategies, change requests, start failures.

The traps are those of the original. `status.runStrategy` is set as soon as the VM has been started once, whether or
not the last start succeeded; a VM under RerunOnFailure is only started where that differs from the spec, or where a
Start request is pending. So one that is switched from Halted to RerunOnFailure stays down where the start was refused,
or where its old VMI was still on its way out.
"""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any, Protocol

from machine_operator.kubevirt.quantity import parse_quantity
from tests.support.apiserver import FakeApi, Stored, copied
from tests.support.apiserver_store import new_uid
from tests.support.clock import stamp, wall_clock
from tests.support.kubevirt_show import (
    FINAL,
    condition,
    copy_conditions,
    has_condition,
    printable,
    set_condition,
    start_failure,
)

__all__ = ["VMI_FINALIZERS", "VirtualMachines"]

Object = dict[str, Any]

VMS, VMIS, CLAIMS = "virtualmachines", "virtualmachineinstances", "persistentvolumeclaims"
VM_FINALIZER = "kubevirt.io/virtualMachineControllerFinalize"
VMI_FINALIZERS = ("foregroundDeleteVirtualMachine", VM_FINALIZER)
_LIVE = ("nodeSelector", "affinity", "tolerations")


class Knobs(Protocol):
    """What the tests switch on."""

    refuses: str | None
    virt_api_away: bool
    live_memory: bool
    starts: list[str]

    def later(self, seconds: float, name: str) -> None:
        """Look at this VM again."""
        ...


class VirtualMachines:
    """The controller; `sync` is one pass over one VM, named as its VMI."""

    def __init__(self, api: FakeApi, knobs: Knobs) -> None:
        self._api, self._knobs = api, knobs
        self._random = random.Random(7)
        self._revisions: dict[str, Object] = {}
        self._retries: dict[str, int] = {}

    def sync(self, name: str, vm: Object, vmi: Object | None) -> None:
        """One pass."""
        if self._knobs.virt_api_away and (vmi is not None or "deletionTimestamp" in vm["metadata"]):
            self._knobs.later(2.0, name)  # each of its writes goes through a webhook
            return
        vmi = self._claimed(vm, vmi)
        if "deletionTimestamp" in vm["metadata"]:
            if vmi is None:
                self._finalizers(VMS, name, drop=VM_FINALIZER)
                return
            self._stop(name, vmi)
            self._show(name, vmi, failure=None)
            return
        if not self._knobs.virt_api_away:
            self._finalizers(VMS, name, add=VM_FINALIZER)
        failure = self._run_strategy(name, vm, vmi)
        stored = self._api.objects.get((VMS, "ns", name))
        if stored is not None:
            self._show(name, vmi, failure=failure)

    def _claimed(self, vm: Object, vmi: Object | None) -> Object | None:
        """The VMI, if it is or can be this VM's: one without an owner is adopted, another's is not touched."""
        if vmi is None:
            return None
        owners = vmi["metadata"].get("ownerReferences") or []
        if any(owner["uid"] == vm["metadata"]["uid"] for owner in owners):
            return vmi
        if (
            owners
            or "deletionTimestamp" in vmi["metadata"]
            or "deletionTimestamp" in vm["metadata"]
        ):
            return None
        name = vm["metadata"]["name"]
        adopt = {"ownerReferences": [_owner(vm)]}
        self._api.edit(VMIS, name, lambda obj: obj["metadata"].update(adopt))
        adopted: Object = copied(self._api.objects[(VMIS, "ns", name)].body)
        return adopted

    # ---- run strategies

    def _run_strategy(self, name: str, vm: Object, vmi: Object | None) -> str | None:
        """Start or stop; the text of a failure."""
        strategy = vm["spec"].get("runStrategy")
        if strategy == "Halted":
            if vmi is not None:
                self._stop(name, vmi)
            elif _requested(vm) == "Start":
                self._api.edit(VMS, name, lambda obj: obj["spec"].update(runStrategy="Always"))
            return None
        if vmi is not None:
            self._maybe_stop(name, vm, vmi)
            return None
        if strategy == "Manual":
            return self._start(name, vm) if _requested(vm) == "Start" else None
        # From another strategy it has to be started; else only on request.
        same = (vm.get("status") or {}).get("runStrategy") == strategy
        if strategy == "RerunOnFailure" and same and _requested(vm) != "Start":
            return None
        left = _held_back(vm)
        if left > 0:
            self._knobs.later(left, name)
            return None
        return self._start(name, vm)

    def _maybe_stop(self, name: str, vm: Object, vmi: Object) -> None:
        strategy, phase = vm["spec"].get("runStrategy"), vmi["status"].get("phase")
        forced = _stop_requested(vm, vmi)
        ended = phase in FINAL and strategy in ("Always", "RerunOnFailure")
        if "deletionTimestamp" in vmi["metadata"] or not (forced or ended):
            return
        self._stop(name, vmi)
        if strategy == "RerunOnFailure" and phase == "Failed":
            start = {"action": "Start"}
            self._edit_status(name, lambda s: s.setdefault("stateChangeRequests", []).append(start))

    def _stop(self, name: str, vmi: Object) -> None:
        if "deletionTimestamp" not in vmi["metadata"]:
            self._api.remove(VMIS, name)
            self._edit_status(name, lambda s: set_condition(s, drop=("RestartRequired",)))

    def _start(self, name: str, vm: Object) -> str | None:
        refused = self._knobs.refuses
        if self._knobs.virt_api_away:
            refused = "failed calling webhook: connection refused"
        elif refused is not None:
            refused = f"admission webhook denied the request: {refused}"
        elif (VMIS, "ns", name) in self._api.objects:
            refused = f'virtualmachineinstances.kubevirt.io "{name}" already exists'
        if refused is not None:
            tries = self._retries[name] = self._retries.get(name, 0) + 1
            self._knobs.later(min(2.0 ** min(tries - 1, 10), 30.0), name)
            return f"failure while starting VMI: {refused}"
        self._retries.pop(name, None)
        template = copied(vm["spec"]["template"])
        self._revisions[name] = copied(template["spec"])
        meta = {
            **template.get("metadata", {}),
            "name": name,
            "namespace": "ns",
            "finalizers": [*VMI_FINALIZERS],
            "ownerReferences": [_owner(vm)],
            "uid": new_uid(),
        }
        self._knobs.starts.append(name)
        body = {"metadata": meta, "spec": template["spec"], "status": {"phase": ""}}
        self._api._new((VMIS, "ns", name), Stored(body))
        self._edit_status(name, lambda s: set_condition(s, drop=("RestartRequired",)))
        return None

    # ---- status

    def _show(self, name: str, vmi: Object | None, *, failure: str | None) -> None:
        """One write of the whole status, from the VMI as it was when the pass began."""
        vm = copied(self._api.objects[(VMS, "ns", name)].body)
        status = copied(vm.get("status") or {})
        now_there = self._api.objects.get((VMIS, "ns", name))
        starting = vmi is None and failure is None and now_there is not None
        stopping = now_there is not None and "deletionTimestamp" in now_there.body["metadata"]
        ready = has_condition(vmi, "Ready")
        for field, holds in (("created", vmi is not None), ("ready", ready)):
            status.pop(field, None)  # absent means false
            if holds:
                status[field] = True
        if status.get("runStrategy") or vmi is not None:
            status["runStrategy"] = vm["spec"].get("runStrategy")
        self._trim_request(status, vmi)
        self._start_failure(status, vm, vmi)
        copy_conditions(status, vmi, failure=failure)
        if vmi is not None and "deletionTimestamp" not in vmi["metadata"]:
            self._restart_required(name, status, vm, vmi)
        vm["status"] = status
        unbound = self._unbound(name)
        status["printableStatus"] = printable(
            vm, vmi, unbound=unbound, starting=starting, stopping=stopping and vmi is not None
        )
        self._api.edit(VMS, name, lambda obj: obj.update(status=status))
        if vmi is not None and vmi["status"].get("phase") in FINAL:
            self._finalizers(VMIS, name, drop=VM_FINALIZER)

    def _trim_request(self, status: Object, vmi: Object | None) -> None:
        requests = status.get("stateChangeRequests") or []
        if not requests:
            return
        if requests[0]["action"] == "Stop":
            done = vmi is None or requests[0].get("uid") != vmi["metadata"]["uid"]
        else:
            done = (
                vmi is not None
                and "deletionTimestamp" not in vmi["metadata"]
                and vmi["status"].get("phase") not in FINAL
            )
        if done:
            del requests[0]
        if not requests:
            del status["stateChangeRequests"]

    def _start_failure(self, status: Object, vm: Object, vmi: Object | None) -> None:
        failed, delay = start_failure(
            status.get("startFailure"), vm, vmi, jitter=self._random.random(), now=wall_clock()
        )
        status.pop("startFailure", None)
        if failed is None:
            return
        if delay:
            failed["retryAfterTimestamp"] = stamp(wall_clock() + timedelta(seconds=delay))
        status["startFailure"] = failed

    def _restart_required(self, name: str, status: Object, vm: Object, vmi: Object) -> None:
        """Of the template only few fields reach a running VMI; any other change waits for a restart."""
        new, old = copied(vm["spec"]["template"]["spec"]), self._revisions.get(name)
        if old is None:
            return
        old, memory = copied(old), _memory(new)
        text = ""
        if _without_live(old) != _without_live(new):
            text = "a non-live-updatable field was changed in the template spec"
        elif memory != _memory(vmi["spec"]):
            text = self._live_memory(name, vmi, memory)
        elif new["domain"].get("cpu") != vmi["spec"]["domain"].get("cpu"):
            text = "CPU sockets updated in template spec. CPU-hotplug is only available for migratable VMs"
        if text:
            set_condition(status, condition("RestartRequired", "True", "", text))
        else:
            set_condition(status, drop=("RestartRequired",))

    def _live_memory(self, name: str, vmi: Object, memory: str) -> str:
        """Apply it to the running VMI where that is possible; else why not."""
        if not self._knobs.live_memory:
            return "memory updated in template spec. Memory-hotplug is only available for migratable VMs"
        at_boot = (vmi["status"].get("memory") or {}).get("guestAtBoot")
        if at_boot is None:
            return ""
        if parse_quantity(at_boot) < 2**30:
            return "memory hotplug not supported, guest memory is less than 1Gi"
        if parse_quantity(memory) < parse_quantity(at_boot):
            return "memory updated in template spec to a value lower than what the VM started with"

        def change(obj: Object) -> None:
            obj["spec"]["domain"]["memory"]["guest"] = memory
            obj["status"]["memory"]["guestRequested"] = memory
            set_condition(obj["status"], condition("HotMemoryChange", "True"))

        self._api.edit(VMIS, name, change)
        return ""

    def _unbound(self, name: str) -> bool:
        claim = self._api.objects.get((CLAIMS, "ns", f"{name}-home"))
        return claim is not None and (claim.body.get("status") or {}).get("phase") != "Bound"

    # ---- writes

    def _edit_status(self, name: str, change: Any) -> None:
        if (VMS, "ns", name) in self._api.objects:
            self._api.edit(VMS, name, lambda obj: change(obj.setdefault("status", {})))

    def _finalizers(self, plural: str, name: str, *, add: str = "", drop: str = "") -> None:
        if (plural, "ns", name) not in self._api.objects:
            return

        def change(obj: Object) -> None:
            have = [f for f in obj["metadata"].get("finalizers") or [] if f not in (add, drop)]
            obj["metadata"]["finalizers"] = [*have, add] if add else have

        self._api.edit(plural, name, change)


def _owner(vm: Object) -> Object:
    meta = vm["metadata"]
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachine",
        "uid": meta["uid"],
        "name": meta["name"],
        "controller": True,
    }


def _requested(vm: Object) -> str | None:
    requests = (vm.get("status") or {}).get("stateChangeRequests") or []
    return requests[0]["action"] if requests else None


def _stop_requested(vm: Object, vmi: Object) -> bool:
    requests = (vm.get("status") or {}).get("stateChangeRequests") or [{}]
    first = requests[0]
    return bool(first.get("action") == "Stop" and first.get("uid") == vmi["metadata"]["uid"])


def _held_back(vm: Object) -> float:
    after = ((vm.get("status") or {}).get("startFailure") or {}).get("retryAfterTimestamp")
    if after is None:
        return 0.0
    now = wall_clock()
    return (now.fromisoformat(after) - now.replace(microsecond=0)).total_seconds()


def _memory(spec: Object) -> str:
    return str((spec["domain"].get("memory") or {}).get("guest", ""))


def _without_live(spec: Object) -> Object:
    plain: Object = copied({key: value for key, value in spec.items() if key not in _LIVE})
    (plain["domain"].get("memory") or {}).pop("guest", None)
    (plain["domain"].get("cpu") or {}).pop("sockets", None)
    return plain
