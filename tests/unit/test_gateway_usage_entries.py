"""Entries of the ledger: what one change says, and when it says too little."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from machine_operator.api.machine import read_machine
from machine_operator.gateway.entries import Entry, fits, of_change, of_look, unseen_end
from machine_operator.gateway.views import MachineView
from machine_operator.store.segments import Segment, SegmentKind, Sizes
from tests.support.machines import UID, machine_object
from tests.support.store import EPOCH

NOW = EPOCH + timedelta(hours=1)
SMALL = {"vcpu": 0.25, "memory_mib": 512, "storage_gib": 10}
LARGE = {"vcpu": 2.5, "memory_mib": 4096, "storage_gib": 10}


def at(minutes: float) -> datetime:
    return EPOCH + timedelta(minutes=minutes)


def view(
    phase: str | None,
    number: int,
    minutes: float = 0.0,
    *,
    version: int = 7,
    uid: str = UID,
    spec: dict[str, Any] | None = None,
    created: float = 0.0,
    **status: Any,
) -> MachineView:
    """In a phase since so many minutes, to which the transition of this number led."""
    told = {"phase": phase, "transitions": number, "last_transition_at": at(minutes), **status}
    obj = machine_object(
        uid=uid, spec=spec, status=told, creationTimestamp=at(created), resourceVersion=str(version)
    )
    return MachineView(read_machine(obj), version)


def row(number: int, *, kind: SegmentKind = "awake", seen: float = 30.0) -> Segment:
    sizes = Sizes(250, 512, 10)
    return Segment(UID, kind, number << 42, "ns", f"dm-{UID}", sizes, at(0), None, at(seen))


def told(entries: list[Entry] | None) -> list[tuple[str, str, datetime]]:
    assert entries is not None
    return [(entry.what, entry.kind, entry.at) for entry in entries]


def test_a_new_machine_has_a_disk_and_may_be_awake() -> None:
    assert told(of_change(None, view(None, 0), now=NOW)) == [("open", "storage", at(0))]
    assert told(of_change(None, view("running", 4, 5), now=NOW)) == [
        ("open", "storage", at(0)),
        ("open", "awake", at(5)),
    ]


def test_time_awake_begins_and_ends_where_the_stamps_say() -> None:
    began = of_change(view("starting", 3, 1), view("running", 4, 5, effective=LARGE), now=NOW)
    ended = of_change(view("running", 4, 5), view("stopping", 5, 9), now=NOW)
    assert told(began) == [("open", "awake", at(5))]
    assert told(ended) == [("close", "awake", at(9))]
    assert began is not None
    assert ended is not None
    assert began[0].sizes == Sizes(2500, 4096, 10)
    assert began[0].ordinal == 4 << 42
    assert 4 << 42 < ended[0].ordinal < 5 << 42, "all segments of this time, and no later ones"


def test_the_sizes_are_the_spec_s_where_none_are_reported() -> None:
    entries = of_change(view("starting", 3), view("running", 4, spec=LARGE), now=NOW)
    assert entries is not None
    assert entries[0].sizes == Sizes(2500, 4096, 10)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("running", 4), ("sleeping", 6)),
        (("running", 4), ("running", 6)),
        (("running", 4), ("sleeping", 4)),
        (("running", 4), ("running", 1)),
        (("sleeping", 6), ("starting", 9)),
        (("sleeping", 6), ("running", 8)),
    ],
)
def test_a_gap_is_for_a_look_to_clear_up(old: tuple[str, int], new: tuple[str, int]) -> None:
    assert of_change(view(*old), view(*new, 9), now=NOW) is None


def test_most_changes_say_nothing() -> None:
    awake = view("running", 4, 5, effective=SMALL)
    for after in (
        view("running", 4, 5, effective=SMALL, version=8, reason="Word"),
        view("running", 4, 5, effective={**SMALL, "storage_gib": 12}, version=8),
        view("running", 4, 5, effective=SMALL, spec={"vcpu": 4}, version=8),
    ):
        assert of_change(awake, after, now=NOW) == []
    assert of_change(view("accepted", 1), view("starting", 2), now=NOW) == []


def test_other_sizes_while_it_runs_begin_another_segment() -> None:
    entries = of_change(
        view("running", 4, 5, effective=SMALL),
        view("running", 4, 5, effective=LARGE, version=99),
        now=NOW,
    )
    assert told(entries) == [("resize", "awake", NOW)]
    assert entries is not None
    assert entries[0].ordinal == 4 << 42 | 99


def test_a_disk_grows_and_is_gone() -> None:
    small, large = view("running", 4), view("running", 4, spec={"storage_gib": 20})
    grown = of_change(small, large, now=NOW)
    assert told(grown) == [("resize", "storage", NOW)]
    assert grown is not None
    assert grown[0].ordinal == 20 << 42
    assert of_change(large, small, now=NOW) == [], "a disk does not shrink"
    ended = of_change(view("destroying", 5), view("destroyed", 6, 50), now=NOW)
    assert told(ended) == [("close", "storage", at(50))]
    assert of_change(view("destroyed", 6, 50), None, now=NOW) == []


def test_a_deleted_machine_uses_nothing_any_more() -> None:
    both = [("close", "awake", NOW), ("close", "storage", NOW)]
    assert told(of_change(view("running", 4), None, now=NOW)) == both
    assert told(of_change(view("destroying", 5), None, now=NOW)) == both[1:]
    assert of_change(None, None, now=NOW) == []


def test_another_machine_of_the_same_name() -> None:
    other = view("running", 1, 42, uid="other", created=40)
    assert told(of_change(view("running", 9), other, now=NOW)) == [
        ("close", "awake", at(40)),
        ("close", "storage", at(40)),
        ("open", "storage", at(40)),
        ("open", "awake", at(42)),
    ]


def test_a_machine_that_is_to_be_destroyed_runs_until_it_is_stopped() -> None:
    machine = machine_object(status={"phase": "running", "transitions": 4}, deletionTimestamp=NOW)
    view_ = MachineView(read_machine(machine), 8)
    assert view_.phase == "destroying"
    assert of_change(view("running", 4), view_, now=NOW) == []


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (view("sleeping", 5, 40), [("close", "awake", at(40))]),  # one transition: its stamp counts
        (view("sleeping", 6, 40), [("close", "awake", at(30))]),  # more: until it was seen
        (view("sleeping", 6, 20), [("close", "awake", at(20))]),  # but not longer than possible
        (view("running", 6, 40), [("open", "awake", at(40))]),
        (view("running", 4, 0, effective=SMALL), []),
        (view("running", 4, 0, effective=LARGE), [("open", "awake", NOW)]),
        (view("sleeping", 3, 40), []),  # another replica knows more
        (view("sleeping", 4, 40), [("close", "awake", at(30))]),  # what the status says cannot be
    ],
)
def test_a_look_at_time_awake(now: MachineView, expected: list[Any]) -> None:
    disk = row(10, kind="storage")
    assert told(of_look([row(4), disk], {UID: now}, now=NOW)) == expected


def test_a_look_at_disks() -> None:
    for there, expected in (
        (view("destroyed", 4, 40), [("close", "storage", at(40))]),
        (view("sleeping", 4, spec={"storage_gib": 20}), [("resize", "storage", NOW)]),
        (view("sleeping", 4), []),
    ):
        assert told(of_look([row(10, kind="storage")], {UID: there}, now=NOW)) == expected
    assert told(of_look([], {UID: view("sleeping", 4)}, now=NOW)) == [("open", "storage", at(0))]


def test_a_disk_that_may_have_been_smaller_counts_from_now_on() -> None:
    changed = machine_object(generation=2, creationTimestamp=at(0), status={"phase": "sleeping"})
    views = {UID: MachineView(read_machine(changed), 7)}
    assert told(of_look([], views, now=NOW)) == [("open", "storage", NOW)]


def test_what_fits_no_machine_ends_when_it_was_seen() -> None:
    assert fits(row(4), view("sleeping", 4))
    assert not fits(row(5), view("sleeping", 4))
    assert fits(row(5, kind="storage"), view("sleeping", 4))
    assert not fits(row(4), None)
    end = unseen_end(row(4))
    assert (end.what, end.at, end.ordinal) == ("close", at(30), 4 << 42)
