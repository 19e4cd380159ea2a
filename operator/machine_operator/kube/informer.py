"""A local copy of one kind, kept by list and watch.

The beginning is a watch that starts with all that exists (WatchList), or where the server refuses that, a list in
pages and a watch from its resourceVersion. Bookmarks move that version on. When a stream ends, the next one goes on
from the newest version seen; only when that is too old (410) all is listed again. **A list says nothing about what
vanished meanwhile**, so what it does not name and what is not newer is reported as deleted.
Only the projection of each object is kept. Callbacks are synchronous and run after the cache has changed.

Which news is old: an object's version never goes back; and of an object that is not known, only what is newer than
the stream's position is believed (it may be a late echo of one that is gone). Inside a list there is no position yet,
so there the versions of deleted objects are remembered until it ends.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Generic, NamedTuple, TypeVar, cast

from typing_extensions import override

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import Expired, Invalid, KubeError, Unreachable
from machine_operator.kube.resources import Resource

__all__ = ["Informer", "Key"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Object = dict[str, Any]

_LIST_ENDS = "k8s.io/initial-events-end"
_PAGE = 500
_ODD = (KeyError, TypeError, ValueError, AttributeError)
"""What reading an object raises that is not as it should be."""


class Key(NamedTuple):
    """Names one object of a kind; `namespace` is "" for cluster-scoped ones."""

    namespace: str
    name: str

    @override
    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Informer(Generic[T]):
    """Keeps `cache` equal to what the API server has, and tells `on_change` of each difference.

    Args:
        client: the connection and identity.
        resource: the kind.
        project: turns the API server's object into what the cache keeps; None leaves the object out.
        on_change: called with (key, old, new) after each change; None stands for "is not there".

    Attributes:
        synced: set once everything that exists has been seen.
        heard_at: the loop's clock when the server last sent anything, bookmarks included; None before.
        relists: how often everything had to be listed again.
    """

    _FIRST_PAUSE = 0.8
    _LONGEST_PAUSE = 30.0
    _GOOD_LIFE = 5.0
    """Seconds after which a stream that the server closes is followed by the next one at once."""
    _HOLDS = 6.0
    """Seconds after which a request that has not failed counts as an open stream; connecting may take 5."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        project: Callable[[Object], T | None],
        on_change: Callable[[Key, T | None, T | None], None],
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
        self.heard_at: float | None = None
        self.relists = 0
        self._client = client
        self._project = project
        self._on_change = on_change
        self._scope: dict[str, str | None] = {
            "namespace": namespace,
            "label_selector": label_selector,
            "field_selector": field_selector,
        }
        self._cache: dict[Key, T] = {}
        self._versions: dict[Key, int] = {}
        self._position: int | None = None
        """Up to which version the stream has told everything; None until all has been listed."""
        self._progress = False
        self._attempted_at: float | None = None
        """When the stream that is open now was asked for; None between two."""
        self._lost_at: float | None = None
        """When contact was lost, unless something has come since."""

    @property
    def position(self) -> int:
        """The version up to which everything is known; 0 before the first list is complete."""
        return self._position or 0

    @property
    def behind(self) -> float:
        """Seconds for which the API server has been out of reach; 0.0 while all is well.

        A watch of which nothing is heard is no bad sign by itself: there may be nothing to tell for a minute. One
        that was refused or broke is, until the next one has held for a moment.
        """
        if self._lost_at is None:
            return 0.0
        now = self._now()
        if self._attempted_at is not None and now - self._attempted_at > self._HOLDS:
            return 0.0
        return now - self._lost_at

    @property
    def cache(self) -> Mapping[Key, T]:
        """What is known now; do not change it."""
        return self._cache

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._cache.values()))

    def get(self, namespace: str, name: str) -> T | None:
        """The projection of one object, or None where it is not there."""
        return self._cache.get(Key(namespace, name))

    def wrote(self, item: Object) -> None:
        """Take over the answer to a write of our own, before the watch brings it; `on_change` is not told.

        Whoever decides next then sees what was just done, and does not do it again.
        """
        key, version = _identity(item)
        # What the stream is past already, it has told; a deletion can have overtaken this answer.
        if version > (self._position or 0) and version > self._versions.get(key, 0):
            self._put(key, version, item)

    async def run(self) -> None:
        """Follow the API server until cancelled. Whatever ends a watch, the next one comes after a pause, which
        grows for as long as watches bring nothing: so neither an outage nor a server that hangs up is stormed.
        """
        pause = self._FIRST_PAUSE
        while True:
            self._progress, asked_to_wait = False, 0.0
            began = self._attempted_at = self._now()
            try:
                await self._follow()
                if self._progress and self._now() - began >= self._GOOD_LIFE:
                    pause = self._FIRST_PAUSE
                    continue
            except Expired:
                self._position = None
            except KubeError as error:
                log.warning("watch of %s: %s", self.resource.plural, error)
                asked_to_wait = error.retry_after or 0.0
                if self.behind == 0.0:
                    self._lost_at = self._now()
            finally:
                self._attempted_at = None
            if self._progress:
                pause = self._FIRST_PAUSE
            # Never before the server wants us, and all that it sent away a little apart.
            await asyncio.sleep(
                max(pause * random.uniform(0.5, 1.0), asked_to_wait * random.uniform(1.0, 1.2))
            )
            pause = min(pause * 2, self._LONGEST_PAUSE)

    # ---- what comes from the server

    async def _follow(self) -> None:
        """One stream, with the list that it needs before."""
        if self._position is None and self._client.streams_lists:
            try:
                await self._consume(self._client.watch_list(self.resource, **self._scope))
                return
            except Invalid as error:
                if self._position is not None:
                    raise
                log.info("%s: the server does not stream lists: %s", self.resource.plural, error)
                self._client.streams_lists = False
        if self._position is None:
            await self._list()
        version = str(self._position)
        await self._consume(
            self._client.watch(self.resource, resource_version=version, **self._scope)
        )

    async def _list(self) -> None:
        try:
            await self._pages(limit=_PAGE)
        except Expired:
            # The token of a page outlived the history. A whole list has no token.
            await self._pages(limit=None)

    async def _pages(self, *, limit: int | None) -> None:
        named: set[Key] = set()
        token: str | None = None
        while True:
            answer = await self._client.list(
                self.resource, **self._scope, limit=limit, continue_token=token
            )
            self._heard()
            for item in answer.get("items") or []:
                self._tell("ADDED", item, named)
            try:
                meta = answer["metadata"]
                version, token = int(meta["resourceVersion"]), meta.get("continue") or None
            except _ODD as error:
                raise Unreachable(
                    f"LIST {self.resource.plural}: what came is no list: {str(answer)[:200]}"
                ) from error
            if token is None:
                self._listed(named, version)
                return

    async def _consume(self, stream: AsyncIterator[Object]) -> None:
        named: set[Key] = set()
        async with aclosing(cast("Any", stream)) as events:
            async for event in events:
                self._heard()
                if event["type"] == "BOOKMARK":
                    self._bookmark(event["object"], named)
                else:
                    self._tell(event["type"], event["object"], named)
                    self._progress = self._progress or self._position is not None

    def _bookmark(self, item: Object, named: set[Key]) -> None:
        try:
            version = int(item["metadata"]["resourceVersion"])
            ends = (item["metadata"].get("annotations") or {}).get(_LIST_ENDS) == "true"
        except _ODD as error:
            raise Unreachable(
                f"WATCH {self.resource.plural}: a bookmark cannot be read: {str(item)[:200]}"
            ) from error
        if self._position is not None:
            self._position = max(self._position, version)
            self._progress = True
        elif ends:
            self._listed(named, version)
        else:
            # An old server does not know the parameter, ignores it, and never says where the list ends.
            self._client.streams_lists = False
            raise Unreachable(f"WATCH {self.resource.plural}: this server does not stream lists")

    def _listed(self, named: set[Key], made_at: int) -> None:
        """The list is complete: what it does not name is gone."""
        for key in [key for key in self._cache if key not in named]:
            if self._versions[key] <= made_at:  # else we wrote it after the list was made
                self._forget(key)
        for key in [key for key in self._versions if key not in self._cache]:
            del self._versions[key]
        self._position = made_at
        if self.synced.is_set():
            self.relists += 1
        self.synced.set()

    def _tell(self, kind: str, item: Object, named: set[Key]) -> None:
        """Take in one event (or list item); `named` has the keys that a list has named so far."""
        try:
            key, version = _identity(item)
        except _ODD as error:
            # One odd object must not end the watch of all others.
            log.error("%s: an object cannot be read and is left out: %r", self.resource.kind, error)
            return
        position, known = self._position, self._versions.get(key)
        if position is not None:
            self._position = max(position, version)
        if kind == "DELETED":
            if known is None or version >= known:
                named.discard(key)
                self._forget(key)
                if position is None:
                    self._versions[key] = version
            return
        if known is None and version <= (position or 0):
            return  # an echo
        if key in self._cache or known is None or version > known:
            named.add(key)
        if known is None or version > known:
            old = self._put(key, version, item)
            new = self._cache.get(key)
            if old != new:
                self._on_change(key, old, new)

    # ---- the cache

    def _put(self, key: Key, version: int, item: Object) -> T | None:
        """Keep a newer version of an object; what was kept before."""
        # List items carry neither kind nor apiVersion.
        item.setdefault("kind", self.resource.kind)
        item.setdefault("apiVersion", self.resource.api_version)
        try:
            new = self._project(item)
        except _ODD as error:
            log.error("%s %s cannot be read and is left out: %r", self.resource.kind, key, error)
            new = None
        old = self._cache.pop(key, None) if new is None else self._cache.get(key)
        if new is not None:
            self._cache[key] = new
        if new is not None or version > (self._position or 0):
            self._versions[key] = version
        else:
            self._versions.pop(key, None)  # the position tells echoes apart
        return old

    def _forget(self, key: Key) -> None:
        self._versions.pop(key, None)
        old = self._cache.pop(key, None)
        if old is not None:
            self._on_change(key, old, None)

    def _heard(self) -> None:
        self.heard_at, self._lost_at = self._now(), None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _identity(item: Mapping[str, Any]) -> tuple[Key, int]:
    metadata = item["metadata"]
    # Interned: thousands of objects share a few namespaces.
    namespace = sys.intern(metadata.get("namespace") or "")
    return Key(namespace, metadata["name"]), int(metadata["resourceVersion"])
