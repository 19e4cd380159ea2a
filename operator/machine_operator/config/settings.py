"""What counts in the end, of all that is written about the settings of a program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from machine_operator.config.options import BadValue, Setting
from machine_operator.config.sources import doubts, everything

__all__ = ["SettingsError", "Written", "read_settings"]


class SettingsError(Exception):
    """The configuration cannot be used; one line for each thing that is wrong."""


@dataclass(frozen=True, slots=True)
class Written:
    """What counts in the end.

    Attributes:
        values: what each setting means; without those that are not set.
        shown: each of them as it would be written, None where it is not set.
        origins: where each comes from.
        warnings: sentences about what was probably meant otherwise.
    """

    values: Mapping[str, Any]
    shown: Mapping[str, str | None]
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def read_settings(
    table: Sequence[Setting],
    *,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    find_out: Callable[[dict[str, Any]], None] = lambda _: None,
) -> Written:
    """Put together what the sources say.

    Args:
        table: what can be set.
        flags: by the names of the table, and `config`, the path of the file; None and absent are the same.
        environ: the environment.
        find_out: fills in the defaults that depend on where we run.

    Raises:
        SettingsError: something is wrong; each line says where, which key, what, and what is allowed.
    """
    mistakes: list[str] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for given in everything(table, flags=flags, environ=environ, mistakes=mistakes):
        name, kind = given.setting.name, given.setting.kind
        try:
            values[name] = kind.parse(given.raw)
            origins[name] = given.origin
        except BadValue as error:
            mistakes.append(f"{given.origin}: {name}: {error}; allowed: {kind.allowed}{given.hint}")
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    for item in table:
        origins.setdefault(item.name, f"default: {item.found}")
    find_out(values)
    shown = {
        item.name: item.kind.show(values[item.name]) if item.name in values else None
        for item in table
    }
    return Written(values, shown, origins, tuple(doubts(table, environ)))
