"""Failures as HTTP answers, in the two formats of DCS.

    GatewayError
    ├── Coded      `application/json` with `error_code`: 401, 403, 409, 429, 503, and what clients branch on
    └── Problem    `application/problem+json` (RFC 9457): everything else

Whoever finds something wrong raises one of these, by one of the functions of `failures.py`; one place turns it into an
answer. A wait that the body tells is told in headers too: the retry loops of the published clients read only those. A
conflict that a repetition cannot heal says `x-should-retry: false`, since those clients repeat every 409.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from typing_extensions import override

__all__ = [
    "Coded",
    "Fault",
    "GatewayError",
    "Problem",
    "Scope",
    "bounded",
]

_MOST_FAULTS = 32
_LONGEST_TEXT = 200
_LONGEST_DETAIL = 1000
_LARGEST_NUMBER = 2**53


def bounded(text: str, *, limit: int = _LONGEST_TEXT) -> str:
    """`text` from a request as it may be told back: at most `limit` characters, and always JSON."""
    shown = text[:limit] + ("…" if len(text) > limit else "")
    return shown.encode("utf-8", "replace").decode("utf-8")  # lone surrogates are no JSON


class Scope(StrEnum):
    """What is limited together; also a detail of the answers that say so."""

    READ = "read_lifecycle_routes"
    MUTATE = "mutating_lifecycle_routes"
    SLEEP = "sleep_lifecycle_routes"


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a request.

    Attributes:
        location: where, such as `body.vcpu`, `path.machine_id`, `query.limit` or `header.Idempotency-Key`.
        message: what is wrong, and what is allowed.
        value: what was there. Only plain values are told back, and long texts in part.
    """

    location: str
    message: str
    value: Any = None

    def to_dict(self) -> dict[str, Any]:
        """The members on the wire."""
        shown: dict[str, Any] = {
            "location": bounded(self.location),
            "message": bounded(self.message, limit=_LONGEST_DETAIL),
        }
        match self.value:
            case str() as text:
                shown["value"] = bounded(text)
            case bool() as truth:
                shown["value"] = truth
            case int() | float() as number if abs(number) <= _LARGEST_NUMBER:  # no NaN either
                shown["value"] = number
            case _:
                pass  # containers may hold what should not travel twice; None says nothing
        return shown


class GatewayError(Exception):
    """A failure that is an answer.

    Attributes:
        status: HTTP status code.
        retry_after_ms: how long to wait before the next try, or None.
        should_retry: whether a client may send the same request again; None leaves it to the status code.
    """

    media_type = "application/json"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        retry_after_ms: int | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_ms = retry_after_ms
        self.should_retry = should_retry

    def body(self) -> dict[str, Any]:
        """The members of the answer."""
        raise NotImplementedError

    def headers(self) -> dict[str, str]:
        """The headers of the answer, without content type and length."""
        headers: dict[str, str] = {}
        if self.retry_after_ms is not None:
            headers["Retry-After-Ms"] = str(self.retry_after_ms)
            headers["Retry-After"] = str(math.ceil(self.retry_after_ms / 1000))
        if self.should_retry is not None:
            headers["x-should-retry"] = "true" if self.should_retry else "false"
        return headers


class Coded(GatewayError):
    """Format A: a failure with a code that clients branch on."""

    def __init__(
        self,
        status: int,
        error_code: str,
        message: str,
        *,
        retryable: bool,
        retry_after_ms: int | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        final = status == HTTPStatus.CONFLICT and (
            not retryable or error_code == "REVISION_MISMATCH"
        )
        super().__init__(
            message,
            status=status,
            retry_after_ms=retry_after_ms,
            should_retry=False if final else None,
        )
        self.error_code = error_code
        self.retryable = retryable
        self.details = dict(details or {})

    @override
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "error_code": self.error_code,
            "message": self.message,
            "retryable": self.retryable,
        }
        if self.retry_after_ms is not None:
            body["retry_after_ms"] = self.retry_after_ms
        if self.details:
            body["details"] = self.details
        return body

    @override
    def headers(self) -> dict[str, str]:
        headers = super().headers()
        if self.status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


class Problem(GatewayError):
    """Format B: RFC 9457."""

    media_type = "application/problem+json"

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        title: str | None = None,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail, status=status)
        self.title = title or HTTPStatus(status).phrase
        self.faults = tuple(faults)
        self._headers = dict(headers or {})

    @override
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": bounded(self.message, limit=_LONGEST_DETAIL),
        }
        if self.faults:
            body["errors"] = [fault.to_dict() for fault in self.faults[:_MOST_FAULTS]]
        return body

    @override
    def headers(self) -> dict[str, str]:
        return {**super().headers(), **self._headers}
