"""VMIs: virt-controller's part for them, the scheduler, and the nodes on which they run.

A VMI goes Pending, Scheduling, Scheduled, Running, and is Ready once its guest answers. Deleted, it shuts down within
its grace or has its power cut. What its guest and its node do to it is told by `Guests` and `Nodes`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.support.apiserver import FakeApi, copied
from tests.support.clock import stamp
from tests.support.kubevirt_claims import Claims
from tests.support.kubevirt_show import FINAL, condition, set_condition
from tests.support.kubevirt_vms import VMI_FINALIZERS

__all__ = ["Guests", "Instances"]

Object = dict[str, Any]

VMS, VMIS = "virtualmachines", "virtualmachineinstances"


@dataclass(slots=True)
class Guests:
    """What guests do, by the name of the VM.

    Attributes:
        silent: they never answer.
        dying: they end on each boot: before they are up, or right after.
        stubborn: seconds that they take to shut down.
        broken_disks: their disk has an I/O error; the VM is paused.
    """

    silent: set[str] = field(default_factory=set)
    dying: dict[str, str] = field(default_factory=dict)
    stubborn: dict[str, float] = field(default_factory=dict)
    broken_disks: set[str] = field(default_factory=set)


class Knobs(Protocol):
    """What the tests switch on."""

    boot: float
    stop: float
    answers: bool
    bad_images: set[str]
    unschedulable: str | None
    pod_quota: str | None
    virt_api_away: bool
    lost_nodes: set[str]
    cordoned: set[str]
    node_names: tuple[str, ...]


class Instances:
    """All VMIs."""

    def __init__(self, api: FakeApi, knobs: Knobs, guests: Guests, claims: Claims) -> None:
        self._api, self._knobs, self._guests, self._claims = api, knobs, guests, claims
        self._stopping: set[str] = set()
        self._known: set[str] = set()
        self._addresses = 6

    def sync(self, name: str) -> None:
        """See to a VMI that has changed."""
        vmi = self._get(name)
        if vmi is None:
            return
        uid, phase = vmi["metadata"]["uid"], vmi["status"].get("phase")
        if uid not in self._known:
            self._known.add(uid)
            self._later(0.05, self._advance, name, uid)
        if phase in FINAL:
            self._settle(name, vmi)
        elif "deletionTimestamp" in vmi["metadata"] and uid not in self._stopping:
            self._stopping.add(uid)
            self._later(self._shutdown_time(name, vmi), self._power_off, name, uid)

    def _get(self, name: str) -> Object | None:
        stored = self._api.objects.get((VMIS, "ns", name))
        return copied(stored.body) if stored else None

    def _later(self, seconds: float, what: Any, *args: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, what, *args)

    # ---- the way up

    def _advance(self, name: str, uid: str) -> None:
        vmi = self._get(name)
        if vmi is None or vmi["metadata"]["uid"] != uid or vmi["status"].get("phase") in FINAL:
            return
        if self._knobs.virt_api_away:
            self._later(1.0, self._advance, name, uid)
            return
        deleting = "deletionTimestamp" in vmi["metadata"]
        if deleting and vmi["status"]["phase"] != "Running":
            return
        match vmi["status"].get("phase"):
            case "":
                self._phase(name, "Pending", condition("Ready", "False", "PodNotExists"))
                self._later(0.05, self._advance, name, uid)
            case "Pending" | "Scheduling":
                self._place(name, vmi)
            case "Scheduled":
                self._boot(name, vmi)
            case _:
                self._run(name, vmi)

    def _place(self, name: str, vmi: Object) -> None:
        uid = vmi["metadata"]["uid"]
        trouble = self._trouble(name, vmi)
        if trouble is not None:
            phase, *conditions = trouble
            self._phase(name, phase, *conditions)
            self._later(1.0, self._advance, name, uid)
        elif vmi["status"]["phase"] == "Pending":
            self._phase(
                name,
                "Scheduling",
                condition("Ready", "False", "GuestNotRunning"),
                drop=("Synchronized",),
            )
            self._later(0.05, self._advance, name, uid)
        elif not self._claims.bind(f"{name}-home"):
            self._later(1.0, self._advance, name, uid)
        else:
            node = {"nodeName": self._node()}
            self._phase(name, "Scheduled", drop=("Synchronized", "PodScheduled"), **node)
            self._later(0.2, self._advance, name, uid)

    def _trouble(self, name: str, vmi: Object) -> tuple[Any, ...] | None:
        image = next(v for v in vmi["spec"]["volumes"] if v["name"] == "root")["containerDisk"]
        if self._knobs.pod_quota is not None:
            return "Pending", _unsynced("FailedCreate", self._knobs.pod_quota)
        if not self._claims.exists(f"{name}-home"):
            missing = f"PVC ns/{name}-home does not exist, waiting for it to appear"
            return "Pending", _unsynced("FailedPvcNotFound", missing)
        full = self._knobs.unschedulable
        if full is None and self._node() is None:
            count = len(self._knobs.node_names)
            full = f"0/{count} nodes are available: {count} node(s) were unschedulable."
        if full is not None:
            return "Scheduling", condition("PodScheduled", "False", "Unschedulable", full)
        if image["image"] in self._knobs.bad_images:
            text = f'Back-off pulling image "{image["image"]}"'
            return "Scheduling", _unsynced("ImagePullBackOff", text)
        return None

    def _node(self) -> str | None:
        bad = self._knobs.lost_nodes | self._knobs.cordoned
        return next((node for node in self._knobs.node_names if node not in bad), None)

    def _boot(self, name: str, vmi: Object) -> None:
        uid = vmi["metadata"]["uid"]
        if self._guests.dying.get(name) == "early":
            self._phase(name, "Failed")
            return
        self._addresses = self._addresses % 250 + 1
        address = f"10.0.0.{self._addresses}"
        interface = {"name": "default", "ipAddress": address, "ipAddresses": [address]}
        guest = (vmi["spec"]["domain"].get("memory") or {}).get("guest")
        self._phase(
            name,
            "Running",
            condition("LiveMigratable", "False", "DisksNotLiveMigratable"),
            interfaces=[interface],
            memory={"guestAtBoot": guest, "guestCurrent": guest, "guestRequested": guest},
        )
        self._later(self._knobs.boot, self._advance, name, uid)

    def _run(self, name: str, vmi: Object) -> None:
        """One look of the node at a running guest."""
        uid, status = vmi["metadata"]["uid"], vmi["status"]
        if self._guests.dying.get(name) == "late":
            self._phase(name, "Failed")
            return
        self._look(name, vmi)
        memory = status.get("memory") or {}
        if memory.get("guestRequested") != memory.get("guestCurrent"):
            grown = {**memory, "guestCurrent": memory.get("guestRequested")}
            self._phase(name, "Running", drop=("HotMemoryChange",), memory=grown)
        if not self._knobs.answers:
            self._later(self._knobs.boot, self._advance, name, uid)

    def look(self, name: str) -> None:
        """Have the node look at a guest now: something about it was switched."""
        vmi = self._get(name)
        if vmi is not None and vmi["status"].get("phase") == "Running":
            self._run(name, vmi)

    def _look(self, name: str, vmi: Object) -> None:
        lost = vmi["status"].get("nodeName") in self._knobs.lost_nodes
        paused = name in self._guests.broken_disks
        if lost:
            ready = condition("Ready", "False", "NodeNotReady", "the node does not answer")
        elif paused:
            ready = condition("Ready", "False", "GuestNotRunning", "Guest VM is paused")
        elif name in self._guests.silent or not self._knobs.answers:
            text = "containers with unready status: [compute]"
            ready = condition("Ready", "False", "ContainersNotReady", text)
        else:
            ready = condition("Ready", "True")
        text = "VMI was paused, IO error"
        error = condition("Paused", "True", "PausedIOError", text)
        shown = (ready, error) if paused else (ready,)
        self._phase(name, "Running", *shown, drop=() if paused else ("Paused",))

    # ---- the way down

    def end(self, name: str, phase: str, **status: Any) -> None:
        """The guest is off: Succeeded where it shut down, Failed where it died."""
        self._phase(name, phase, **status)

    def release(self, node: str) -> None:
        """A node is back: what was to be stopped on it stops now."""
        for vmi in self._api.all(VMIS):
            if vmi["status"].get("nodeName") == node:
                name = vmi["metadata"]["name"]
                if "deletionTimestamp" in vmi["metadata"]:
                    self._later(self._knobs.stop, self._power_off, name, vmi["metadata"]["uid"])
                self.look(name)

    def _shutdown_time(self, name: str, vmi: Object) -> float:
        if vmi["status"].get("phase") != "Running":
            return 0.2
        grace = float(vmi["spec"].get("terminationGracePeriodSeconds", 30))
        return min(self._guests.stubborn.get(name, self._knobs.stop), grace)

    def _power_off(self, name: str, uid: str) -> None:
        vmi = self._get(name)
        if vmi is None or vmi["metadata"]["uid"] != uid or vmi["status"].get("phase") in FINAL:
            return
        if self._knobs.virt_api_away:
            self._later(1.0, self._power_off, name, uid)
            return
        if vmi["status"].get("nodeName") in self._knobs.lost_nodes:
            return  # nobody is there who could stop it, until the node is back or fenced
        grace = float(vmi["spec"].get("terminationGracePeriodSeconds", 30))
        cut = self._guests.stubborn.get(name, self._knobs.stop) > grace
        never_up = vmi["status"].get("phase") in ("", "Pending", "Scheduling")
        self._phase(name, "Failed" if cut or never_up else "Succeeded")

    def _settle(self, name: str, vmi: Object) -> None:
        """Its pod is gone: virt-controller lets a VMI go that has ended."""
        if self._knobs.virt_api_away:
            self._later(1.0, self.sync, name)
            return
        mine = set(VMI_FINALIZERS[:1])
        if (VMS, "ns", name) not in self._api.objects:
            mine.update(VMI_FINALIZERS)  # nobody else will

        def change(obj: Object) -> None:
            have = obj["metadata"].get("finalizers") or []
            obj["metadata"]["finalizers"] = [item for item in have if item not in mine]

        self._api.edit(VMIS, name, change)

    def _phase(
        self, name: str, phase: str, *conditions: Object, drop: tuple[str, ...] = (), **more: Any
    ) -> None:
        def change(obj: Object) -> None:
            status = obj["status"]
            if status.get("phase") != phase:
                entry = {"phase": phase, "phaseTransitionTimestamp": stamp()}
                status.setdefault("phaseTransitionTimestamps", []).append(entry)
                status["phase"] = phase
            if phase in FINAL:
                set_condition(status, condition("Ready", "False", "PodTerminating"))
            set_condition(status, *conditions, drop=drop)
            status.update(more)

        if (VMIS, "ns", name) in self._api.objects:
            self._api.edit(VMIS, name, change)


def _unsynced(reason: str, message: str) -> Object:
    return condition("Synchronized", "False", reason, message)
