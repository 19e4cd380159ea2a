"""The revision of a machine: a decimal number that grows with each accepted change and each new phase.

It is a sum of counters that only grow, each written by one writer, so that writers need not agree on it: whoever has
accepted a change knows the new revision at once, before the controller has written it into the status.
"""

from __future__ import annotations

from machine_operator.api.machine import Machine, PowerRequest

__all__ = ["revision_of", "revision_with"]


def revision_of(machine: Machine) -> str:
    """The revision of a machine as it is."""
    status = machine.status
    return revision_with(machine, transitions=status.transitions or 0, request=status.power_request)


def revision_with(machine: Machine, *, transitions: int, request: PowerRequest | None) -> str:
    """The revision with a number of phase changes and a newest power request."""
    return str(machine.metadata.generation + transitions + (request.sequence if request else 0))
