"""When the uses of a machine are written down: any sequence of them, against a server that believes what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from machine_operator.gateway.activity.uses import Moment, Pace, Report, UseKind, Uses

START = datetime(2026, 3, 1, 10, 0, 0, tzinfo=UTC)
KINDS = [UseKind.EXECUTION, UseKind.SSH]


def moment(at: float) -> Moment:
    return Moment(at, START + timedelta(seconds=at))


@dataclass
class Story:
    """Time, one machine, and what the server was told; a machine that sleeps is woken by the next use."""

    window: float = 10.0
    lease: float = 60.0
    autosleep: int = 300
    now: float = 0.0
    uses: Uses | None = None
    writes: list[Report] = field(default_factory=list)
    live: list[UseKind] = field(default_factory=list)
    last: float | None = None

    @property
    def pace(self) -> Pace:
        return Pace.of(window=self.window, lease=self.lease, autosleep=self.autosleep)

    def use(self, what: str, kind: UseKind = UseKind.EXECUTION) -> None:
        at = moment(self.now)
        if what == "end" and not self.live:
            return
        if self.uses is None:
            self.uses = Uses(self.pace, at)
        self.last = self.now
        match what:
            case "begin":
                self.uses.begin(kind, at)
                self.live.append(kind)
            case "end":
                self.uses.end(self.live.pop(0), at)
            case "touch":
                self.uses.touch(at)
        self.write()

    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while self.uses is not None:
            due = self.uses.due(self.now)
            at = due if due is not None else self.uses.over_at()
            if at is None or at > until:
                break
            self.now = max(self.now, at)
            self.write()
        self.now = until
        self.check()

    def write(self) -> None:
        """All that is due now."""
        assert self.uses is not None
        due = self.uses.due(self.now)
        if due is not None and due <= self.now:
            report = self.uses.report(moment(self.now))
            if self.last != self.now:  # else this very use is what is told
                self.check()
            self.writes.append(report)
            self.uses.told(report)
            due = self.uses.due(self.now)
            assert due is None or due > self.now, "it would write again at once"
        self.check()
        over = self.uses.over_at()
        if over is not None and over <= self.now:
            self.uses = None

    def sleeps_at(self) -> float:
        """When the controller would put the machine to sleep, by what it has been told."""
        told = self.writes[-1]
        last = max(report.last.at for report in self.writes)
        ends = last if not told.holds else max(last, told.made.at + self.pace.lease)
        return ends + self.autosleep

    def check(self) -> None:
        """What holds at any moment."""
        if self.last is None or not self.writes:
            return
        if self.live:
            assert self.uses is not None
            told = self.writes[-1]
            if self.uses.due(self.now) != self.now:
                assert told.holds
                assert self.now < told.made.at + self.pace.lease
        elif self.autosleep and self.now < self.last + self.autosleep:
            assert self.sleeps_at() > self.now, "asleep before its time"


steps = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "touch"]),
        st.sampled_from(KINDS),
        st.one_of(
            st.floats(0, 1.5),
            st.floats(0, 30),
            st.floats(0, 400),
            st.sampled_from([0.0, 0.5, 1.0, 9.0, 10.0, 40.0, 60.0]),
        ),
    ),
    max_size=40,
)


@given(
    steps,
    st.sampled_from([1.0, 2.0, 10.0, 300.0]),
    st.sampled_from([5.0, 60.0, 3600.0]),
    st.sampled_from([0, 1, 2, 3, 9, 10, 11, 15, 21, 60, 300]),
)
@settings(max_examples=500, deadline=None)
@example([("touch", UseKind.SSH, 11.0), ("touch", UseKind.SSH, 4.5)], 10.0, 60.0, 15)
@example(
    [("touch", UseKind.SSH, s) for s in (0.5, 1.0, 0.0)] + [("begin", UseKind.SSH, 0.0)],
    1.0,
    5.0,
    2,
)
@example([("begin", UseKind.SSH, 0.1), ("end", UseKind.SSH, 0.95)] * 4, 10.0, 60.0, 1)
def test_any_story(
    story: list[tuple[str, UseKind, float]], window: float, lease: float, autosleep: int
) -> None:
    told = Story(window=window, lease=lease, autosleep=autosleep)
    for what, kind, seconds in story:
        told.use(what, kind)
        told.wait(seconds)
    while told.live:
        told.use("end")
    told.wait(2 * told.pace.lease + 2 * window)

    pace, made = told.pace, [report.made.at for report in told.writes]
    for first, third in zip(made, made[2:], strict=False):
        assert third - first >= pace.window - 1e-9, "three writes in a window"
    assert told.uses is None, "it was never forgotten"
    if told.last is None:
        return
    assert told.writes[-1].last.at == told.last
    assert not told.writes[-1].holds
    if autosleep:
        assert told.writes[-1].made.at < told.last + autosleep, "told too late"
        assert told.sleeps_at() == told.last + autosleep


def test_one_use_is_two_writes() -> None:
    story = Story()
    story.use("begin")
    story.wait(3.0)
    story.use("end")
    story.wait(100.0)
    assert [(w.made.at, w.last.at, [*w.holds]) for w in story.writes] == [
        (0.0, 0.0, [UseKind.EXECUTION]),
        (13.0, 3.0, []),
    ]


def test_a_long_use_is_renewed_with_a_third_of_its_lease_left() -> None:
    story = Story()
    story.use("begin", UseKind.SSH)
    story.wait(600.0)
    assert [w.made.at for w in story.writes] == [40.0 * n for n in range(16)]
    assert story.writes[-1].holds == {UseKind.SSH: START}
    assert story.writes[-1].expires_at == START + timedelta(seconds=660)


def test_uses_that_follow_each_other_cost_no_more_than_one_that_lasts() -> None:
    story = Story()
    for _ in range(120):
        story.use("begin")
        story.wait(0.5)
        story.use("end")
        story.wait(4.5)
    assert len(story.writes) <= 16


def test_touches_without_end_are_one_write_in_a_window() -> None:
    story = Story()
    for _ in range(1000):
        story.use("touch")
        story.wait(0.1)
    assert 10 <= len(story.writes) <= 11


def test_touches_after_a_use_do_not_keep_its_end_from_being_told() -> None:
    story = Story(autosleep=30)
    story.use("begin")
    story.wait(1.0)
    story.use("end")
    for _ in range(300):
        story.use("touch")
        story.wait(2.0)
    assert story.writes[-1].last.at > 580.0


def test_fifty_at_once_are_one_hold_that_begins_with_the_first() -> None:
    story = Story()
    for _ in range(50):
        story.use("begin")
        story.wait(0.01)
    for _ in range(49):
        story.use("end")
    story.wait(100.0)
    assert [w.holds for w in story.writes] == [{UseKind.EXECUTION: START}] * 3


def test_a_second_kind_is_shown_at_the_end_of_the_window() -> None:
    story = Story()
    story.use("begin", UseKind.SSH)
    story.wait(2.0)
    story.use("begin", UseKind.EXECUTION)
    story.wait(15.0)
    assert [(w.made.at, [*w.holds]) for w in story.writes] == [
        (0.0, [UseKind.SSH]),
        (10.0, [UseKind.SSH, UseKind.EXECUTION]),
    ]


def test_what_goes_on_without_us_keeps_its_hold_at_the_end() -> None:
    uses = Uses(Pace.of(window=10.0, lease=60.0, autosleep=300), moment(0))
    for kind in UseKind:
        uses.begin(kind, moment(0))
    last = uses.last_report(moment(5))
    assert set(last.holds) == {UseKind.EXECUTION, UseKind.TERMINAL}
    assert last.last == moment(5)


@pytest.mark.parametrize(
    ("autosleep", "window"), [(0, 10.0), (1, 0.25), (2, 0.5), (11, 5.0), (21, 10.0), (300, 10.0)]
)
def test_the_window_is_less_than_half_of_a_short_autosleep(autosleep: int, window: float) -> None:
    pace = Pace.of(window=10.0, lease=5.0, autosleep=autosleep)
    assert pace == Pace(window=window, lease=20.0)
