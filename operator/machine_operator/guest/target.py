"""Which guest is meant: one boot of one machine."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["GuestTarget"]


@dataclass(frozen=True, slots=True)
class GuestTarget:
    """A running machine.

    Attributes:
        org: its namespace.
        machine_uid: UID of the Machine object.
        vm: name of its VM and VMI; the principal of its host certificate, and of the certificates that it accepts.
        instance_uid: UID of the VMI: each start of the machine has a new one.
        addresses: of the running machine, the main one first.
    """

    org: str
    machine_uid: str
    vm: str
    instance_uid: str
    addresses: tuple[str, ...] = ()
