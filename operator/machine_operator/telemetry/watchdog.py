"""Sees when the event loop no longer turns: the one failure that the loop cannot report by itself.

The loop leaves a mark each second, and a thread looks at its age. A blocked loop (an endless computation, a blocking
call) leaves none: first all threads' stacks are logged, which show the culprit; later the process ends, and whoever
runs it starts it again. Where the thread itself was held up the whole process was stopped (a debugger, a frozen
container), and the loop gets its time anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType

__all__ = ["STUCK", "Watchdog"]

log = logging.getLogger(__name__)

STUCK = 70
"""The exit status of a process whose loop is stuck: EX_SOFTWARE."""


def _exit() -> None:
    os._exit(STUCK)  # sys.exit would only end this thread


class Finding(Enum):
    """What a look at the loop's mark says."""

    NOTHING_NEW = "nothing new"
    FROZEN = "the whole process was stopped, and not only the loop"
    SLOW = "no turn since `warn` seconds"
    STUCK = "no turn since `limit` seconds"
    RECOVERED = "it turns again"


@dataclass(slots=True)
class Judge:
    """Judges the age of the loop's mark; it says SLOW and STUCK once for each time that the loop is.

    Attributes:
        warn, limit, beat: as for the `Watchdog`.
        told: the worst that was said since the loop last turned.
    """

    warn: float
    limit: float
    beat: float
    told: Finding = Finding.NOTHING_NEW

    def pause(self, *, now: float, mark: float) -> float:
        """Seconds until the next look: many while all is well, and few while it is not."""
        if self.told is Finding.NOTHING_NEW:
            return max(mark + self.warn - now, 0.0)
        if self.told is Finding.SLOW:
            return max(min(mark + self.limit - now, self.beat), 0.0)
        return self.beat

    def look(self, *, now: float, planned: float, mark: float) -> Finding:
        """What there is to say at `now`, in a look that was planned for `planned`."""
        if now - planned > max(self.warn / 2, 0.5):
            return Finding.FROZEN
        age = now - mark
        finding = Finding.NOTHING_NEW
        if age < self.warn:
            finding = Finding.RECOVERED if self.told is not finding else finding
            self.told = Finding.NOTHING_NEW
        elif self.told is Finding.NOTHING_NEW:
            finding = self.told = Finding.SLOW
        elif age >= self.limit and self.told is Finding.SLOW:
            finding = self.told = Finding.STUCK
        return finding


class Watchdog:
    """Watches the running loop as long as its `async with` block runs.

    Args:
        warn: seconds without a turn after which all stacks are logged, once for each time that it is stuck.
        limit: seconds without a turn after which `on_stuck` is called, once for each time.
        on_stuck: called in the watchdog's thread; ends the process with status 70 where not given.
        on_lag: told, each `beat` seconds, how many seconds late the loop came to leave its mark.
        beat: seconds from mark to mark.
        last_words: seconds that the log may take before `on_stuck` is called all the same.
    """

    def __init__(
        self,
        *,
        warn: float = 10.0,
        limit: float = 60.0,
        on_stuck: Callable[[], None] = _exit,
        on_lag: Callable[[float], None] | None = None,
        beat: float = 1.0,
        last_words: float = 2.0,
    ) -> None:
        self._judge, self._beat = Judge(warn=warn, limit=limit, beat=beat), beat
        self._on_stuck, self._on_lag = on_stuck, on_lag
        self._last_words = last_words
        self._mark = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._next: asyncio.TimerHandle | None = None
        self._loop_thread: int | None = None

    async def __aenter__(self) -> Watchdog:
        self._loop_thread = threading.get_ident()
        self._mark = time.monotonic()
        self._plan(asyncio.get_running_loop())
        self._thread.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._next is not None:
            self._next.cancel()
        self._over.set()
        self._thread.join(self._last_words)

    # ---- in the loop

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        due = loop.time() + self._beat
        self._next = loop.call_at(due, self._leave_mark, loop, due)

    def _leave_mark(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._mark = time.monotonic()
        if self._on_lag is not None:
            self._on_lag(max(loop.time() - due, 0.0))
        self._plan(loop)

    # ---- in the thread

    def _watch(self) -> None:
        while True:
            now = time.monotonic()
            pause = self._judge.pause(now=now, mark=self._mark)
            if self._over.wait(pause):
                return
            planned, now = now + pause, time.monotonic()
            age = now - self._mark
            finding = self._judge.look(now=now, planned=planned, mark=self._mark)
            if finding is Finding.FROZEN:
                self._mark = now
            elif finding is Finding.RECOVERED:
                self._say(logging.WARNING, "the event loop turns again")
            elif finding is Finding.SLOW:
                self._say(logging.ERROR, _head(age), stacks=self._stacks())
            elif finding is Finding.STUCK:
                text = f"{_head(age)}: this process cannot go on"
                self._say(logging.CRITICAL, text, wait=self._last_words)
                self._on_stuck()

    def _stacks(self) -> str:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        names[self._loop_thread] = f"{names.get(self._loop_thread)}, the one of the event loop"
        parts = []
        for ident, frame in sys._current_frames().items():
            if ident != self._thread.ident:
                stack = "".join(traceback.format_stack(frame))
                parts.append(f"Thread {names.get(ident, ident)}:\n{stack}")
        return "\n".join(parts)

    def _say(self, level: int, text: str, *, stacks: str | None = None, wait: float = 0.0) -> None:
        """Log from a thread of its own: what blocks the loop may be the log itself, and hold its lock."""
        record = log.makeRecord(log.name, level, __file__, 0, text, (), None, sinfo=stacks)
        if log.isEnabledFor(level):
            speaker = threading.Thread(target=log.handle, args=(record,), daemon=True)
            speaker.start()
            speaker.join(wait)


def _head(age: float) -> str:
    return f"the event loop has not turned for {age:.1f} s"
