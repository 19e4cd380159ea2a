"""Request bodies: bytes in, a model or an answer that says what is wrong out.

In this order: 415 for a body that says it is something else, 400 for bytes that are no JSON document, 422 for JSON that
is not what the operation takes. A member that comes twice is no JSON to us: parsers disagree about which one counts,
and what a proxy has checked may not be what we would do.
"""

from __future__ import annotations

import json
from email.message import Message
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from machine_operator.gateway import failures
from machine_operator.gateway.faults import faults_of
from machine_operator.gateway.problems import Fault

__all__ = ["read_request", "refuse_body"]

Model = TypeVar("Model", bound=BaseModel)

_MOST_MEMBERS = 64


def read_request(model: type[Model], raw: bytes, content_type: str | None) -> Model:
    """The body of a request.

    Args:
        model: what the operation takes.
        raw: the whole body; whoever collects it bounds it.
        content_type: the header, or None without one, which is taken for JSON.

    Raises:
        GatewayError: 415, 400 or 422, with the location of each fault.
    """
    _require_json(content_type)
    document = _parse(raw)
    if not isinstance(document, dict):
        raise failures.unprocessable(Fault("body", "must be a JSON object", document))
    if len(document) > _MOST_MEMBERS:
        # A fault for each of a hundred thousand members would keep everybody else waiting.
        raise failures.unprocessable(Fault("body", f"has {len(document)} members, most unknown"))
    _refuse_twins(raw)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False)
    raise failures.unprocessable(*faults_of(found, within="body"))


def refuse_body(raw: bytes) -> None:
    """An operation without a body: nothing, `{}` and `null` say nothing and are fine, whatever their content type.

    Raises:
        GatewayError: 422, since a body that was ignored would leave its sender with a wrong idea of what was done.
    """
    if raw.strip() not in (b"", b"{}", b"null"):
        raise failures.unprocessable(Fault("body", "must be empty: this operation takes no body"))


def _require_json(content_type: str | None) -> None:
    if not content_type or content_type == "application/json":
        return
    header = Message()
    header["Content-Type"] = content_type.replace("\r", " ").replace("\n", " ")
    charset = header.get_param("charset")
    known = charset is None or (isinstance(charset, str) and charset.lower() in ("utf-8", "utf8"))
    # Message answers text/plain to what it cannot read.
    if header.get_content_type() != "application/json" or not known:
        raise failures.unsupported_media(content_type)


def _parse(raw: bytes) -> Any:
    if not raw.strip():
        raise failures.bad_json("it is empty")
    try:
        return orjson.loads(raw)  # strict: no NaN, no lone surrogates, UTF-8 only, bounded depth
    except orjson.JSONDecodeError as error:
        raise failures.bad_json(str(error)) from None


def _refuse_twins(raw: bytes) -> None:
    try:
        json.loads(raw, object_pairs_hook=_once, parse_int=float)
    except RecursionError:
        raise failures.bad_json("it is nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> None:
    """Called for each object of the document, to see that no member comes twice."""
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise failures.bad_json(f"the member {twice[:64]!r} comes more than once")
