"""Where settings are written: defaults, a file, the environment, flags. What is in them is not judged here."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine_operator.config.options import PREFIX, BadValue, Setting

__all__ = ["Given", "doubts", "everything"]

_CONFIG = f"{PREFIX}CONFIG"


@dataclass(frozen=True, slots=True)
class Given:
    """Something written somewhere, for one setting."""

    setting: Setting
    raw: Any
    origin: str

    @property
    def hint(self) -> str:
        """What may be behind a value that makes no sense."""
        if self.origin.startswith("environment") and str(self.raw).startswith("tcp://"):
            return (
                ". Kubernetes itself sets such a variable for a Service of that name: "
                "set enableServiceLinks: false in the pod"
            )
        return ""


def everything(
    table: Sequence[Setting],
    *,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    mistakes: list[str],
) -> Iterator[Given]:
    """All that is written, the weakest first. Variables that are empty say nothing.

    Args:
        table: what can be set.
        flags: by name, and `config`, the path of the file; None is not given.
        environ: the environment.
        mistakes: gets a sentence for what cannot be read at all.
    """
    for item in table:
        if item.default is not None:
            yield Given(item, item.default, "default")
    path, named_by = flags.get("config"), "flag --config"
    if not path:
        path, named_by = environ.get(_CONFIG), f"environment {_CONFIG}"
    if path:
        yield from _from_file(table, Path(path), named_by=named_by, mistakes=mistakes)
    for item in table:
        if environ.get(item.variable):
            yield Given(item, environ[item.variable], f"environment {item.variable}")
    for item in table:
        if flags.get(item.name) is not None:
            off = flags[item.name] is False
            yield Given(item, flags[item.name], f"flag {item.flag_off if off else item.flag}")


def doubts(table: Sequence[Setting], environ: Mapping[str, str]) -> Iterator[str]:
    """Sentences about variables that look like a mistyped one of ours. Others may have a meaning elsewhere."""
    names = [item.variable for item in table] + [_CONFIG]
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and variable not in names:
            near = difflib.get_close_matches(variable, names, n=1, cutoff=0.9)
            if near:
                yield f"environment {variable}: it is not read; did you mean {near[0]}?"


def _from_file(
    table: Sequence[Setting], path: Path, *, named_by: str, mistakes: list[str]
) -> Iterator[Given]:
    origin = f"file {path}"
    try:
        keys, content = _parsed(path.expanduser().read_text())
    except OSError as error:
        mistakes.append(f"{named_by}: {path} cannot be read: {error.strerror}")
        return
    except (BadValue, UnicodeDecodeError) as error:
        mistakes.append(f"{origin}: {' '.join(str(error).split())}")
        return
    mistakes.extend(
        f"{origin}: {key}: it is there more than once"
        for key in dict.fromkeys(keys)
        if keys.count(key) > 1
    )
    known = {item.name: item for item in table}
    for key, raw in content.items():
        if key not in known:
            mistakes.append(f"{origin}: {key}: there is no such key; {_nearest(str(key), known)}")
        elif raw is None:
            mistakes.append(f"{origin}: {key}: it has no value; leave it out for the default")
        else:
            yield Given(known[key], raw, origin)


def _parsed(text: str) -> tuple[list[str], dict[Any, Any]]:
    """All keys as written, and the values by key.

    Raises:
        BadValue: it is not YAML, or has no keys.
    """
    # Imported here: most commands, and most starts, have no file to read.
    import yaml  # noqa: PLC0415

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        content = {} if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise BadValue(f"it is not YAML: {error}") from error
    finally:
        loader.dispose()
    if not isinstance(content, dict):
        raise BadValue("it has no keys; allowed: one `key: value` a line")
    # Python's dict has forgotten which keys were there twice.
    return [str(key.value) for key, _ in (node.value if node is not None else [])], content


def _nearest(key: str, known: Mapping[str, Setting]) -> str:
    wanted = key.lower().replace("-", "_")
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.0)
    return f"did you mean {near[0]}? All keys: {', '.join(known)}"
