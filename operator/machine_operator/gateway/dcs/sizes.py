"""From a request's sizes to a Machine's spec: defaults for what is absent, and what this installation can carry."""

from __future__ import annotations

from typing import Any

from machine_operator.gateway.dcs.models import CreateMachineRequest, UpdateMachineRequest
from machine_operator.gateway.failures import over_capacity
from machine_operator.gateway.settings import GatewaySettings

__all__ = ["created_spec", "updated_spec"]

_SIZES = ("vcpu", "memory_mib", "storage_gib")


def created_spec(request: CreateMachineRequest, settings: GatewaySettings) -> dict[str, Any]:
    """The spec of a new machine.

    Raises:
        Problem: 400, a size is more than there is.
    """
    defaults = {name: getattr(settings, f"default_{name}") for name in _SIZES}
    return defaults | updated_spec(request, settings)


def updated_spec(
    request: CreateMachineRequest | UpdateMachineRequest, settings: GatewaySettings
) -> dict[str, Any]:
    """The members of the spec that a request names.

    Raises:
        Problem: 400, a size is more than there is.
    """
    spec: dict[str, Any] = {}
    for name in _SIZES:
        value, most = getattr(request, name), getattr(settings, f"max_{name}")
        if value is None:
            continue
        if value > most:
            raise over_capacity(name, most)
        spec[name] = value
    autosleep = request.autosleep_text
    if autosleep is not None:
        spec["autosleep"] = autosleep
    return spec
