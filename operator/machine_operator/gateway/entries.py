"""Entries of the ledger: what news of a machine, or a look at all of them, says about time awake and about disks.

A machine is awake from the moment its phase became `running` until it left it: both are stamped in the status, and
`status.transitions` numbers them. So a segment of time awake has the number of the transition that began it, and ended
with the next one. Where more than one transition lies between two states, nobody knows when it ended, and it counts
until somebody last saw it: time that nobody saw is charged only where the stamps leave no doubt. The sizes are those of
the VM as it runs. A disk counts from the machine's creation until it is destroyed or deleted, with the size asked for.

Every replica writes the same entries, and any number of times: their ordinals make the ledger count them once. An
ordinal is the transition's number (of disks: the size, which only grows), and below it, for what no transition tells,
the object's version.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from machine_operator.api.phases import Phase
from machine_operator.gateway.machine_ids import PREFIX
from machine_operator.gateway.views import MachineView
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.segments import Segment, SegmentKind, Sizes

__all__ = ["Entry", "fits", "of_change", "of_look", "unseen_end"]

_VERSION_BITS: Final = 42
_NEWEST: Final = (1 << _VERSION_BITS) - 1
_MOST_TRANSITIONS: Final = (1 << 20) - 1
_EVER: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something to be written into the ledger; once more does no harm.

    Attributes:
        what: the ledger's operation: `open` (what came before ended unseen), `resize` (what came before goes over into
            this) or `close`.
        kind: of time awake, or of a disk.
        machine_uid: uid of the Machine object.
        org: whose machine it is.
        machine_id: the machine's id over REST.
        ordinal: of the new segment; for `close` that of the newest segment which is meant.
        at: when.
        sizes: of the new segment.
    """

    what: Literal["open", "resize", "close"]
    kind: SegmentKind
    machine_uid: str
    org: str
    machine_id: str
    ordinal: int
    at: datetime
    sizes: Sizes

    async def write(self, ledger: UsageLedger) -> bool:
        """Whether that was news to the ledger.

        Raises:
            StoreUnavailable: it cannot be written now.
        """
        if self.what == "close":
            return await ledger.close_segment(
                self.machine_uid, self.kind, self.at, up_to=self.ordinal
            )
        begin = ledger.open_segment if self.what == "open" else ledger.resize
        return await begin(
            self.machine_uid,
            kind=self.kind,
            ordinal=self.ordinal,
            org=self.org,
            machine_id=self.machine_id,
            sizes=self.sizes,
            at=self.at,
        )


def of_change(
    old: MachineView | None, new: MachineView | None, *, now: datetime
) -> list[Entry] | None:
    """What one change says that was seen as it happened.

    What has no stamp of its own (deletion, a change of sizes) happened `now`.

    Returns:
        None where something is missing between the two, so that only a look at the ledger can help.
    """
    if old is not None and new is not None and _uid(old) != _uid(new):
        return [*_gone(old, min(now, new.created_at)), *_appeared(new, now)]
    if new is None:
        return _gone(old, now) if old is not None else []
    if old is None:
        return _appeared(new, now)
    awake = _awake_between(old, new, now)
    return None if awake is None else [*awake, *_disk_between(old, new, now)]


def of_look(
    rows: Iterable[Segment], views: Mapping[str, MachineView], *, now: datetime
) -> list[Entry]:
    """What has to be written so that the open segments are those of the machines that there are.

    Segments that do not fit (see `fits`) are left alone.

    Args:
        rows: all open segments.
        views: all machines, by the uid of their object.
        now: time of the look.
    """
    there = {(row.machine_uid, row.kind): row for row in rows}
    entries: list[Entry] = []
    for uid, view in views.items():
        entries += _awake_now(view, there.get((uid, "awake")), now)
        entries += _disk_now(view, there.get((uid, "storage")), now)
    return entries


def fits(row: Segment, view: MachineView | None) -> bool:
    """Whether an open segment can be of the machine as it is known.

    One that does not fit is of a machine that is gone, or another replica knows more than this one; a moment later
    that is clear.
    """
    return view is not None and (row.kind != "awake" or _major(row) <= _transitions(view))


def unseen_end(row: Segment) -> Entry:
    """The end of a segment of which nothing more can be known: it counts for as long as it was seen."""
    return Entry(
        what="close",
        kind=row.kind,
        machine_uid=row.machine_uid,
        org=row.org,
        machine_id=row.machine_id,
        ordinal=row.ordinal,
        at=max(row.began_at, row.seen_at),
        sizes=row.sizes,
    )


# ---- news


def _appeared(view: MachineView, now: datetime) -> list[Entry]:
    entries = []
    if _has_disk(view):
        entries.append(_disk(view, "open", ordinal=_disk_ordinal(view), at=view.created_at))
    if _awake(view):
        entries.append(_time(view, "open", ordinal=_ordinal(view), at=_since(view) or now))
    return entries


def _gone(view: MachineView, at: datetime) -> list[Entry]:
    entries = []
    if _awake(view):
        entries.append(_time(view, "close", ordinal=_EVER, at=at))
    if _has_disk(view):
        entries.append(_disk(view, "close", ordinal=_EVER, at=at))
    return entries


def _awake_between(old: MachineView, new: MachineView, now: datetime) -> list[Entry] | None:
    steps = _transitions(new) - _transitions(old)
    was, is_ = _awake(old), _awake(new)
    if was and is_:
        if steps != 0:
            return None  # asleep in between
        if _power(_sizes(old)) == _power(_sizes(new)):
            return []
        return [_time(new, "resize", ordinal=_ordinal(new, new.version), at=now)]
    if was:
        if steps != 1:
            return None  # when it was left is not told
        return [_time(new, "close", ordinal=_ordinal(old, _NEWEST), at=_since(new) or now)]
    if steps not in (0, 1):
        return None  # it may have been awake in between, of which another replica may have told
    return [_time(new, "open", ordinal=_ordinal(new), at=_since(new) or now)] if is_ else []


def _disk_between(old: MachineView, new: MachineView, now: datetime) -> list[Entry]:
    if not _has_disk(old):
        return []
    if not _has_disk(new):
        return [_disk(new, "close", ordinal=_EVER, at=_since(new) or now)]
    if _gib(new) > _gib(old):
        return [_disk(new, "resize", ordinal=_disk_ordinal(new), at=now)]
    return []


# ---- a look


def _awake_now(view: MachineView, row: Segment | None, now: datetime) -> list[Entry]:
    since = _since(view)
    if row is None:
        # With the version, since this number may be closed already by a replica that took the machine for gone.
        ordinal = _ordinal(view, view.version)
        return [_time(view, "open", ordinal=ordinal, at=since or now)] if _awake(view) else []
    began_with, number = _major(row), _transitions(view)
    if began_with > number:
        return []
    if not _awake(view):
        seen = row.seen_at if since is None else min(row.seen_at, since)
        ended = since if since is not None and began_with + 1 == number else seen
        return [_time(view, "close", ordinal=row.ordinal, at=max(row.began_at, ended))]
    if began_with < number:
        return [_time(view, "open", ordinal=_ordinal(view), at=since or now)]
    if _power(row.sizes) != _power(_sizes(view)):
        return [_time(view, "open", ordinal=_ordinal(view, view.version), at=now)]
    return []


def _disk_now(view: MachineView, row: Segment | None, now: datetime) -> list[Entry]:
    if row is None:
        if not _has_disk(view):
            return []
        # A spec that has changed may have had a smaller disk before.
        untouched = view.machine.metadata.generation <= 1
        ordinal = _disk_ordinal(view, view.version)
        return [_disk(view, "open", ordinal=ordinal, at=view.created_at if untouched else now)]
    if not _has_disk(view):
        ended = _since(view) or row.seen_at  # there is no way back: this is when it was destroyed
        return [_disk(view, "close", ordinal=row.ordinal, at=max(row.began_at, ended))]
    if _gib(view) > row.sizes.storage_gib:
        # When it grew, nobody knows; it had at least the former size until now.
        return [_disk(view, "resize", ordinal=_disk_ordinal(view), at=now)]
    return []


# ---- what a machine's state says


def _uid(view: MachineView) -> str:
    return view.machine.metadata.uid


def _awake(view: MachineView) -> bool:
    # Not view.phase, which calls a machine `destroying` as soon as that is asked for: its VM runs until it is stopped.
    return not view.gone and view.machine.status.phase is Phase.RUNNING


def _has_disk(view: MachineView) -> bool:
    return not view.gone and view.machine.status.phase is not Phase.DESTROYED


def _transitions(view: MachineView) -> int:
    return min(view.machine.status.transitions or 0, _MOST_TRANSITIONS)


def _since(view: MachineView) -> datetime | None:
    return view.machine.status.last_transition_at


def _gib(view: MachineView) -> int:
    return view.machine.spec.storage_gib


def _sizes(view: MachineView) -> Sizes:
    has = view.machine.status.effective or view.machine.spec
    return Sizes(round(has.vcpu * 1000), has.memory_mib, has.storage_gib)


def _power(sizes: Sizes) -> tuple[int, int]:
    """What time awake is counted by; that the disk grows meanwhile begins no new segment."""
    return sizes.vcpu_millis, sizes.memory_mib


def _ordinal(view: MachineView, version: int = 0) -> int:
    return _transitions(view) << _VERSION_BITS | min(version, _NEWEST)


def _disk_ordinal(view: MachineView, version: int = 0) -> int:
    return _gib(view) << _VERSION_BITS | min(version, _NEWEST)


def _major(row: Segment) -> int:
    return row.ordinal >> _VERSION_BITS


def _time(
    view: MachineView, what: Literal["open", "resize", "close"], *, ordinal: int, at: datetime
) -> Entry:
    return _entry(view, what, kind="awake", ordinal=ordinal, at=at, sizes=_sizes(view))


def _disk(
    view: MachineView, what: Literal["open", "resize", "close"], *, ordinal: int, at: datetime
) -> Entry:
    spec = view.machine.spec
    sizes = Sizes(round(spec.vcpu * 1000), spec.memory_mib, spec.storage_gib)
    return _entry(view, what, kind="storage", ordinal=ordinal, at=at, sizes=sizes)


def _entry(
    view: MachineView,
    what: Literal["open", "resize", "close"],
    *,
    kind: SegmentKind,
    ordinal: int,
    at: datetime,
    sizes: Sizes,
) -> Entry:
    return Entry(
        what=what,
        kind=kind,
        machine_uid=_uid(view),
        org=view.org,
        machine_id=PREFIX + view.uuid,
        ordinal=ordinal,
        at=at,
        sizes=sizes,
    )
