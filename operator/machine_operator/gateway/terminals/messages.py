"""What goes over a terminal's WebSocket: one JSON object in each text message, with bytes in base64.

    client: {"type": "input", "data": …}   {"type": "resize", "width": …, "height": …}
    server: {"type": "output", "data": …}  {"type": "error", "error_code": …, "error_message": …}  {"type": "closed"}

A second, older way of speaking is understood as well: bytes as they are in binary messages, and {"cols": …, "rows": …}.
A client whose first message is of that kind is answered in it: with bytes, and with nothing but bytes.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

__all__ = [
    "CLOSED",
    "LARGEST_SIZE",
    "Fault",
    "Input",
    "Resize",
    "error_message",
    "is_plain",
    "output_message",
    "read_message",
]

LARGEST_SIZE: Final = 1000
"""Columns or rows."""

CLOSED: Final = '{"type":"closed"}'


@dataclass(frozen=True, slots=True)
class Input:
    """Something typed."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Resize:
    """The window has another size."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A message that is none; the client is told why, and the connection goes on."""

    code: str
    message: str


def read_message(message: str | bytes) -> Input | Resize | Fault:
    """What a client says."""
    if isinstance(message, bytes):
        return Input(message)
    try:
        document = orjson.loads(message)
    except orjson.JSONDecodeError:
        return _invalid("the message is no JSON")
    match document:
        case {"type": "input", "data": str(data)}:
            try:
                return Input(base64.b64decode(data, validate=True))
            except (binascii.Error, ValueError):
                return _invalid("data is no base64")
        case {"type": "input"}:
            return _invalid("an input has its bytes in data, in base64")
        case {"type": "resize"}:
            return _resize(document.get("width"), document.get("height"), ("width", "height"))
        case {"cols": columns, "rows": rows} if "type" not in document:
            return _resize(columns, rows, ("cols", "rows"))
        case _:
            return _invalid("the type of a message is input or resize")


def is_plain(message: str | bytes) -> bool:
    """Whether a client that says this as its first word speaks in the older way."""
    if isinstance(message, bytes):
        return True
    try:
        document = orjson.loads(message)
    except orjson.JSONDecodeError:
        return False
    return isinstance(document, dict) and "type" not in document and "cols" in document


def output_message(data: bytes) -> str:
    """What the terminal shows."""
    return f'{{"type":"output","data":"{base64.b64encode(data).decode("ascii")}"}}'


def error_message(code: str, message: str) -> str:
    """Something is wrong."""
    body = {"type": "error", "error_code": code, "error_message": message}
    return orjson.dumps(body).decode()


def _resize(width: Any, height: Any, names: tuple[str, str]) -> Resize | Fault:
    for name, value in zip(names, (width, height), strict=True):
        if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
            return Fault("invalid_size", f"{name} must be a whole number from 1 to {LARGEST_SIZE}")
    return Resize(width, height)


def _invalid(message: str) -> Fault:
    return Fault("invalid_message", message)
