"""The storage provisioner: claims of our StorageClass become sparse files.

The protocol is that of every external provisioner. The PV controller annotates a claim with the
provisioner that its class names; we make the file, then a PersistentVolume that names the claim,
and the PV controller binds the two. A volume that turns Released under the policy Delete is ours to
delete: first the file, then the object. A claim that asks for more than it has is grown in place:
file, then the volume's capacity, then the running guest, then the claim's capacity, in that order,
so that whoever sees the new capacity can use it. A step that failed is repeated, and costs nothing
done.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import AlreadyExists, NotFound
from machine_operator.kube.resources import (
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    Resource,
)
from machine_operator.kubevirt.quantity import parse_quantity
from machine_operator.local.hollow.events import Events
from machine_operator.local.hollow.tracked import Object, Tracked
from machine_operator.local.hollow.volume_files import VolumeError, VolumeFiles

__all__ = ["PROVISIONER", "Provisioner"]

log = logging.getLogger(__name__)

PROVISIONER = "machines.dedaluslabs.ai/local"

_ASKED = (
    "volume.kubernetes.io/storage-provisioner",
    "volume.beta.kubernetes.io/storage-provisioner",
)
_MADE_BY = "pv.kubernetes.io/provisioned-by"
_SELECTED_NODE = "volume.kubernetes.io/selected-node"

_STORAGE_CLASSES = Resource(
    "storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False
)

_RETRY = 10.0
_UNSYNCED = 0.2

T = TypeVar("T")


class Provisioner:
    """Volumes on this node.

    Args:
        client: with the provisioner's identity.
        node: this node's name, which the volumes are tied to.
        files: the files.
        resize: tells a running guest that its disk image has grown.
        events: as the provisioner.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        node: str,
        files: VolumeFiles,
        resize: Callable[[Path, int], Awaitable[None]],
        events: Events,
    ) -> None:
        self._client = client
        self._node = node
        self._files = files
        self._resize = resize
        self._events = events
        # claim uid -> uid of the volume that was made for it
        self._provisioned: dict[str, str] = {}
        self.claims = Tracked(
            client, PERSISTENT_VOLUME_CLAIMS, process=self._process_claim, workers=4
        )
        self.volumes = Tracked(
            client,
            PERSISTENT_VOLUMES,
            process=self._process_volume,
            on_change=self._volume_changed,
            workers=4,
        )

    async def run(self) -> None:
        """Follow and act until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.claims.run())
            group.create_task(self.volumes.run())

    def _volume_changed(self, uid: str, volume: Object) -> None:
        claim = (volume["spec"].get("claimRef") or {}).get("uid")
        if not claim:
            return
        if self.volumes.get(uid) is not None:
            self._provisioned[claim] = uid
        elif self._provisioned.get(claim) == uid:
            del self._provisioned[claim]
        self.claims.add(claim)

    # ---- claims

    async def _process_claim(self, uid: str) -> float | None:
        claim = self.claims.get(uid)
        if claim is None or claim["metadata"].get("deletionTimestamp"):
            return None
        annotations = claim["metadata"].get("annotations") or {}
        if not any(annotations.get(key) == PROVISIONER for key in _ASKED):
            return None
        if annotations.get(_SELECTED_NODE, self._node) != self._node:
            return None
        if not self.volumes.synced.is_set():
            return _UNSYNCED
        try:
            if not claim["spec"].get("volumeName"):
                # The PV controller takes some milliseconds and several writes to bind the two.
                if uid not in self._provisioned:
                    await self._provision(claim)
            else:
                await self._expand(claim)
        except VolumeError as error:
            bound = bool(claim["spec"].get("volumeName"))
            reason = "VolumeResizeFailed" if bound else "ProvisioningFailed"
            await self._events.warn(claim, reason, str(error))
            log.warning("claim %s: %s", _full_name(claim), error)
            return _RETRY
        return None

    async def _provision(self, claim: Object) -> None:
        spec = claim["spec"]
        if spec.get("dataSource") or spec.get("dataSourceRef"):
            raise VolumeError(
                "this provisioner makes empty volumes only: it cannot fill one from spec.dataSource"
            )
        size = _requested(claim)
        name = f"pvc-{claim['metadata']['uid']}"
        policy = await self._reclaim_policy(spec.get("storageClassName"))
        directory = await _in_thread(functools.partial(self._files.create, name, size))
        volume = _volume(claim, name=name, path=directory, node=self._node, policy=policy)
        try:
            self.volumes.created(await self._client.create(PERSISTENT_VOLUMES, volume))
        except AlreadyExists:
            return
        log.info("claim %s: made volume %s", _full_name(claim), name)
        await self._events.tell(
            claim, "ProvisioningSucceeded", f"Successfully provisioned volume {name}"
        )

    async def _reclaim_policy(self, name: str | None) -> str:
        if not name:
            return "Delete"
        found = await self._client.get(_STORAGE_CLASSES, name)
        return str(found.get("reclaimPolicy") or "Delete")

    async def _expand(self, claim: Object) -> None:
        status = claim.get("status") or {}
        capacity = (status.get("capacity") or {}).get("storage")
        if status.get("phase") != "Bound" or capacity is None:
            return
        size = _requested(claim)
        if size <= parse_quantity(capacity):
            return
        name = claim["spec"]["volumeName"]
        await _in_thread(functools.partial(self._files.grow, name, size))
        storage = {"storage": _storage(claim)}
        await self._client.merge_patch(PERSISTENT_VOLUMES, name, {"spec": {"capacity": storage}})
        await self._resize(self._files.image(name), size)
        metadata = claim["metadata"]
        written = await self._client.merge_patch(
            PERSISTENT_VOLUME_CLAIMS,
            metadata["name"],
            {"metadata": {"uid": metadata["uid"]}, "status": {"capacity": storage}},
            namespace=metadata["namespace"],
            subresource="status",
        )
        self.claims.learn(written)
        log.info("claim %s: grown to %s", _full_name(claim), storage["storage"])
        await self._events.tell(
            claim, "VolumeResizeSuccessful", f"Resized volume to {storage['storage']}"
        )

    # ---- volumes

    async def _process_volume(self, uid: str) -> float | None:
        volume = self.volumes.get(uid)
        if volume is None:
            return None
        metadata, spec = volume["metadata"], volume["spec"]
        ours = (metadata.get("annotations") or {}).get(_MADE_BY) == PROVISIONER
        released = (volume.get("status") or {}).get("phase") == "Released"
        deletes = spec.get("persistentVolumeReclaimPolicy") == "Delete"
        if not (ours and released and deletes):
            return None
        await _in_thread(functools.partial(self._files.delete, metadata["name"]))
        if not metadata.get("deletionTimestamp"):
            try:
                await self._client.delete(PERSISTENT_VOLUMES, metadata["name"], uid=metadata["uid"])
            except NotFound:
                return None
            log.info("volume %s: deleted", metadata["name"])
        return None


def _volume(claim: Mapping[str, Any], *, name: str, path: Path, node: str, policy: str) -> Object:
    metadata, spec = claim["metadata"], claim["spec"]
    term = {
        "matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]
    }
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name, "annotations": {_MADE_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": _storage(claim)},
            "accessModes": spec["accessModes"],
            "volumeMode": spec.get("volumeMode") or "Filesystem",
            "storageClassName": spec.get("storageClassName") or "",
            "persistentVolumeReclaimPolicy": policy,
            "local": {"path": str(path)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }


def _storage(claim: Mapping[str, Any]) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])


def _requested(claim: Mapping[str, Any]) -> int:
    return int(parse_quantity(_storage(claim)))


def _full_name(claim: Mapping[str, Any]) -> str:
    return f"{claim['metadata']['namespace']}/{claim['metadata']['name']}"


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)
