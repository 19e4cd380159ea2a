"""Watches: each has a queue of its own from the moment it began, as with the watch cache of kube-apiserver."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from machine_operator.kube.errors import Unreachable
from tests.support.apiserver_select import matches

__all__ = ["Change", "Selection", "Watcher", "stream"]

Object = dict[str, Any]
Change = tuple[int, str, str, Object, Object | None]
"""version, ADDED/MODIFIED/DELETED, plural, the object, the object before"""


@dataclass(frozen=True, slots=True)
class Selection:
    """What a list or a watch asks for."""

    plural: str
    namespace: str | None = None
    labels: str | None = None
    fields: str | None = None

    def has(self, body: Object) -> bool:
        """Whether an object belongs to it."""
        return matches(body, labels=self.labels, fields=self.fields, namespace=self.namespace)

    def event(self, kind: str, body: Object, before: Object | None) -> str | None:
        """What a change is for such a watch: leaving the selection looks like a deletion."""
        was = before is not None and self.has(before)
        now = self.has(body) and kind != "DELETED"
        if was and now:
            return "MODIFIED"
        return "ADDED" if now else "DELETED" if was else None


@dataclass(slots=True, eq=False)
class Watcher:
    """One open watch."""

    selection: Selection
    queue: deque[Change] = field(default_factory=deque)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    cut: bool = False

    def tell(self, change: Change) -> None:
        """Something changed."""
        self.queue.append(change)
        self.news.set()

    def break_off(self) -> None:
        """The connection breaks: what was not delivered is lost to this watch."""
        self.cut = True
        self.news.set()


async def stream(
    watcher: Watcher,
    *,
    first: Iterable[Object],
    ends: str | None,
    version: Callable[[], int],
    bookmarks: float,
    timeout: float | None,
) -> AsyncIterator[Object]:
    """The events of a watch.

    Args:
        first: objects that are told as ADDED before anything else.
        ends: the version of the bookmark that ends them (WatchList), or None for none.
        version: the newest version, for bookmarks.
        bookmarks: seconds of silence after which one comes.
        timeout: seconds after which the server ends the watch, or None.
    """
    for body in first:
        yield {"type": "ADDED", "object": body}
    if ends is not None:
        mark = {"resourceVersion": ends, "annotations": {"k8s.io/initial-events-end": "true"}}
        yield {"type": "BOOKMARK", "object": {"metadata": mark}}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout if timeout is not None else None
    while True:
        while watcher.queue and not watcher.cut:
            _, kind, _, body, before = watcher.queue.popleft()
            event = watcher.selection.event(kind, body, before)
            if event is not None:
                yield {"type": event, "object": orjson.loads(orjson.dumps(body))}
        if watcher.cut:
            raise Unreachable(f"watch {watcher.selection.plural}: the connection broke")
        if deadline is not None and loop.time() >= deadline:
            return
        watcher.news.clear()
        left = bookmarks if deadline is None else min(bookmarks, max(deadline - loop.time(), 0.0))
        try:
            async with asyncio.timeout(left):
                await watcher.news.wait()
        except TimeoutError:
            if left == bookmarks:
                meta = {"resourceVersion": str(version())}
                yield {"type": "BOOKMARK", "object": {"metadata": meta}}
