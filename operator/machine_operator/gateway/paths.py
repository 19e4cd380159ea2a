"""What a path may consist of, and that an encoded slash is no separator.

Routes are found by the decoded path, where `/v1/machines/a%2Fb` looks like two segments, and `..` like any other name:
one that clients of kube-apiserver would resolve. So segments are decoded one by one here; in the path that routes see,
`/` and `%` from within a segment stay encoded. A route that says `{machine_id:segment}` gets them decoded, and a route
that does not gets `a%2Fb`: no value ever has a slash that was not looked for.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.convertors import StringConvertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send
from typing_extensions import override

from machine_operator.gateway.answers import answer_of, request_id_of
from machine_operator.gateway.problems import Problem

__all__ = ["PathRules", "SegmentConvertor", "split_path"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class SegmentConvertor(StringConvertor):
    """`{name:segment}`: one segment of a path, whatever is in it."""

    @override
    def convert(self, value: str) -> str:
        return value.replace("%2F", "/").replace("%25", "%") if "%" in value else value

    @override
    def to_string(self, value: str) -> str:
        return value.replace("%", "%25").replace("/", "%2F")


register_url_convertor("segment", SegmentConvertor())


class PathRules:
    """Refuses paths that nobody means well with, and decodes the others by segments.

    A middleware; it stands inside of RequestIds, whose id its answers carry.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102
        raw: bytes = scope.get("raw_path") or b""
        if b"%" in raw or b"/." in raw:
            refusal = _decode(scope, raw)
            if refusal is not None:
                answer = answer_of(refusal, request_id=request_id_of(scope))
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def split_path(raw: bytes) -> list[str]:
    """The segments of a path as it came over the wire, each decoded.

    Raises:
        Problem: 400 for control characters and what is no UTF-8, 404 for `.` and `..`.
    """
    try:
        segments = [unquote_to_bytes(part).decode() for part in raw.split(b"/")]
    except UnicodeDecodeError:
        raise Problem(400, "the path is not UTF-8") from None
    for segment in segments:
        if _CONTROL.search(segment):
            raise Problem(400, "the path has control characters in it")
        if segment in (".", ".."):
            raise Problem(404, "there is nothing at paths with . or .. in them")
    return segments


def _decode(scope: MutableMapping[str, Any], raw: bytes) -> Problem | None:
    try:
        segments = split_path(raw)
    except Problem as refusal:
        return refusal
    scope["path"] = "/".join(part.replace("%", "%25").replace("/", "%2F") for part in segments)
    return None
