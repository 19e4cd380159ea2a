"""What metrics are told of each request: never the name of an object."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RequestRecord", "describe"]

_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as metrics count it; of a watch, its beginning.

    Attributes:
        verb: Kubernetes' word: get, list, watch, create, update, patch, apply or delete.
        resource: the plural, with the subresource where there is one (`machines/status`); "" for other paths.
        code: the HTTP status, or 0 where no answer came.
        seconds: from the request to the answer.
    """

    verb: str
    resource: str
    code: int
    seconds: float


def describe(method: str, path: str, content_type: str) -> tuple[str, str]:
    """Verb and resource of a request, never with a name in them."""
    parts = path.split("/")
    # "", "api", version | "", "apis", group, version
    start = {"api": 3, "apis": 4}.get(parts[1] if len(parts) > 1 else "", len(parts))
    if len(parts) > start + 2 and parts[start] == "namespaces":
        start += 2
    plural, name, subresource = [*parts[start : start + 3], "", "", ""][:3]
    verb = _VERBS.get(method, method.lower())
    if verb == "get" and plural and not name:
        verb = "list"
    elif verb == "patch" and content_type == "application/apply-patch+yaml":
        verb = "apply"
    return verb, f"{plural}/{subresource}" if subresource else plural
