"""Command-line options, printed configuration and reference tables of a program, made from its table of settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
import yaml

from machine_operator.config.options import Setting
from machine_operator.config.settings import Written

__all__ = ["configured", "reference_table", "told_or_shown"]

Command = Callable[..., Any]


def configured(
    table: Sequence[Setting], *, reference: Callable[[], str]
) -> Callable[[Command], Command]:
    """A command that is set up by `table`: an option for each setting, `--config` and `--print-config`.

    What is written is judged with that of all other sources, not by click. The command gets `print_config` and the
    flags. A hidden option prints the page that `reference` makes.
    """

    def print_reference(context: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted:
            click.echo(reference(), nl=False)
            context.exit()

    def decorate(command: Command) -> Command:
        options: list[Callable[[Command], Command]] = [
            click.option("--config", metavar="FILE", help="YAML file with settings."),
            *(_option(item) for item in table),
            click.option(
                "--print-config",
                is_flag=True,
                help="Print what counts, and where it comes from.",
            ),
            click.option(
                "--print-reference",
                is_flag=True,
                is_eager=True,
                expose_value=False,
                hidden=True,
                callback=print_reference,
            ),
        ]
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _option(item: Setting) -> Callable[[Command], Command]:
    default = item.default if item.default is not None else item.found
    switch = not item.kind.metavar
    return click.option(
        f"{item.flag}/{item.flag_off}" if switch else item.flag,
        item.name,
        type=bool if switch else str,
        metavar=None if switch else item.kind.metavar,
        default=None,
        help=f"{item.help}  [default: {default}]",
    )


def told_or_shown(table: Sequence[Setting], written: Written, *, print_config: bool) -> bool:
    """Tell warnings, and print the configuration where that was all that was asked for; whether it was."""
    for warning in written.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if print_config:
        for line in _config_lines(table, written):
            click.echo(line)
    return print_config


def _config_lines(table: Sequence[Setting], written: Written) -> Iterator[str]:
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
