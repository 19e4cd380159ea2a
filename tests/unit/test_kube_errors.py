"""From `metav1.Status` to our errors, and the paths of resources."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from machine_operator.kube import errors
from machine_operator.kube.errors import ApiError, KubeError, from_status, seconds_to_wait
from machine_operator.kube.resources import (
    LEASES,
    MACHINES,
    NODES,
    PERSISTENT_VOLUME_CLAIMS,
    PODS,
    VIRTUAL_MACHINES,
    Resource,
)


@pytest.mark.parametrize(
    ("status", "reason", "kind", "retryable"),
    [
        (400, "BadRequest", errors.Invalid, False),
        (401, "Unauthorized", errors.Unauthorized, True),
        (403, "Forbidden", errors.Forbidden, True),
        (404, "NotFound", errors.NotFound, True),
        (409, "Conflict", errors.Conflict, True),
        (409, "AlreadyExists", errors.AlreadyExists, True),
        (410, "Expired", errors.Expired, True),
        (410, "Gone", errors.Expired, True),
        (422, "Invalid", errors.Invalid, False),
        (429, "TooManyRequests", errors.TooManyRequests, True),
        (500, "InternalError", errors.ServerError, True),
        (503, "ServiceUnavailable", errors.ServerError, True),
        (504, "Timeout", errors.ServerError, True),
        (418, "", errors.ServerError, True),
    ],
)
def test_the_class_follows_the_code(
    status: int, reason: str, kind: type[ApiError], retryable: bool
) -> None:
    error = from_status(status, {"reason": reason, "message": "no"}, request="GET /x")
    assert type(error) is kind
    assert (error.status, error.reason, error.message) == (status, reason, "no")
    assert error.retryable is retryable
    assert str(error) == "GET /x: no"
    assert isinstance(error, KubeError)


def test_an_already_existing_object_is_also_a_conflict() -> None:
    assert isinstance(from_status(409, {"reason": "AlreadyExists"}), errors.Conflict)


def test_an_empty_answer_still_makes_a_sentence() -> None:
    assert str(from_status(503, {})) == "the server answered 503 without a reason"
    assert from_status(503, {"details": None, "message": None}).details == {}


def test_when_to_come_back_is_in_the_header_or_in_the_body() -> None:
    body = {"details": {"retryAfterSeconds": 3}}
    assert from_status(429, body).retry_after == 3.0
    assert from_status(429, body, retry_after=9.0).retry_after == 9.0
    assert from_status(429, {}).retry_after is None


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("0", 0.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("-3", None),
        ("nan", None),
        ("inf", 300.0),
        ("86400", 300.0),
        ("Sun, 01 Mar 2026 10:00:30 GMT", 30.0),
        ("Sun, 01 Mar 2026 12:00:30 +0200", 30.0),
        ("Sun, 01 Mar 2026 10:00:30 -0000", 30.0),
        ("Sun, 01 Mar 2026 09:00:00 GMT", 0.0),
        ("Sun, 01 Mar 2027 10:00:00 GMT", 300.0),
        ("Sun, 99 Mar 2026 10:00:00 GMT", None),
    ],
)
def test_retry_after_in_all_its_forms(header: str | None, seconds: float | None) -> None:
    now = datetime(2026, 3, 1, 10, tzinfo=UTC)
    assert seconds_to_wait(header, now=now) == seconds


@pytest.mark.parametrize("details", [{"retryAfterSeconds": "x"}, {"retryAfterSeconds": -1}, ["a"]])
def test_a_body_with_nonsense_in_it_asks_for_no_wait(details: object) -> None:
    assert from_status(429, {"details": details}).retry_after is None


@pytest.mark.parametrize(
    ("resource", "namespace", "name", "subresource", "path"),
    [
        (PODS, None, None, None, "/api/v1/pods"),
        (PODS, "ns", None, None, "/api/v1/namespaces/ns/pods"),
        (
            PERSISTENT_VOLUME_CLAIMS,
            "ns",
            "a",
            None,
            "/api/v1/namespaces/ns/persistentvolumeclaims/a",
        ),
        (NODES, None, "n", None, "/api/v1/nodes/n"),
        (NODES, "ignored", "n", "status", "/api/v1/nodes/n/status"),
        (
            MACHINES,
            "ns",
            "box",
            "status",
            "/apis/machines.dedaluslabs.ai/v1alpha1/namespaces/ns/machines/box/status",
        ),
        (VIRTUAL_MACHINES, None, None, None, "/apis/kubevirt.io/v1/virtualmachines"),
    ],
)
def test_paths(
    resource: Resource, namespace: str | None, name: str | None, subresource: str | None, path: str
) -> None:
    assert resource.path(namespace=namespace, name=name, subresource=subresource) == path


def test_a_namespaced_name_without_its_namespace_is_an_error() -> None:
    with pytest.raises(ValueError, match="say in which namespace"):
        PODS.path(name="a")


def test_api_versions() -> None:
    assert (PODS.api_version, LEASES.api_version) == ("v1", "coordination.k8s.io/v1")
