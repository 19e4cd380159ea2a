"""Each failure of the gateway, by name: which status, code, words and wait it has on the wire.

The codes and sentences of Format A are the ones that DCS clients know, to the letter; the sentence of a limiter speaks
of mutations on reads too. What kube-apiserver says is never passed on as it is: it names objects, quotas and users
that are nobody's business outside the cluster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

from machine_operator.gateway.problems import Coded, Fault, GatewayError, Problem, Scope, bounded
from machine_operator.kube.errors import Forbidden, Invalid, KubeError

__all__ = [
    "auth_invalid",
    "auth_required",
    "bad_json",
    "from_kube",
    "idempotency_reused",
    "internal",
    "invalid_state",
    "key_in_flight",
    "limiter_unavailable",
    "machine_not_found",
    "method_not_allowed",
    "no_such_route",
    "no_way_inside",
    "org_mismatch",
    "over_capacity",
    "quota_exceeded",
    "rate_limited",
    "revision_mismatch",
    "runtime_unavailable",
    "scope_forbidden",
    "store_unavailable",
    "terminal_not_ready",
    "too_large",
    "unprocessable",
    "unsupported_media",
]

_IN_FLIGHT_MS = 250
_RUNTIME_MS = 1000


def auth_required() -> Coded:
    """401: no credential came along."""
    return Coded(401, "AUTH_REQUIRED", "missing Dedalus API key", retryable=False)


def auth_invalid() -> Coded:
    """401: the key is unknown, revoked or expired; which of them is not told."""
    return Coded(401, "AUTH_INVALID", "invalid Dedalus API key", retryable=False)


def org_mismatch() -> Coded:
    """403: `X-Dedalus-Org-Id` names another org than the key's."""
    message = "org scope does not match API key ownership"
    return Coded(403, "AUTH_ORG_MISMATCH", message, retryable=False)


def scope_forbidden(scope: str) -> Coded:
    """403: the key lacks `scope`, such as `machines:write`.

    Of the two sentences that DCS has had for this code, this is the newer one: the older one speaks of internal
    services, which would send the owner of a read-only key the wrong way.
    """
    return Coded(
        403,
        "AUTH_SCOPE_FORBIDDEN",
        "required authorization scope is missing",
        retryable=False,
        details={"required_scope": scope},
    )


def quota_exceeded(message: str) -> Coded:
    """403: the org has as many machines, or as much of something, as it may have."""
    return Coded(403, "QUOTA_EXCEEDED", message, retryable=False)


def key_in_flight(*, retry_after_ms: int = _IN_FLIGHT_MS) -> Coded:
    """429: the first request with this Idempotency-Key is still at work."""
    message = "idempotency key is already in-flight"
    return Coded(429, "RATE_LIMITED", message, retryable=True, retry_after_ms=retry_after_ms)


def rate_limited(scope: Scope, *, retry_after_ms: int) -> Coded:
    """429: more requests than the org may send in `scope`; there is room again in `retry_after_ms`."""
    return Coded(
        429,
        "RATE_LIMITED",
        "mutation rate limit exceeded",
        retryable=True,
        retry_after_ms=retry_after_ms,
        details={"rate_limit_scope": scope.value},
    )


def limiter_unavailable(scope: Scope, *, backend: str) -> Coded:
    """503: the counters of the limiter cannot be reached; `backend` is their kind, such as `redis`."""
    return Coded(
        503,
        "DEPENDENCY_UNAVAILABLE",
        "mutation rate limiter unavailable",
        retryable=True,
        details={"rate_limit_backend": backend, "rate_limit_scope": scope.value},
    )


def runtime_unavailable(*, retry_after_ms: int | None = _RUNTIME_MS) -> Coded:
    """503: the cluster does not answer, or not to us."""
    return _unavailable("runtime unavailable", retry_after_ms=retry_after_ms)


def store_unavailable() -> Coded:
    """503: the database of requests does not answer."""
    return _unavailable("request store unavailable", retry_after_ms=_RUNTIME_MS)


def _unavailable(message: str, *, retry_after_ms: int | None) -> Coded:
    return Coded(
        503, "DEPENDENCY_UNAVAILABLE", message, retryable=True, retry_after_ms=retry_after_ms
    )


def idempotency_reused(*, expected: str, provided: str) -> Coded:
    """409: the key came with another request before; both hashes are 8 lower-case hex digits."""
    return Coded(
        409,
        "IDEMPOTENCY_KEY_REUSED",
        "idempotency key reused with different request parameters",
        retryable=False,
        details={"expected_request_hash": expected, "provided_request_hash": provided},
    )


def revision_mismatch(*, expected: str, provided: str) -> Coded:
    """409: `If-Match` is `provided`, while the machine is at `expected`."""
    return Coded(
        409,
        "REVISION_MISMATCH",
        "revision mismatch",
        retryable=True,
        details={"expected_revision": expected, "provided_revision": bounded(provided)},
    )


def invalid_state(
    *, current_desired: str, current_observed: str, expected_observed: str, target: str
) -> Coded:
    """409: there is no way from where the machine is to `target`."""
    return Coded(
        409,
        "INVALID_STATE",
        "requested lifecycle transition is invalid for current machine state",
        retryable=False,
        details={
            "current_desired_state": current_desired,
            "current_observed_state": current_observed,
            "expected_observed_state": expected_observed,
            "target_desired_state": target,
        },
    )


def terminal_not_ready(status: str, *, retry_after_ms: int | None = None) -> Coded:
    """409: the terminal is `status`; with `retry_after_ms` it may be ready then."""
    return Coded(
        409,
        "INVALID_STATE",
        "terminal is not ready for streaming",
        retryable=retry_after_ms is not None,
        retry_after_ms=retry_after_ms,
        details={"current_status": status, "expected_status": "ready"},
    )


def machine_not_found(machine_id: str) -> Problem:
    """404: the org has no machine of this id. It reads the same whether another org has one or nobody."""
    return Problem(404, f"there is no machine {bounded(machine_id)}")


def no_such_route() -> Problem:
    """404: nothing is served at this path."""
    return Problem(404, "nothing is served at this path")


def method_not_allowed(allowed: Iterable[str]) -> Problem:
    """405: the path knows only the methods `allowed`."""
    methods = ", ".join(sorted(set(allowed)))
    detail = f"this path answers {methods} only" if methods else "this path has no such method"
    return Problem(405, detail, headers={"Allow": methods})


def bad_json(detail: str) -> Problem:
    """400: the body is no JSON document; `detail` says why, as a clause."""
    message = f"the request body is not valid JSON: {detail}"
    return Problem(400, message, faults=(Fault("body", detail),))


def unsupported_media(content_type: str) -> Problem:
    """415: the body says that it is `content_type`, which is not JSON."""
    return Problem(
        415,
        "request bodies are application/json",
        faults=(Fault("header.Content-Type", "must be application/json", content_type),),
    )


def too_large(limit: int) -> Problem:
    """413: the body is longer than `limit` bytes."""
    return Problem(413, f"the request body is longer than {limit} bytes")


def unprocessable(*faults: Fault) -> Problem:
    """422: JSON, but not what the operation takes. Each fault says where and what."""
    detail = "the request is not valid"
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        detail = f"{detail}: {bounded(faults[0].location)}: {bounded(faults[0].message)}{more}"
    return Problem(422, detail, faults=faults)


def over_capacity(field: str, limit: float) -> Problem:
    """400: `field` is a legal size, but more than the `limit` that machines may have here."""
    fault = Fault(f"body.{field}", f"must be at most {limit:.15g}")
    return Problem(400, f"{field} exceeds capacity", faults=(fault,))


def no_way_inside() -> Problem:
    """501: the gateway has no credentials for machines."""
    return Problem(
        501, "there is no way into machines here: the gateway's administrator sets credentials"
    )


def internal(request_id: str) -> Problem:
    """500: our fault. All that leaves is the id under which the log tells the rest."""
    return Problem(500, f"something went wrong on our side; the request id is {request_id}")


def from_kube(error: KubeError) -> GatewayError:
    """What a failure of kube-apiserver means to the one who asked.

    An object that is not there, and a write that lost a race, mean different things to different operations: those
    errors (`NotFound`, `Conflict`, `Expired`) are the caller's to catch; here they count as an unfit cluster.
    """
    if isinstance(error, Forbidden) and "exceeded quota" in error.message:
        return quota_exceeded(_quota_sentence(error.message))
    if isinstance(error, Invalid):
        return _refused(error)
    wait = _RUNTIME_MS if error.retry_after is None else math.ceil(error.retry_after * 1000)
    return runtime_unavailable(retry_after_ms=wait)


_QUOTA = re.compile(
    r"exceeded quota: [^,\s]*, requested: (?P<asked>\S*), used: (?P<used>\S*), limited: (?P<limit>\S*)"
)


def _quota_sentence(message: str) -> str:
    """The figures of a quota without its name: `…=1, used: …=5, limited: …=5` as a sentence."""
    found = _QUOTA.search(message)
    if found is None:
        return "quota exceeded"
    asked, used, limit = (_amounts(found[group]) for group in ("asked", "used", "limit"))
    return "quota exceeded: " + "; ".join(
        f"{_resource(name)}: {amount} more asked for, {used.get(name, '?')} of {limit.get(name, '?')} in use"
        for name, amount in asked.items()
    )


def _amounts(text: str) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name: amount for name, _, amount in pairs}


def _resource(name: str) -> str:
    """`count/machines.machines.dedaluslabs.ai` is `machines`; `requests.storage` stays."""
    counted = name.removeprefix("count/")
    return name if counted == name else counted.partition(".")[0]


_FIELD = re.compile(r"spec\.([a-z_]+)\b")
_QUOTED_VALUE = re.compile(
    r'(?:Invalid|Unsupported|Required|Forbidden|Too (?:long|many)|Duplicate)(?: value)?: '
    r'(?:(?:"(?:[^"\\]|\\.)*"|[^\s:"]+): )?'
)  # fmt: skip
"""How `field.Error` begins: kind, then the value or its type, either of which may be missing."""


def _refused(error: Invalid) -> Problem:
    """The CRD's schema and CEL rules answer in causes on `spec.<field>`; those names are the names of our bodies."""
    causes = error.details.get("causes")
    faults = [
        fault
        for cause in (causes if isinstance(causes, list) else [])
        if isinstance(cause, Mapping) and (fault := _fault(cause)) is not None
    ]
    if error.status == HTTPStatus.UNPROCESSABLE_ENTITY and faults:
        return unprocessable(*faults)
    return Problem(400, "the cluster does not accept the machine as it was asked for")


def _fault(cause: Mapping[str, Any]) -> Fault | None:
    field = _FIELD.match(str(cause.get("field") or ""))
    if field is None:
        return None
    message = _QUOTED_VALUE.sub("", str(cause.get("message") or ""), count=1)
    message = message.removeprefix(f"{field[0]} in body ").strip()
    return Fault(f"body.{field[1]}", message or "is not accepted")
