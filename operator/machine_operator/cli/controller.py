"""`machine-operator controller`. Its options, `--print-config` and the reference page are made from `SETTINGS`."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import click
import yaml

from machine_operator.cli.errors import sentences
from machine_operator.controller.options import PREFIX, Setting
from machine_operator.controller.settings import (
    SETTINGS,
    Effective,
    SettingsError,
    load_settings,
)
from machine_operator.kube.errors import ConfigurationError

__all__ = ["controller", "reference"]

Command = Callable[..., None]

_HEAD = f"""\
# Configuration of the controller

Made by `machine-operator controller --print-reference`; do not edit it by hand.

Each setting can be written in four places. What stands further down in this list wins:

1. the default;
2. a file: `--config FILE`, or the variable `{PREFIX}CONFIG`;
3. the environment: `{PREFIX}` and the key in capitals, such as `{PREFIX}WORKERS`. An empty variable says nothing;
4. a flag: the key with dashes, such as `--workers`. A switch is `--leader-elect` or `--no-leader-elect`.

The file is YAML, one `key: value` a line. A key that does not exist is an error, and so is one that is there twice.
Relative paths, in the file as well, start from the working directory.

Everything is checked before anything starts, and all that is wrong is told at once: where it stands, which key, what is
wrong, and what is allowed. `machine-operator controller --print-config` checks in the same way, prints what counts in
the end and where each value comes from, and ends; what it prints can be used as a file.

In a pod, set `enableServiceLinks: false`: otherwise Kubernetes itself sets variables for each Service of the namespace,
and for one that is named `machine-operator-ssh` that is `{PREFIX}SSH_PORT`.

There are no secrets among the settings: credentials are in the kubeconfig or the service account, and
`ssh_user_ca` is a public key.

## Settings
"""

_EXAMPLE = """\
## Example

```yaml
# /etc/machine-operator/config.yaml
default_image: quay.io/containerdisks/debian:13
ssh_user_ca: /etc/machine-operator/ssh_user_ca.pub
workers: 64
log_format: json
minimum_awake: 2m
start_timeout: 10m
```

Durations are written as `autosleep` is: units w, d, h, m, s from large to small, such as `90s` or `1h30m`, or a bare
number of seconds.
"""


def _options(command: Command) -> Command:
    """One option for each setting. What is written is judged with that of all other sources, not by click."""
    for item in reversed(SETTINGS):
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


def _print_reference(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(reference(), nl=False)
        context.exit()


@click.command(
    epilog=f"Each option is also a variable {PREFIX}… and a key of the file, see docs/operations/configuration.md."
)
@click.option("--config", metavar="FILE", help="YAML file with settings.")
@_options
@click.option("--print-config", is_flag=True, help="Print what counts, and where it comes from.")
@click.option(
    "--print-reference",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    hidden=True,
    callback=_print_reference,
)
def controller(*, print_config: bool, **flags: Any) -> None:
    """Run the operator, in a cluster or outside of it."""
    with sentences(SettingsError):
        effective = load_settings(flags=flags, environ=os.environ)
    for warning in effective.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if print_config:
        for line in _lines(effective):
            click.echo(line)
        return
    # Imported late: kopf takes a second to load, which no other command should pay.
    from machine_operator.controller.process import run  # noqa: PLC0415

    with sentences(ConfigurationError):
        run(effective.settings)


def _lines(effective: Effective) -> Iterator[str]:
    """The settings as a file. What is found out at each start is a comment: written down it would stay."""
    for item in SETTINGS:
        origin, written = effective.origins[item.name], effective.written[item.name]
        line = f"{item.name}:" if written is None else f"{item.name}: {_scalar(item, written)}"
        if item.default is None and origin.startswith("default"):
            line = f"# {line}"
        yield f"{line:<50}  # {origin}"


def _scalar(item: Setting, written: str) -> str:
    """As YAML that means the same again."""
    value = written if item.kind.metavar not in ("", "NUMBER") else yaml.safe_load(written)
    return yaml.safe_dump(value, width=10_000, allow_unicode=True).partition("\n")[0]


def reference() -> str:
    """docs/operations/configuration.md."""
    rows = [
        f"| `{item.name}` | {_cell(item.kind.allowed)} | {_default(item)} | {_cell(item.help)} |"
        for item in SETTINGS
    ]
    head = ["", "| key | allowed | default | what it is |", "|---|---|---|---|"]
    return "\n".join([textwrap.dedent(_HEAD).rstrip(), *head, *rows, "", _EXAMPLE])


def _default(item: Setting) -> str:
    return f"`{item.default}`" if item.default is not None else _cell(item.found)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
