"""Checks a value against a structural schema, as far as our CRD uses it; closed: what it does not know is a fault."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

__all__ = ["faults_of"]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def faults_of(value: Any, schema: Mapping[str, Any], *, path: str = "") -> Iterator[str]:
    """What the API server would refuse."""
    kind = schema["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        yield f"{path}: {value!r} is no {kind}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    match value:
        case dict():
            yield from _object(value, schema, path)
        case list():
            yield from _array(value, schema, path)
        case str():
            yield from _string(value, schema, path)
        case _:
            if not schema.get("minimum", value) <= value <= schema.get("maximum", value):
                yield f"{path}: {value} is out of bounds"


def _object(value: dict[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    yield from (
        f"{path}.{name} is missing" for name in schema.get("required", []) if name not in value
    )
    for name, member in value.items():
        if name not in schema["properties"]:
            yield f"{path}.{name} is unknown"
        else:
            yield from faults_of(member, schema["properties"][name], path=f"{path}.{name}")


def _array(value: list[Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if len(value) > schema.get("maxItems", len(value)):
        yield f"{path} has {len(value)} items"
    if keys := schema.get("x-kubernetes-list-map-keys"):
        names = [tuple(item[key] for key in keys) for item in value]
        if len(names) != len(set(names)):
            yield f"{path} has a key twice"
    for number, item in enumerate(value):
        yield from faults_of(item, schema["items"], path=f"{path}[{number}]")


def _string(value: str, schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        yield f"{path} has {len(value)} characters"
    if "pattern" in schema and re.search(schema["pattern"], value) is None:
        yield f"{path}: {value!r} does not match {schema['pattern']}"
    if schema.get("format") == "date-time" and datetime.fromisoformat(value).tzinfo is None:
        yield f"{path}: {value!r} has no time zone"
