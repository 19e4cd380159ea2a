"""Does one OpenAPI document keep the promises of another one?

`compare` walks the operations of a contract through both documents and reports, as sentences, what is missing in ours
(a client written against the contract could notice it) and what we have on top (it could not). Requests may be
wider and answers narrower than in the contract, never the other way round:

- requests: every parameter and member of the contract is accepted with its types, and nothing more is required;
- answers: every status, media type and header of the contract is there; every member too, required where it is required
  there, of no type and with no enum value that the contract does not know.

Bounds, patterns and formats that only we have are additions: they tell what has been refused all along.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Document = Mapping[str, Any]
Side = Literal["request", "answer"]

_BOUNDS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "pattern",
    "minItems",
    "maxItems",
)
_METHODS = ("get", "put", "post", "delete", "patch", "options", "head")


@dataclass(frozen=True)
class Report:
    """What a comparison has found.

    Attributes:
        missing: promises of the contract that we do not keep.
        additions: what we have and the contract has not.
    """

    missing: list[str] = field(default_factory=list)
    additions: list[str] = field(default_factory=list)


def operations(document: Document) -> dict[str, tuple[str, str, Mapping[str, Any]]]:
    """`operationId` to method, path and operation."""
    return {
        operation["operationId"]: (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if method in _METHODS
    }


def compare(contract: Document, ours: Document, *, only: Collection[str]) -> Report:
    """Compare the operations whose operationId is in `only`."""
    theirs, own = operations(contract), operations(ours)
    comparison = _Comparison(contract, ours, Report())
    for name in sorted(only):
        if name not in own:
            comparison.report.missing.append(f"{name}: there is no such operation")
            continue
        comparison.operation(name, theirs[name], own[name])
    comparison.report.additions.extend(
        f"{name}: operation {own[name][0].upper()} {own[name][1]}"
        for name in sorted(set(own) - set(theirs))
    )
    return comparison.report


@dataclass(frozen=True)
class _Comparison:
    contract: Document
    ours: Document
    report: Report

    def operation(self, name: str, theirs: tuple[str, str, Any], own: tuple[str, str, Any]) -> None:
        if theirs[:2] != own[:2]:
            self.report.missing.append(f"{name}: is {own[:2]}, not {theirs[:2]}")
        self._parameters(name, theirs[2], own[2])
        self._request_body(name, theirs[2], own[2])
        self._responses(name, theirs[2]["responses"], own[2]["responses"])

    def _parameters(self, name: str, theirs: Document, own: Document) -> None:
        wanted, given = _parameters(theirs), _parameters(own)
        for key, parameter in wanted.items():
            where = f"{name}: {key[0]} parameter {parameter['name']}"
            if key not in given:
                self.report.missing.append(f"{where} is missing")
                continue
            if given[key]["name"] != parameter["name"]:
                self.report.missing.append(f"{where} is spelled {given[key]['name']}")
            if parameter.get("required") and not given[key].get("required"):
                self.report.additions.append(f"{where} may be left out")
            if given[key].get("required") and not parameter.get("required"):
                self.report.missing.append(f"{where} must not be required")
            self._schema(where, parameter["schema"], given[key]["schema"], side="request")
        for key in sorted(set(given) - set(wanted)):
            where = f"{name}: {key[0]} parameter {given[key]['name']}"
            self.report.additions.append(where)
            if given[key].get("required"):
                self.report.missing.append(f"{where} must not be required")

    def _request_body(self, name: str, theirs: Document, own: Document) -> None:
        wanted, given = theirs.get("requestBody"), own.get("requestBody")
        if given is not None and wanted is None:
            self.report.missing.append(f"{name}: must take no body")
        if wanted is None:
            return
        if given is None:
            self.report.missing.append(f"{name}: the request body is missing")
            return
        for media_type, content in wanted["content"].items():
            where = f"{name}: body"
            if media_type not in given["content"]:
                self.report.missing.append(f"{where} cannot be {media_type}")
                continue
            schema = given["content"][media_type]["schema"]
            self._schema(where, content["schema"], schema, side="request")

    def _responses(self, name: str, theirs: Document, own: Document) -> None:
        for status, wanted in theirs.items():
            where = f"{name}: {status}"
            if status not in own:
                self.report.missing.append(f"{where} is missing")
                continue
            self._response(where, wanted, own[status])
        self.report.additions.extend(f"{name}: {one}" for one in sorted(set(own) - set(theirs)))

    def _response(self, where: str, wanted: Document, given: Document) -> None:
        headers = {header.lower() for header in given.get("headers", {})}
        for header in wanted.get("headers", {}):
            if header.lower() not in headers:
                self.report.missing.append(f"{where} has no header {header}")
        known = {header.lower() for header in wanted.get("headers", {})}
        self.report.additions.extend(f"{where} header {one}" for one in sorted(headers - known))
        contents = given.get("content", {})
        for media_type, content in wanted.get("content", {}).items():
            if media_type not in contents:
                self.report.missing.append(f"{where} is not {media_type} but {list(contents)}")
                continue
            schema = contents[media_type].get("schema", {})
            self._schema(where, content["schema"], schema, side="answer")
            self._examples(where, content, contents[media_type])
        self.report.additions.extend(
            f"{where} as {media_type}"
            for media_type in sorted(set(contents) - set(wanted.get("content", {})))
        )

    def _examples(self, where: str, wanted: Document, given: Document) -> None:
        """Examples of failures show what clients branch on: the code, whether to retry, the names of the details."""
        ours = {_outline(one["value"]) for one in given.get("examples", {}).values()}
        for example in wanted.get("examples", {}).values():
            code, retryable, details = _outline(example["value"])
            if not any(o[:2] == (code, retryable) and o[2] >= details for o in ours):
                self.report.missing.append(
                    f"{where} has no example {code} with retryable={retryable} and {sorted(details)}"
                )

    def _schema(self, where: str, wanted: Document, given: Document, *, side: Side) -> None:
        wanted, given = _flat(wanted, self.contract), _flat(given, self.ours)
        self._types(where, wanted, given, side=side)
        for bound in _BOUNDS:
            if given.get(bound) != wanted.get(bound):
                self.report.additions.append(f"{where} {bound} {given.get(bound)}")
        if "enum" in wanted or "enum" in given:
            self._enum(where, wanted.get("enum"), given.get("enum"), side=side)
        if wanted.get("format") and given.get("format") not in (None, wanted["format"]):
            self.report.missing.append(f"{where} has the format {given['format']}")
        if side == "answer" and wanted.get("format") and not given.get("format"):
            self.report.missing.append(f"{where} lacks the format {wanted['format']}")
        self._members(where, wanted, given, side=side)
        if "items" in wanted:
            self._schema(f"{where}[]", wanted["items"], given.get("items", {}), side=side)
        extra = wanted.get("additionalProperties")
        if isinstance(extra, Mapping):
            own = given.get("additionalProperties")
            own = own if isinstance(own, Mapping) else {}
            self._schema(f"{where}.*", extra, own, side=side)
        elif extra is False and given.get("additionalProperties") is not False:
            self.report.missing.append(f"{where} is not closed")

    def _types(self, where: str, wanted: Document, given: Document, *, side: Side) -> None:
        wide, narrow = (wanted, given) if side == "answer" else (given, wanted)
        if not wide["types"]:
            return
        known = wide["types"] | ({"integer"} if "number" in wide["types"] else set())
        if not narrow["types"] or not narrow["types"] <= known:
            self.report.missing.append(
                f"{where} is {sorted(given['types'])}, not {sorted(wanted['types'])}"
            )

    def _enum(self, where: str, wanted: Any, given: Any, *, side: Side) -> None:
        lacking = set(wanted or ()) - set(given or ())
        if given is not None and (lacking or wanted is None):
            self.report.missing.append(f"{where} has {given}, not {wanted}")
        elif side == "answer" and (given is None or set(given) - set(wanted or ())):
            self.report.missing.append(f"{where} may be more than {wanted}: {given}")

    def _members(self, where: str, wanted: Document, given: Document, *, side: Side) -> None:
        theirs, own = wanted.get("properties", {}), given.get("properties", {})
        must, may = set(given.get("required", ())), set(wanted.get("required", ()))
        for member, schema in theirs.items():
            if member not in own:
                self.report.missing.append(f"{where}.{member} is missing")
                continue
            self._schema(f"{where}.{member}", schema, own[member], side=side)
        if side == "answer":
            self.report.missing.extend(
                f"{where}.{one} may be absent" for one in sorted(may - must) if one in own
            )
        else:
            self.report.missing.extend(
                f"{where}.{one} must not be required" for one in sorted(must - may)
            )
            self.report.additions.extend(
                f"{where}.{one} may be left out" for one in sorted(may - must)
            )
        self.report.additions.extend(f"{where}.{one}" for one in sorted(set(own) - set(theirs)))


def _parameters(operation: Document) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(p["in"], p["name"].lower()): p for p in operation.get("parameters", ())}


def _outline(value: Mapping[str, Any]) -> tuple[str, bool, frozenset[str]]:
    return value["error_code"], value["retryable"], frozenset(value.get("details", ()))


def _flat(schema: Document, document: Document) -> dict[str, Any]:
    """The schema with references followed and unions with null merged; `types` is the set of its types."""
    while "$ref" in schema:
        target = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    flat = {key: value for key, value in schema.items() if key != "anyOf"}
    stated = schema.get("type", [])
    types = set([stated] if isinstance(stated, str) else stated)
    for branch in schema.get("anyOf", ()):
        inner = _flat(branch, document)
        types |= inner.pop("types")
        flat = {**inner, **flat}
    return {**flat, "types": types}
