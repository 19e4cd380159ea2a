"""Series of Events: one thing that is said about one object, however often. No I/O and no clock in here."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["KNOWN", "Kind", "Memory", "ObjectRef", "Series", "Source", "cut"]

WINDOW = 3600.0
"""Seconds without repetition after which a series has ended. The API server keeps an Event about that long."""

KNOWN = 4096
"""Series, and objects with a budget, that are remembered."""

BURST, REFILL = 25, 300.0
"""Writes per object: so many at once, and one more after each so many seconds."""

_LONGEST_MESSAGE = 1024
_LONGEST_WORD = 128

Object = dict[str, Any]
Kind = Literal["Normal", "Warning"]
Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """What an Event is about. `namespace` is "" for an object of the cluster; `uid` is "" where it is not known."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str
    resource_version: str = ""

    @classmethod
    def of(cls, item: Object) -> ObjectRef:
        """The reference to an object as the API server has it."""
        meta = item["metadata"]
        return cls(
            api_version=item["apiVersion"],
            kind=item["kind"],
            namespace=meta.get("namespace", ""),
            name=meta["name"],
            uid=meta["uid"],
            resource_version=meta.get("resourceVersion", ""),
        )

    def body(self) -> Object:
        """As an `involvedObject`."""
        fields = {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "resourceVersion": self.resource_version,
        }
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True, slots=True)
class Source:
    """Who says it: a component, and which process of it."""

    component: str
    instance: str


@dataclass(slots=True)
class Series:
    """One thing that is said about one object.

    Attributes:
        first, last: when it was said, by the wall clock; `seen_at`: when last, by the monotonic one.
        name: of the Event object.
        count: how often it was said; `written`: how often as the API server knows, 0 before there is an Event.
        wrote_at: when, by the monotonic clock, the Event was last written or refused.
        waiting: whether a write of it is due, now or later.
        failures: tries of this write that failed.
    """

    regarding: ObjectRef
    type: Kind
    reason: str
    message: str
    action: str
    source: Source
    first: datetime
    last: datetime
    seen_at: float
    name: str = ""
    count: int = 1
    written: int = 0
    wrote_at: float = float("-inf")
    waiting: bool = False
    failures: int = 0

    def __post_init__(self) -> None:
        self.reason, self.action = self.reason[:_LONGEST_WORD], self.action[:_LONGEST_WORD]
        self.rename()

    def rename(self) -> None:
        """Name the Event: the same at each try, so that a lost answer does not make a second one."""
        text = "\0".join((*self.key, self.first.isoformat(), self.source.instance))
        digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
        self.name = f"{self.regarding.name[:200].rstrip('.-')}.{digest}"

    def start_again(self) -> None:
        """The API server has forgotten the Event: only what it was not told is news."""
        self.first, self.count, self.written = self.last, self.count - self.written, 0
        self.rename()

    @property
    def key(self) -> Key:
        """What makes it the same again."""
        return (self.regarding.uid, self.type, self.reason, self.message)

    @property
    def namespace(self) -> str:
        """Where the Event goes; those about objects of the cluster go to `default`."""
        return self.regarding.namespace or "default"

    def body(self) -> Object:
        """The Event, for a POST."""
        return {
            "metadata": {"name": self.name, "namespace": self.namespace},
            "involvedObject": self.regarding.body(),
            "type": self.type,
            "reason": self.reason,
            "message": self.message,
            "action": self.action,
            "source": {"component": self.source.component},
            "reportingComponent": self.source.component,
            "reportingInstance": self.source.instance,
            "firstTimestamp": _stamp(self.first),
            "lastTimestamp": _stamp(self.last),
            "count": self.count,
        }

    def growth(self) -> Object:
        """What repetition changes, for a merge patch."""
        return {"count": self.count, "lastTimestamp": _stamp(self.last)}


@dataclass(slots=True)
class _Budget:
    """A token bucket."""

    tokens: float = float(BURST)
    filled_at: float = 0.0

    def spend(self, *, now: float) -> bool:
        self.tokens = min(float(BURST), self.tokens + (now - self.filled_at) / REFILL)
        self.filled_at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@dataclass(slots=True)
class Memory:
    """The series and budgets that are known, least recently used first."""

    series: OrderedDict[Key, Series] = field(default_factory=OrderedDict)
    budgets: OrderedDict[str, _Budget] = field(default_factory=OrderedDict)

    def find(self, key: Key, *, now: float) -> Series | None:
        """The series that goes on if this is said now."""
        series = self.series.get(key)
        if series is None or now - series.seen_at > WINDOW:
            return None
        self.series.move_to_end(key)
        return series

    def keep(self, series: Series) -> None:
        """Remember a series, in place of the oldest."""
        self.series[series.key] = series
        self.series.move_to_end(series.key)
        while len(self.series) > KNOWN:
            self.series.popitem(last=False)

    def spend(self, uid: str, *, now: float) -> bool:
        """Take one write from an object's budget; False: it is used up."""
        budget = self.budgets.pop(uid, None) or _Budget(filled_at=now)
        self.budgets[uid] = budget
        while len(self.budgets) > KNOWN:
            self.budgets.popitem(last=False)
        return budget.spend(now=now)


def cut(message: str) -> str:
    """At most so many bytes, whole characters."""
    raw = message.encode(errors="replace")
    if len(raw) <= _LONGEST_MESSAGE:
        return raw.decode()
    end = "…"
    return raw[: _LONGEST_MESSAGE - len(end.encode())].decode(errors="ignore") + end


def _stamp(moment: datetime) -> str:
    # metav1.Time has whole seconds.
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
