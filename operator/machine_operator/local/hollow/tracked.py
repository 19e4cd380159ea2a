"""Objects of one kind by uid, and the work on them: newest version only, one worker per uid at a time.

The informer feeds it, and so do the answers to our own writes: a write's answer is newer than what
the watch has shown so far, and whatever the watch shows later but is older is ignored. An object
whose uid is gone (deleted, or replaced by another one of that name) is worked on once more, with
`get` answering None, so that leftovers are cleaned.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from machine_operator.controller.queue import WorkQueue
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import Conflict, KubeError, NotFound
from machine_operator.kube.informer import Informer, Key
from machine_operator.kube.resources import Resource

__all__ = ["Object", "Tracked", "uid_of"]

log = logging.getLogger(__name__)

Object = dict[str, Any]

_CONFLICT_PAUSE = 1.0
"""Seconds until a lost race is looked at again, should the watch not have shown the winner by then."""


class Tracked:
    """The objects of one kind that concern this node.

    Args:
        process: looks at one uid; returns after how many seconds to look again, or None.
        on_change: told of each uid whose object appeared, changed or went.
        workers: how many uids are worked on at once.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        process: Callable[[str], Awaitable[float | None]],
        on_change: Callable[[str, Object], None] | None = None,
        workers: int = 8,
        label_selector: str | None = None,
        field_selector: str | None = None,
        longest_pause: float = 60.0,
    ) -> None:
        self._resource = resource
        self._process = process
        self._on_change = on_change
        self._workers = workers
        self._known: dict[str, Object] = {}
        self._queue: WorkQueue[str] = WorkQueue(longest=longest_pause)
        self._informer: Informer[Object] = Informer(
            client,
            resource,
            project=_without_managed_fields,
            on_change=self._observe,
            label_selector=label_selector,
            field_selector=field_selector,
        )

    @property
    def synced(self) -> asyncio.Event:
        """Set once everything that exists has been seen."""
        return self._informer.synced

    def __iter__(self) -> Iterator[Object]:
        return iter(list(self._known.values()))

    def get(self, uid: str) -> Object | None:
        """The newest known version, or None where no such object is there."""
        return self._known.get(uid)

    def add(self, uid: str, *, after: float = 0.0) -> None:
        """Have `uid` looked at, `after` some seconds."""
        self._queue.add_after(uid, after)

    def learn(self, written: Object) -> None:
        """Take in the answer to a write of ours."""
        uid = uid_of(written)
        known = self._known.get(uid)
        if known is not None and _version(written) >= _version(known):
            self._known[uid] = _without_managed_fields(written)

    def created(self, answer: Object) -> None:
        """Take in an object that we made, before the watch shows it."""
        self._informer.wrote(answer)

    async def run(self) -> None:
        """Follow the API server and work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run())
            for _ in range(self._workers):
                group.create_task(self._work())

    def _observe(self, _: Key, old: Object | None, new: Object | None) -> None:
        if old is not None and (new is None or uid_of(new) != uid_of(old)):
            self._known.pop(uid_of(old), None)
            self._tell(uid_of(old), old)
        if new is not None:
            known = self._known.get(uid_of(new))
            if known is None or _version(new) >= _version(known):
                self._known[uid_of(new)] = new
            self._tell(uid_of(new), new)

    def _tell(self, uid: str, item: Object) -> None:
        self._queue.add(uid)
        if self._on_change is not None:
            self._on_change(uid, item)

    async def _work(self) -> None:
        while True:
            uid = await self._queue.get()
            try:
                await self._attempt(uid)
            finally:
                self._queue.done(uid)

    async def _attempt(self, uid: str) -> None:
        try:
            after = await self._process(uid)
        except (Conflict, NotFound) as error:
            # Somebody wrote first, or it is gone: the watch will show it.
            log.debug("%s %s: %s", self._resource.kind, uid, error)
            self._queue.add_after(uid, _CONFLICT_PAUSE)
        except (KubeError, OSError, TimeoutError) as error:
            pause = self._queue.retry(uid)
            log.warning("%s %s: %s; again in %.0f s", self._resource.kind, uid, error, pause)
        except Exception:
            # One object that we cannot handle must not take the node, and with it all others, down.
            pause = self._queue.retry(uid)
            log.exception("%s %s failed; again in %.0f s", self._resource.kind, uid, pause)
        else:
            self._queue.forget(uid)
            if after is not None:
                self._queue.add_after(uid, after)


def uid_of(item: Object) -> str:
    """`metadata.uid`."""
    return str(item["metadata"]["uid"])


def _version(item: Object) -> int:
    return int(item["metadata"]["resourceVersion"])


def _without_managed_fields(item: Object) -> Object:
    # The API server keeps the stored ones where a PUT carries none.
    item["metadata"].pop("managedFields", None)
    return item
