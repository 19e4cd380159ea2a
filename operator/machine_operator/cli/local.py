"""`machine-operator local …`: the local cluster from the command line."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from machine_operator.cli.errors import sentences
from machine_operator.kube.errors import KubeError
from machine_operator.local import cluster, ssh
from machine_operator.local.guest.errors import GuestError
from machine_operator.local.locks import LockTimeoutError
from machine_operator.local.logfiles import tail
from machine_operator.local.paths import ClusterPaths, cache_directory, cluster_paths
from machine_operator.local.progress import progress_for
from machine_operator.local.requirements import MissingPackagesError
from machine_operator.local.toolchain import BinariesError

__all__ = ["local"]

_ERRORS = (
    cluster.ClusterError,
    BinariesError,
    GuestError,
    KubeError,
    LockTimeoutError,
    MissingPackagesError,
    ssh.SshError,
    OSError,
)

_LONG = 20.0
"""Seconds from which on `up` tells what took how long."""


@click.group()
def local() -> None:
    """A real control plane on this computer, with machines that really boot."""


def _cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds `--name` and `--data`, and hands the command the paths of the cluster that they mean."""

    @click.option(
        "--name",
        default="default",
        show_default=True,
        help="Which cluster; several run side by side.",
    )
    @click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        help="Its data directory (default: one per name in the XDG data home).",
    )
    @functools.wraps(command)
    def with_paths(*, name: str, data: Path | None, **rest: Any) -> None:
        with sentences(ValueError):
            paths = cluster_paths(name, data=data)
        command(paths, **rest)

    return with_paths


@local.command()
@_cluster_options
@click.option(
    "--hollow",
    is_flag=True,
    help="No QEMU: machines turn running without a guest, for scale tests.",
)
@click.option(
    "--no-controller", is_flag=True, help="Leave the operator out, to run your own from a checkout."
)
@click.option("--no-gateway", is_flag=True, help="Leave the REST gateway out.")
@click.option(
    "--ssh-port",
    type=click.IntRange(1, 65535),
    help="Where machines' sshd listens (default: 22, or 2222 where 22 cannot be bound).",
)
@click.option(
    "--binaries",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    envvar="KUBEBUILDER_ASSETS",
    help="Directory of prebuilt control-plane binaries; what it lacks is built.",
)
def up(
    paths: ClusterPaths,
    *,
    hollow: bool,
    no_controller: bool,
    no_gateway: bool,
    ssh_port: int | None,
    binaries: Path | None,
) -> None:
    """Bring the cluster up (harmless where it runs)."""
    wanted = cluster.Wanted(
        qemu=not hollow,
        controller=not no_controller,
        gateway=not no_gateway,
        ssh_port=ssh_port,
        prebuilt=binaries,
    )
    progress = progress_for(sys.stderr)
    with sentences(*_ERRORS):
        cluster.up(paths, cache=cache_directory(), wanted=wanted, progress=progress)
    _print_durations(progress.durations)
    click.echo(f"cluster {paths.name} is up: {cluster.status(paths).server}")
    click.echo(f'point your shell at it: eval "$(machine-operator local env{_which(paths)})"')


def _print_durations(durations: Mapping[str, float]) -> None:
    """Where the time went, after an `up` that took long enough to wonder."""
    total = sum(durations.values())
    if total >= _LONG:
        for name, seconds in {**durations, "in all": total}.items():
            click.echo(f"  {seconds:6.1f} s  {name}")


@local.command()
@_cluster_options
@click.option("--purge", is_flag=True, help="Remove its data too: machines, disks, certificates.")
def down(paths: ClusterPaths, *, purge: bool) -> None:
    """Take the cluster down; machines and disks stay unless --purge is given."""
    with sentences(*_ERRORS):
        cluster.down(paths, say=lambda text: click.echo(text, err=True))
        if purge and paths.settings.exists():
            shutil.rmtree(paths.data)
    click.echo(f"cluster {paths.name} is down" + (" and its data is gone" if purge else ""))


@local.command()
@_cluster_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def status(paths: ClusterPaths, *, as_json: bool) -> None:
    """Show what runs; exits with 1 unless the cluster is ready."""
    seen = cluster.status(paths)
    if as_json:
        rows = {
            row.name: {
                "pid": row.pid,
                "alive": row.alive,
                "restarts": row.restarts,
                "memory_mib": row.memory_mib,
            }
            for row in seen.components
        }
        value = {
            "phase": seen.phase,
            "message": seen.message,
            "server": seen.server,
            "ports": seen.ports,
            "components": rows,
            "steps": seen.steps,
            "durations": seen.durations,
        }
        click.echo(json.dumps(value, indent=1))
    else:
        _print_status(seen)
    sys.exit(0 if seen.phase == "ready" else 1)


def _print_status(seen: cluster.Status) -> None:
    server = seen.server if seen.phase == "ready" else ""
    click.echo(": ".join(part for part in (seen.phase, seen.message or server) if part))
    table = Table(box=None)
    for title in ("COMPONENT", "PID", "STATE", "RESTARTS", "MEMORY MIB"):
        table.add_column(title, justify="left" if title in ("COMPONENT", "STATE") else "right")
    for row in seen.components:
        memory = f"{row.memory_mib:.0f}" if row.memory_mib is not None else "-"
        state = "running" if row.alive else "down"
        table.add_row(row.name, str(row.pid), state, str(row.restarts), memory)
    if seen.components:
        Console().print(table)
    for title, name in (("REST: http://", "gateway"), ("SSH:  ", "gateway-ssh")):
        if name in seen.ports and any(row.name == "gateway" for row in seen.components):
            click.echo(f"{title}127.0.0.1:{seen.ports[name]}")


@local.command()
@_cluster_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def env(paths: ClusterPaths, *, as_json: bool) -> None:
    """Print shell exports that point kubectl and DCS clients at this cluster: eval "$(machine-operator local env)"."""
    with sentences(*_ERRORS):
        variables = cluster.environment(paths)
    if as_json:
        click.echo(json.dumps(variables, indent=1))
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@local.command(name="ssh", context_settings={"ignore_unknown_options": True})
@_cluster_options
@click.option(
    "-n", "--namespace", default="default", show_default=True, help="The machine's namespace."
)
@click.argument("machine")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def log_in(paths: ClusterPaths, *, namespace: str, machine: str, command: tuple[str, ...]) -> None:
    """Log in to a machine, or run a command in it: local ssh hello -- uname -a."""
    with sentences(*_ERRORS):
        arguments = asyncio.run(
            ssh.ssh_command(paths, namespace=namespace, machine=machine, command=command)
        )
    os.execvp(arguments[0], arguments)  # noqa: S606 - the terminal belongs to ssh from here on


@local.command(hidden=True)
@_cluster_options
@click.option("-n", "--namespace", default="default")
@click.argument("instance")
@click.argument("port", type=int)
def forward(paths: ClusterPaths, *, namespace: str, instance: str, port: int) -> None:
    """Connect standard input and output with a port of a VM, through the API server (for ssh's ProxyCommand)."""
    with sentences(*_ERRORS):
        asyncio.run(ssh.forward_stdio(paths, namespace=namespace, instance=instance, port=port))


@local.command()
@_cluster_options
@click.argument("component", required=False)
@click.option("-n", "--lines", default=50, show_default=True, help="How many lines from the end.")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
def logs(paths: ClusterPaths, *, component: str | None, lines: int, follow: bool) -> None:
    """Show the end of a component's log; without a name, the names."""
    names = sorted(path.stem for path in paths.logs.glob("*.log"))
    if component is None:
        click.echo("\n".join(names) if names else f"no logs in {paths.logs}")
        return
    if component not in names:
        raise click.ClickException(
            f"no log of {component!r}; there are: {', '.join(names) or 'none'}"
        )
    path = paths.logs / f"{component}.log"
    if follow:
        arguments = ["tail", "-n", str(lines), "-F", str(path)]
        os.execvp(arguments[0], arguments)  # noqa: S606 - tail does the rest
    click.echo(tail(path, lines=lines))


def _which(paths: ClusterPaths) -> str:
    """The options that name this cluster again, "" for the default one."""
    if paths == cluster_paths():
        return ""
    if paths == cluster_paths(paths.name):
        return f" --name {paths.name}"
    return f" --name {paths.name} --data {shlex.quote(str(paths.data))}"
