"""The NoCloud data of a VMI, from where its cloudInitNoCloud volume says."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from machine_operator.local.hollow.plan import PlanError

__all__ = ["Seed", "seed_of", "seed_secrets"]

_USER_KEYS = ("userdata", "userData")
_NETWORK_KEYS = ("networkdata", "networkData")


@dataclass(frozen=True, slots=True)
class Seed:
    """The files of a NoCloud seed."""

    user_data: bytes
    meta_data: bytes
    network_config: bytes | None


def seed_secrets(source: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the Secrets that a cloudInitNoCloud volume refers to."""
    references = (source.get("secretRef"), source.get("networkDataSecretRef"))
    return tuple(str(reference["name"]) for reference in references if reference)


def seed_of(
    vmi: Mapping[str, Any],
    source: Mapping[str, Any],
    *,
    secrets: Mapping[str, Mapping[str, bytes]],
) -> Seed:
    """The seed of a VMI.

    Args:
        vmi: the object, for its identity and host name.
        source: its cloudInitNoCloud volume.
        secrets: name -> data of each Secret that `seed_secrets` names.

    Raises:
        PlanError: the data is not where it should be.
    """
    user = _inline(source, "userData")
    if user is None:
        user = _referred(source.get("secretRef"), secrets, keys=_USER_KEYS)
    network = _inline(source, "networkData")
    if network is None and source.get("networkDataSecretRef"):
        network = _referred(source["networkDataSecretRef"], secrets, keys=_NETWORK_KEYS)
    if network is None and source.get("secretRef"):
        network = _first(secrets.get(source["secretRef"]["name"], {}), _NETWORK_KEYS)
    if user is None and network is None:
        raise PlanError("cloudInitNoCloud holds neither user data nor network data")
    return Seed(user_data=user or b"", meta_data=_meta_data(vmi), network_config=network)


def _meta_data(vmi: Mapping[str, Any]) -> bytes:
    metadata, spec = vmi["metadata"], vmi["spec"]
    firmware = spec["domain"].get("firmware") or {}
    name = str(spec.get("hostname") or metadata["name"].split(".")[0][:63])
    values = {
        # The VM's own, so that a new boot of the same machine is the same instance.
        "instance-id": str(firmware.get("uuid") or metadata["uid"]),
        "local-hostname": name,
    }
    return json.dumps(values, sort_keys=True).encode()


def _inline(source: Mapping[str, Any], key: str) -> bytes | None:
    if source.get(key):
        return str(source[key]).encode()
    encoded = source.get(f"{key}Base64")
    if not encoded:
        return None
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise PlanError(f"cloudInitNoCloud.{key}Base64 is not base64: {error}") from error


def _referred(
    reference: Mapping[str, Any] | None,
    secrets: Mapping[str, Mapping[str, bytes]],
    *,
    keys: tuple[str, ...],
) -> bytes | None:
    if not reference:
        return None
    data = secrets.get(reference["name"], {})
    found = _first(data, keys)
    if found is None:
        raise PlanError(
            f"Secret {reference['name']} has no key {keys[0]}; it has: {', '.join(data)}"
        )
    return found


def _first(data: Mapping[str, bytes], keys: tuple[str, ...]) -> bytes | None:
    return next((data[key] for key in keys if key in data), None)
