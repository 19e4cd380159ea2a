"""`machine-operator crds`."""

from __future__ import annotations

import click

from machine_operator.api.crd import machine_crd, render

__all__ = ["crds"]


@click.command()
def crds() -> None:
    """Print the custom resource definitions as YAML, for `kubectl apply -f -`."""
    click.echo(render(machine_crd()), nl=False)
