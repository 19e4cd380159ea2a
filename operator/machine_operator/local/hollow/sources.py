"""What is behind the volumes of a VMI: image, claim, seed, scratch disk."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine_operator.kubevirt.quantity import parse_quantity
from machine_operator.local.guest.seed_iso import write_seed
from machine_operator.local.guest.store import Image
from machine_operator.local.hollow.images import Images
from machine_operator.local.hollow.mounts import Mounts
from machine_operator.local.hollow.plan import PlanError, Source, image_source
from machine_operator.local.hollow.rundir import RunDirectory
from machine_operator.local.hollow.seed import seed_of

__all__ = ["prepare_sources"]


async def prepare_sources(
    vmi: Mapping[str, Any], *, mounts: Mounts, images: Images, directory: RunDirectory
) -> tuple[dict[str, Source], list[Image]]:
    """Find or make the file behind each volume of a VMI.

    Returns:
        volume name -> source, and the images of the container disks in their order.

    Raises:
        PlanError: a volume is of a kind that a guest here cannot have, or not there any more.
        BrokenImage: an image cannot be used.
    """
    sources: dict[str, Source] = {}
    found: list[Image] = []
    for volume in vmi["spec"].get("volumes") or []:
        name = volume["name"]
        if disk := volume.get("containerDisk"):
            image = images.find(disk["image"])
            if image is None:
                raise PlanError(f"the image {disk['image']} is not in the image store any more")
            found.append(image)
            sources[name] = image_source(image)
        elif claim := _claim(volume):
            sources[name] = _claim_source(claim, mounts)
        elif seed := volume.get("cloudInitNoCloud"):
            sources[name] = await _write_seed(vmi, seed, mounts=mounts, directory=directory)
        elif scratch := volume.get("emptyDisk"):
            sources[name] = _scratch(name, scratch, directory=directory)
        else:
            kind = ", ".join(key for key in volume if key != "name")
            raise PlanError(
                f"volume {name!r} ({kind}) is of a kind that the local cluster cannot attach; "
                "it has containerDisk, persistentVolumeClaim, cloudInitNoCloud and emptyDisk"
            )
    return sources, found


def _claim(volume: Mapping[str, Any]) -> str | None:
    claim = volume.get("persistentVolumeClaim")
    if claim:
        return str(claim["claimName"])
    data = volume.get("dataVolume")
    return str(data["name"]) if data else None


def _claim_source(name: str, mounts: Mounts) -> Source:
    path = mounts.claims.get(name)
    if path is None:
        raise PlanError(f"the claim {name} is not mounted in the launcher pod")
    return Source(path=path, format="raw", access="write")


async def _write_seed(
    vmi: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    mounts: Mounts,
    directory: RunDirectory,
) -> Source:
    seed = seed_of(vmi, source, secrets=mounts.secrets)
    write = functools.partial(
        write_seed,
        directory.seed,
        user_data=seed.user_data,
        meta_data=seed.meta_data,
        network_config=seed.network_config,
    )
    await asyncio.get_running_loop().run_in_executor(None, write)
    return Source(path=directory.seed, format="raw", access="read-only")


def _scratch(name: str, source: Mapping[str, Any], *, directory: RunDirectory) -> Source:
    path: Path = directory.path / f"scratch-{name}.img"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(descriptor, int(parse_quantity(str(source["capacity"]))))
    finally:
        os.close(descriptor)
    return Source(path=path, format="raw", access="write")
