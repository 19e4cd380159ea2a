"""Progress: durations, estimates, and a sign of life while the caller is blocked."""

import io
import threading

import pytest
from rich.console import Console

from machine_operator.local.progress import (
    Bar,
    Lines,
    Progress,
    Snapshot,
    StepProgress,
    progress_for,
)


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Recorder:
    """A display that keeps what it was shown."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.notes: list[str] = []
        self.idles = 0
        self.ticked = threading.Event()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)
        if len(self.snapshots) > 2:
            self.ticked.set()

    def idle(self) -> None:
        self.idles += 1


def recording(tick: float = 3600.0) -> tuple[StepProgress, Recorder, Clock]:
    recorder, clock = Recorder(), Clock()
    return StepProgress(recorder, clock=clock, tick=tick), recorder, clock


def test_durations_are_recorded_and_add_up_also_on_failure() -> None:
    progress, recorder, clock = recording()
    for spent in (2.0, 3.0):
        with progress.step("etcd"):
            clock.now += spent

    def fail() -> None:
        clock.now += 1.5
        raise OSError("no")

    with pytest.raises(OSError, match="no"), progress.step("kubectl"):
        fail()
    assert progress.durations == {"etcd": 5.0, "kubectl": 1.5}
    assert recorder.idles == 3


def test_nothing_is_estimated_without_expectations() -> None:
    progress, recorder, _ = recording()
    with progress.step("etcd"):
        pass
    assert recorder.snapshots == [Snapshot(name="etcd", elapsed=0.0, left=None, fraction=0.0)]


def test_estimate_follows_the_pace_of_finished_steps() -> None:
    progress, recorder, clock = recording()
    progress.expect({"a": 40.0, "b": 200.0, "c": 60.0})
    with progress.step("a"):
        clock.now += 4.0  # a tenth of what was expected: the rest will be quick too
    with progress.step("b"):
        clock.now += 20.0
    with progress.step("c"):
        pass
    assert [round(s.left or 0, 3) for s in recorder.snapshots] == [300.0, 26.0, 6.0]
    assert [round(s.fraction, 3) for s in recorder.snapshots] == [0.0, 0.133, 0.8]


def test_overrunning_step_never_gives_a_negative_estimate() -> None:
    progress, recorder, clock = recording()
    progress.expect({"a": 10.0, "b": 5.0})
    with progress.step("a"):
        clock.now += 100.0
        with progress.step("inner"):
            pass
    assert recorder.snapshots[-1] == Snapshot("inner", elapsed=0.0, left=5.0, fraction=10 / 15)


def test_display_moves_while_the_caller_is_blocked_and_stops_afterwards() -> None:
    progress, recorder, _ = recording(tick=0.001)
    with progress.step("silent"):
        assert recorder.ticked.wait(30), f"only {recorder.snapshots} was shown"
    seen = len(recorder.snapshots)
    with progress.step("next"):
        pass
    assert all(s.name == "next" for s in recorder.snapshots[seen:])
    assert recorder.idles == 2


def test_lines_are_few_and_notes_always_come() -> None:
    clock, stream = Clock(), io.StringIO()
    lines = Lines(stream, interval=4.0, clock=clock)
    for second in range(13):
        clock.now = 100.0 + second
        lines.update(Snapshot("etcd", elapsed=second, left=75.0 - second, fraction=0.1))
    lines.note("hello")
    assert stream.getvalue().splitlines() == [
        "etcd: 0 s so far, about 1 min 15 s left in all",
        "etcd: 4 s so far, about 1 min 11 s left in all",
        "etcd: 8 s so far, about 1 min 07 s left in all",
        "etcd: 12 s so far, about 1 min 03 s left in all",
        "hello",
    ]


def test_bar_shows_step_and_time_and_goes_away() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    bar = Bar(console)
    bar.update(Snapshot("kube-apiserver [x]", elapsed=3.0, left=200.0, fraction=0.25))
    bar.note("a [bold]note[/bold]")
    bar.update(Snapshot("kubectl", elapsed=1.0, left=None, fraction=0.0))
    bar.idle()
    bar.idle()
    shown = stream.getvalue()
    assert "kube-apiserver [x]" in shown
    assert "about 3 min 20 s left" in shown
    assert "a [bold]note[/bold]" in shown


def test_a_stream_that_is_no_terminal_gets_lines() -> None:
    stream = io.StringIO()
    progress: Progress = progress_for(stream)
    with progress.step("etcd"):
        progress.note("noted")
    assert stream.getvalue() == "etcd: 0 s so far\nnoted\n"
