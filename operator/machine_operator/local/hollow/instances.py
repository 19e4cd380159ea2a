"""The virt-handler side: from Scheduled to Running to Succeeded or Failed.

    VMI Scheduled           start the guest, then write Running
    VMI deleting            power button until the guest is off, then write how it ended
    guest over              Succeeded where it powered off, Failed where it was killed or crashed
    guest stalled           condition Paused, until it goes on; a Paused of somebody else stays
    Running without guest   it ended while nobody looked: as its outcome says, else Failed
    launcher pod gone       its guest goes too, as a container would
    VMI gone                its guest is ended and its directory removed

virt-handler may not get a VMI, only list, watch, update and patch: a write that lost a race is not
re-read but made again when the watch has shown the winner. A final phase is never touched.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Any

from machine_operator.kube.client import KubeClient
from machine_operator.kube.resources import VIRTUAL_MACHINE_INSTANCES
from machine_operator.local.hollow import instance_status
from machine_operator.local.hollow.console import ConsoleWatch
from machine_operator.local.hollow.events import Events
from machine_operator.local.hollow.guest import Guest
from machine_operator.local.hollow.launcher import Launcher
from machine_operator.local.hollow.launches import Launches
from machine_operator.local.hollow.network import Addresses
from machine_operator.local.hollow.plan import interface_mac
from machine_operator.local.hollow.pods import Pods
from machine_operator.local.hollow.probes import Prober, probe_of
from machine_operator.local.hollow.rundir import Outcome
from machine_operator.local.hollow.times import now, timestamp
from machine_operator.local.hollow.tracked import Object, Tracked

__all__ = ["Instances"]

log = logging.getLogger(__name__)

_DEFAULT_GRACE = 30.0
_ORPHAN_GRACE = 5.0
"""Seconds for a guest whose VMI or pod is gone: nobody waits for it, but its disk may matter."""

_UNSYNCED = 0.2


class Instances:
    """VMIs on this node.

    Args:
        client: with virt-handler's identity.
        node: this node's name.
        launcher: makes and keeps guests; None where VMIs turn Running without any.
        addresses: who has which address.
        pods: the kubelet side.
        events: as virt-handler.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        node: str,
        launcher: Launcher | None,
        addresses: Addresses,
        pods: Pods,
        events: Events,
    ) -> None:
        self._client = client
        self._launcher = launcher
        self._addresses = addresses
        self._pods = pods
        self._events = events
        self._stalled: set[str] = set()
        self._probers: dict[str, tuple[Prober, asyncio.Task[None]]] = {}
        self.tracked = Tracked(
            client,
            VIRTUAL_MACHINE_INSTANCES,
            process=self._process,
            on_change=self._changed,
            label_selector=f"kubevirt.io/nodeName={node}",
        )
        self._launches = Launches(
            start=self._start, on_done=self.tracked.add, slots=max(2, os.cpu_count() or 1)
        )
        pods.follow(self)

    # ---- what the kubelet side asks

    def over(self, vmi_uid: str) -> bool:
        """Whether the launcher pod may go: nothing of the VMI runs, and its end is stored."""
        vmi = self.tracked.get(vmi_uid)
        if vmi is None:
            return self.tracked.synced.is_set() and self._guest(vmi_uid) is None
        return instance_status.phase_of(vmi) not in ("Scheduled", "Running")

    def end_of(self, vmi_uid: str) -> str | None:
        """The final phase of a VMI, once stored."""
        vmi = self.tracked.get(vmi_uid)
        if vmi is None or not instance_status.is_final(vmi):
            return None
        return instance_status.phase_of(vmi)

    def probed(self, vmi_uid: str) -> bool:
        """Whether the guest is ready by its readiness probe."""
        vmi = self.tracked.get(vmi_uid)
        if vmi is None or instance_status.phase_of(vmi) != "Running":
            return False
        prober = self._probers.get(vmi_uid)
        return prober is None or prober[0].ready

    def look_at(self, vmi_uid: str) -> None:
        """Something about this VMI's pod changed."""
        self.tracked.add(vmi_uid)

    # ---- life

    async def run(self) -> None:
        """Follow and act until cancelled; guests go on running."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.tracked.run())
                group.create_task(self._leftovers())
        finally:
            await self._launches.close()
            for uid in list(self._probers):
                await self._stop_probing(uid)

    async def _leftovers(self) -> None:
        """What an earlier run left: adopted guests, and directories whose VMI is gone."""
        if self._launcher is None:
            return
        await self.tracked.synced.wait()
        for uid in self._launcher.guests.leftovers():
            self.tracked.add(uid)

    def _changed(self, uid: str, _: Object) -> None:
        self._pods.look_at_launcher(uid)

    # ---- one VMI

    async def _process(self, uid: str) -> float | None:
        if not self.tracked.synced.is_set() or not self._pods.tracked.synced.is_set():
            return _UNSYNCED
        vmi = self.tracked.get(uid)
        if vmi is None:
            return await self._clean(uid)
        match instance_status.phase_of(vmi):
            case "Scheduled" | "Running":
                return await self._steer(uid, vmi)
            case "Succeeded" | "Failed":
                await self._after_the_end(uid)
                return None
            case _:
                return None  # still virt-controller's

    async def _steer(self, uid: str, vmi: Object) -> float | None:
        guest = self._guest(uid)
        if self._launcher is None:
            await self._pretend(vmi)
            return None
        if guest is None:
            return await self._without_guest(uid, vmi, launcher=self._launcher)
        if guest.ended.is_set():
            await self._write_end(uid, vmi, guest.outcome)
        else:
            await self._with_guest(uid, vmi, guest)
        return None

    async def _with_guest(self, uid: str, vmi: Object, guest: Guest) -> None:
        pod = self._pods.launcher_of(uid)
        if vmi["metadata"].get("deletionTimestamp"):
            guest.shut_down(lambda: self._grace(uid))
        elif pod is None:
            log.warning("%s: its launcher pod is gone; shutting it down", guest.record.name)
            guest.shut_down(lambda: _ORPHAN_GRACE)
        elif pod["metadata"].get("deletionTimestamp"):
            guest.shut_down(lambda: _pod_grace(pod))
        self._addresses.restore(uid, guest.record.address)
        self._probe(uid, vmi, guest, pod)
        if instance_status.phase_of(vmi) == "Scheduled":
            await self._write_running(vmi, guest.record.address)
        else:
            await self._write_pause(uid, vmi, stalled=guest.stalled)

    async def _without_guest(self, uid: str, vmi: Object, *, launcher: Launcher) -> float | None:
        outcome = launcher.guests.directory(uid).outcome()
        if instance_status.phase_of(vmi) == "Running" or outcome is not None:
            await self._write_end(uid, vmi, outcome)
            return None
        pod = self._pods.launcher_of(uid)
        if self._launches.pending(uid):
            return None
        if vmi["metadata"].get("deletionTimestamp"):
            await self._write_phase(vmi, "Succeeded")  # it never ran
            return None
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            return None  # virt-controller fails it for that
        wait = self._launches.wait(uid)
        if wait <= 0:
            self._launches.begin(uid)
            return None
        failure = self._launches.failure(uid)
        if failure is not None:
            await self._write_failure(vmi, failure.message)
        return wait

    async def _pretend(self, vmi: Object) -> None:
        """There are no guests: whatever is asked has happened."""
        uid = vmi["metadata"]["uid"]
        pod = self._pods.launcher_of(uid)
        if vmi["metadata"].get("deletionTimestamp"):
            await self._write_phase(vmi, "Succeeded")
        elif pod is None or pod["metadata"].get("deletionTimestamp"):
            if instance_status.phase_of(vmi) == "Running":
                await self._write_phase(vmi, "Succeeded")
        elif instance_status.phase_of(vmi) == "Scheduled":
            ip = pod["status"].get("podIP") or self._addresses.claim(uid, ())
            await self._write_running(vmi, ip)

    async def _clean(self, uid: str) -> float | None:
        self._launches.forget(uid)
        self._stalled.discard(uid)
        await self._stop_probing(uid)
        guest = self._guest(uid)
        if guest is not None and not guest.ended.is_set():
            guest.shut_down(lambda: _ORPHAN_GRACE)
            return None  # its end brings us back
        if self._launches.pending(uid):
            return _UNSYNCED
        if self._launcher is not None:
            self._launcher.guests.forget(uid)
        self._addresses.release(uid)
        self._pods.look_at_launcher(uid)
        return None

    async def _after_the_end(self, uid: str) -> None:
        await self._stop_probing(uid)
        guest = self._guest(uid)
        if guest is not None and not guest.ended.is_set():
            # virt-controller ended the VMI, such as for a pod that vanished. A new VMI may start at
            # once: QEMU's lock on the home disk makes it wait for this one.
            guest.shut_down(lambda: _ORPHAN_GRACE)
        self._pods.look_at_launcher(uid)

    async def _start(self, uid: str) -> Guest | None:
        vmi, pod = self.tracked.get(uid), self._pods.launcher_of(uid)
        if self._launcher is None or vmi is None or pod is None:
            return None
        unwanted = instance_status.phase_of(vmi) != "Scheduled"
        if unwanted or any(item["metadata"].get("deletionTimestamp") for item in (vmi, pod)):
            return None
        return await self._launcher.launch(vmi, pod)

    # ---- probes

    def _probe(self, uid: str, vmi: Object, guest: Guest, pod: Object | None) -> None:
        if uid in self._probers:
            return
        probe = probe_of(vmi)
        if probe is None:
            return
        prober = Prober(
            probe,
            address=guest.record.address,
            console=ConsoleWatch(guest.record.console),
            restarted=guest.restarted,
            on_change=lambda: self._pods.look_at_launcher(uid),
            already=_was_ready(pod),
        )
        self._probers[uid] = (prober, asyncio.create_task(prober.run()))

    async def _stop_probing(self, uid: str) -> None:
        found = self._probers.pop(uid, None)
        if found is not None:
            found[1].cancel()
            await asyncio.gather(found[1], return_exceptions=True)

    # ---- writes

    async def _write_running(self, vmi: Object, address: str) -> None:
        mac, moment = interface_mac(vmi), timestamp(now())
        await self._replace(instance_status.running(vmi, address=address, mac=mac, moment=moment))

    async def _write_end(self, uid: str, vmi: Object, outcome: Outcome | None) -> None:
        await self._stop_probing(uid)
        phase = "Succeeded" if outcome is Outcome.SHUTDOWN else "Failed"
        await self._write_phase(vmi, phase)
        if phase == "Failed":
            await self._events.warn(vmi, "Stopped", f"The guest is over: {_WHY[outcome]}.")

    async def _write_phase(self, vmi: Object, phase: str) -> None:
        await self._replace(instance_status.ended(vmi, phase=phase, moment=timestamp(now())))

    async def _write_pause(self, uid: str, vmi: Object, *, stalled: bool) -> None:
        if stalled:
            self._stalled.add(uid)
            changed = instance_status.paused(vmi, moment=timestamp(now()))
        elif uid in self._stalled:
            changed = instance_status.unpaused(vmi)
        else:
            return
        if changed is not None:
            await self._replace(changed)
        if not stalled:
            self._stalled.discard(uid)

    async def _write_failure(self, vmi: Object, message: str) -> None:
        changed = instance_status.not_synchronized(vmi, message=message, moment=timestamp(now()))
        if changed is not None:
            await self._replace(changed)
            await self._events.warn(vmi, "SyncFailed", message)

    async def _replace(self, vmi: Object) -> None:
        metadata = vmi["metadata"]
        written = await self._client.replace(
            VIRTUAL_MACHINE_INSTANCES, metadata["name"], vmi, namespace=metadata["namespace"]
        )
        self.tracked.learn(written)
        self._pods.look_at_launcher(metadata["uid"])

    # ---- small questions

    def _guest(self, uid: str) -> Guest | None:
        return None if self._launcher is None else self._launcher.guests.get(uid)

    def _grace(self, uid: str) -> float:
        vmi = self.tracked.get(uid)
        if vmi is None:
            return _ORPHAN_GRACE
        seconds = vmi["spec"].get("terminationGracePeriodSeconds")
        return _DEFAULT_GRACE if seconds is None else float(seconds)


_WHY: dict[Outcome | None, str] = {
    Outcome.NODE_STOPPED: "its node was stopped",
    Outcome.KILLED: "it did not power off in time, so its power was cut",
    Outcome.PANICKED: "its kernel panicked; its console log says why",
    Outcome.CRASHED: "QEMU ended without a power-off of the guest",
    None: "no QEMU runs for it, and nobody saw how it ended",
}


def _pod_grace(pod: Mapping[str, Any]) -> float:
    # The pod's grace is the VMI's and 30 s on top, for virt-launcher itself.
    seconds = pod["metadata"].get("deletionGracePeriodSeconds")
    return _DEFAULT_GRACE if seconds is None else max(0.0, float(seconds) - 30.0)


def _was_ready(pod: Mapping[str, Any] | None) -> bool:
    statuses = ((pod or {}).get("status") or {}).get("containerStatuses") or []
    return any(item["name"] == "compute" and item["ready"] for item in statuses)
