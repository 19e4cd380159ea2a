"""The machines as the gateway knows them: one informer, an index by id, lists in order, and who wants to hear of what.

Reads come from here. A write hands its answer to `learn`, so the next read on this replica sees it; what other
replicas wrote is waited for (`marks.py`). Whoever follows a machine hears of each new state, and of the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from typing import Any

from typing_extensions import override

from machine_operator.api.machine import read_machine_anyway
from machine_operator.api.phases import Phase
from machine_operator.gateway.failures import machine_not_found, runtime_unavailable
from machine_operator.gateway.machine_ids import bare_id
from machine_operator.gateway.views import MachineView
from machine_operator.kube.client import KubeClient
from machine_operator.kube.informer import Informer, Key
from machine_operator.kube.resources import MACHINES

__all__ = ["Follower", "Machines", "Observer", "Place"]

log = logging.getLogger(__name__)

Object = dict[str, Any]
Observer = Callable[[MachineView | None, MachineView | None], None]
"""Hears of each change of any machine: the state before and after; None stands for "is not there"."""
Place = tuple[float, str]
"""Where a machine stands in the list of its organisation: minus its creation time, then its UUID."""

_STALE_LIMIT = 60.0
"""Seconds for which reads are answered without contact to the API server."""

_PENDING = 16
"""States that may wait for one follower. More than that, and the oldest ones are left out: the last one counts."""


def _view(obj: Object) -> MachineView:
    machine, fault = read_machine_anyway(obj)
    if fault is not None:
        log.warning("%s", fault)
    return MachineView(machine, int(obj["metadata"]["resourceVersion"]))


class _Feed(Informer[MachineView]):
    """An informer that tells of everything that comes: a bookmark, or the echo of a write of our own, changes nothing
    in the cache, and yet it moves the position.
    """

    on_news: Callable[[], None]

    @override
    def _heard(self) -> None:
        super()._heard()
        self.on_news()


class Follower:
    """Somebody who wants every new state of one machine."""

    def __init__(self) -> None:
        # A list and a Future: thousands wait, and a deque and an Event would be a kilobyte each.
        self._pending: list[MachineView] = []
        self._waiter: asyncio.Future[None] | None = None

    def tell(self, view: MachineView) -> None:
        """A new state."""
        if len(self._pending) == _PENDING:
            del self._pending[0]
        self._pending.append(view)
        self.wake()

    def wake(self) -> None:
        """End the wait that is under way, without news."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, *, timeout: float) -> MachineView | None:
        """The next state; None where none came in `timeout` seconds."""
        if not self._pending:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            clock = loop.call_later(timeout, self.wake)
            try:
                await self._waiter
            finally:
                clock.cancel()
                self._waiter = None
        return self._pending.pop(0) if self._pending else None


class Machines:
    """All machines of the cluster.

    Args:
        client: the gateway's connection.

    Attributes:
        informer: what keeps the cache.
        observers: who hears of every change, at once.
    """

    def __init__(self, client: KubeClient) -> None:
        self.observers: list[Observer] = []
        self.informer = _Feed(client, MACHINES, project=_view, on_change=self._changed)
        self.informer.on_news = self._moved
        self._by_id: dict[tuple[str, str], MachineView] = {}
        self._ordered: dict[str, list[Place]] = {}
        self._followers: dict[tuple[str, str], set[Follower]] = {}
        self._waiting: dict[asyncio.Future[None], int] = {}

    # ---- reading

    @property
    def age(self) -> float:
        """Seconds by which what is told here may be out of date.

        Raises:
            Coded: nothing is known yet, or it is too old to be told.
        """
        behind = self.informer.behind
        if not self.informer.synced.is_set() or behind > _STALE_LIMIT:
            raise runtime_unavailable()
        return behind

    def find(self, org: str, machine_id: str) -> MachineView:
        """One machine of an organisation, by its id in either spelling.

        Raises:
            Problem: 404, also for the machine of another organisation.
        """
        uuid = bare_id(machine_id)
        view = self._by_id.get((org, uuid)) if uuid is not None else None
        if view is None:
            raise machine_not_found(machine_id)
        return view

    def latest(self, view: MachineView) -> MachineView:
        """What has become of a machine since."""
        now = self._by_id.get((view.org, view.uuid))
        return now if now is not None else _ended(view)

    def page(
        self, org: str, *, after: Place | None, limit: int
    ) -> tuple[list[MachineView], Place | None]:
        """Machines of an organisation that are not destroyed, the newest first, and where the next page begins.

        A place stays valid whatever comes and goes: it is a position in the order, not a machine.
        """
        places = self._ordered.get(org, [])
        found: list[MachineView] = []
        start = bisect_right(places, after) if after is not None else 0
        last: Place | None = None
        for position in range(start, len(places)):
            view = self._by_id[org, places[position][1]]
            if view.phase is Phase.DESTROYED:
                continue
            if len(found) == limit:
                return found, last
            found.append(view)
            last = places[position]
        return found, None

    def __iter__(self) -> Iterator[MachineView]:
        return iter(list(self._by_id.values()))

    # ---- what comes in

    def learn(self, obj: Object) -> MachineView:
        """Take over the answer to a write of our own; the state after it."""
        view = _view(obj)
        key = Key(view.org, view.machine.metadata.name)
        before = self.informer.cache.get(key)
        self.informer.wrote(obj)
        after = self.informer.cache.get(key)
        if after is not None and after is not before:
            self._changed(key, before, after)
        return view

    def _changed(self, key: Key, old: MachineView | None, new: MachineView | None) -> None:
        if old is not None and new is not None and old.uuid != new.uuid:
            self._changed(key, old, None)  # another machine has taken over the name
            old = None
        view = new if new is not None else old
        if view is None:
            return
        name = (view.org, view.uuid)
        if new is not None:
            self._keep(name, new)
        else:
            view = _ended(view)
            self._drop(name)
        for follower in self._followers.get(name, ()):
            follower.tell(view)
        for observer in self.observers:
            observer(old, new)

    def _keep(self, name: tuple[str, str], view: MachineView) -> None:
        known = self._by_id.get(name)
        if known is None or known.created_at != view.created_at:
            self._drop(name)
            insort(self._ordered.setdefault(view.org, []), _place(view))
        self._by_id[name] = view

    def _drop(self, name: tuple[str, str]) -> None:
        view = self._by_id.pop(name, None)
        if view is None:
            return
        places = self._ordered[view.org]
        del places[bisect_left(places, _place(view))]
        if not places:
            del self._ordered[view.org]

    # ---- waiting

    @contextlib.contextmanager
    def followed(self, view: MachineView) -> Iterator[Follower]:
        """Hear of every new state of a machine for as long as the block runs."""
        name, follower = (view.org, view.uuid), Follower()
        del view  # this frame lives as long as the block
        followers = self._followers.setdefault(name, set())
        followers.add(follower)
        try:
            yield follower
        finally:
            followers.discard(follower)
            if not followers and self._followers.get(name) is followers:
                del self._followers[name]

    def wake_followers(self) -> None:
        """End all their waits: the gateway is about to end."""
        for followers in self._followers.values():
            for follower in followers:
                follower.wake()

    async def until(self, version: int, *, timeout: float) -> bool:
        """Wait until everything up to a resourceVersion of a Machine is known; False where that took too long."""
        if self.informer.position >= version:
            return True
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[reached] = version
        try:
            async with asyncio.timeout(timeout):
                await reached
        except TimeoutError:
            return self.informer.position >= version
        finally:
            self._waiting.pop(reached, None)
        return True

    def _moved(self) -> None:
        if self._waiting:
            # What was heard is taken in first.
            asyncio.get_running_loop().call_soon(self._release)

    def _release(self) -> None:
        if self._waiting:
            position = self.informer.position
            for reached, version in self._waiting.items():
                if version <= position and not reached.done():
                    reached.set_result(None)


def _ended(view: MachineView) -> MachineView:
    """The machine once its object is gone: a state of its own, newer than the last one."""
    return MachineView(view.machine, view.version + 1, gone=True)


def _place(view: MachineView) -> Place:
    return -view.created_at.timestamp(), view.uuid
