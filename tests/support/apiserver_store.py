"""What a FakeApi keeps: objects by kind and name, their owners, their history, and who watches it.

Everything happens synchronously. Children of a vanished owner are collected, as the controller-manager would.
"""

from __future__ import annotations

import asyncio
import bisect
import random
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from machine_operator.kube import resources
from machine_operator.kube.errors import Unreachable
from machine_operator.kube.resources import Resource
from tests.support.apiserver_rules import failure
from tests.support.apiserver_select import refusal
from tests.support.apiserver_watch import Change, Selection, Watcher, stream
from tests.support.apply import Fields, dotted, note_change
from tests.support.clock import stamp

__all__ = ["GENERATION", "Id", "Object", "Store", "Stored", "copied", "new_uid", "scope"]

Object = dict[str, Any]
Id = tuple[str, str, str]
"""plural, namespace ("" for cluster-scoped kinds), name"""

KINDS: dict[str, Resource] = {
    item.plural: item for item in vars(resources).values() if isinstance(item, Resource)
}
GENERATION = {"machines", "virtualmachines"}
"""Kinds whose generation counts the changes of their spec."""

_BESIDE = {"nodes", "events", "leases", "storageclasses", "namespaces"}
"""What is not a part of any machine: it is kept apart, and does not count as a change."""

_HISTORY = 20_000


@dataclass(slots=True)
class Stored:
    """One object, and which manager owns which of its fields: by apply, and by other writes."""

    body: Object
    owned: Fields = field(default_factory=dict)
    updated: Fields = field(default_factory=dict)


def copied(value: Any) -> Any:
    """A deep copy by way of JSON, as over the wire (and several times faster than `copy`)."""
    return orjson.loads(orjson.dumps(value))


def new_uid() -> str:
    """A UID, the same in each run where `random` is seeded."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


class Store:
    """Objects.

    Attributes:
        objects: machines and what they are made of; `beside`: nodes, events, leases and the like.
        changes: what really changed something among `objects`.
        down: whether nothing answers.
        listeners: told (kind, plural, object) of each change.
    """

    def __init__(self) -> None:
        self.objects: dict[Id, Stored] = {}
        self.beside: dict[Id, Stored] = {}
        self.history: list[Change] = []
        self.version = 100
        self.compacted = 0
        self.changes: list[str] = []
        self.down = False
        self.listeners: list[Callable[[str, str, Object], None]] = []
        self._watchers: list[Watcher] = []
        self._uids: set[str] = set()

    # ---- what tests and simulations use

    def find(self, plural: str, name: str | None = None, namespace: str = "ns") -> Object:
        """A copy of one object; the only one of its kind where no name is given."""
        found = self.all(plural)
        if name is not None:
            found = [o for o in found if o["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} {plural}: {[o['metadata']['name'] for o in found]}"
        return found[0]

    def all(self, plural: str) -> list[Object]:
        """Copies of all objects of a kind."""
        return [copied(s.body) for (p, _, _), s in self._shelf(plural).items() if p == plural]

    def edit(
        self,
        plural: str,
        name: str,
        change: Callable[[Object], Any],
        *,
        manager: str | None = None,
    ) -> None:
        """Change an object directly, as some other client would; `manager` then owns what differs."""
        stored = self._shelf(plural)[(plural, scope(plural, "ns"), name)]
        before = copied(stored.body)
        change(stored.body)
        if manager is not None or plural == "machines":
            owners = {"owned": stored.owned, "updated": stored.updated}
            note_change(before, stored.body, **owners, manager=manager or "somebody")
        self._store(plural, stored, before)

    def put(self, plural: str, body: Object) -> None:
        """Create an object directly, as some other client would."""
        meta = body["metadata"]
        self._new((plural, meta.get("namespace", ""), meta["name"]), Stored(copied(body)))

    def break_watches(self) -> None:
        """Cut all connections of watches, as a load balancer does."""
        for watcher in self._watchers:
            watcher.break_off()

    def owners(self, plural: str, name: str, namespace: str = "ns") -> dict[str, set[str]]:
        """Who owns what of an object: paths such as `spec.vcpu` by field manager, as in its managedFields."""
        stored = self._shelf(plural)[(plural, scope(plural, namespace), name)]
        found: dict[str, set[str]] = {}
        for fields in (stored.owned, stored.updated):
            for manager, paths in fields.items():
                found.setdefault(manager, set()).update(dotted(path) for path in paths)
        return found

    # ---- storage

    def _shelf(self, plural: str) -> dict[Id, Stored]:
        return self.beside if plural in _BESIDE else self.objects

    def _new(self, key: Id, stored: Stored) -> Stored:
        resource, body = KINDS.get(key[0]), stored.body
        if resource is not None:
            body["apiVersion"], body["kind"] = resource.api_version, resource.kind
        body["metadata"].setdefault("uid", new_uid())
        body["metadata"]["creationTimestamp"] = stamp()
        if key[0] in GENERATION:
            body["metadata"]["generation"] = 1
        self._shelf(key[0])[key] = stored
        self._uids.add(body["metadata"]["uid"])
        self._emit("ADDED", key[0], body, None)
        owners = [reference["uid"] for reference in body["metadata"].get("ownerReferences") or []]
        if owners and not self._uids.intersection(owners):
            asyncio.get_running_loop().call_later(1.0, self._collect, owners[0])
        return stored

    def _mark_deleted(self, plural: str, stored: Stored) -> Object:
        """Delete an object, as soon as its finalizers let it go."""
        before, meta = copied(stored.body), stored.body["metadata"]
        if "deletionTimestamp" not in meta:
            meta["deletionTimestamp"] = stamp()
            if plural in GENERATION:
                meta["generation"] += 1
        return self._store(plural, stored, before).body

    def _store(self, plural: str, stored: Stored, before: Object) -> Stored:
        """Give the changed object a new version and tell it; one that did not change keeps its own."""
        body, meta = stored.body, stored.body["metadata"]
        if body == before:
            return stored
        if plural in GENERATION and body.get("spec") != before.get("spec"):
            meta["generation"] = before["metadata"]["generation"] + 1
        if "deletionTimestamp" in meta and not meta.get("finalizers"):
            del self._shelf(plural)[(plural, meta.get("namespace") or "", meta["name"])]
            self._uids.discard(meta["uid"])
            self._emit("DELETED", plural, body, before)
            self._collect(meta["uid"])
        else:
            self._emit("MODIFIED", plural, body, before)
        return stored

    def _emit(self, kind: str, plural: str, body: Object, before: Object | None) -> None:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        told = copied(body)
        change = (self.version, kind, plural, told, before)
        self.history.append(change)
        if len(self.history) > _HISTORY:
            self.compacted = self.history[_HISTORY // 2][0]
            del self.history[: _HISTORY // 2 + 1]
        if plural not in _BESIDE:
            self.changes.append(f"{kind} {plural}/{body['metadata']['name']}")
        for watcher in self._watchers:
            if watcher.selection.plural == plural:
                watcher.tell(change)
        for listener in self.listeners:
            listener(kind, plural, copied(body))

    def _collect(self, owner: str) -> None:
        """The garbage collector: children whose owner is gone go as well."""
        for (plural, _, _), stored in list(self.objects.items()):
            owners = stored.body["metadata"].get("ownerReferences") or []
            if owners and all(reference["uid"] == owner for reference in owners):
                self._mark_deleted(plural, stored)

    def _orphan(self, owner: str) -> None:
        for (plural, _, _), stored in list(self.objects.items()):
            owners = stored.body["metadata"].get("ownerReferences") or []
            if any(reference["uid"] == owner for reference in owners):
                before = copied(stored.body)
                rest = [reference for reference in owners if reference["uid"] != owner]
                stored.body["metadata"]["ownerReferences"] = rest
                self._store(plural, stored, before)

    def _items(self, selection: Selection) -> list[Object]:
        shelf = self._shelf(selection.plural)
        return [
            # Items of a list carry neither kind nor apiVersion.
            {k: v for k, v in shelf[key].body.items() if k not in ("apiVersion", "kind")}
            for key in sorted(key for key in shelf if key[0] == selection.plural)
            if selection.has(shelf[key].body)
        ]

    # ---- watch

    async def watch(
        self,
        plural: str,
        *,
        since: int | None,
        selector: str | None = None,
        bookmarks: float = 60.0,
        namespace: str | None = None,
        fields: str | None = None,
        initial: bool = False,
        timeout: float | None = None,
    ) -> AsyncIterator[Object]:
        """Events after `since`, with a bookmark whenever nothing came for `bookmarks` seconds.

        Args:
            since: a version; 0 or None: what is there now comes first, as ADDED.
            selector, namespace, fields: what is watched.
            initial: a WatchList (`sendInitialEvents`): what is there now comes first, and a bookmark that says
                so (`k8s.io/initial-events-end`) ends it.
            timeout: the server's own end of the watch, in seconds; None for never.
        """
        if self.down:
            raise Unreachable(f"watch {plural}: no answer")
        error = refusal(plural, fields)
        if error is not None:
            raise error
        if since and since < self.compacted and not initial:
            raise failure(410, "Expired", f"too old resource version: {since} ({self.compacted})")
        selection = Selection(plural, namespace, selector, fields)
        watcher, first = Watcher(selection), []
        if initial or not since:
            first = [copied({**_typed(plural), **item}) for item in self._items(selection)]
        else:
            start = bisect.bisect_right(self.history, since, key=lambda change: change[0])
            watcher.queue.extend(change for change in self.history[start:] if change[2] == plural)
        self._watchers.append(watcher)
        ends = str(self.version) if initial else None
        try:
            async for event in stream(
                watcher, first=first, ends=ends, version=lambda: self.version,
                bookmarks=bookmarks, timeout=timeout,
            ):  # fmt: skip
                yield event
        finally:
            self._watchers.remove(watcher)


def scope(plural: str, namespace: str) -> str:
    """The namespace of an object of a kind: "" for a cluster-scoped one."""
    resource = KINDS.get(plural)
    namespaced = resource.namespaced if resource is not None else plural not in _BESIDE
    return namespace if namespaced else ""


def _typed(plural: str) -> Object:
    resource = KINDS.get(plural)
    return {"apiVersion": resource.api_version, "kind": resource.kind} if resource else {}
