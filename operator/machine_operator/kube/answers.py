"""From the bytes of an answer to objects, events and errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from machine_operator.kube.errors import ApiError, Unreachable, from_status, seconds_to_wait

__all__ = ["event_of", "failure", "parse"]

Object = dict[str, Any]


def parse(raw: bytes) -> Object:
    """The JSON object of an answer; {} for an empty one, and what is no JSON as `text`."""
    if not raw:
        return {}
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {"text": raw.decode("utf-8", "replace")}
    return parsed if isinstance(parsed, dict) else {"value": parsed}


def event_of(line: bytes, request: str) -> Object:
    """The event in one line of a watch.

    Raises:
        ApiError: it is an error of the server.
        Unreachable: it is no event at all.
    """
    try:
        event: Object = orjson.loads(line)
        kind, obj = event["type"], event["object"]
        code = int(obj.get("code") or 500) if kind == "ERROR" else 0
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # Some proxy talks to us, and not the server.
        raise Unreachable(f"{request}: what came is no event: {line[:200]!r}") from error
    if kind == "ERROR":
        raise from_status(code, obj, request=request)
    return event


def failure(status: int, headers: Mapping[str, str], raw: bytes, *, request: str) -> ApiError:
    """The error that an answer with such a status is."""
    body = parse(raw)
    if body.get("kind") != "Status":
        text = str(body.get("text") or "").strip()[:500]
        body = {"message": text} if text else {}
    after = seconds_to_wait(headers.get("Retry-After"))
    return from_status(status, body, request=request, retry_after=after)
