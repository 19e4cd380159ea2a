"""`machine-operator controller`."""

from __future__ import annotations

from pathlib import Path

import click

from machine_operator.cli.errors import sentences
from machine_operator.controller.settings import ControllerSettings
from machine_operator.kube.errors import ConfigurationError
from machine_operator.kubevirt.settings import MachineDefaults

__all__ = ["controller"]


def _variable(name: str) -> str:
    return f"MACHINE_OPERATOR_{name}"


@click.command()
@click.option(
    "--kubeconfig",
    envvar=_variable("KUBECONFIG"),
    help="Path (default: the pod's service account, else the user's kubeconfig).",
)
@click.option(
    "--default-image",
    envvar=_variable("DEFAULT_IMAGE"),
    default="quay.io/containerdisks/debian:12",
    show_default=True,
    help="Root image of machines that name none.",
)
@click.option(
    "--ssh-port",
    envvar=_variable("SSH_PORT"),
    type=click.IntRange(1, 65535),
    default=22,
    show_default=True,
    help="Where the guests' sshd listens.",
)
@click.option(
    "--ssh-user-ca",
    envvar=_variable("SSH_USER_CA"),
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Public key of the authority whose certificates may log in to machines.",
)
@click.option(
    "--grace-seconds",
    envvar=_variable("GRACE_SECONDS"),
    type=click.IntRange(0, 3600),
    default=30,
    show_default=True,
    help="How long a guest may take to shut down.",
)
@click.option(
    "--workers",
    envvar=_variable("WORKERS"),
    type=click.IntRange(1, 1000),
    default=32,
    show_default=True,
    help="Machines worked on at a time.",
)
@click.option(
    "--metrics-address",
    envvar=_variable("METRICS_ADDRESS"),
    default="0.0.0.0:8080",
    show_default=True,
    help="HOST:PORT of /metrics, /livez and /readyz.",
)
def controller(
    *,
    kubeconfig: str | None,
    default_image: str,
    ssh_port: int,
    ssh_user_ca: Path | None,
    grace_seconds: int,
    workers: int,
    metrics_address: str,
) -> None:
    """Run the operator, in a cluster or outside of it. Each option is also a variable MACHINE_OPERATOR_…."""
    # Imported late: kopf takes a second to load, which no other command should pay.
    from machine_operator.controller.shell import run  # noqa: PLC0415

    settings = ControllerSettings(
        kubeconfig=kubeconfig,
        machines=MachineDefaults(
            image=default_image,
            ssh_port=ssh_port,
            ssh_user_ca=ssh_user_ca.read_text() if ssh_user_ca else "",
            grace_seconds=grace_seconds,
        ),
        workers=workers,
        metrics_address=metrics_address,
    )
    with sentences(ConfigurationError):
        run(settings)
