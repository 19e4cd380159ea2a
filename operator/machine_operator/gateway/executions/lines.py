"""Who runs, and who waits: a line of executions before each machine, and a fair choice between machines.

A machine runs so many at once; the rest wait in their order, up to a bound. All machines together run so many at once
too: when one of those ends, the next machine in turn begins one. Only ids are kept here, so waiting costs little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Line", "LineFull", "Lines"]


class LineFull(Exception):
    """So many executions wait for this machine that no more may."""


@dataclass(slots=True)
class Line:
    """The executions of one machine.

    Attributes:
        running: what runs, or is about to.
        waiting: what waits, in order, and since when.
        coming: what will wait once it is in the store.
        open: whether the machine is ready for them.
    """

    running: set[str] = field(default_factory=set)
    waiting: dict[str, float] = field(default_factory=dict)
    coming: set[str] = field(default_factory=set)
    open: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.running or self.waiting or self.coming)


class Lines:
    """All lines.

    Args:
        at_once: executions that run at once, per machine.
        queue: executions that may wait, per machine.
        most: executions that run at once on all machines.
        start: called for each whose turn it is, with machine and id; it must not raise.
        clock: seconds, for how long something has waited.
    """

    def __init__(
        self,
        *,
        at_once: int,
        queue: int,
        most: int,
        start: Callable[[str, str], None],
        clock: Callable[[], float],
    ) -> None:
        self._at_once = at_once
        self._queue = queue
        self._most = most
        self._start = start
        self._clock = clock
        self._lines: dict[str, Line] = {}
        self._running = 0
        self._turns: dict[str, None] = {}

    def __getitem__(self, machine: str) -> Line:
        return self._lines.get(machine) or Line()

    @property
    def machines(self) -> list[str]:
        """Machines that have a line."""
        return list(self._lines)

    @property
    def active(self) -> int:
        """How many run or wait."""
        return sum(len(line.running) + len(line.waiting) for line in self._lines.values())

    def promise(self, machine: str, id: str, *, ready: bool) -> bool:
        """Keep a place for one that is about to be put in the store: True for one where it runs at once.

        A promise of True is followed by `drop`, in the end; one of False by `wait`, `adopt` or `drop`.

        Raises:
            LineFull: there is none.
        """
        line = self._lines.setdefault(machine, Line())
        if ready:
            line.open = True
            if not line.waiting and self._room(line):
                self._occupy(line, id)
                return True
        if len(line.waiting) + len(line.coming) >= self._queue:
            self._tidy(machine)
            raise LineFull
        line.coming.add(id)
        return False

    def wait(self, machine: str, id: str) -> None:
        """One that is in the store waits from now on; unless it is here already."""
        line = self._lines.setdefault(machine, Line())
        line.coming.discard(id)
        if id not in line.running:
            line.waiting.setdefault(id, self._clock())
        self._pump(machine)

    def adopt(self, machine: str, id: str) -> None:
        """One runs already, or is to be ended: it takes a place, be there one or not."""
        line = self._lines.setdefault(machine, Line())
        line.waiting.pop(id, None)
        line.coming.discard(id)
        if id not in line.running:
            self._occupy(line, id)

    def drop(self, machine: str, id: str) -> None:
        """One has ended, or does not come after all: the next one may begin."""
        line = self._lines.get(machine)
        if line is None:
            return
        line.waiting.pop(id, None)
        line.coming.discard(id)
        if id in line.running:
            line.running.discard(id)
            self._running -= 1
        if line.open and line.waiting:
            self._turns.setdefault(machine)  # behind those that have waited for their turn
        self._tidy(machine)
        self._next_turns()

    def open(self, machine: str) -> None:
        """The machine is ready."""
        if machine in self._lines:
            self._lines[machine].open = True
            self._pump(machine)

    def close(self, machine: str) -> None:
        """The machine is not ready: nothing more begins."""
        if machine in self._lines:
            self._lines[machine].open = False
            self._turns.pop(machine, None)

    def _room(self, line: Line) -> bool:
        return len(line.running) < self._at_once and self._running < self._most

    def _pump(self, machine: str) -> None:
        line = self._lines[machine]
        while line.open and line.waiting and len(line.running) < self._at_once:
            if self._running >= self._most:
                self._turns.setdefault(machine)
                return
            self._begin(machine, line)

    def _next_turns(self) -> None:
        while self._turns and self._running < self._most:
            machine = next(iter(self._turns))
            del self._turns[machine]
            line = self._lines.get(machine)
            if line is None or not (line.open and line.waiting and self._room(line)):
                continue
            self._begin(machine, line)
            if line.waiting and len(line.running) < self._at_once:
                self._turns.setdefault(machine)

    def _begin(self, machine: str, line: Line) -> None:
        id = next(iter(line.waiting))
        del line.waiting[id]
        self._occupy(line, id)
        self._start(machine, id)

    def _occupy(self, line: Line, id: str) -> None:
        line.running.add(id)
        self._running += 1

    def _tidy(self, machine: str) -> None:
        line = self._lines.get(machine)
        if line is not None and line.empty:
            del self._lines[machine]
            self._turns.pop(machine, None)
