"""`python -m machine_operator.local.hollow --config FILE`: the hollow node's process.

SIGTERM and SIGINT end it at once and leave guests running; with `--stop-guests` it only ends the
guests of a node that is not running any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

import click

from machine_operator.local.hollow.agent import HollowNode
from machine_operator.local.hollow.config import ConfigError, NodeConfig
from machine_operator.local.hollow.guests import stop_guests
from machine_operator.local.locks import LockTimeoutError, exclusive

__all__ = ["main"]

log = logging.getLogger(__name__)

_LOCK_WAIT = 30.0


@click.command()
@click.option(
    "--config", type=click.Path(path_type=Path), required=True, help="The node's JSON file."
)
@click.option("--stop-guests", "stop", is_flag=True, help="End all guests, and do nothing else.")
@click.option("--grace", default=20.0, show_default=True, help="Seconds for guests to power off.")
def main(config: Path, stop: bool, grace: float) -> None:
    """Run the hollow node of a local cluster."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        node = NodeConfig.load(config)
        # Two nodes in one directory would start two QEMUs on one disk.
        with exclusive(node.data / "node.lock", on_wait=log.warning, timeout=_LOCK_WAIT):
            if stop:
                asyncio.run(stop_guests(node.data, grace=grace))
            else:
                asyncio.run(_serve(node))
    except (ConfigError, LockTimeoutError) as error:
        raise click.ClickException(str(error)) from error


async def _serve(config: NodeConfig) -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - we are in a coroutine
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await HollowNode(config).run()


if __name__ == "__main__":
    main()
