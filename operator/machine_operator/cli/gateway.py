"""`machine-operator gateway`. Its options, `--print-config` and the reference page are made from `SETTINGS`."""

from __future__ import annotations

import os
import textwrap
from typing import Any

import click

from machine_operator.cli.errors import sentences
from machine_operator.cli.settings import configured, reference_table, told_or_shown
from machine_operator.config.options import PREFIX
from machine_operator.config.settings import SettingsError
from machine_operator.gateway.orgs import TemplateError
from machine_operator.gateway.settings import SETTINGS, load_settings
from machine_operator.kube.errors import ConfigurationError
from machine_operator.store.errors import SchemaError, StoreUnavailable

__all__ = ["gateway", "reference"]

_HEAD = f"""\
# Configuration of the gateway

Made by `machine-operator gateway --print-reference`; do not edit it by hand.

Settings are written in the same four places as the controller's ([configuration.md](configuration.md)): the default,
a file (`--config FILE` or `{PREFIX}CONFIG`), the environment (`{PREFIX}` and the key in capitals), a flag; the last one
wins. The gateway and the controller read each a file of its own.

The URLs of databases may hold a password: put them into the environment, from a Secret. They are shown without it.

## Settings
"""


def reference() -> str:
    """docs/operations/gateway.md."""
    return "\n".join([textwrap.dedent(_HEAD).rstrip(), "", *reference_table(SETTINGS), ""])


@click.command(
    epilog=f"Each option is also a variable {PREFIX}… and a key of the file, see docs/operations/gateway.md."
)
@configured(SETTINGS, reference=reference)
def gateway(*, print_config: bool, **flags: Any) -> None:
    """Serve the DCS REST API."""
    with sentences(SettingsError):
        settings, written = load_settings(flags=flags, environ=os.environ)
    if told_or_shown(SETTINGS, written, print_config=print_config):
        return
    # Imported late: what it needs takes a second to load, which no other command should pay.
    from machine_operator.gateway.process import run  # noqa: PLC0415

    with sentences(ConfigurationError, StoreUnavailable, SchemaError, TemplateError, OSError):
        run(settings)
