"""`machine-operator controller`. Its options, `--print-config` and the reference page are made from `SETTINGS`."""

from __future__ import annotations

import os
import textwrap
from typing import Any

import click

from machine_operator.cli.errors import sentences
from machine_operator.cli.settings import configured, reference_table, told_or_shown
from machine_operator.config.options import PREFIX
from machine_operator.config.settings import SettingsError
from machine_operator.controller.settings import SETTINGS, load_settings
from machine_operator.kube.errors import ConfigurationError

__all__ = ["controller", "reference"]

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

There are no secrets among the settings: credentials are in the kubeconfig or the service account, `ssh_user_ca` is a
public key, and of `ssh_host_ca` only the path is ever shown.

## Settings
"""

_EXAMPLE = """\
## Example

```yaml
# /etc/machine-operator/config.yaml
default_image: quay.io/containerdisks/debian:13
ssh_user_ca: /etc/machine-operator/ssh_user_ca.pub
ssh_host_ca: /etc/machine-operator/ssh_host_ca
workers: 64
log_format: json
minimum_awake: 2m
start_timeout: 10m
```

Durations are written as `autosleep` is: units w, d, h, m, s from large to small, such as `90s` or `1h30m`, or a bare
number of seconds.
"""


def reference() -> str:
    """docs/operations/configuration.md."""
    head = [textwrap.dedent(_HEAD).rstrip(), ""]
    return "\n".join([*head, *reference_table(SETTINGS), "", _EXAMPLE])


@click.command(
    epilog=f"Each option is also a variable {PREFIX}… and a key of the file, see docs/operations/configuration.md."
)
@configured(SETTINGS, reference=reference)
def controller(*, print_config: bool, **flags: Any) -> None:
    """Run the operator, in a cluster or outside of it."""
    with sentences(SettingsError):
        effective = load_settings(flags=flags, environ=os.environ)
    if told_or_shown(SETTINGS, effective.written, print_config=print_config):
        return
    # Imported late: kopf takes a second to load, which no other command should pay.
    from machine_operator.controller.process import run  # noqa: PLC0415

    with sentences(ConfigurationError):
        run(effective.settings)
