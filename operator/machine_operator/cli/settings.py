"""Command-line options, printed configuration and reference tables of a program, made from its table of settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import yaml

from machine_operator.config.options import Setting
from machine_operator.config.settings import Written

__all__ = ["config_lines", "reference_table", "setting_options"]

Command = Callable[..., Any]


def setting_options(table: Sequence[Setting]) -> Callable[[Command], Command]:
    """One option for each setting. What is written is judged with that of all other sources, not by click."""

    def decorate(command: Command) -> Command:
        for item in reversed(table):
            default = item.default if item.default is not None else item.found
            switch = not item.kind.metavar
            name = f"{item.flag}/{item.flag_off}" if switch else item.flag
            command = click.option(
                name,
                item.name,
                type=bool if switch else str,
                metavar=None if switch else item.kind.metavar,
                default=None,
                help=f"{item.help}  [default: {default}]",
            )(command)
        return command

    return decorate


def config_lines(table: Sequence[Setting], written: Written) -> Iterator[str]:
    """The settings as a file. What is found out at each start is a comment: written down it would stay."""
    for item in table:
        origin, shown = written.origins[item.name], written.shown[item.name]
        line = f"{item.name}:" if shown is None else f"{item.name}: {_scalar(item, shown)}"
        if item.default is None and origin.startswith("default"):
            line = f"# {line}"
        yield f"{line:<50}  # {origin}"


def _scalar(item: Setting, written: str) -> str:
    """As YAML that means the same again."""
    value = written if item.kind.metavar not in ("", "NUMBER") else yaml.safe_load(written)
    return yaml.safe_dump(value, width=10_000, allow_unicode=True).partition("\n")[0]


def reference_table(table: Sequence[Setting]) -> list[str]:
    """The table of a reference page, in Markdown."""
    rows = [
        f"| `{item.name}` | {_cell(item.kind.allowed)} | {_default(item)} | {_cell(item.help)} |"
        for item in table
    ]
    return ["| key | allowed | default | what it is |", "|---|---|---|---|", *rows]


def _default(item: Setting) -> str:
    return f"`{item.default}`" if item.default is not None else _cell(item.found)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
