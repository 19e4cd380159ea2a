"""What can go wrong between us and kube-apiserver.

    KubeError
    ├── Unreachable            no answer: connection refused, reset, timed out        retry
    ├── ConfigurationError     no usable kubeconfig or service account                stop
    └── ApiError               the API server answered with a failure Status
        ├── Unauthorized   401                                                        retry once re-authenticated
        ├── Forbidden      403     RBAC, or an admission plugin such as quota         retry slowly
        ├── NotFound       404                                                        the object is gone: observe again
        ├── Conflict       409     somebody wrote first                               observe again
        │   └── AlreadyExists      a create met an object of that name                observe again
        ├── Expired        410     resourceVersion or continue token too old          list again
        ├── Invalid        400, 422  schema, CEL rule or webhook refusal              until the object changes: no
        ├── TooManyRequests 429    flow control; `retry_after` says when              retry
        └── ServerError    5xx     also a webhook or an aggregated API that is down   retry

The class decides: `retryable` tells whether the same request may succeed later without a change of the object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

__all__ = [
    "AlreadyExists",
    "ApiError",
    "ConfigurationError",
    "Conflict",
    "Expired",
    "Forbidden",
    "Invalid",
    "KubeError",
    "NotFound",
    "ServerError",
    "TooManyRequests",
    "Unauthorized",
    "Unreachable",
    "from_status",
    "seconds_to_wait",
]

_LONGEST_WAIT = 300.0
"""Seconds. A server (or whatever stands before it) that says more than that is not to stop us for longer."""


class KubeError(Exception):
    """Anything that went wrong while talking to kube-apiserver."""

    retryable: ClassVar[bool] = True
    retry_after: float | None = None
    """Seconds that the server asked us to wait, or None."""


class Unreachable(KubeError):
    """No answer came: the server is away, or the connection broke or timed out."""


class ConfigurationError(KubeError):
    """There is no usable way to reach a cluster."""

    retryable = False


class ApiError(KubeError):
    """The API server answered with a failure.

    Attributes:
        status: HTTP status code.
        reason: `metav1.Status.reason`, such as `NotFound` or `Expired` ("" where there was none).
        message: the server's sentence.
        details: `metav1.Status.details`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        reason: str = "",
        details: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
        request: str = "",
    ) -> None:
        super().__init__(f"{request}: {message}" if request else message)
        self.message = message
        self.status = status
        self.reason = reason
        self.details = dict(details or {})
        self.retry_after = retry_after
        self.request = request


class Unauthorized(ApiError):
    """401: our credentials were not accepted."""


class Forbidden(ApiError):
    """403: RBAC does not allow it, or an admission plugin (such as quota) refused it."""


class NotFound(ApiError):
    """404: the object, or its kind, is not there."""


class Conflict(ApiError):
    """409: the object changed since we read it, or a field belongs to another manager."""


class AlreadyExists(Conflict):
    """409 with reason AlreadyExists."""


class Expired(ApiError):
    """410: the resourceVersion or the continue token is too old."""


class Invalid(ApiError):
    """400 or 422: the object as sent can never be accepted."""

    retryable = False


class TooManyRequests(ApiError):
    """429: flow control; wait for `retry_after`."""


class ServerError(ApiError):
    """5xx: the API server, a webhook or an aggregated API failed."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Expired,
    422: Invalid,
    429: TooManyRequests,
}


def from_status(
    status: int, body: Mapping[str, Any], *, request: str = "", retry_after: float | None = None
) -> ApiError:
    """Turn a failure answer into the error of the tree above.

    Args:
        status: HTTP status code (400 and above).
        body: the parsed `metav1.Status`, or {} where the body was none.
        request: "VERB path", for the message.
        retry_after: the Retry-After header in seconds.
    """
    reason = str(body.get("reason") or "")
    kind = _BY_STATUS.get(status, ServerError)
    if kind is Conflict and reason == "AlreadyExists":
        kind = AlreadyExists
    message = str(body.get("message") or f"the server answered {status} without a reason")
    details = body.get("details")
    details = details if isinstance(details, Mapping) else {}
    if retry_after is None and details.get("retryAfterSeconds"):
        retry_after = seconds_to_wait(str(details["retryAfterSeconds"]))
    return kind(
        message,
        status=status,
        reason=reason,
        details=details,
        retry_after=retry_after,
        request=request,
    )


def seconds_to_wait(header: str | None, *, now: datetime | None = None) -> float | None:
    """What a Retry-After header says, in seconds from 0 to 300: a number, or an HTTP date seen from `now`.

    None where there is no header, or nothing in it that can be understood.
    """
    text = (header or "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    if math.isnan(seconds) or seconds < 0:
        return None
    return min(seconds, _LONGEST_WAIT)
