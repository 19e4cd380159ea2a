"""Failures on the wire: Format A to the letter, Format B bounded, and what kube-apiserver's failures become."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from machine_operator.gateway import failures
from machine_operator.gateway.problems import (
    Coded,
    Fault,
    GatewayError,
    Problem,
    Scope,
    bounded,
)

_SLEEPING_FAILED = failures.invalid_state(
    current_desired="running",
    current_observed="error",
    expected_observed="running",
    target="sleeping",
)


@pytest.mark.parametrize(
    ("error", "status", "body", "headers"),
    [
        (
            failures.auth_invalid(),
            401,
            {
                "error_code": "AUTH_INVALID",
                "message": "invalid Dedalus API key",
                "retryable": False,
            },
            {"WWW-Authenticate": "Bearer"},
        ),
        (
            failures.auth_required(),
            401,
            {
                "error_code": "AUTH_REQUIRED",
                "message": "missing Dedalus API key",
                "retryable": False,
            },
            {"WWW-Authenticate": "Bearer"},
        ),
        (
            failures.org_mismatch(),
            403,
            {
                "error_code": "AUTH_ORG_MISMATCH",
                "message": "org scope does not match API key ownership",
                "retryable": False,
            },
            {},
        ),
        (
            failures.scope_forbidden("machines:write"),
            403,
            {
                "error_code": "AUTH_SCOPE_FORBIDDEN",
                "message": "required authorization scope is missing",
                "retryable": False,
                "details": {"required_scope": "machines:write"},
            },
            {},
        ),
        (
            failures.key_in_flight(),
            429,
            {
                "error_code": "RATE_LIMITED",
                "message": "idempotency key is already in-flight",
                "retryable": True,
                "retry_after_ms": 250,
            },
            {"Retry-After-Ms": "250", "Retry-After": "1"},
        ),
        *(
            (
                failures.rate_limited(scope, retry_after_ms=84),
                429,
                {
                    "error_code": "RATE_LIMITED",
                    "message": "mutation rate limit exceeded",
                    "retryable": True,
                    "retry_after_ms": 84,
                    "details": {"rate_limit_scope": name},
                },
                {"Retry-After-Ms": "84", "Retry-After": "1"},
            )
            for scope, name in (
                (Scope.READ, "read_lifecycle_routes"),
                (Scope.MUTATE, "mutating_lifecycle_routes"),
                (Scope.SLEEP, "sleep_lifecycle_routes"),
            )
        ),
        (
            failures.limiter_unavailable(Scope.SLEEP, backend="redis"),
            503,
            {
                "error_code": "DEPENDENCY_UNAVAILABLE",
                "message": "mutation rate limiter unavailable",
                "retryable": True,
                "details": {
                    "rate_limit_backend": "redis",
                    "rate_limit_scope": "sleep_lifecycle_routes",
                },
            },
            {},
        ),
        (
            failures.runtime_unavailable(retry_after_ms=None),
            503,
            {
                "error_code": "DEPENDENCY_UNAVAILABLE",
                "message": "runtime unavailable",
                "retryable": True,
            },
            {},
        ),
        (
            failures.store_unavailable(),
            503,
            {
                "error_code": "DEPENDENCY_UNAVAILABLE",
                "message": "request store unavailable",
                "retryable": True,
                "retry_after_ms": 1000,
            },
            {"Retry-After-Ms": "1000", "Retry-After": "1"},
        ),
        (
            failures.idempotency_reused(expected="9ad5f2ad", provided="a2b7e8d4"),
            409,
            {
                "error_code": "IDEMPOTENCY_KEY_REUSED",
                "message": "idempotency key reused with different request parameters",
                "retryable": False,
                "details": {
                    "expected_request_hash": "9ad5f2ad",
                    "provided_request_hash": "a2b7e8d4",
                },
            },
            {"x-should-retry": "false"},
        ),
        (
            failures.revision_mismatch(expected="43", provided="42"),
            409,
            {
                "error_code": "REVISION_MISMATCH",
                "message": "revision mismatch",
                "retryable": True,
                "details": {"expected_revision": "43", "provided_revision": "42"},
            },
            {"x-should-retry": "false"},
        ),
        (
            _SLEEPING_FAILED,
            409,
            {
                "error_code": "INVALID_STATE",
                "message": "requested lifecycle transition is invalid for current machine state",
                "retryable": False,
                "details": {
                    "current_desired_state": "running",
                    "current_observed_state": "error",
                    "expected_observed_state": "running",
                    "target_desired_state": "sleeping",
                },
            },
            {"x-should-retry": "false"},
        ),
        (
            failures.quota_exceeded("no more than 5 machines"),
            403,
            {
                "error_code": "QUOTA_EXCEEDED",
                "message": "no more than 5 machines",
                "retryable": False,
            },
            {},
        ),
    ],
)
def test_format_a_is_exact(
    error: GatewayError, status: int, body: dict[str, Any], headers: dict[str, str]
) -> None:
    assert isinstance(error, Coded)
    assert error.media_type == "application/json"
    assert (error.status, error.body(), error.headers()) == (status, body, headers)


@pytest.mark.parametrize(
    ("error", "status", "title", "detail", "errors", "headers"),
    [
        (
            failures.machine_not_found("dm-1"),
            404,
            "Not Found",
            "there is no machine dm-1",
            None,
            {},
        ),
        (failures.no_such_route(), 404, "Not Found", "nothing is served at this path", None, {}),
        (
            failures.method_not_allowed(["POST", "GET", "GET"]),
            405,
            "Method Not Allowed",
            "this path answers GET, POST only",
            None,
            {"Allow": "GET, POST"},
        ),
        (
            failures.bad_json("it is empty"),
            400,
            "Bad Request",
            "the request body is not valid JSON: it is empty",
            [{"location": "body", "message": "it is empty"}],
            {},
        ),
        (
            failures.unsupported_media("text/plain"),
            415,
            "Unsupported Media Type",
            "request bodies are application/json",
            [
                {
                    "location": "header.Content-Type",
                    "message": "must be application/json",
                    "value": "text/plain",
                }
            ],
            {},
        ),
        (
            failures.over_capacity("memory_mib", 6144),
            400,
            "Bad Request",
            "memory_mib exceeds capacity",
            [{"location": "body.memory_mib", "message": "must be at most 6144"}],
            {},
        ),
        (
            failures.unprocessable(
                Fault("body.vcpu", "must be at most 4", 8), Fault("body.x", "is not known here")
            ),
            422,
            None,
            "the request is not valid: body.vcpu: must be at most 4 (and 1 more)",
            [
                {"location": "body.vcpu", "message": "must be at most 4", "value": 8},
                {"location": "body.x", "message": "is not known here"},
            ],
            {},
        ),
        (
            failures.too_large(1024),
            413,
            None,
            "the request body is longer than 1024 bytes",
            None,
            {},
        ),
        (
            failures.internal("abc"),
            500,
            "Internal Server Error",
            "something went wrong on our side; the request id is abc",
            None,
            {},
        ),
    ],
)
def test_format_b(
    error: Problem,
    *,
    status: int,
    title: str | None,
    detail: str,
    errors: list[Any] | None,
    headers: dict[str, str],
) -> None:
    body = error.body()
    assert error.media_type == "application/problem+json"
    assert (body["type"], body["status"], body["detail"]) == ("about:blank", status, detail)
    assert title is None or body["title"] == title
    assert body.get("errors") == errors
    assert error.headers() == headers


def test_a_capacity_of_many_digits_is_told_exactly() -> None:
    assert "at most 4194304" in str(failures.over_capacity("memory_mib", 4_194_304).body())
    assert "at most 0.75" in str(failures.over_capacity("vcpu", 0.75).body())


# --- what is told back


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * 201, "x" * 200 + "…"),
        ("x" * 200, "x" * 200),
        ("\ud800", "?"),
        (True, True),
        (0.3, 0.3),
        (-5, -5),
        (2**53, 2**53),
    ],
)
def test_plain_values_are_told_back_in_bounds(value: Any, shown: Any) -> None:
    body = failures.unprocessable(Fault("body.x", "no", value)).body()
    assert orjson.loads(orjson.dumps(body))["errors"][0]["value"] == shown


@pytest.mark.parametrize(
    "value", [None, [1], {"a": "secret"}, 2**53 + 1, float("nan"), float("inf"), object(), b"x"]
)
def test_other_values_are_not_told_back(value: Any) -> None:
    body = failures.unprocessable(Fault("body.x", "no", value)).body()
    assert "value" not in orjson.loads(orjson.dumps(body))["errors"][0]


def test_a_body_of_many_faults_gets_a_bounded_answer() -> None:
    faults = [Fault(f"body.{'x' * 100_000}{n}", "m" * 100_000, "v" * 100_000) for n in range(1000)]
    answer = orjson.dumps(failures.unprocessable(*faults).body())
    assert len(answer) < 100_000
    assert b"(and 999 more)" in answer


def test_ids_and_revisions_are_told_back_in_bounds() -> None:
    assert len(failures.machine_not_found("x" * 10_000).message) < 300
    provided = failures.revision_mismatch(expected="1", provided="9" * 10_000).details
    assert len(provided["provided_revision"]) == 201
    assert bounded("ab", limit=1) == "a…"
