"""The kubelet side: pods that are bound to this node.

bound       images looked up, volumes mounted; then Running, with an address
running     Ready as the readiness probe of the guest and the readiness gates say
deleting    its guest is stopped, **the VMI's end is stored**, and only then the pod is removed:
            virt-controller takes a pod that vanished under a live VMI for a failure
VMI over    the pod is Succeeded, or Failed
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import Forbidden
from machine_operator.kube.resources import PODS
from machine_operator.local.hollow.events import Events
from machine_operator.local.hollow.images import Images, Pull, is_launcher, pod_images
from machine_operator.local.hollow.mounts import MountError, mount
from machine_operator.local.hollow.network import Addresses, AddressesError, pod_ports
from machine_operator.local.hollow.pod_status import PodView, Stage, status_patch
from machine_operator.local.hollow.times import now, timestamp
from machine_operator.local.hollow.tracked import Object, Tracked

__all__ = ["Guardian", "Pods"]

log = logging.getLogger(__name__)

_MOUNT_PAUSE = 2.0
_LOOK_AGAIN = 5.0
"""Seconds between looks at a pod that waits for its guest's end; the end itself comes sooner."""

_AUTHORIZER_LAG = 10.0
_AUTHORIZER_PAUSE = 0.1

_CREATED_BY = "kubevirt.io/created-by"


class Guardian(Protocol):
    """The virt-handler side, as far as pods must know it."""

    def over(self, vmi_uid: str) -> bool: ...  # noqa: D102

    def end_of(self, vmi_uid: str) -> str | None: ...  # noqa: D102

    def probed(self, vmi_uid: str) -> bool: ...  # noqa: D102

    def look_at(self, vmi_uid: str) -> None: ...  # noqa: D102


class Pods:
    """Pods on this node.

    Args:
        client: with kubelet's identity.
        node: this node's name.
        images: the image store.
        addresses: who has which address.
        events: as kubelet.
        mounts: whether volumes are looked up; False where there are no guests to read them.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        node: str,
        images: Images,
        addresses: Addresses,
        events: Events,
        mounts: bool,
    ) -> None:
        self._client = client
        self._images = images
        self._addresses = addresses
        self._events = events
        self._mounts = mounts
        self._guardian: Guardian | None = None
        self._launchers: dict[str, str] = {}
        self._removed: set[str] = set()
        self.tracked = Tracked(
            client,
            PODS,
            process=self._process,
            on_change=self._changed,
            field_selector=f"spec.nodeName={node}",
        )

    def follow(self, guardian: Guardian) -> None:
        """Name the virt-handler side; before `run`."""
        self._guardian = guardian

    async def run(self) -> None:
        """Follow and act until cancelled."""
        await self.tracked.run()

    def launcher_of(self, vmi_uid: str) -> Object | None:
        """The launcher pod of a VMI."""
        pod_uid = self._launchers.get(vmi_uid)
        return None if pod_uid is None else self.tracked.get(pod_uid)

    def look_at_launcher(self, vmi_uid: str) -> None:
        """Something about this VMI changed that its pod may have to show."""
        pod_uid = self._launchers.get(vmi_uid)
        if pod_uid is not None:
            self.tracked.add(pod_uid)

    def _changed(self, uid: str, pod: Object) -> None:
        vmi_uid = _vmi_of(pod)
        if vmi_uid is None:
            return
        if self.tracked.get(uid) is not None:
            self._launchers[vmi_uid] = uid
            given = (pod.get("status") or {}).get("podIP")
            if given:
                # Before any worker runs, or a new machine could get it after our restart.
                self._addresses.restore(vmi_uid, given)
        elif self._launchers.get(vmi_uid) == uid:
            del self._launchers[vmi_uid]
            if self._guardian is not None and self._guardian.over(vmi_uid):
                self._addresses.release(vmi_uid)
        if self._guardian is not None:
            self._guardian.look_at(vmi_uid)

    # ---- one pod

    async def _process(self, uid: str) -> float | None:
        pod = self.tracked.get(uid)
        if pod is None:
            self._images.forget(uid)
            self._removed.discard(uid)
            return None
        if pod["metadata"].get("deletionTimestamp"):
            return await self._remove(pod)
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return None
        vmi_uid = _vmi_of(pod)
        end = self._guardian.end_of(vmi_uid) if self._guardian and vmi_uid else None
        if end is not None:
            stage: Stage = "succeeded" if end == "Succeeded" else "failed"
            await self._write(pod, self._view(pod, stage))
            return None
        if (pod.get("status") or {}).get("phase") != "Running":
            again = await self._prepare(pod)
            if again is not None:
                return again
        await self._write(pod, self._view(pod, "running"))
        return None

    async def _prepare(self, pod: Object) -> float | None:
        """Images and volumes; returns after how many seconds to look again, None when all is there."""
        pulls = self._pull(pod)
        if pulls:
            why = {name: (pull.reason, pull.message) for name, pull in pulls.items()}
            await self._write(pod, self._view(pod, "waiting", pulls=why))
            for pull in pulls.values():
                kind = "Failed" if pull.reason == "ErrImagePull" else "BackOff"
                await self._events.warn(pod, kind, pull.message)
            return min(pull.again for pull in pulls.values())
        if not self._mounts:
            return None
        try:
            await mount(self._client, pod)
        except Forbidden:
            # The Node authorizer learns of a binding from its own watch, some milliseconds later.
            if _age(pod) < _AUTHORIZER_LAG:
                return _AUTHORIZER_PAUSE
            raise
        except MountError as error:
            await self._events.warn(pod, "FailedMount", str(error))
            await self._write(pod, self._view(pod, "waiting"))
            return _MOUNT_PAUSE
        return None

    def _pull(self, pod: Object) -> dict[str, Pull]:
        uid, missing = pod["metadata"]["uid"], {}
        for container, image in pod_images(pod):
            pull = self._images.pull(uid, image)
            if pull is not None:
                missing[container] = pull
        return missing

    async def _remove(self, pod: Object) -> float | None:
        metadata = pod["metadata"]
        if metadata["uid"] in self._removed:
            return None  # the watch just has not shown it yet
        vmi_uid = _vmi_of(pod)
        if vmi_uid and self._guardian and not self._guardian.over(vmi_uid):
            self._guardian.look_at(vmi_uid)
            return _LOOK_AGAIN
        await self._client.delete(
            PODS,
            metadata["name"],
            namespace=metadata["namespace"],
            uid=metadata["uid"],
            grace_seconds=0,
        )
        self._removed.add(metadata["uid"])
        return None

    def _view(
        self, pod: Object, stage: Stage, *, pulls: Mapping[str, tuple[str, str]] | None = None
    ) -> PodView:
        vmi_uid = _vmi_of(pod)
        probed = vmi_uid is None or self._guardian is None or self._guardian.probed(vmi_uid)
        ip = self._ip(pod) if stage == "running" else ""
        return PodView(stage, ip=ip, probed=probed, moment=timestamp(now()), pulls=pulls or {})

    def _ip(self, pod: Object) -> str:
        given = (pod.get("status") or {}).get("podIP")
        vmi_uid = _vmi_of(pod)
        if vmi_uid is None:
            return given or _label_ip(pod["metadata"]["uid"])
        if given:
            return str(given)
        try:
            return self._addresses.claim(vmi_uid, pod_ports(pod))
        except AddressesError:
            # The guest's start will meet the same, and say so in the VMI.
            return self._addresses.claim(vmi_uid, ())

    async def _write(self, pod: Object, view: PodView) -> None:
        patch = status_patch(pod, view)
        if not patch:
            return
        metadata = pod["metadata"]
        # The uid makes a pod that was replaced under this name refuse the patch.
        body: Object = {"metadata": {"uid": metadata["uid"]}, "status": patch}
        written = await self._client.merge_patch(
            PODS,
            metadata["name"],
            body,
            namespace=metadata["namespace"],
            subresource="status",
            strategic=True,
        )
        self.tracked.learn(written)


def _vmi_of(pod: Mapping[str, Any]) -> str | None:
    if not is_launcher(pod):
        return None
    uid = (pod["metadata"].get("labels") or {}).get(_CREATED_BY)
    return None if uid is None else str(uid)


def _age(pod: Mapping[str, Any]) -> float:
    created = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
    return (now() - created).total_seconds()


def _label_ip(uid: str) -> str:
    """An address for a pod of which nothing runs: nobody can dial it."""
    digest = hashlib.sha256(uid.encode()).digest()
    return f"10.244.{digest[0]}.{digest[1] % 254 + 1}"
