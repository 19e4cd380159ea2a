"""Previews: made, looked up for each hit, closed, and forgotten.

A preview of a sleeping machine is ready once the machine has been awake for it; from then on it stays so through every
sleep, since a hit wakes the machine. Nobody waits for that: whoever reads the preview looks at its machine.

Hits look previews up in memory first, where they stay for two seconds; so does the news that one is closed reach other
replicas. Whoever is in a preview then is cut within ten seconds, and at once where it was closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from machine_operator.api.phases import Phase
from machine_operator.gateway.access import Access, NotUsable, Readiness
from machine_operator.gateway.failures import runtime_unavailable, store_unavailable
from machine_operator.gateway.identity import Caller
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.previews.access import PreviewAccess, no_such_preview
from machine_operator.gateway.previews.limits import PreviewLimits
from machine_operator.gateway.previews.pool import StreamPool
from machine_operator.gateway.previews.reach import waking
from machine_operator.gateway.previews.visits import Visits
from machine_operator.gateway.problems import GatewayError
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.views import MachineView
from machine_operator.store.database import Database, StoreUnavailable
from machine_operator.store.moments import utc_now
from machine_operator.store.previews import Preview, PreviewRecords, PreviewStatus
from machine_operator.store.subresources import Place

__all__ = ["Previews"]

log = logging.getLogger(__name__)

_KNOWN_SECONDS: Final = 2.0
_MOST_KNOWN: Final = 10_000
_LOOK_EVERY: Final = 10.0
_SWEEP_EVERY: Final = 60.0
_RETENTION: Final = timedelta(days=1)
_PATIENCE: Final = timedelta(minutes=10)
"""After that, a preview whose machine is asleep counts as ready: the machine has slept again meanwhile."""


class Previews:
    """The previews of all machines. `run` must be running.

    Args:
        database: where they are.
        access: the way into machines.
        settings: what the administrator has set.
        machines: what there is.
        gate: who may see what.
        limits: what they may cost, if not the usual.
        clock: tells the time, with a zone.

    Attributes:
        pool: streams to guests.
        visits: who is in a preview now.
    """

    def __init__(
        self,
        database: Database,
        access: Access,
        settings: GatewaySettings,
        *,
        machines: Machines,
        gate: PreviewAccess,
        limits: PreviewLimits | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.records = PreviewRecords(database)
        self.access = access
        self.settings = settings
        self.gate = gate
        self.limits = limits or PreviewLimits()
        self.pool = StreamPool(idle_seconds=self.limits.idle_seconds)
        self.visits = Visits(most=self.limits.visits, most_each=self.limits.visits_each)
        self.clock = clock
        self._machines = machines
        self._known: dict[str, tuple[float, Preview | None]] = {}
        self._asked: dict[str, asyncio.Task[Preview | None]] = {}

    # ---- for the API

    async def create(
        self,
        view: MachineView,
        caller: Caller,
        *,
        id: str,
        port: int,
        protocol: str,
        visibility: str,
    ) -> Preview:
        """A new preview, or the open one that is like it. A sleeping machine begins to wake.

        Raises:
            Coded: 503, too many machines wait to be woken.
            StoreUnavailable: nothing was made.
        """
        now = self.clock()
        values: dict[str, Any] = {
            "id": id,
            "org": view.org,
            "machine_id": view.uuid,
            "machine_uid": view.machine.metadata.uid,
            "created_by": caller.subject,
            "created_at": now,
            "port": port,
            "protocol": protocol,
            "visibility": visibility,
        }
        try:
            state = _state(self.access.knock(view, by=caller.subject), now)
        except NotUsable as error:
            raise waking(str(error)) from error
        preview = await self.records.claim({**values, **state})
        self._known.pop(preview.id, None)
        return await self.settled(preview, view)

    async def get(self, view: MachineView, id: str) -> Preview | None:
        """One of a machine's."""
        preview = await self.records.get(view.org, view.uuid, id)
        return None if preview is None else await self.settled(preview, view)

    async def page(
        self, view: MachineView, *, after: Place | None, limit: int
    ) -> tuple[Sequence[Preview], Place | None]:
        """A machine's, the newest first, and where the next page begins."""
        found, more = await self.records.page(view.org, view.uuid, after=after, limit=limit)
        return [await self.settled(one, view) for one in found], more

    async def close(self, preview: Preview) -> Preview:
        """Close one, and cut who is in it."""
        closed = await self.records.close(preview.id, self.clock())
        self._forget(preview.id)
        if closed is None:
            # Its last state counts, and it was not open.
            return await self.records.find(self.records.table.c.id == preview.id) or preview
        return closed

    async def settled(self, preview: Preview, view: MachineView) -> Preview:
        """What has become of it by now."""
        if not preview.open:
            return preview
        readiness = self.access.readiness(view)
        gone = readiness is Readiness.GONE or preview.machine_uid != view.machine.metadata.uid
        if gone:
            return await self.close(preview)
        if preview.status is PreviewStatus.READY:
            return preview
        now = self.clock()
        if (
            readiness is Readiness.WAKING
            and view.phase is Phase.SLEEPING
            and now - preview.created_at > _PATIENCE
        ):
            readiness = Readiness.READY
        if readiness is Readiness.WAKING:
            return preview
        state = _state(readiness, now)
        settled = await self.records.settle(preview.id, state.pop("status"), **state)
        self._known.pop(preview.id, None)
        return settled or await self.records.find(self.records.table.c.id == preview.id) or preview

    def url(self, preview: Preview, *, base: str, token: str | None) -> str:
        """Where it can be seen.

        Args:
            preview: which.
            base: how the API is reached: scheme and host.
            token: lets people in who have nothing else, or None.
        """
        domain = self.settings.preview_domain
        if domain is None:
            url = f"{base}/previews/{preview.id}/"
        else:
            url = f"{base.partition('://')[0]}://{preview.id}.{domain}/"
        return url if token is None else f"{url}?preview_token={token}"

    # ---- for hits

    async def open_one(self, id: str) -> Preview:
        """The open preview of an id.

        Raises:
            GatewayError: 404, there is none; 503, nobody can tell now.
        """
        until, preview = self._known.get(id, (0.0, None))
        if until < asyncio.get_running_loop().time():
            preview = await self._look_up(id)
        if preview is None or not preview.open:
            raise no_such_preview()
        return preview

    def view(self, preview: Preview) -> MachineView:
        """Its machine, as it is now.

        Raises:
            GatewayError: 404, it is gone; 503, nobody can tell now.
        """
        if not self._machines.informer.synced.is_set():
            raise runtime_unavailable()
        try:
            view = self._machines.find(preview.org, preview.machine_id)
        except GatewayError:
            raise no_such_preview() from None
        if view.machine.metadata.uid != preview.machine_uid:
            raise no_such_preview()
        return view

    async def _look_up(self, id: str) -> Preview | None:
        """Ask the store, once for all who want to know at the same time."""
        asked = self._asked.get(id)
        if asked is None:
            asked = self._asked[id] = asyncio.create_task(self._ask(id))
            asked.add_done_callback(lambda _: self._asked.pop(id, None))
        try:
            return await asyncio.shield(asked)
        except StoreUnavailable as error:
            log.error("previews: %s", error)
            raise store_unavailable() from error

    async def _ask(self, id: str) -> Preview | None:
        preview = await self.records.find(self.records.table.c.id == id)
        self._known.pop(id, None)
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[id] = (asyncio.get_running_loop().time() + _KNOWN_SECONDS, preview)
        return preview

    def _forget(self, id: str) -> None:
        self._known.pop(id, None)
        self.visits.cut(id)

    # ---- beside that

    async def run(self) -> None:
        """Cut who is in closed previews, and forget what is of use to nobody, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.pool.run())
            tasks.create_task(self._upkeep())

    async def _upkeep(self) -> None:
        loop = asyncio.get_running_loop()
        swept = loop.time()
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                await self.look()
                if loop.time() - swept >= _SWEEP_EVERY:
                    await self.sweep()
                    swept = loop.time()
            except StoreUnavailable as error:
                log.warning("previews are looked after later: %s", error)

    async def look(self) -> None:
        """Cut who is in previews that were closed elsewhere."""
        ids = self.visits.previews
        for id in set(ids) - await self.records.open_among(ids):
            self._forget(id)

    async def sweep(self) -> None:
        """Close previews of machines that are gone, and forget those that were closed long ago."""
        if self._machines.informer.synced.is_set():
            last = ""
            while found := await self.records.open_after(last):
                last = found[-1].id
                for preview in found:
                    if self._is_orphan(preview):
                        await self.close(preview)
        while await self.records.sweep(self.clock() - _RETENTION):
            pass

    def _is_orphan(self, preview: Preview) -> bool:
        try:
            view = self.view(preview)
        except GatewayError:
            return True
        return self.access.readiness(view) is Readiness.GONE


def _state(readiness: Readiness, now: datetime) -> dict[str, Any]:
    match readiness:
        case Readiness.READY:
            return {"status": PreviewStatus.READY, "ready_at": now}
        case Readiness.WAKING:
            return {"status": PreviewStatus.WAKING}
        case Readiness.FAILED | Readiness.GONE:
            return {
                "status": PreviewStatus.FAILED,
                "closed_at": now,
                "error_code": "machine_not_routable",
                "error_message": "the machine could not be started",
            }
