"""The engine behind the shell: caches, work queue, workers.

    kopf on.event Machine ─┐
    informers of children ─┼─> key of the Machine ─> work queue ─> workers ─> one pass of the reconciler
    requeue-after, resync ─┘

Machines are told by the shell (`saw_machine`), children by informers. Both end as a key in the queue; whatever the
key's worker needs it reads from the caches, so it does not matter which event came, how often, or in which order.
Caches are kept warm whether this process leads or not; only the workers wait for that.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry

from machine_operator.api.names import FINALIZER
from machine_operator.controller.actor import Actor
from machine_operator.controller.children import Children
from machine_operator.controller.journal import Journal
from machine_operator.controller.observer import Observer
from machine_operator.controller.queue import Priority, WorkQueue
from machine_operator.controller.reconciler import Known, Outcome, Reconciler
from machine_operator.controller.roster import News, Roster
from machine_operator.controller.sweeper import every_machine, vanished
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import KubeError
from machine_operator.kube.events import EventRecorder
from machine_operator.kube.informer import Key
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.lifecycle.limits import Limits
from machine_operator.telemetry.metrics import ControllerMetrics

__all__ = ["Engine", "Pace"]

log = logging.getLogger(__name__)

_ECHO = 1.0
"""Seconds until a machine is looked at again of which only the controller's own part has changed."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How the engine works.

    Attributes:
        workers: machines worked on at a time; each worker waits for the network most of the time.
        pass_limit: seconds for one pass; its requests have shorter limits of their own.
        resync: seconds after which every machine is looked at again, whether or not anything was heard of it.
        sweep: seconds between two looks for Machines that vanished unheard.
    """

    workers: int = 32
    pass_limit: float = 60.0
    resync: float = 36_000.0
    sweep: float = 600.0


class Engine:
    """Runs the reconcilers of all machines. `start` and `stop` are called by the shell.

    Args:
        leads: whether it works from the start on; else from `lead(True)` on.
        on_failure: told when a task ended that never should.
        now: the wall clock.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        defaults: MachineDefaults,
        limits: Limits | None = None,
        pace: Pace | None = None,
        metrics: ControllerMetrics | None = None,
        identity: str = "machine-operator",
        leads: bool = True,
        on_failure: Callable[[], None] = lambda: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._metrics = metrics or ControllerMetrics(CollectorRegistry())
        self._pace = pace or Pace()
        self.machines = Roster()
        self.queue: WorkQueue[Key] = WorkQueue(lane=lambda key: key.namespace, sink=self._metrics)
        self.children = Children(client, enqueue=self._child_changed)
        self.events = EventRecorder(client, component="machine-operator", instance=identity)
        actor = Actor(client, children=self.children, defaults=defaults, wrote_machine=self._wrote)
        self._client = client
        self._reconciler = Reconciler(
            observer=Observer(client, children=self.children, defaults=defaults),
            actor=actor,
            journal=Journal(events=self.events, measures=self._metrics, now=now),
            limits=limits or Limits(),
            known=self.machines.of,
            now=now,
        )
        self._leads = leads
        self._measure()
        self._ours: set[Key] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._workers: list[asyncio.Task[None]] = []
        self._ending: list[asyncio.Task[None]] = []
        self._on_failure = on_failure
        self.failed = False
        """Whether a task ended that never should: the process cannot go on."""

    @property
    def ready(self) -> bool:
        """Whether machines can be worked on: by this process, or as soon as it leads."""
        return self.children.synced

    def _measure(self) -> None:
        self._metrics.workers(self._pace.workers)
        self._metrics.ask_queue(self.queue.in_progress)
        self._metrics.ask_machines(phases=self.machines.by_phase, not_ready=self.machines.not_ready)

    # ---- life

    def lead(self, leads: bool) -> None:
        """Whether this process is the one that works. Passes that are under way when it no longer is are cut off at
        their next request; caches and queue stay warm.
        """
        self._leads = leads
        if not self._tasks:
            return
        if leads and not self._workers:
            names = (f"worker {number}" for number in range(self._pace.workers))
            self._workers = [self._begin(self._work(), name) for name in names]
        elif not leads:
            for task in self._workers:
                task.cancel()
            self._ending += self._workers
            self._workers = []

    async def start(self) -> None:
        """Start informers, and workers where this process leads."""
        self._tasks = [
            self._begin(self.children.run(), "informers"),
            self._begin(self.events.run(), "events"),
            self._begin(self._when_synced(), "resync"),
            self._begin(self._sweep(), "sweeper"),
        ]
        self.lead(self._leads)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending = [other for other in self._ending if other is not task]
        if not task.cancelled():
            log.critical("%s ended: %r", task.get_name(), task.exception())
            self.failed = True
            self._on_failure()

    async def stop(self) -> None:
        """End them; a pass that is under way is cut off at its next request, which is safe."""
        tasks = [*self._tasks, *self._workers, *self._ending]
        self._tasks, self._workers, self._ending = [], [], []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- intake

    async def prime(self) -> None:
        """Learn of all Machines that there are, before the shell begins to tell of them.

        The shell takes a third of a millisecond for each, so among thousands it would tell of a new one only after
        seconds. What it tells later is known by then, and costs nothing here. Where the API server does not answer,
        the shell's own patience has to do.
        """
        try:
            async for obj in every_machine(self._client):
                self.saw_machine(obj, listed=True)
        except KubeError as error:
            log.info("the Machines could not be listed at the start: %s", error)

    def saw_machine(self, obj: dict[str, Any], *, listed: bool = False) -> None:
        """A Machine as the watch has it. `listed` ones were there before; they wait for those that changed."""
        key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
        match self.machines.learn(obj):
            case News.GONE:
                self.lost_machine(obj)
            case News.NOTHING:
                pass
            case _ if not self._may_work(key):
                pass  # looked at once the caches are complete
            case News.ASKED:
                self.queue.add(key, priority=self._priority(key, listed=listed))
            case News.STATUS:
                self.queue.add_calmly(key, _ECHO)

    def _priority(self, key: Key, *, listed: bool) -> Priority:
        """A new machine is worked on in turn with those that are on their way up: starting more of them than can be
        finished helps nobody. Who changes one that is there waits for it.
        """
        known = self.machines.get(key)
        if known is None or FINALIZER not in known.machine.metadata.finalizers:
            return Priority.NORMAL
        return Priority.RESYNC if listed else Priority.USER

    def _may_work(self, key: Key) -> bool:
        """Before the caches are complete, "is not there" means nothing, except for a Machine without our finalizer:
        it has no children yet, since the finalizer comes first. So new work never waits for a restart's caches.
        """
        if self.children.synced or key in self._ours:
            return True
        known = self.machines.get(key)
        if known is None or FINALIZER in known.machine.metadata.finalizers:
            return False
        self._ours.add(key)
        return True

    def _wrote(self, obj: dict[str, Any]) -> None:
        """The answer to a write of our own: nothing new, unless somebody else wrote at the same time."""
        match self.machines.learn(obj):
            case News.ASKED:
                key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
                self.queue.add(key, priority=Priority.USER)
            case News.GONE:
                self.lost_machine(obj)
            case _:
                pass

    def lost_machine(self, obj: dict[str, Any]) -> None:
        """A Machine is gone."""
        meta = obj["metadata"]
        self._lose(Key(meta["namespace"], meta["name"]), uid=meta["uid"])

    def _lose(self, key: Key, *, uid: str) -> None:
        machine = self.machines.drop(key, uid=uid)
        if machine is not None:
            self.queue.drop(key)
            self.children.forget(machine)
            self._reconciler.forget(machine)
            self._ours.discard(key)

    def _child_changed(self, key: Key) -> None:
        if self._may_work(key):
            self.queue.add(key, priority=Priority.NORMAL)

    # ---- everything again

    async def _when_synced(self) -> None:
        await self.children.wait_synced()
        self._ours.clear()
        while True:
            for key in self.machines:
                self.queue.add(key, priority=Priority.RESYNC)
            await asyncio.sleep(self._pace.resync * random.uniform(0.9, 1.1))

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(self._pace.sweep * random.uniform(0.9, 1.1))
            try:
                gone = await vanished(self._client, self.machines)
            except KubeError as error:
                log.info("vanished Machines could not be looked for: %s", error)
                continue
            for key, uid in gone:
                log.info("machine %s vanished unheard", key)
                self._lose(key, uid=uid)

    # ---- work

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            try:
                outcome = await self._pass(key)
            except asyncio.CancelledError:
                self.queue.add(key)  # cut off in the middle: for whoever works on
                raise
            finally:
                self.queue.done(key)
            if outcome.retry:
                self.queue.retry(key, at_least=outcome.at_least, at_most=outcome.at_most)
                continue
            self.queue.forget(key)
            if outcome.requeue_after is not None:
                calm = Priority.RESYNC if outcome.calm else Priority.NORMAL
                self.queue.add_after(key, outcome.requeue_after, priority=calm)

    async def _pass(self, key: Key) -> Outcome:
        known = self.machines.get(key)
        if known is None:
            return Outcome()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        outcome = await self._guarded(key, known)
        self._metrics.reconciled(result=outcome.result, seconds=loop.time() - begun)
        return outcome

    async def _guarded(self, key: Key, known: Known) -> Outcome:
        """One machine that trips over a bug must not take the others' worker with it."""
        limit = self._pace.pass_limit
        try:
            async with asyncio.timeout(limit):
                outcome = await self._reconciler.reconcile(known)
            if outcome.gone:
                self._lose(key, uid=known.machine.metadata.uid)
            return outcome
        except TimeoutError:
            log.error("machine %s: a pass took longer than %.0f s", key, limit)
        except KubeError as error:
            log.warning("machine %s: %s", key, error)
            return Outcome.after(error)
        except Exception:
            log.exception("machine %s: an error that is ours", key)
        return Outcome(retry=True)
