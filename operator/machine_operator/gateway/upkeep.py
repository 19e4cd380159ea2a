"""What has to be done now and then: destroyed machines are forgotten after a while, and so are old records and the
holds of replicas that are gone.

Every replica does it; whoever comes second finds nothing left to do.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from itertools import islice

from machine_operator.api.phases import Phase
from machine_operator.gateway.activity.holds import cleared, manager_of, stale
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.views import MachineView
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import Conflict, KubeError, NotFound
from machine_operator.kube.resources import MACHINES
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.idempotency import IdempotencyRecords

__all__ = ["Upkeep", "forgettable"]

log = logging.getLogger(__name__)

_ROUND = 15.0
_GRACE = 60.0
"""Seconds after the end of a replica's last hold after which it is taken for gone: clocks differ."""
_MOST_CLEARED = 100
"""Machines in one round."""


class Upkeep:
    """The rounds of one gateway."""

    def __init__(
        self,
        client: KubeClient,
        machines: Machines,
        records: IdempotencyRecords,
        settings: GatewaySettings,
    ) -> None:
        self._client = client
        self._machines = machines
        self._records = records
        self._keep = timedelta(seconds=settings.keep_destroyed)
        self._grace = timedelta(seconds=max(_GRACE, settings.activity_lease))

    async def run(self) -> None:
        """Make rounds until cancelled."""
        while True:
            await asyncio.sleep(_ROUND)
            await self.round(datetime.now(UTC))

    async def round(self, now: datetime) -> None:
        """One round; what fails is tried again in the next one."""
        try:
            await self._records.sweep()
        except StoreUnavailable as error:
            log.warning("old records were not removed: %s", error)
        for view in self._machines:
            if forgettable(view, now=now, keep=self._keep):
                await self._forget(view)
        left = (
            (view, replica)
            for view in self._machines
            for replica in stale(view, now=now, grace=self._grace)
        )
        for view, replica in islice(left, _MOST_CLEARED):
            await self._clear(view, replica)

    async def _clear(self, view: MachineView, replica: str) -> None:
        """Take away the holds of a replica that is gone, in its name: nobody else owns them."""
        meta = view.machine.metadata
        try:
            answer = await self._client.apply(
                MACHINES,
                meta.name,
                cleared(view, replica),
                manager=manager_of(replica),
                namespace=meta.namespace,
                subresource="status",
            )
        except (NotFound, Conflict):
            return  # somebody was faster; the next round looks again
        except KubeError as error:
            log.warning("holds of machine %s/%s remain: %s", meta.namespace, meta.name, error)
            return
        self._machines.learn(answer)

    async def _forget(self, view: MachineView) -> None:
        meta = view.machine.metadata
        try:
            await self._client.delete(MACHINES, meta.name, namespace=meta.namespace, uid=meta.uid)
        except (NotFound, Conflict):
            return  # another replica was faster, or it is another machine by now
        except KubeError as error:
            log.warning("machine %s/%s was not forgotten: %s", meta.namespace, meta.name, error)


def forgettable(view: MachineView, *, now: datetime, keep: timedelta) -> bool:
    """Whether a machine that was destroyed over REST has been readable for long enough.

    Machines that people manage as objects are theirs to delete: only names that the gateway gave are meant.
    """
    meta, since = view.machine.metadata, view.machine.status.last_transition_at
    ended = view.phase is Phase.DESTROYED and meta.deletionTimestamp is None
    return ended and meta.name == f"dm-{view.uuid}" and since is not None and since + keep <= now
