"""Reading the API server's audit log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.audit import AuditLog, by_kind


def _entry(verb: str, resource: str, **rest: Any) -> dict[str, Any]:
    about = {"resource": resource, "namespace": rest.pop("namespace", "a"), "name": "m-1"}
    if "subresource" in rest:
        about["subresource"] = rest.pop("subresource")
    return {
        "stage": "ResponseComplete",
        "verb": verb,
        "requestURI": "/apis/x",
        "objectRef": about,
        "responseStatus": {"code": rest.pop("code", 200)},
        "requestReceivedTimestamp": "2026-01-02T03:04:05.250000Z",
        **rest,
    }


def _append(path: Path, *entries: dict[str, Any], end: str = "") -> None:
    with path.open("a") as file:
        file.write("".join(json.dumps(entry) + "\n" for entry in entries) + end)


def test_writes_of_one_namespace(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    _append(
        path,
        _entry("create", "secrets", code=201),
        _entry("create", "secrets", code=409),
        _entry("patch", "machines", subresource="status"),
        _entry("patch", "machines", namespace="b"),
        _entry("get", "secrets"),
    )
    log = AuditLog(path)
    assert log.requests() == []  # what was there before does not count

    _append(path, _entry("create", "secrets", code=201), _entry("create", "secrets", code=409))
    _append(path, _entry("patch", "machines", subresource="status"), _entry("get", "secrets"))
    _append(path, _entry("patch", "machines", namespace="b"))
    writes = log.writes(namespace="a")
    assert by_kind(writes) == {
        "create secrets": 1,
        "create secrets -> 409": 1,
        "patch machines/status": 1,
    }
    assert len(log.writes()) == 4
    assert writes[0].at == 1767323045.25


def test_a_watch_counts_once_and_a_lease_never(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    _append(
        path,
        _entry("watch", "machines", stage="ResponseStarted"),
        _entry("watch", "machines"),
        _entry("update", "leases"),
    )
    assert by_kind(log.requests()) == {"watch machines": 1}
    assert log.writes() == []


def test_a_half_written_line_is_left_for_later(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    _append(path, _entry("get", "secrets"), end='{"stage": "Resp')
    assert len(log.requests()) == 1


def test_what_is_not_about_an_object_is_named_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    log = AuditLog(path)
    _append(path, {**_entry("get", ""), "objectRef": None, "requestURI": "/version"})
    assert by_kind(log.requests()) == {"get /version": 1}
