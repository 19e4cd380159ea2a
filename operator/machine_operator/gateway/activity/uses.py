"""The uses of one machine through this replica: when something has to be written down about them, and what.

What the API server was last told is remembered, and everything follows from the difference:

- a use that no told hold covers is told at once;
- a hold is renewed when a third of its lease is left;
- holds that have ended are taken away, with the true end of the last use, once nothing has used the machine for a
  window: so uses that follow each other closely cost no more than one that lasts;
- a use that was over at once is told at once if none was told of late, else together with those that follow.

So at most two writes lie within any window, and what is told is at most a window old. A use may wait for a window more:
it must be known before the idle clock of the one before it runs out. That is why the window of a machine whose
autosleep is very short is a little less than half of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NamedTuple

__all__ = ["Moment", "Pace", "Report", "UseKind", "Uses"]

_MARGIN: Final = 1.0
"""Seconds before autosleep would be due by which the end of the last use is told, unless autosleep is shorter."""


class UseKind(StrEnum):
    """What somebody does with a machine; the kind of the hold."""

    EXECUTION = "execution"
    TERMINAL = "terminal"
    SSH = "ssh"
    PREVIEW = "preview"

    @property
    def survives(self) -> bool:
        """Whether it goes on in the guest without this process, for another one to take over."""
        return self in (UseKind.EXECUTION, UseKind.TERMINAL)


class Moment(NamedTuple):
    """One moment on two clocks: the loop's for what is due, the wall's for what is written."""

    at: float
    stamp: datetime


@dataclass(frozen=True, slots=True)
class Pace:
    """How often, in seconds; see the module.

    Attributes:
        window: no more than two writes in it.
        lease: for how long a hold lives that is not renewed.
    """

    window: float
    lease: float

    @classmethod
    def of(cls, *, window: float, lease: float, autosleep: int) -> Pace:
        """For a machine with so many seconds of autosleep (0: never)."""
        # A renewal must not come before the window is over.
        lease = max(lease, 2 * window)
        if autosleep:
            window = min(window, (autosleep - min(_MARGIN, autosleep / 2)) / 2)
        return cls(window, lease)

    @property
    def renewal(self) -> float:
        """After so many seconds a hold is renewed."""
        return self.lease * 2 / 3


@dataclass(frozen=True, slots=True)
class Report:
    """What is to be told, or has been.

    Attributes:
        made: when it was put together.
        expires_at: when its holds end.
        holds: since when there is use of each kind.
        last: the last moment of use.
        begun: the beginning of the newest use.
    """

    made: Moment
    expires_at: datetime
    holds: Mapping[UseKind, datetime]
    last: Moment
    begun: Moment


@dataclass(slots=True)
class _Live:
    since: datetime
    count: int = 1


class Uses:
    """See the module. One use has happened when there is something to ask.

    Attributes:
        pace: may change at any time.
    """

    __slots__ = ("_begun", "_heard", "_last", "_live", "_told", "pace")

    def __init__(self, pace: Pace, now: Moment) -> None:
        self.pace = pace
        self._live: dict[UseKind, _Live] = {}
        self._last = self._begun = now
        self._told: Report | None = None
        self._heard = -math.inf

    # ---- what happens

    def begin(self, kind: UseKind, now: Moment) -> bool:
        """A use begins; whether it is the first of its kind."""
        self._last = self._begun = now
        there = self._live.get(kind)
        if there is not None:
            there.count += 1
            return False
        self._live[kind] = _Live(now.stamp)
        return True

    def end(self, kind: UseKind, now: Moment) -> bool:
        """A use ends; whether it was the last of its kind."""
        self._last = now
        there = self._live[kind]
        there.count -= 1
        if there.count:
            return False
        del self._live[kind]
        return True

    def touch(self, now: Moment) -> bool:
        """A use has come and gone; whether it is the first that has not been told."""
        first = self._told is None or self._told.last.at >= self._last.at
        self._last = self._begun = now
        return first

    # ---- what follows

    @property
    def live(self) -> bool:
        """Whether anything is under way."""
        return bool(self._live)

    @property
    def holding(self) -> bool:
        """Whether the API server may have a hold of ours."""
        return self._told is not None and bool(self._told.holds)

    @property
    def unheard(self) -> bool:
        """Whether a use has begun that nobody was told of in any way."""
        return self._begun.at > self._heard

    @property
    def begun(self) -> datetime:
        """The beginning of the newest use."""
        return self._begun.stamp

    def covered(self, now: float) -> bool:
        """Whether a told hold keeps the machine awake now."""
        told = self._told
        return told is not None and bool(told.holds) and now < told.made.at + self.pace.lease

    def due(self, now: float) -> float | None:
        """When something has to be written, on the loop's clock; None where nothing has."""
        told, pace = self._told, self.pace
        if told is None:
            return now
        folded = told.made.at + pace.window
        if self._live:
            if not self.covered(now):
                return now
            if self._live.keys() - told.holds.keys():
                return folded
            return told.made.at + pace.renewal
        if told.holds:
            quiet = max(folded, self._last.at + pace.window)
            return min(quiet, told.made.at + pace.lease)
        return None if told.last.at >= self._last.at else folded

    def over_at(self) -> float | None:
        """When all this can be forgotten, on the loop's clock; None: not yet."""
        told = self._told
        if told is None or told.holds or self._live or told.last.at < self._last.at:
            return None
        return told.made.at + self.pace.window

    def report(self, now: Moment) -> Report:
        """What is the case."""
        holds = {kind: live.since for kind, live in self._live.items()}
        expires_at = now.stamp + timedelta(seconds=self.pace.lease)
        return Report(now, expires_at, holds, now if holds else self._last, self._begun)

    def last_report(self, now: Moment) -> Report:
        """What is to be told when this process ends: what goes on without it is left to whoever takes it over."""
        whole = self.report(now)
        kept = {kind: since for kind, since in whole.holds.items() if kind.survives}
        return replace(whole, holds=kept)

    def told(self, report: Report) -> None:
        """The API server has this."""
        self._told = report
        self._heard = max(self._heard, report.begun.at)

    def heard(self) -> None:
        """Somebody cares for the uses that have begun until now."""
        self._heard = self._begun.at
