"""What pydantic finds wrong in our words: where (`body.vcpu`, `query.limit`, `header.If-Match`), and what is right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from machine_operator.gateway.problems import Fault

__all__ = ["faults_of"]

_WORDS: Final[Mapping[str, str]] = {
    "missing": "is required",
    "extra_forbidden": "is not known here",
    "null": "must not be null: leave it out instead",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of 64 bits",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "value_error": "{error}",
}

_SPELLINGS: Final = {"last-event-id": "Last-Event-ID"}
"""Headers that are not spelled with one capital letter per word."""


def faults_of(errors: Iterable[Mapping[str, Any]], *, within: str | None = None) -> list[Fault]:
    """Pydantic's (and FastAPI's) list of errors as faults.

    Args:
        errors: the items of `ValidationError.errors()`.
        within: what the locations are relative to, such as `body`; None where they begin with it.
    """
    prefix = () if within is None else (within,)
    return [
        Fault(_location((*prefix, *error["loc"])), _message(error), error.get("input"))
        for error in errors
    ]


def _location(parts: Sequence[str | int]) -> str:
    """`("body", "command", 3)` is `body.command[3]`."""
    if len(parts) > 1 and parts[0] == "header":
        name = str(parts[1])
        parts = ("header", _SPELLINGS.get(name.lower(), name.title() if name.islower() else name))
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _message(error: Mapping[str, Any]) -> str:
    words = _WORDS.get(error["type"])
    if words is None:
        return str(error["msg"])
    return words.format(**error.get("ctx", {}))
