"""Events: the story that `kubectl describe` tells about an object, told once and then counted.

    note ──> known within the hour? ──no──> a new series ──> to write ──> POST
                    └──yes──> count it ──> to write when `QUIET` seconds have passed since the last write ──> PATCH

`note` only remembers; one task writes, one request at a time, so Events never compete with real work. What cannot be
written is retried for some minutes and then given up: an Event is a courtesy, and its loss stops nothing.

They are written as core/v1 and not as events.k8s.io/v1, though both are the same objects to the API server:
`kubectl describe` sorts by `lastTimestamp`, which the newer API leaves empty, so ours would stand before everybody
else's and in no order. `count` with first and last time is what `describe` shows as "x7 over 2h" and `get events`
as LAST SEEN. The fields `action`, `reportingComponent` and `reportingInstance` of the newer API are set as well.

RBAC: create and patch on `events` of the core group, in all namespaces.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import AlreadyExists, Forbidden, KubeError, NotFound
from machine_operator.kube.resources import EVENTS
from machine_operator.kube.series import KNOWN, Kind, Memory, ObjectRef, Series, Source, cut

__all__ = ["EventRecorder", "ObjectRef", "Tally"]

log = logging.getLogger(__name__)

QUIET = 300.0
"""Seconds between two writes about the same thing."""

WAITING = 1024
"""Series that wait for their first write or for the next one now."""

TRIES = 30
"""Writes of one Event: with pauses up to half a minute they outlast an API server that is away for ten minutes."""

LAST_WORDS = 2.0
"""Seconds at the end of the process for what is not written yet."""

_LONGEST_PAUSE = 30.0


@dataclass(slots=True)
class Tally:
    """What became of the Events, for metrics. All of them only grow.

    Attributes:
        noted: calls of `note`.
        created, counted: writes that made an Event, and that raised the count of one.
        limited: new Events that an object with too many of them was not granted.
        overflowed: Events that gave way because too many waited.
        refused: Events that the API server did not take, such as in a namespace that is going away.
        given_up: Events that could not be written for minutes.
    """

    noted: int = 0
    created: int = 0
    counted: int = 0
    limited: int = 0
    overflowed: int = 0
    refused: int = 0
    given_up: int = 0


def _utc_now() -> datetime:
    return datetime.now(UTC)


class EventRecorder:
    """Takes notes from anywhere in the loop's thread, and writes them as long as `run` runs.

    Args:
        client: where they are written.
        component: named as the source, such as `machine-operator`.
        instance: which process of the component.
        clock: monotonic seconds.
        now: the wall clock, for the times that people see.
        jitter: a number between 0 and 1.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        component: str,
        instance: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._source = Source(component, instance[:128])
        self._clock, self._now, self._jitter = clock, now, jitter
        self._memory = Memory()
        self._ready: deque[Series] = deque()
        self._later: dict[str, tuple[float, Series]] = {}
        self._news = asyncio.Event()
        self._failures = 0
        self.tally = Tally()

    def note(
        self, regarding: ObjectRef, *, type: Kind, reason: str, message: str, action: str
    ) -> None:
        """Say something about an object. Returns at once, and never raises.

        Args:
            regarding: the object. The Event goes to its namespace.
            type: Warning where somebody may have to act.
            reason: why, as one CamelCase word.
            message: a sentence for people; cut at 1024 bytes. The same sentence again is counted, so it should not
                contain numbers that always differ.
            action: what was done or tried, as one CamelCase word.
        """
        try:
            self._note(regarding, type, reason, cut(message), action)
        except Exception:
            # Whatever is wrong with an Event, the work that it is about goes on.
            log.exception("event %s about %s: an error that is ours", reason, regarding)

    def _note(
        self, regarding: ObjectRef, kind: Kind, reason: str, message: str, action: str, /
    ) -> None:
        now, moment = self._clock(), self._now()
        self.tally.noted += 1
        series = self._memory.find((regarding.uid, kind, reason, message), now=now)
        if series is not None:
            series.count += 1
            series.last, series.seen_at = moment, now
            if not series.waiting:
                self._write_at(series, series.wrote_at + QUIET)
            return
        if not self._memory.spend(regarding.uid, now=now):
            self.tally.limited += 1
            log.debug("event %s about %s: it has had too many", reason, regarding)
            return
        series = Series(
            regarding=regarding,
            type=kind,
            reason=reason,
            message=message,
            action=action,
            source=self._source,
            first=moment,
            last=moment,
            seen_at=now,
        )
        self._memory.keep(series)
        self._write_at(series, now)

    # ---- what waits

    def _write_at(self, series: Series, due: float) -> None:
        series.waiting = True
        if due <= self._clock():
            self._ready.append(series)
            if len(self._ready) > WAITING:
                self._overflow(self._ready.popleft())
        else:
            self._later[series.name] = (due, series)
            if len(self._later) > KNOWN:
                self._overflow(self._later.pop(next(iter(self._later)))[1])
        self._news.set()

    def _overflow(self, series: Series) -> None:
        self.tally.overflowed += 1
        series.waiting = False

    async def run(self) -> None:
        """Write until cancelled; then what is left, for as long as `LAST_WORDS`."""
        try:
            while True:
                await self._wait()
                await self._write_next()
        finally:
            await self._finish()

    async def _wait(self) -> None:
        """Until something is to be written now."""
        while True:
            self._move_due()
            if self._ready:
                return
            self._news.clear()
            pause = None
            if self._later:
                pause = max(0.0, min(due for due, _ in self._later.values()) - self._clock())
            try:
                async with asyncio.timeout(pause):
                    await self._news.wait()
            except TimeoutError:
                continue  # something is due

    def _move_due(self) -> None:
        now = self._clock()
        for due, series in list(self._later.values()):
            if due > now:
                continue
            del self._later[series.name]
            granted = self._memory.spend(series.regarding.uid, now=now)
            # Without budget it goes on being counted.
            self._write_at(series, now if granted else now + QUIET)

    async def _finish(self) -> None:
        self._ready.extend(series for _, series in self._later.values())
        self._later.clear()
        try:
            async with asyncio.timeout(LAST_WORDS):
                while self._ready:
                    await self._write(self._ready[0])
                    self._ready.popleft()
        except (KubeError, TimeoutError) as error:
            log.info("%d events are not written at the end: %r", len(self._ready), error)

    # ---- writing

    async def _write_next(self) -> None:
        series = self._ready.popleft()
        try:
            await self._write(series)
        except asyncio.CancelledError:
            self._ready.appendleft(series)
            raise
        except KubeError as error:
            await self._failed(series, error)
        else:
            self._failures = series.failures = 0

    async def _write(self, series: Series) -> None:
        """One write that says all that is known.

        Raises:
            KubeError: it may work later.
        """
        try:
            if series.written:
                await self._raise_count(series)
            else:
                await self._create(series)
        except (Forbidden, NotFound) as error:
            self._refused(series, error)
        except KubeError as error:
            if error.retryable:
                raise
            self._refused(series, error)
        self._settled(series)

    def _settled(self, series: Series) -> None:
        series.wrote_at, series.waiting = self._clock(), False
        if series.count > series.written > 0:  # more came while this was under way
            self._write_at(series, series.wrote_at + QUIET)

    async def _create(self, series: Series) -> None:
        count = series.count
        try:
            await self._client.create(EVENTS, series.body(), namespace=series.namespace)
        except AlreadyExists:
            # An earlier try arrived, and its answer did not; it may have said less.
            await self._patch(series)
            return
        self.tally.created += 1
        series.written = count

    async def _raise_count(self, series: Series) -> None:
        try:
            await self._patch(series)
        except NotFound:
            series.start_again()
            await self._create(series)

    async def _patch(self, series: Series) -> None:
        count = series.count
        await self._client.merge_patch(
            EVENTS, series.name, series.growth(), namespace=series.namespace
        )
        self.tally.counted += 1
        series.written = count

    def _refused(self, series: Series, error: KubeError) -> None:
        self.tally.refused += 1
        log.debug("event %s about %s: %s", series.reason, series.regarding, error)

    async def _failed(self, series: Series, error: KubeError) -> None:
        """Behind the others with it, and a pause: most likely the API server is away, for all of them."""
        series.failures += 1
        self._failures += 1
        if series.failures < TRIES:
            self._write_at(series, self._clock())
        else:
            self.tally.given_up += 1
            series.failures = 0
            log.info("event %s about %s: given up: %s", series.reason, series.regarding, error)
            self._settled(series)
        pause = min(2.0 ** min(self._failures - 1, 10), _LONGEST_PAUSE)
        pause *= 1.0 - 0.2 * self._jitter()
        await asyncio.sleep(max(pause, min(error.retry_after or 0.0, _LONGEST_PAUSE)))
