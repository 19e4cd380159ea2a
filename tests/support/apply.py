"""Server-side apply, as far as our bodies need it: who owns which field, and what a new body takes away.

A field is a path of keys. Lists are replaced as a whole but for those that Kubernetes merges by key. A manager's new
body takes over all its fields by force; fields that it had and no longer names are removed where nobody else has them.
"""

from __future__ import annotations

from typing import Any

__all__ = ["apply_fields", "merge"]

Object = dict[str, Any]
Path = tuple[Any, ...]

_KEYED = {"ownerReferences": "uid", "conditions": "type"}
_SETS = {"finalizers"}
_IDENTITY = {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}


def apply_fields(obj: Object, body: Object, *, owned: dict[str, set[Path]], manager: str) -> None:
    """Change `obj` and `owned` (fields by manager) as an apply of `body` would."""
    wanted = _flatten(body)
    gone = owned.get(manager, set()) - set(wanted)
    others = set().union(*(paths for name, paths in owned.items() if name != manager))
    for path in sorted(gone - others, key=_is_key):  # an element is found by its key until the end
        _remove(obj, path)
    for path, value in wanted.items():
        _set(obj, path, value)
    owned[manager] = set(wanted)


def merge(obj: Object, patch: Object) -> None:
    """RFC 7386: null removes, objects are merged, everything else replaces."""
    for key, value in patch.items():
        if value is None:
            obj.pop(key, None)
        elif isinstance(value, dict):
            below = obj.setdefault(key, {})
            if not isinstance(below, dict):
                below = obj[key] = {}
            merge(below, value)
        else:
            obj[key] = value


def _flatten(value: Any, path: Path = ()) -> dict[Path, Any]:
    found: dict[Path, Any] = {}
    if isinstance(value, dict) and value:
        for key, below in value.items():
            if (*path, key) not in _IDENTITY:
                found |= _flatten(below, (*path, key))
    elif isinstance(value, list) and path and path[-1] in _KEYED:
        for item in value:
            found |= _flatten(item, (*path, (_KEYED[path[-1]], item[_KEYED[path[-1]]])))
    elif isinstance(value, list) and path and path[-1] in _SETS:
        found |= {(*path, ("", item)): item for item in value}
    else:
        found[path] = value
    return found


def _set(obj: Object, path: Path, value: Any) -> None:
    node: Any = obj
    for position, part in enumerate(path[:-1]):
        following = path[position + 1]
        empty: Any = [] if isinstance(following, tuple) else {}
        if isinstance(part, tuple):
            node = _element(node, part)
        else:
            if not isinstance(node.get(part), type(empty)):
                node[part] = empty
            node = node[part]
    last = path[-1]
    if isinstance(last, tuple):  # an element of a set
        if value not in node:
            node.append(value)
    else:
        node[last] = value


def _element(items: list[Any], part: tuple[str, Any]) -> Object:
    for item in items:
        if item.get(part[0]) == part[1]:
            return item  # type: ignore[no-any-return]
    items.append({part[0]: part[1]})
    return items[-1]  # type: ignore[no-any-return]


def _is_key(path: Path) -> bool:
    return len(path) > 1 and isinstance(path[-2], tuple) and path[-2][0] == path[-1]


def _remove(obj: Object, path: Path) -> None:
    """Take one field out, and the containers that it leaves empty."""
    trail: list[tuple[Any, Any]] = []
    node: Any = obj
    for part in path:
        trail.append((node, part))
        if isinstance(part, tuple) and part[0]:
            node = next((item for item in node or [] if item.get(part[0]) == part[1]), None)
        elif isinstance(part, tuple):
            node = part[1]
        else:
            node = node.get(part) if isinstance(node, dict) else None
        if node is None:
            return
    for container, part in reversed(trail):
        if isinstance(part, tuple) and part[0]:
            container[:] = [item for item in container if item]
        elif isinstance(part, tuple):
            container.remove(part[1])
        else:
            container.pop(part, None)
        if container:
            return
