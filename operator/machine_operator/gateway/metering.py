"""Metering: writes into the ledger when machines are awake and which disks they have, from what the gateway sees.

    Machines ─ news ─> entries, in memory ─ once a second ─> ledger
             ─ a look at all, at the start and after each gap ─┘

News counts while there is contact to the API server. Of a time without it (the start is the end of such a time) only
the outcome is known, so what is there now is compared with the segments that the ledger has open: that is a look.
**Time that nobody saw is not charged**: a segment whose machine is found asleep, or gone, ends when somebody last saw
it; unless exactly one transition lies between, whose stamp says when it was. Once a minute every segment that is still
open is marked as seen.

While the store is away entries wait, with their times. Every replica does all of this: the ledger counts it once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from machine_operator.gateway.entries import Entry, fits, of_change, of_look, unseen_end
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.views import MachineView
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.moments import utc_now
from machine_operator.store.segments import Segment

__all__ = ["Metering"]

log = logging.getLogger(__name__)

_ROUND: Final = 1.0
_LAST_ROUND: Final = 2.0
_HEARTBEAT: Final = timedelta(minutes=1)
_LOOK: Final = timedelta(hours=1)
_PRUNING: Final = timedelta(days=1)
_SETTLE: Final = timedelta(seconds=5)
"""How long replicas may differ in what they know. A watch is some milliseconds behind."""
_MOST_WAITING: Final = 50_000
"""Entries that wait for the store: some 20 MB."""


class Metering:
    """Keeps the ledger.

    Args:
        machines: whose changes are heard of from now on.
        ledger: where to write; other replicas may do so as well.
        clock: tells the time, with a zone.
        keep: for how long ended segments are kept; None for ever.
        most_waiting: entries that may wait for the store. With more than that, what happens is not noted until the
            store is back, as in a time without contact.
    """

    def __init__(
        self,
        machines: Machines,
        ledger: UsageLedger,
        *,
        clock: Callable[[], datetime] = utc_now,
        keep: timedelta | None = timedelta(days=800),
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._machines = machines
        self._ledger = ledger
        self._clock = clock
        self._keep = keep
        self._most_waiting = most_waiting
        self._waiting: dict[str, deque[Entry]] = {}
        self._count = 0
        self._blind = True
        """News is ignored until the next look."""
        self._doubt = False
        """Some news had a gap; a look will tell."""
        self._suspects: dict[tuple[str, str, int], Segment] = {}
        """Open segments that fitted no machine at the last look."""
        self._looked_at: datetime | None = None
        self._touched_at: datetime | None = None
        self._pruned_at: datetime | None = None
        self._down = False
        machines.observers.append(self._changed)

    @property
    def waiting(self) -> int:
        """How many entries wait to be written."""
        return self._count

    async def run(self) -> None:
        """Make rounds until cancelled; what is known then is still written, if the store is there."""
        try:
            while True:
                await self.round()
                await asyncio.sleep(_ROUND)
        except asyncio.CancelledError:
            self._touched_at = None
            try:
                async with asyncio.timeout(_LAST_ROUND):
                    await self.round()
            except TimeoutError:
                log.warning("the last %d entries of use were not written in time", self._count)
            raise

    async def round(self) -> None:
        """Write what waits, look where that is due, and mark what goes on as seen."""
        try:
            await self._round(self._clock())
        except StoreUnavailable as error:
            if not self._down:
                log.warning("use is not recorded for now, entries wait: %s", error)
            self._down = True
            return
        if self._down:
            log.info("use is recorded again")
        self._down = False

    async def _round(self, now: datetime) -> None:
        informer = self._machines.informer
        contact = informer.synced.is_set() and informer.position > 0 and informer.behind == 0.0
        if not contact:
            self._blind = True
        await self._flush()
        if not contact:
            return
        if self._suspects and _due(now, self._looked_at, _SETTLE):
            self._judge()
        if self._look_is_due(now):
            await self._look()
        await self._flush()
        settled = not (self._blind or self._doubt or self._suspects)
        if settled and _due(now, self._touched_at, _HEARTBEAT):
            await self._ledger.touch(now)
            self._touched_at = now
        if self._keep is not None and _due(now, self._pruned_at, _PRUNING):
            self._pruned_at = now
            await self._ledger.prune(now - self._keep)

    # ---- news

    def _changed(self, old: MachineView | None, new: MachineView | None) -> None:
        if self._machines.informer.position == 0:
            # This comes from a list, which tells what there is, and not what happened when.
            self._blind = True
        if self._blind:
            return
        entries = of_change(old, new, now=self._clock())
        if entries is None:
            self._doubt = True
            return
        if self._count + len(entries) > self._most_waiting:
            log.warning("%d entries of use wait for the store: no more are taken", self._count)
            self._blind = True
            return
        self._put(entries)

    def _put(self, entries: list[Entry]) -> None:
        for entry in entries:
            self._waiting.setdefault(entry.machine_uid, deque()).append(entry)
        self._count += len(entries)

    async def _flush(self) -> None:
        """Write what waits, of each machine in order. What cannot be written goes on waiting."""
        while self._waiting:
            uid, entries = next(iter(self._waiting.items()))
            while entries:
                await entries[0].write(self._ledger)
                entries.popleft()
                self._count -= 1
            del self._waiting[uid]

    # ---- looks

    def _look_is_due(self, now: datetime) -> bool:
        if self._blind:
            return True
        return _due(now, self._looked_at, _SETTLE if self._doubt else _LOOK)

    async def _look(self) -> None:
        """Compare the segments that are open with the machines that there are."""
        blind, doubt = self._blind, self._doubt
        self._blind = self._doubt = False  # what is heard from here on is noted again
        try:
            rows = await self._ledger.open_segments()
        except StoreUnavailable:
            self._blind, self._doubt = self._blind or blind, self._doubt or doubt
            raise
        views, now = self._views(), self._clock()
        self._put(of_look(rows, views, now=now))
        unfit = {
            (row.machine_uid, row.kind, row.ordinal): row
            for row in rows
            if not fits(row, views.get(row.machine_uid))
        }
        # When a suspect was seen last is told by the first look: others may go on marking it as seen.
        self._suspects = {key: self._suspects.get(key, row) for key, row in unfit.items()}
        self._looked_at = now

    def _judge(self) -> None:
        """End the segments that still fit no machine, though every replica must know by now what there is."""
        views = self._views()
        for row in self._suspects.values():
            if fits(row, views.get(row.machine_uid)):
                self._doubt = True
            else:
                self._put([unseen_end(row)])
        self._suspects = {}

    def _views(self) -> dict[str, MachineView]:
        return {view.machine.metadata.uid: view for view in self._machines}


def _due(now: datetime, last: datetime | None, wait: timedelta) -> bool:
    return last is None or now >= last + wait
