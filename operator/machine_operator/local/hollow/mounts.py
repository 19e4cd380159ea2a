"""What kubelet mounts into a launcher pod: Secrets and the directories of claims.

Read with kubelet's identity: the Node authorizer lets it get exactly the Secrets, claims and
volumes that pods bound to this node refer to. virt-handler itself may read none of them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import NotFound
from machine_operator.kube.resources import (
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    SECRETS,
)

__all__ = ["DISK_IMAGE", "MountError", "Mounts", "mount"]

DISK_IMAGE = "disk.img"
"""The file that KubeVirt uses in a volume of mode Filesystem."""


class MountError(Exception):
    """A volume of the pod cannot be mounted yet; the message is kubelet's kind of sentence."""


@dataclass(slots=True)
class Mounts:
    """What a pod's volumes hold.

    Attributes:
        secrets: name -> data of each Secret.
        claims: name -> disk image of each claim.
    """

    secrets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    claims: dict[str, Path] = field(default_factory=dict)


async def mount(client: KubeClient, pod: Mapping[str, Any]) -> Mounts:
    """Find everything that the volumes of `pod` refer to.

    Raises:
        MountError: something is not there (yet).
        KubeError: the API server could not be asked.
    """
    namespace = pod["metadata"]["namespace"]
    found = Mounts()
    for volume in pod["spec"].get("volumes") or []:
        if secret := volume.get("secret"):
            await _mount_secret(client, found, namespace=namespace, volume=volume, secret=secret)
        elif claim := volume.get("persistentVolumeClaim"):
            name = claim["claimName"]
            found.claims[name] = await _mount_claim(
                client, namespace=namespace, volume=volume["name"], name=name
            )
    return found


async def _mount_secret(
    client: KubeClient,
    found: Mounts,
    *,
    namespace: str,
    volume: Mapping[str, Any],
    secret: Mapping[str, Any],
) -> None:
    name = secret["secretName"]
    try:
        item = await client.get(SECRETS, name, namespace=namespace)
    except NotFound as error:
        if secret.get("optional"):
            return
        raise MountError(
            f'MountVolume.SetUp failed for volume "{volume["name"]}": secret "{name}" not found'
        ) from error
    data = item.get("data") or {}
    found.secrets[name] = {key: base64.b64decode(value) for key, value in data.items()}


async def _mount_claim(client: KubeClient, *, namespace: str, volume: str, name: str) -> Path:
    prefix = f'MountVolume.SetUp failed for volume "{volume}"'
    try:
        claim = await client.get(PERSISTENT_VOLUME_CLAIMS, name, namespace=namespace)
        volume_name = claim["spec"].get("volumeName")
        if not volume_name:
            raise MountError(f'{prefix}: persistentvolumeclaim "{name}" is not bound')
        bound = await client.get(PERSISTENT_VOLUMES, volume_name)
    except NotFound as error:
        raise MountError(f"{prefix}: {error.message}") from error
    local = bound["spec"].get("local")
    if not local:
        raise MountError(f"{prefix}: {volume_name} is not of the type `local`, the only one here")
    image = Path(local["path"]) / DISK_IMAGE
    if not image.is_file():
        raise MountError(f'{prefix}: path "{image}" does not exist')
    return image
