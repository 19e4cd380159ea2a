"""A segment: a stretch of time in which a machine was awake, or had its disk, at one size."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

__all__ = ["Segment", "SegmentKind", "Sizes"]

SegmentKind = Literal["awake", "storage"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a machine has.

    Attributes:
        vcpu_millis: thousandths of a vCPU.
        memory_mib: MiB of memory.
        storage_gib: GiB of its home disk.
    """

    vcpu_millis: int
    memory_mib: int
    storage_gib: int


@dataclass(frozen=True, slots=True)
class Segment:
    """A row of the ledger.

    Attributes:
        machine_uid: uid of the Machine object.
        kind: "awake" counts vCPU and memory, "storage" counts the disk.
        ordinal: which of the machine's segments of that kind; a later one has a higher number.
        org: whose machine it is.
        machine_id: the machine's id over REST.
        sizes: what the machine had all the while.
        began_at: when it began.
        ended_at: when it ended, or None while it goes on.
        seen_at: when it was last known to go on.
    """

    machine_uid: str
    kind: SegmentKind
    ordinal: int
    org: str
    machine_id: str
    sizes: Sizes
    began_at: datetime
    ended_at: datetime | None
    seen_at: datetime

    @property
    def end(self) -> datetime:
        """Until when it counts: what nobody has seen is charged to nobody."""
        return self.ended_at or self.seen_at
