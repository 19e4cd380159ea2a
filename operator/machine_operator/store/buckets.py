"""Segments cut into the hours or days of a period, in integers of milliseconds: what the parts add up to is the whole.

Hours and days are those of UTC. The first and the last bucket end where the period does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from machine_operator.store.moments import from_milliseconds, milliseconds
from machine_operator.store.segments import Segment, Sizes

__all__ = ["Amounts", "Bucket", "Granularity", "cut", "total", "whole_seconds"]

Granularity = Literal["hour", "day"]

_LENGTH_MS: Final[dict[Granularity, int]] = {"hour": 3_600_000, "day": 86_400_000}
_MIB_PER_GIB: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What was used.

    Attributes:
        awake_ms: milliseconds awake.
        cpu_millicore_ms: those times thousandths of a vCPU.
        memory_mib_ms: those times MiB of memory.
        storage_mib_ms: milliseconds with a disk, times its MiB.
    """

    awake_ms: int = 0
    cpu_millicore_ms: int = 0
    memory_mib_ms: int = 0
    storage_mib_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket(Amounts):
    """What one machine used in one hour or day.

    Attributes:
        machine_id: which machine.
        begin: where the bucket begins.
        end: where it ends; belongs to the next one.
        window_count: of how many segments it has a part.
        last_window_end: where the last of those parts ends.
        sizes: what the machine had in that part.
    """

    machine_id: str
    begin: datetime
    end: datetime
    window_count: int
    last_window_end: datetime
    sizes: Sizes


@dataclass(slots=True)
class _Sum:
    awake: int = 0
    cpu: int = 0
    memory: int = 0
    storage: int = 0
    windows: int = 0
    last_end: int = 0
    sizes: Sizes | None = None

    def add(self, segment: Segment, begin: int, end: int) -> None:
        length = end - begin
        sizes = segment.sizes
        if segment.kind == "awake":
            self.awake += length
            self.cpu += length * sizes.vcpu_millis
            self.memory += length * sizes.memory_mib
        else:
            self.storage += length * sizes.storage_gib * _MIB_PER_GIB
        self.windows += 1
        if end >= self.last_end:
            self.last_end, self.sizes = end, sizes


def cut(
    segments: Iterable[Segment], *, begin: datetime, end: datetime, granularity: Granularity
) -> list[Bucket]:
    """What each machine used in each bucket from `begin` to `end`, by machine and time; empty buckets are left out."""
    length = _LENGTH_MS[granularity]
    first, last = milliseconds(begin), milliseconds(end)
    sums: dict[tuple[str, int], _Sum] = {}
    for segment, since, until in _within(segments, first, last):
        for number in range(since // length, (until - 1) // length + 1):
            here = sums.setdefault((segment.machine_id, number), _Sum())
            here.add(segment, max(since, number * length), min(until, (number + 1) * length))
    return [
        Bucket(
            machine_id=machine_id,
            begin=from_milliseconds(max(first, number * length)),
            end=from_milliseconds(min(last, (number + 1) * length)),
            awake_ms=here.awake,
            cpu_millicore_ms=here.cpu,
            memory_mib_ms=here.memory,
            storage_mib_ms=here.storage,
            window_count=here.windows,
            last_window_end=from_milliseconds(here.last_end),
            sizes=here.sizes or Sizes(0, 0, 0),
        )
        for (machine_id, number), here in sorted(sums.items(), key=lambda item: item[0])
    ]


def total(segments: Iterable[Segment], *, begin: datetime, end: datetime) -> Amounts:
    """What all of them used between `begin` and `end`: the sum of the buckets, of whatever size those are."""
    here = _Sum()
    for segment, since, until in _within(segments, milliseconds(begin), milliseconds(end)):
        here.add(segment, since, until)
    return Amounts(
        awake_ms=here.awake,
        cpu_millicore_ms=here.cpu,
        memory_mib_ms=here.memory,
        storage_mib_ms=here.storage,
    )


def whole_seconds(amounts: Iterable[int]) -> list[int]:
    """Amounts of milliseconds in whole seconds, so that what is cut off one is counted with the next.

    They add up to the whole seconds of the sum, and each is less than a second off.
    """
    seconds: list[int] = []
    exact = told = 0
    for amount in amounts:
        exact += amount
        seconds.append(exact // 1000 - told)
        told = exact // 1000
    return seconds


def _within(
    segments: Iterable[Segment], begin: int, end: int
) -> Iterator[tuple[Segment, int, int]]:
    for segment in segments:
        since = max(begin, milliseconds(segment.began_at))
        until = min(end, milliseconds(segment.end))
        if since < until:
            yield segment, since, until
