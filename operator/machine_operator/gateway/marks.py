"""Read your writes, on any replica: before a read is answered, this replica has seen what all others had written.

A change is answered only after its organisation's mark was raised to the version that it wrote (in the same
transaction as its idempotency record). A read looks at the mark and waits for the cache to get there. Reads that come
together share one look, which begins after the last of them came. With a single replica there is nothing to wait for.
"""

from __future__ import annotations

import asyncio
import logging

from machine_operator.gateway.machines import Machines
from machine_operator.store.database import StoreUnavailable
from machine_operator.store.marks import WriteMarks

__all__ = ["Freshness"]

log = logging.getLogger(__name__)

_LIMIT = 2.0
"""Seconds that a read waits for the cache; a watch is some milliseconds behind."""


class Freshness:
    """Makes reads wait for what other replicas wrote.

    Args:
        machines: the cache.
        marks: None where there is one replica.
    """

    def __init__(self, machines: Machines, marks: WriteMarks | None) -> None:
        self._machines = machines
        self._marks = marks
        self._looks: dict[str, asyncio.Task[int]] = {}
        self._next: dict[str, asyncio.Task[int]] = {}
        self._given_up: dict[str, int] = {}
        """Marks that the cache did not reach: those of a cluster that was made anew may be out of reach for days."""

    async def of(self, org: str) -> None:
        """Return once the cache has everything that was written for an organisation before this call."""
        if self._marks is None:
            return
        try:
            version = await asyncio.shield(self._look(org, self._marks))
        except StoreUnavailable as error:
            # What is read may be a moment old then. That beats no answer at all.
            log.warning("reads do not wait for other replicas: %s", error)
            return
        if self._given_up.get(org) == version:
            return
        if not await self._machines.until(version, timeout=_LIMIT):
            self._given_up[org] = version
            log.warning(
                "org %s: the cache of Machines did not reach version %d in %g s; reads do not wait for it any more",
                org,
                version,
                _LIMIT,
            )

    def _look(self, org: str, marks: WriteMarks) -> asyncio.Task[int]:
        """A look that has not begun yet: one under way may have missed what was written a moment ago."""
        waiting = self._next.get(org)
        if waiting is None:
            waiting = asyncio.create_task(self._after(self._looks.get(org), org, marks))
            self._next[org] = waiting
        return waiting

    async def _after(self, before: asyncio.Task[int] | None, org: str, marks: WriteMarks) -> int:
        if before is not None:
            await asyncio.wait([before])
        task = self._next.pop(org)
        self._looks[org] = task
        try:
            return await marks.of(org)
        finally:
            if self._looks.get(org) is task:
                del self._looks[org]

    async def wrote(self, org: str, version: int) -> None:
        """Tell the other replicas of a write that has no idempotency record."""
        if self._marks is None or not version:
            return
        try:
            await self._marks.raise_to(org, version)
        except StoreUnavailable as error:
            # The write is done: who were told that it failed would do it a second time.
            log.warning("other replicas may not see a write at once: %s", error)
