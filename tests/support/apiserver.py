"""A small kube-apiserver in memory: resourceVersions, server-side apply, status subresource, finalizers, paged lists,
watches with and without initial events.

It answers what the operator can ask, and refuses what a real one would refuse in those cases. Children of a vanished
owner are collected, as the controller-manager would. Everything happens synchronously inside `handle`, so a test may
look at any moment.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from machine_operator.kube.errors import ApiError, Unreachable
from tests.support.apiserver_pages import Pages
from tests.support.apiserver_rules import failure, refused_change, refused_creation
from tests.support.apiserver_select import refusal
from tests.support.apiserver_store import GENERATION, Id, Object, Store, Stored, copied, scope
from tests.support.apiserver_watch import Selection
from tests.support.apply import apply_fields, json_patch, merge, note_change

__all__ = ["FakeApi", "Object", "Request", "Stored", "copied", "failure"]

_STATUS_SUBRESOURCE = {"machines", "virtualmachines", "persistentvolumeclaims", "nodes"}


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for, in parts.

    Attributes:
        agent: who asks, where no `fieldManager` is among the parameters.
    """

    verb: str
    plural: str
    namespace: str | None
    name: str | None
    subresource: str | None
    body: Any
    params: dict[str, str]
    agent: str = "machine-operator"

    @property
    def writes(self) -> bool:
        """Whether it can change something."""
        return self.verb not in ("get", "list", "watch")

    @property
    def manager(self) -> str:
        """The field manager that the server takes it for."""
        return self.params.get("fieldManager") or self.agent

    @override
    def __str__(self) -> str:
        target = "/".join(part for part in (self.plural, self.name, self.subresource) if part)
        return f"{self.verb} {target}"


class FakeApi(Store):
    """The server.

    Attributes:
        log: each request of each client.
        refuse: rules that may answer a request with an error.
        terminating: namespaces that are being deleted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Request] = []
        self.refuse: list[Callable[[Request], ApiError | None]] = []
        self.terminating: set[str] = set()
        self._pages = Pages()

    def remove(self, plural: str, name: str, *, propagation: str = "Background") -> None:
        """Delete as a client would, without logging it."""
        body = {"propagationPolicy": propagation}
        self._delete(Request("delete", plural, scope(plural, "ns"), name, None, body, {}))

    def compact(self) -> None:
        """Forget the past: whoever watches from an older version, or reads a list in pages, has to list again."""
        self.compacted = self.version
        self.history.clear()
        self._pages.forget()

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
        params = request.params
        error = refusal(request.plural, params.get("fieldSelector"))
        if error is not None:
            raise error
        if int(params.get("resourceVersion") or 0) > self.version:
            raise failure(504, "Timeout", "Too large resource version", retryAfterSeconds=1)
        selection = _selection(request.plural, request.namespace, params)
        return self._pages.answer(
            params, version=self.version, items=lambda: self._items(selection)
        )

    def _get(self, request: Request) -> Object:
        return self._stored(request).body

    def _create(self, request: Request) -> Object:
        body = copied(request.body)
        meta = body["metadata"]
        meta.setdefault("namespace", request.namespace or "")
        if "name" not in meta:
            meta["name"] = meta["generateName"] + uuid.uuid4().hex[:5]
        key = (request.plural, scope(request.plural, meta["namespace"]), meta["name"])
        if key in self._shelf(request.plural):
            raise failure(409, "AlreadyExists", f"{request.plural} {key[2]!r} already exists")
        if request.plural in _STATUS_SUBRESOURCE and "status" in body:
            del body["status"]
        stored = Stored(body)
        note_change({}, body, owned={}, updated=stored.updated, manager=request.manager)
        self._check(refused_creation(request.plural, body, terminating=self.terminating))
        return self._new(key, stored).body

    def _apply(self, request: Request) -> Object:
        key, body = self._key(request), copied(request.body)
        if "fieldManager" not in request.params:
            raise failure(400, "BadRequest", "fieldManager is required for apply patch")
        meta = body.get("metadata", {})
        uid, version = meta.get("uid"), meta.get("resourceVersion")
        stored = self._shelf(request.plural).get(key)
        status = request.subresource == "status"
        if stored is None:
            if request.subresource:
                raise failure(404, "NotFound", f"{request.plural} {request.name!r} not found")
            if uid is not None:
                text = f"uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                raise failure(409, "Conflict", f"{request.name}: {text}")
            if request.plural in _STATUS_SUBRESOURCE:
                body.pop("status", None)
            ids = {"name": request.name, "namespace": request.namespace}
            stored = Stored({"metadata": {k: v for k, v in ids.items() if v is not None}})
            apply_fields(stored.body, body, owned=stored.owned, manager=request.manager)
            self._check(refused_creation(request.plural, stored.body, terminating=self.terminating))
            return self._new(key, stored).body
        self._expect(stored, uid=uid, version=version)
        if status:
            body = {"status": body.get("status", {})}
        elif request.plural in _STATUS_SUBRESOURCE:
            body.pop("status", None)
        return self._change(request, stored, lambda obj: None, applied=body)

    def _patch(self, request: Request) -> Object:
        stored, body = self._stored(request), copied(request.body)
        if isinstance(body, list):
            return self._change(request, stored, lambda obj: json_patch(obj, body))
        meta = body.get("metadata", {})
        self._expect(stored, uid=meta.pop("uid", None), version=meta.pop("resourceVersion", None))
        return self._change(request, stored, lambda obj: merge(obj, body))

    def _replace(self, request: Request) -> Object:
        stored, body = self._stored(request), copied(request.body)
        meta = body["metadata"]
        version = meta.get("resourceVersion")
        if not version and request.plural in (GENERATION | {"leases"}):
            text = "metadata.resourceVersion: Invalid value: 0: must be specified for an update"
            raise failure(422, "Invalid", f"{request.name}: {text}")
        self._expect(stored, uid=meta.get("uid"), version=version)

        def change(obj: Object) -> None:
            kept = {k: obj["metadata"][k] for k in _SERVERS_OWN if k in obj["metadata"]}
            obj.clear()
            obj.update(body)
            obj["metadata"] |= kept

        return self._change(request, stored, change)

    _update = _replace

    def _change(
        self,
        request: Request,
        stored: Stored,
        change: Callable[[Object], str | None],
        *,
        applied: Object | None = None,
    ) -> Object:
        """Change an object as a request may, whole or not at all."""
        before, after = stored.body, copied(stored.body)
        status = request.subresource == "status"
        split = request.plural in _STATUS_SUBRESOURCE
        owned = {manager: set(paths) for manager, paths in stored.owned.items()}
        updated = {manager: set(paths) for manager, paths in stored.updated.items()}
        if applied is not None:
            conflicts = apply_fields(
                after, applied, owned=owned, updated=updated, manager=request.manager,
                within=lambda path: not split or (path[0] == "status") == status,
                force=request.params.get("force") == "true",
            )  # fmt: skip
            if conflicts:
                text = f"Apply failed with {len(conflicts)} conflicts: {', '.join(conflicts)}"
                raise failure(409, "Conflict", text)
        else:
            fault = change(after)
            if fault is not None:
                raise failure(422, "Invalid", f"the server rejected our request: {fault}")
            if split:
                _confine(before, after, status=status)
            if after != before:
                note_change(before, after, owned=owned, updated=updated, manager=request.manager)
        if after != before:
            self._check(refused_change(request.plural, before, after))
        stored.owned, stored.updated, stored.body = owned, updated, after
        return self._store(request.plural, stored, before).body

    def _delete(self, request: Request) -> Object:
        stored = self._stored(request)
        options = request.body or {}
        expected = options.get("preconditions") or {}
        self._expect(stored, uid=expected.get("uid"), version=expected.get("resourceVersion"))
        if options.get("propagationPolicy") == "Orphan":
            self._orphan(stored.body["metadata"]["uid"])
        return self._mark_deleted(request.plural, stored)

    def _key(self, request: Request) -> Id:
        return (request.plural, request.namespace or "", request.name or "")

    def _stored(self, request: Request) -> Stored:
        stored = self._shelf(request.plural).get(self._key(request))
        if stored is None:
            raise failure(404, "NotFound", f"{request.plural} {request.name!r} not found")
        return stored

    def _check(self, error: ApiError | None) -> None:
        if error is not None:
            raise error

    def _expect(self, stored: Stored, *, uid: str | None, version: str | None) -> None:
        meta = stored.body["metadata"]
        if uid not in (None, meta["uid"]):
            text = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {meta['uid']}"
            raise failure(409, "Conflict", f"{meta['name']}: {text}")
        if version not in (None, meta["resourceVersion"]):
            text = "the object has been modified; please apply your changes to the latest version"
            raise failure(409, "Conflict", f"{meta['name']}: {text} and try again")


_SERVERS_OWN = ("uid", "creationTimestamp", "deletionTimestamp", "generation", "resourceVersion")


def _selection(plural: str, namespace: str | None, params: dict[str, str]) -> Selection:
    return Selection(plural, namespace, params.get("labelSelector"), params.get("fieldSelector"))


def _confine(before: Object, after: Object, *, status: bool) -> None:
    """Of a change through one endpoint only that endpoint's part counts."""
    if status:
        changed = after.get("status")
        after.clear()
        after.update(copied(before))
        if changed is not None:
            after["status"] = changed
    elif "status" in before:
        after["status"] = copied(before["status"])
    else:
        after.pop("status", None)
