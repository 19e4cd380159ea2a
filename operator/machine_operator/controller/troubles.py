"""What a refused write means for the machine: the root cause, in the words of who refused it."""

from __future__ import annotations

from machine_operator.api.phases import Reason
from machine_operator.kube.errors import (
    ApiError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    ServerError,
)
from machine_operator.kubevirt.readers import over_a_limit
from machine_operator.lifecycle import actions as do
from machine_operator.lifecycle.observation import Trouble

__all__ = ["trouble_of"]


def trouble_of(action: do.Action, error: ApiError) -> Trouble | None:
    """The trouble to tell; None for what passes by itself."""
    match error:
        case Conflict() | NotFound():
            return None
        case Forbidden() if "being terminated" in error.message:
            return None  # the namespace goes, and this Machine with it
        case Forbidden() if over_a_limit(error.message):
            return Trouble(Reason.QUOTA_EXCEEDED, error.message)
        case ServerError() if "failed calling webhook" in error.message:
            return Trouble(Reason.KUBEVIRT_NOT_AVAILABLE, error.message)
        case Forbidden() | Invalid():
            return _refused(action, error)
        case _:
            return None


def _refused(action: do.Action, error: ApiError) -> Trouble:
    if "Only one reference can have Controller" in error.message:
        return Trouble(Reason.VIRTUAL_MACHINE_FOREIGN, error.message)
    match action:
        case do.ApplyHome():
            resize = "resize" in error.message or "can not be less than" in error.message
            reason = Reason.STORAGE_NOT_RESIZABLE if resize else Reason.STORAGE_NOT_AVAILABLE
            return Trouble(reason, error.message)
        case do.ApplyVirtualMachine():
            return Trouble(Reason.VIRTUAL_MACHINE_REFUSED, error.message)
        case _:
            return Trouble(Reason.INTERNAL_ERROR, str(error))
