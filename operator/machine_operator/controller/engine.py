"""The engine behind the shell: caches, work queue, workers.

Machines are told by the shell (`saw_machine`), children by informers. Both end as a key in the queue; whatever the
key's worker needs it reads from the caches, so it does not matter which event came, how often, or in which order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from machine_operator.api.machine import Machine, MachineError, read_machine
from machine_operator.controller.actor import Actor
from machine_operator.controller.children import Children
from machine_operator.controller.queue import WorkQueue
from machine_operator.controller.reconciler import Outcome, Reconciler
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import KubeError
from machine_operator.kube.informer import Key
from machine_operator.kubevirt.settings import MachineDefaults

__all__ = ["Engine"]

log = logging.getLogger(__name__)

_ECHO = 1.0
"""Seconds until a machine is looked at again of which only the controller's own part has changed."""

_PASS_LIMIT = 60.0
"""Seconds for one pass; its requests have shorter limits of their own."""


class Engine:
    """Runs the reconcilers of all machines. `start` and `stop` are called by the shell."""

    def __init__(
        self,
        client: KubeClient,
        *,
        defaults: MachineDefaults,
        workers: int = 32,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._queue: WorkQueue[Key] = WorkQueue()
        self._machines: dict[Key, Machine] = {}
        self.children = Children(client, enqueue=self._queue.add)
        actor = Actor(
            client, children=self.children, defaults=defaults, wrote_machine=self.saw_machine
        )
        self._reconciler = Reconciler(actor=actor, children=self.children, defaults=defaults)
        self._workers = workers
        self._tasks: list[asyncio.Task[None]] = []
        self._on_failure = on_failure
        self.failed = False
        """Whether a task ended that never should: the process cannot go on."""

    @property
    def ready(self) -> bool:
        """Whether machines are being worked on."""
        return self.children.synced

    async def start(self) -> None:
        """Start informers and workers."""
        self._tasks.append(asyncio.create_task(self.children.run(), name="informers"))
        for number in range(self._workers):
            self._tasks.append(asyncio.create_task(self._work(), name=f"worker {number}"))
        for task in self._tasks:
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            log.critical("%s ended: %r", task.get_name(), task.exception())
            self.failed = True
            self._on_failure()

    async def stop(self) -> None:
        """End them; a pass that is under way is cut off at its next request, which is safe."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    def saw_machine(self, obj: dict[str, Any]) -> None:
        """A Machine as the API server has it, from the watch or as the answer to a write."""
        key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
        try:
            machine = read_machine(obj)
        except MachineError as error:
            # It passed an older CRD; only its owner can mend it.
            log.error("%s", error)
            return
        if machine.metadata.deletionTimestamp is not None and not machine.metadata.finalizers:
            # The answer to our last write, which the event can have overtaken.
            self.lost_machine(obj)
            return
        known = self._machines.get(key)
        if known is not None and not _newer(machine, known):
            return
        self._machines[key] = machine
        if known is not None and _asked(machine) == _asked(known):
            # Mostly our own status coming back; somebody's meddling with it can wait a moment.
            self._queue.add_calmly(key, _ECHO)
        else:
            self._queue.add(key)

    def lost_machine(self, obj: dict[str, Any]) -> None:
        """A Machine is gone."""
        key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
        known = self._machines.get(key)
        if known is not None and known.metadata.uid == obj["metadata"]["uid"]:
            del self._machines[key]
            self._queue.forget(key)

    async def _work(self) -> None:
        await self.children.wait_synced()
        while True:
            key = await self._queue.get()
            try:
                outcome = await self._pass(key)
            finally:
                self._queue.done(key)
            if outcome.retry:
                self._queue.retry(key, at_least=outcome.at_least)
                continue
            self._queue.forget(key)
            if outcome.requeue_after is not None:
                self._queue.add_after(key, outcome.requeue_after)

    async def _pass(self, key: Key) -> Outcome:
        machine = self._machines.get(key)
        if machine is None:
            return Outcome()
        try:
            async with asyncio.timeout(_PASS_LIMIT):
                outcome = await self._reconciler.reconcile(machine)
            known = self._machines.get(key)
            if outcome.gone and known is not None and known.metadata.uid == machine.metadata.uid:
                del self._machines[key]  # and not a successor of that name, seen meanwhile
            return outcome
        except TimeoutError:
            log.error("machine %s: a pass took longer than %.0f s", key, _PASS_LIMIT)
        except KubeError as error:
            log.warning("machine %s: %s", key, error)
            return Outcome(retry=True, at_least=error.retry_after or 0.0)
        except Exception:
            # One machine that trips over a bug must not take the others' worker with it.
            log.exception("machine %s: an error that is ours", key)
        return Outcome(retry=True)


def _newer(new: Machine, known: Machine) -> bool:
    # Versions grow over all objects of a kind: a late word of a Machine is older than its successor.
    return int(new.metadata.resourceVersion) > int(known.metadata.resourceVersion)


def _asked(machine: Machine) -> tuple[Any, ...]:
    """What people and gateways say about a machine, apart from what the controller reports."""
    meta, status = machine.metadata, machine.status
    return (
        meta.model_copy(update={"resourceVersion": ""}),
        machine.spec,
        status.power_request,
        status.activity,
    )
