"""Server-side apply and the other patches, as far as our bodies need them: who owns which field, and what a new body
takes away.

A field is a path of keys. Lists are replaced as a whole but for those that Kubernetes merges by key; atomic maps are
one field. A manager's new body takes over all its fields; fields that it had and no longer names are removed where
nobody else has them. Whoever changes a field by another way than apply owns it from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = [
    "Fields",
    "Path",
    "apply_fields",
    "dotted",
    "flatten",
    "json_patch",
    "merge",
    "note_change",
]

Object = dict[str, Any]
Path = tuple[Any, ...]
Fields = dict[str, set[Path]]
"""Fields by manager."""

_KEYED = {"ownerReferences": "uid", "conditions": "type", "holds": "id"}
_SETS = {"finalizers"}
_ATOMIC = {"power_request", "desired_power", "effective", "backoff", "involvedObject"}
_IDENTITY = {
    ("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace"),
    ("metadata", "uid"), ("metadata", "resourceVersion"), ("metadata", "generation"),
    ("metadata", "creationTimestamp"), ("metadata", "deletionTimestamp"),
}  # fmt: skip
_ABSENT = object()


def apply_fields(
    obj: Object,
    body: Object,
    *,
    owned: Fields,
    updated: Fields | None = None,
    manager: str,
    within: Callable[[Path], bool] = lambda path: True,
    force: bool = True,
) -> list[str]:
    """Change `obj` and the owners as an apply of `body` would.

    Args:
        updated: owners by other ways than apply.
        within: what this request may touch at all (the status, or all else).

    Returns:
        The conflicts, in words; nothing is changed where there are some and `force` is not given.
    """
    wanted = flatten(body)
    rest = [fields for name, fields in owned.items() if name != manager] + [
        *(updated or {}).values()
    ]
    taken = [
        path for path in wanted if any(path in f for f in rest) and _get(obj, path) != wanted[path]
    ]
    if taken and not force:
        return [dotted(path) for path in taken]
    for fields in rest:
        fields.difference_update(taken)
    mine = {path for path in owned.get(manager, set()) if within(path)}
    gone = mine - set(wanted) - set().union(*rest)
    for path in sorted(gone, key=_is_key):  # an element is found by its key until the end
        _remove(obj, path)
    for path, value in wanted.items():
        _set(obj, path, value)
    owned[manager] = set(wanted) | (owned.get(manager, set()) - mine)
    return []


def note_change(
    before: Object, after: Object, *, owned: Fields, updated: Fields, manager: str
) -> None:
    """Somebody changed an object by another way than apply: what differs is theirs from now on."""
    old, new = flatten(before), flatten(after)
    changed = {path for path, value in new.items() if old.get(path, _ABSENT) != value}
    lost = changed | (set(old) - set(new))
    for fields in (*owned.values(), *updated.values()):
        fields.difference_update(lost)
    updated[manager] = updated.get(manager, set()) | changed


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


def json_patch(obj: Object, operations: list[Object]) -> str | None:
    """RFC 6902: test, add, replace and remove. What failed, in words; `obj` is then half changed."""
    for operation in operations:
        *parents, last = [
            part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
        ]
        node: Any = obj
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else (node or {}).get(part)
            if node is None:
                return f"{operation['path']} is not there"
        fault = _one_operation(node, last, operation)
        if fault is not None:
            return fault
    return None


def _one_operation(node: Any, last: str, operation: Object) -> str | None:
    kind, path = operation["op"], operation["path"]
    if isinstance(node, list):
        if kind == "add":
            node.insert(len(node) if last == "-" else int(last), operation["value"])
            return None
        index = int(last)
        if index >= len(node):
            return f"{path} is not there"
        if kind == "test" and node[index] != operation["value"]:
            return f"testing path {path}: value differs"
        if kind == "replace":
            node[index] = operation["value"]
        elif kind == "remove":
            del node[index]
        return None
    if kind == "test":
        return (
            None if node.get(last) == operation["value"] else f"testing path {path}: value differs"
        )
    if kind in ("replace", "remove") and last not in node:
        return f"{path} is not there"
    if kind == "remove":
        del node[last]
    else:
        node[last] = operation["value"]
    return None


def dotted(path: Path) -> str:
    """A path for people, such as `status.conditions[type=Ready].reason`."""
    words: list[str] = []
    for part in path:
        if isinstance(part, tuple):
            words[-1] += f"[{part[0]}={part[1]}]" if part[0] else f"[{part[1]}]"
        else:
            words.append(str(part))
    return ".".join(words)


def flatten(value: Any, path: Path = ()) -> dict[Path, Any]:
    """All fields of an object, but for those that say which object it is."""
    found: dict[Path, Any] = {}
    _flatten(value, path, found)
    return found


def _flatten(value: Any, path: Path, found: dict[Path, Any]) -> None:
    last = path[-1] if path else None
    if isinstance(value, dict) and value and last not in _ATOMIC:
        for key, below in value.items():
            if len(path) > 1 or (*path, key) not in _IDENTITY:
                _flatten(below, (*path, key), found)
    elif isinstance(value, list) and last in _KEYED and all(isinstance(i, Mapping) for i in value):
        key = _KEYED[last]
        for item in value:
            _flatten(item, (*path, (key, item.get(key))), found)
    elif isinstance(value, list) and last in _SETS:
        found.update({(*path, ("", item)): item for item in value})
    else:
        found[path] = value


def _get(obj: Object, path: Path) -> Any:
    node: Any = obj
    for part in path:
        if isinstance(part, tuple) and part[0]:
            items = node if isinstance(node, list) else []
            node = next((item for item in items if item.get(part[0]) == part[1]), _ABSENT)
        elif isinstance(part, tuple):
            return part[1] if isinstance(node, list) and part[1] in node else _ABSENT
        else:
            node = node.get(part, _ABSENT) if isinstance(node, dict) else _ABSENT
        if node is _ABSENT:
            break
    return node


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
            if part[1] in container:
                container.remove(part[1])
        else:
            container.pop(part, None)
        if container:
            return
