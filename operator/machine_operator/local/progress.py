"""Telling people what is going on while a long step says nothing itself.

Work is divided into named steps. While any step is open, a ticker thread moves the
display, whatever the caller's own thread is blocked on. What is left is estimated
from the expected seconds of the steps, scaled by how fast the finished ones went
compared with what was expected of them (a warm build takes a tenth of a cold one).
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as RichBar

__all__ = ["Bar", "Lines", "Progress", "Snapshot", "StepProgress", "progress_for"]

_TICK_SECONDS = 1.0


class Progress(Protocol):
    """What code with long steps reports to."""

    durations: dict[str, float]
    """Seconds by finished step, failed ones included; a repeated name adds up."""

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Announce steps to come and how many seconds each takes at worst."""

    def step(self, name: str) -> AbstractContextManager[None]:
        """Show `name` as being worked on for the length of the block."""

    def note(self, text: str) -> None:
        """Say one thing once."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a display draws. Times are in seconds."""

    name: str
    elapsed: float
    left: float | None
    """Of everything announced; None while nothing is known about what is to come."""
    fraction: float


class Display(Protocol):
    """Where progress is shown. Called from several threads, one at a time."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def update(self, snapshot: Snapshot) -> None:
        """Show where things are; called about each second and when a step begins."""

    def idle(self) -> None:
        """Put away what moves: no step is open."""


class StepProgress:
    """Progress over a display. Steps may nest and may overlap between threads."""

    def __init__(
        self,
        display: Display,
        *,
        clock: Callable[[], float] = time.monotonic,
        tick: float = _TICK_SECONDS,
    ) -> None:
        self.durations: dict[str, float] = {}
        self._display = display
        self._clock = clock
        self._tick = tick
        self._expected: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []
        self._lock = threading.Lock()
        self._stop: threading.Event | None = None

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Announce steps to come and how many seconds each takes at worst."""
        with self._lock:
            self._expected.update(seconds)

    def note(self, text: str) -> None:
        """Say one thing once."""
        with self._lock:
            self._display.note(text)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Show `name` as being worked on, and record its duration at the end."""
        entry = (name, self._clock())
        with self._lock:
            self._open.append(entry)
            self._display.update(self._snapshot())
            if self._stop is None:
                self._stop = threading.Event()
                threading.Thread(
                    target=self._run_ticker, args=(self._stop,), name="progress", daemon=True
                ).start()
        try:
            yield
        finally:
            with self._lock:
                self._open.remove(entry)
                spent = self._clock() - entry[1]
                self.durations[name] = self.durations.get(name, 0.0) + spent
                if not self._open:
                    self._stop.set()
                    self._stop = None
                    self._display.idle()

    def _run_ticker(self, stop: threading.Event) -> None:
        while not stop.wait(self._tick):
            with self._lock:
                # The last step may have ended between the wait and the lock.
                if not stop.is_set():
                    self._display.update(self._snapshot())

    def _snapshot(self) -> Snapshot:
        name, started = self._open[-1]
        now = self._clock()
        done = {step: self._expected[step] for step in self.durations if step in self._expected}
        planned = sum(done.values())
        # The pace is only trusted once some work was done to measure it by.
        pace = sum(self.durations[step] for step in done) / planned if planned else 1.0
        open_since = dict(self._open)
        left = spent = 0.0
        for step, seconds in self._expected.items():
            if step in open_since:
                left += max(0.0, seconds * pace - (now - open_since[step]))
                spent += min(seconds * pace, now - open_since[step])
            elif step in done:
                spent += seconds * pace
            else:
                left += seconds * pace
        return Snapshot(
            name=name,
            elapsed=now - started,
            left=left if self._expected else None,
            fraction=spent / (spent + left) if spent + left > 0 else 0.0,
        )


class Lines:
    """Plain lines, for logs: one every `interval` seconds at most, notes apart."""

    def __init__(
        self,
        stream: TextIO,
        *,
        interval: float = 4.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._said_at = float("-inf")

    def note(self, text: str) -> None:
        """Write the text at once."""
        self._write(text)

    def update(self, snapshot: Snapshot) -> None:
        """Write a line, unless one was written just now."""
        if self._clock() - self._said_at >= self._interval:
            self._write(f"{snapshot.name}: {_spell(snapshot)}")
            self._said_at = self._clock()

    def idle(self) -> None:
        """Nothing moves here."""

    def _write(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class Bar:
    """A live bar on a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: RichBar | None = None

    def note(self, text: str) -> None:
        """Print the text above the bar."""
        self._console.print(text, markup=False, highlight=False)

    def update(self, snapshot: Snapshot) -> None:
        """Move the bar, showing it if it is not there."""
        if self._bar is None:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[spelled]}", markup=False),
            )
            self._bar = RichBar(*columns, console=self._console, transient=True)
            self._bar.add_task(snapshot.name, total=1.0, spelled="")
        [task] = self._bar.task_ids
        self._bar.update(
            task,
            description=snapshot.name,
            # A bar that pulses says "no idea how much is left" better than an empty one.
            total=1.0 if snapshot.left is not None else None,
            completed=snapshot.fraction,
            spelled=_spell(snapshot),
        )
        self._bar.start()  # after the update, so that it starts with content; idempotent

    def idle(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress_for(stream: TextIO) -> StepProgress:
    """A bar where `stream` is a terminal, plain lines elsewhere."""
    if stream.isatty():
        return StepProgress(Bar(Console(file=stream)))
    return StepProgress(Lines(stream))


def _spell(snapshot: Snapshot) -> str:
    text = f"{_duration(snapshot.elapsed)} so far"
    if snapshot.left is not None and snapshot.left >= 1:
        text += f", about {_duration(snapshot.left)} left in all"
    return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
