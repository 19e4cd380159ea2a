"""A local copy of one kind, kept by list and watch.

List once, then watch from the list's resourceVersion (bookmarks move it on). When the stream ends, watch again from
the newest version seen; when that version is too old (410 Expired), list again. **A re-list says nothing about what
vanished meanwhile**, so the new key set is compared with the old one, and what is missing is reported as deleted.
Only the projection of each object is kept. Callbacks are synchronous and run after the cache has changed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from typing_extensions import override

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import Expired, KubeError
from machine_operator.kube.resources import Resource

__all__ = ["Informer", "Key"]

log = logging.getLogger(__name__)

T = TypeVar("T")


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
        project: turns the API server's object into what the cache keeps.
        on_change: called with (key, old, new) after each change; None stands for "is not there".
    """

    _FIRST_PAUSE = 0.8
    _LONGEST_PAUSE = 30.0

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        project: Callable[[dict[str, Any]], T],
        on_change: Callable[[Key, T | None, T | None], None],
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> None:
        self.resource = resource
        self.synced = asyncio.Event()
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
        self._version: str | None = None
        self._heard = False

    @property
    def cache(self) -> Mapping[Key, T]:
        """What is known now; do not change it."""
        return self._cache

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._cache.values()))

    def get(self, namespace: str, name: str) -> T | None:
        """The projection of one object, or None where it is not there."""
        return self._cache.get(Key(namespace, name))

    def wrote(self, item: dict[str, Any]) -> None:
        """Take over the answer to a write of our own, before the watch brings it.

        Whoever decides next then sees what was just done, and does not do it again.
        """
        # What the stream is past already, it has told; a deletion can have overtaken this answer.
        if _version(item) > int(self._version or 0):
            self._learn(_key(item), item)

    async def run(self) -> None:
        """Follow the API server until cancelled. Whatever ends a watch, the next one comes after a pause, which
        grows for as long as watches bring nothing: so neither an outage nor a server that hangs up is stormed.
        """
        pause = self._FIRST_PAUSE
        while True:
            self._heard = False
            try:
                if self._version is None:
                    await self._relist()
                await self._follow()
            except Expired:
                self._version = None
            except KubeError as error:
                log.warning("watch of %s: %s", self.resource.plural, error)
            if self._heard:
                pause = self._FIRST_PAUSE
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, self._LONGEST_PAUSE)

    async def _relist(self) -> None:
        answer = await self._client.list(self.resource, **self._scope)
        found: dict[Key, dict[str, Any]] = {_key(item): item for item in answer.get("items") or []}
        made_at = _version(answer)
        for key in [key for key in self._cache if key not in found]:
            if self._versions[key] <= made_at:  # else we wrote it after the list was made
                self._forget(key)
        for key, item in found.items():
            self._learn(key, item)
        self._version = answer["metadata"]["resourceVersion"]
        self.synced.set()

    async def _follow(self) -> None:
        assert self._version is not None  # noqa: S101 - _relist has set it
        async for event in self._client.watch(
            self.resource, resource_version=self._version, **self._scope
        ):
            item = event["object"]
            self._version = item["metadata"]["resourceVersion"]
            self._heard = True
            match event["type"]:
                case "ADDED" | "MODIFIED":
                    self._learn(_key(item), item)
                case "DELETED" if _version(item) >= self._versions.get(_key(item), 0):
                    self._forget(_key(item))
                case _:  # BOOKMARK, or the end of what a newer write of ours has replaced
                    pass

    def _learn(self, key: Key, item: dict[str, Any]) -> None:
        version = _version(item)
        if version < self._versions.get(key, 0):
            return  # older than what an own write brought already
        self._versions[key] = version
        # List items carry neither kind nor apiVersion.
        item.setdefault("kind", self.resource.kind)
        item.setdefault("apiVersion", self.resource.api_version)
        try:
            new = self._project(item)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            # One odd object must not end the watch of all others.
            log.error("%s %s cannot be read and is left out: %r", self.resource.kind, key, error)
            self._forget(key)
            return
        old = self._cache.get(key)
        self._cache[key] = new
        if old != new:
            self._on_change(key, old, new)

    def _forget(self, key: Key) -> None:
        self._versions.pop(key, None)
        old = self._cache.pop(key, None)
        if old is not None:
            self._on_change(key, old, None)


def _version(item: Mapping[str, Any]) -> int:
    return int(item["metadata"]["resourceVersion"])


def _key(item: Mapping[str, Any]) -> Key:
    metadata = item["metadata"]
    return Key(metadata.get("namespace") or "", metadata["name"])
