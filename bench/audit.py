"""What the operator's user asked of the API server, from the API server's own audit log.

The log is written before the answer goes out, so it is complete as soon as a request is done. A watch is logged when
it begins and again when it ends; it counts once, when it begins. Leases are left out everywhere: leadership costs the
same however many machines there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson

__all__ = ["AuditLog", "Request", "by_kind"]

_WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        at: when it was received, in seconds since the epoch.
        resource: plural, with the subresource after a slash.
        code: the HTTP status of the answer; 0 for a request that was cut off.
    """

    at: float
    verb: str
    resource: str
    namespace: str
    name: str
    code: int

    @property
    def is_write(self) -> bool:
        """Whether it asked for a change."""
        return self.verb in _WRITES

    @property
    def is_watch(self) -> bool:
        """Whether it is the begin of a watch."""
        return self.verb == "watch"


class AuditLog:
    """Reads what came after a mark."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.mark()

    def mark(self) -> None:
        """Forget what was logged so far."""
        self._offset = self._path.stat().st_size if self._path.exists() else 0

    def requests(self) -> list[Request]:
        """All requests since the mark."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        lines = text[: text.rfind(b"\n") + 1].splitlines()  # the last one may be half written
        return [found for line in lines if (found := _read(line)) is not None]

    def writes(self, *, namespace: str | None = None) -> list[Request]:
        """The writes since the mark, in one namespace or in all."""
        return [
            request
            for request in self.requests()
            if request.is_write and namespace in (None, request.namespace)
        ]


def by_kind(requests: Iterable[Request]) -> dict[str, int]:
    """How many of each verb and resource; refused ones by themselves, with the code."""
    counts = Counter(
        f"{r.verb} {r.resource}" + (f" -> {r.code}" if r.code >= 300 else "") for r in requests
    )
    return dict(counts.most_common())


def _read(line: bytes) -> Request | None:
    entry = orjson.loads(line)
    # A watch has two entries, anything else just the last.
    begins_watch = entry["stage"] == "ResponseStarted" and entry["verb"] == "watch"
    ends_other = entry["stage"] in ("ResponseComplete", "Panic") and entry["verb"] != "watch"
    about = entry.get("objectRef") or {}
    resource = about.get("resource", entry["requestURI"])
    if not (begins_watch or ends_other) or resource == "leases":
        return None
    sub = about.get("subresource")
    return Request(
        at=datetime.fromisoformat(entry["requestReceivedTimestamp"]).timestamp(),
        verb=entry["verb"],
        resource=f"{resource}/{sub}" if sub else resource,
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        code=(entry.get("responseStatus") or {}).get("code", 0),
    )
