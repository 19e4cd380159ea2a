"""Storage: claims are bound by their first consumer, grow, and are protected while a VMI uses them."""

from __future__ import annotations

from typing import Any, Protocol

from tests.support.apiserver import FakeApi, copied
from tests.support.clock import stamp

__all__ = ["Claims"]

Object = dict[str, Any]

VMIS, CLAIMS = "virtualmachineinstances", "persistentvolumeclaims"
_FINALIZER = "kubernetes.io/pvc-protection"


class Knobs(Protocol):
    """What the tests switch on."""

    unbound: str | None
    storage_classes: set[str] | None
    grows: bool


class Claims:
    """The provisioner, the resizer and the protection of claims."""

    def __init__(self, api: FakeApi, knobs: Knobs) -> None:
        self._api, self._knobs = api, knobs

    def exists(self, name: str) -> bool:
        """Whether there is such a claim."""
        return (CLAIMS, "ns", name) in self._api.objects

    def sync(self, name: str, vm: str) -> None:
        """See to a claim that has changed, or whose user has."""
        claim = self._get(name)
        if claim is None:
            return
        deleting = "deletionTimestamp" in claim["metadata"]
        self._protect(name, on=not deleting or self._used(name, vm))
        status = claim.get("status") or {}
        if status.get("phase") == "Bound" and not deleting and self._knobs.grows:
            size = claim["spec"]["resources"]["requests"]["storage"]
            self._api.edit(CLAIMS, name, lambda c: c["status"].update(capacity={"storage": size}))
        elif not status:
            self._api.edit(CLAIMS, name, lambda c: c.update(status={"phase": "Pending"}))

    def bind(self, name: str) -> bool:
        """A pod that uses it has a node: give it a volume. Whether it has one."""
        claim = self._get(name)
        if claim is None:
            return False
        if (claim.get("status") or {}).get("phase") == "Bound":
            return True
        why = self._refusal(claim)
        if why is not None:
            self._event(claim, why)
            return False

        def bound(obj: Object) -> None:
            size = obj["spec"]["resources"]["requests"]["storage"]
            obj["spec"]["volumeName"] = "pv-" + obj["metadata"]["uid"][:8]
            obj["status"] = {"phase": "Bound", "capacity": {"storage": size}}

        self._api.edit(CLAIMS, name, bound)
        return True

    def _refusal(self, claim: Object) -> str | None:
        classes, wanted = self._knobs.storage_classes, claim["spec"].get("storageClassName")
        if classes is not None and wanted is not None and wanted not in classes:
            return f'storageclass.storage.k8s.io "{wanted}" not found'
        return self._knobs.unbound

    def _used(self, name: str, vm: str) -> bool:
        users = self._api.objects.get((VMIS, "ns", vm))
        if users is not None:
            return True
        return any(
            (volume.get("persistentVolumeClaim") or {}).get("claimName") == name
            for (plural, _, _), vmi in self._api.objects.items()
            if plural == VMIS
            for volume in vmi.body["spec"].get("volumes") or []
        )

    def _protect(self, name: str, *, on: bool) -> None:
        def change(obj: Object) -> None:
            have = [f for f in obj["metadata"].get("finalizers") or [] if f != _FINALIZER]
            obj["metadata"]["finalizers"] = [*have, _FINALIZER] if on else have

        self._api.edit(CLAIMS, name, change)

    def _event(self, claim: Object, why: str) -> None:
        """As the persistentvolume-controller tells it: one object whose count grows."""
        meta = claim["metadata"]
        name = f"{meta['name']}.{meta['uid'][:8]}"
        if ("events", "ns", name) in self._api.beside:

            def again(event: Object) -> None:
                event["count"] += 1
                event["lastTimestamp"] = stamp()

            self._api.edit("events", name, again)
            return
        about = {
            "kind": "PersistentVolumeClaim",
            "apiVersion": "v1",
            "namespace": meta["namespace"],
            "name": meta["name"],
            "uid": meta["uid"],
        }
        event = {
            "metadata": {"name": name, "namespace": meta["namespace"]},
            "involvedObject": about,
            "type": "Warning",
            "reason": "ProvisioningFailed",
            "message": why,
            "count": 1,
            "firstTimestamp": stamp(),
            "lastTimestamp": stamp(),
            "source": {"component": "persistentvolume-controller"},
        }
        self._api.put("events", event)

    def _get(self, name: str) -> Object | None:
        stored = self._api.objects.get((CLAIMS, "ns", name))
        return copied(stored.body) if stored else None
