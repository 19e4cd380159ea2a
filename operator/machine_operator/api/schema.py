"""From pydantic's JSON schema to a Kubernetes structural schema.

Pydantic writes JSON Schema 2020-12 with `$defs`; a CRD takes a subset of OpenAPI 3.0 where every
node has one `type`. So: references are replaced by what they refer to (words beside a reference
win), `anyOf` with null becomes the other branch (absent is how Kubernetes says null), titles go,
numbers get their format, and defaults that say nothing (null, []) go. A keyword which is not known
here is an error and not passed on: better no CRD than one which the API server reads differently.
"""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

__all__ = ["SchemaError", "structural_schema"]

Schema = dict[str, Any]

_FORMATS: Final = {"integer": "int64", "number": "double"}
# The order in which a node's keywords are written, so that people read what matters first.
_KEYWORDS: Final = (
    "description",
    "type",
    "format",
    "enum",
    "default",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
    "required",
    "properties",
    "items",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
)


class SchemaError(TypeError):
    """A model uses something which a structural schema cannot say."""


def structural_schema(model: type[BaseModel]) -> Schema:
    """The structural schema of `model`.

    Raises:
        SchemaError: The model uses a union, a free-form mapping or another thing without a
            counterpart; the message names the place.
    """
    schema = model.model_json_schema(mode="validation")
    return _node(schema, definitions=schema.get("$defs", {}), path=model.__name__)


def _node(schema: Mapping[str, Any], *, definitions: Mapping[str, Any], path: str) -> Schema:
    node = _flat(schema, definitions=definitions, path=path)
    if node.get("default", ...) in (None, []):
        del node["default"]
    if unknown := sorted(set(node) - set(_KEYWORDS)):
        raise SchemaError(f"{path} uses {', '.join(unknown)}, which no structural schema has")
    if not isinstance(node.get("type"), str):
        raise SchemaError(f"{path} has no single type; a structural schema needs one")
    if "description" in node:  # docstrings are wrapped for the source, not for the reader
        node["description"] = " ".join(node["description"].split())
    if node["type"] in _FORMATS:
        node.setdefault("format", _FORMATS[node["type"]])
    if node["type"] == "object" and not node.get("properties"):
        raise SchemaError(f"{path} is an object without properties; name its fields")
    if "properties" in node:
        node["properties"] = {
            name: _node(field, definitions=definitions, path=f"{path}.{name}")
            for name, field in node["properties"].items()
        }
    if node["type"] == "array":
        node["items"] = _node(node.get("items", {}), definitions=definitions, path=f"{path}[]")
    return {key: node[key] for key in _KEYWORDS if key in node}


def _flat(schema: Mapping[str, Any], *, definitions: Mapping[str, Any], path: str) -> Schema:
    """`schema` without reference and without null branch; its own words win over theirs."""
    node = {key: value for key, value in schema.items() if key not in ("title", "$defs")}
    reference = node.pop("$ref", None)
    if reference is not None:
        target = definitions[reference.removeprefix("#/$defs/")]
        return _flat(target, definitions=definitions, path=path) | node
    branches = node.pop("anyOf", None)
    if branches is not None:
        kept = [branch for branch in branches if branch.get("type") != "null"]
        if len(kept) != 1:
            raise SchemaError(
                f"{path} is a union of {len(kept)} types; a structural schema has one"
            )
        return _flat(kept[0], definitions=definitions, path=path) | node
    return node
