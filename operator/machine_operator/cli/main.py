"""The command line: `machine-operator`."""

from __future__ import annotations

import sys

import click

from machine_operator import __version__
from machine_operator.cli.controller import controller
from machine_operator.cli.crds import crds
from machine_operator.cli.gateway import gateway
from machine_operator.cli.keys import keys
from machine_operator.cli.local import local

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="machine-operator")
def main() -> None:
    """Machines on Kubernetes: persistent Linux VMs that cost nothing while nobody uses them."""


main.add_command(controller)
main.add_command(crds)
main.add_command(gateway)
main.add_command(keys)
main.add_command(local)

if __name__ == "__main__":
    sys.exit(main())
