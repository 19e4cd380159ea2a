"""A small kube-apiserver in memory: resourceVersions, server-side apply, status subresource, finalizers, watches.

It answers what the operator can ask, and refuses what a real one would refuse in those cases. Children of a vanished
owner are collected, as the controller-manager would. Everything happens synchronously inside `handle`, so a test may
look at any moment.
"""

from __future__ import annotations

import asyncio
import bisect
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from typing_extensions import override

from machine_operator.kube import resources
from machine_operator.kube.errors import ApiError, Unreachable, from_status
from machine_operator.kube.resources import Resource
from tests.support.apply import Path, apply_fields, merge

__all__ = ["FakeApi", "Request", "Stored", "copied", "failure"]

Object = dict[str, Any]
Id = tuple[str, str, str]
"""plural, namespace, name"""

KINDS: dict[str, Resource] = {
    item.plural: item for item in vars(resources).values() if isinstance(item, Resource)
}
_STATUS_SUBRESOURCE = {"machines", "virtualmachines", "persistentvolumeclaims"}
_GENERATION = {"machines", "virtualmachines"}


@dataclass(slots=True)
class Stored:
    """One object, and which manager owns which of its fields."""

    body: Object
    owned: dict[str, set[Path]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for, in parts."""

    verb: str
    plural: str
    namespace: str | None
    name: str | None
    subresource: str | None
    body: Any
    params: dict[str, str]

    @property
    def writes(self) -> bool:
        """Whether it can change something."""
        return self.verb not in ("get", "list", "watch")

    @override
    def __str__(self) -> str:
        target = "/".join(part for part in (self.plural, self.name, self.subresource) if part)
        return f"{self.verb} {target}"


def copied(value: Any) -> Any:
    """A deep copy by way of JSON, as over the wire (and several times faster than `copy`)."""
    return orjson.loads(orjson.dumps(value))


def failure(code: int, reason: str, message: str) -> ApiError:
    """The error that a client makes of such an answer."""
    return from_status(code, {"kind": "Status", "reason": reason, "message": message, "code": code})


class FakeApi:
    """The server. `log` has each request of each client; `changes` counts what really changed something."""

    def __init__(self) -> None:
        self.objects: dict[Id, Stored] = {}
        self.history: list[tuple[int, str, str, Object, Object | None]] = []
        self.version = 100
        self.compacted = 0
        self.log: list[Request] = []
        self.changes: list[str] = []
        self.down = False
        self.refuse: list[Callable[[Request], ApiError | None]] = []
        self.listeners: list[Callable[[str, str, Object], None]] = []
        self._news = asyncio.Event()
        self._cut = 0

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
        return [copied(s.body) for (p, _, _), s in self.objects.items() if p == plural]

    def edit(self, plural: str, name: str, change: Callable[[Object], Any]) -> None:
        """Change an object directly, as some other client would."""
        stored = self.objects[(plural, "ns", name)]
        before = copied(stored.body)
        change(stored.body)
        self._store(plural, stored, before)

    def break_watches(self) -> None:
        """Cut all connections of watches, as a load balancer does."""
        self._cut += 1
        self._wake()

    def compact(self) -> None:
        """Forget the past: whoever watches from an older version has to list again."""
        self.compacted = self.version
        self.history.clear()

    def writes(self, since: int = 0) -> list[str]:
        """Requests that write, in words."""
        return [str(request) for request in self.log[since:] if request.writes]

    # ---- requests

    def handle(self, request: Request) -> Object:
        """One request but a watch.

        Raises:
            KubeError: as a client would see it.
        """
        self.log.append(request)
        if self.down:
            raise Unreachable(f"{request}: no answer")
        for rule in self.refuse:
            error = rule(request)
            if error is not None:
                raise error
        answer: Object = copied(getattr(self, f"_{request.verb}")(request))
        return answer

    def _list(self, request: Request) -> Object:
        selector = request.params.get("labelSelector")
        items = [
            {k: v for k, v in stored.body.items() if k not in ("apiVersion", "kind")}
            for (plural, _, _), stored in self.objects.items()
            if plural == request.plural and _selected(stored.body, selector)
        ]
        return {"kind": "List", "metadata": {"resourceVersion": str(self.version)}, "items": items}

    def _get(self, request: Request) -> Object:
        return self._stored(request).body

    def _create(self, request: Request) -> Object:
        body = copied(request.body)
        key = (request.plural, body["metadata"]["namespace"], body["metadata"]["name"])
        if key in self.objects:
            raise failure(409, "AlreadyExists", f"{request.plural} {key[2]!r} already exists")
        return self._new(key, Stored(body)).body

    def _apply(self, request: Request) -> Object:
        key = self._key(request)
        manager, body = request.params["fieldManager"], copied(request.body)
        stored = self.objects.get(key)
        if stored is None:
            if request.subresource:
                raise failure(404, "NotFound", f"{request.plural} {request.name!r} not found")
            stored = Stored({"metadata": {"name": request.name, "namespace": request.namespace}})
            apply_fields(stored.body, body, owned=stored.owned, manager=manager)
            return self._new(key, stored).body
        before = copied(stored.body)
        uid = body.get("metadata", {}).pop("uid", None)
        if uid not in (None, before["metadata"]["uid"]):
            raise failure(409, "Conflict", f"{request.name}: the uid is another one")
        if request.subresource == "status":
            part = {"status": body.get("status", {})}
            owned = {m: {p for p in ps if p[0] == "status"} for m, ps in stored.owned.items()}
            apply_fields(stored.body, part, owned=owned, manager=manager)
            stored.owned[manager] = owned[manager] | {
                p for p in stored.owned.get(manager, set()) if p[0] != "status"
            }
        else:
            if request.plural in _STATUS_SUBRESOURCE:
                body.pop("status", None)
            kept = {p for p in stored.owned.get(manager, set()) if p[0] == "status"}
            owned = {m: ps - kept for m, ps in stored.owned.items()}
            apply_fields(stored.body, body, owned=owned, manager=manager)
            stored.owned[manager] = owned[manager] | kept
        return self._store(request.plural, stored, before).body

    def _patch(self, request: Request) -> Object:
        stored = self._stored(request)
        body, before = copied(request.body), copied(stored.body)
        expected = body.get("metadata", {}).pop("resourceVersion", None)
        if expected is not None and expected != before["metadata"]["resourceVersion"]:
            raise failure(409, "Conflict", f"{request.name}: the object has been modified")
        if request.plural in _STATUS_SUBRESOURCE and request.subresource != "status":
            body.pop("status", None)
        merge(stored.body, body)
        return self._store(request.plural, stored, before).body

    def _delete(self, request: Request) -> Object:
        stored = self._stored(request)
        uid = ((request.body or {}).get("preconditions") or {}).get("uid")
        meta = stored.body["metadata"]
        if uid is not None and uid != meta["uid"]:
            raise failure(409, "Conflict", f"{request.name}: the uid is {meta['uid']}, not {uid}")
        before = copied(stored.body)
        if "deletionTimestamp" not in meta:
            meta["deletionTimestamp"] = _now()
            if request.plural in _GENERATION:
                meta["generation"] += 1
        return self._store(request.plural, stored, before).body

    def remove(self, plural: str, name: str) -> None:
        """Delete as a client would, without logging it."""
        request = Request("delete", plural, "ns", name, None, None, {})
        self._delete(request)

    # ---- storage

    def _key(self, request: Request) -> Id:
        return (request.plural, request.namespace or "", request.name or "")

    def _stored(self, request: Request) -> Stored:
        stored = self.objects.get(self._key(request))
        if stored is None:
            raise failure(404, "NotFound", f"{request.plural} {request.name!r} not found")
        return stored

    def _new(self, key: Id, stored: Stored) -> Stored:
        resource = KINDS[key[0]]
        body = stored.body
        body["apiVersion"], body["kind"] = resource.api_version, resource.kind
        body["metadata"].setdefault("uid", str(uuid.uuid4()))
        body["metadata"]["creationTimestamp"] = _now()
        if key[0] in _GENERATION:
            body["metadata"]["generation"] = 1
        self.objects[key] = stored
        self._emit("ADDED", key[0], body, None)
        owners = [reference["uid"] for reference in body["metadata"].get("ownerReferences") or []]
        if owners and not any(s.body["metadata"]["uid"] in owners for s in self.objects.values()):
            asyncio.get_running_loop().call_later(1.0, self._collect, owners[0])
        return stored

    def _store(self, plural: str, stored: Stored, before: Object) -> Stored:
        """Give the changed object a new version and tell it; one that did not change keeps its own."""
        body, meta = stored.body, stored.body["metadata"]
        if body == before:
            return stored
        if plural in _GENERATION and body.get("spec") != before.get("spec"):
            meta["generation"] = before["metadata"]["generation"] + 1
        if "deletionTimestamp" in meta and not meta.get("finalizers"):
            del self.objects[(plural, meta["namespace"], meta["name"])]
            self._emit("DELETED", plural, body, before)
            self._collect(meta["uid"])
        else:
            self._emit("MODIFIED", plural, body, before)
        return stored

    def _emit(self, kind: str, plural: str, body: Object, before: Object | None) -> None:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, kind, plural, copied(body), before))
        self.changes.append(f"{kind} {plural}/{body['metadata']['name']}")
        self._wake()
        for listener in self.listeners:
            listener(kind, plural, copied(body))

    def _collect(self, owner: str) -> None:
        """The garbage collector: children whose owner is gone go as well."""
        for (plural, _, name), stored in list(self.objects.items()):
            owners = stored.body["metadata"].get("ownerReferences") or []
            if owners and all(reference["uid"] == owner for reference in owners):
                self.remove(plural, name)

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # ---- watch

    async def watch(
        self, plural: str, *, since: int, selector: str | None = None, bookmarks: float = 60.0
    ) -> AsyncIterator[Object]:
        """Events after `since`, with a bookmark whenever nothing came for `bookmarks` seconds."""
        if self.down:
            raise Unreachable(f"watch {plural}: no answer")
        if since < self.compacted:
            raise failure(410, "Expired", f"too old resource version: {since}")
        cut, position = self._cut, since
        while True:
            until, news = self.version, self._news
            start = bisect.bisect_right(self.history, position, key=lambda entry: entry[0])
            for _, kind, what, body, before in self.history[start:]:
                if what != plural:
                    continue
                event = _seen_through(selector, kind, body, before)
                if event is not None:
                    yield {"type": event, "object": copied(body)}
            position = max(position, until)
            if self._cut != cut:
                raise Unreachable(f"watch {plural}: the connection broke")
            try:
                async with asyncio.timeout(bookmarks):
                    await news.wait()
            except TimeoutError:
                meta = {"resourceVersion": str(self.version)}
                yield {"type": "BOOKMARK", "object": {"metadata": meta}}


def _selected(body: Object, selector: str | None) -> bool:
    labels = body["metadata"].get("labels") or {}
    return all(name in labels for name in (selector or "").split(",") if name)


def _seen_through(
    selector: str | None, kind: str, body: Object, before: Object | None
) -> str | None:
    """What a change is for a watch with a selector: leaving the selection looks like a deletion."""
    was = before is not None and _selected(before, selector)
    now = _selected(body, selector) and kind != "DELETED"
    if was and now:
        return "MODIFIED"
    return "ADDED" if now else "DELETED" if was else None


def _now() -> str:
    return datetime.now(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"
