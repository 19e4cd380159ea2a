"""The process behind `local up`: starts the components, restarts what dies, ends everything in order.

It writes `state.json` at each change: the phase that it is in, and the record of every process that it started.
Whoever comes after a kill -9 (the next `up` or `down`) ends exactly those. The flock on `supervisor.lock` keeps
two supervisors apart: the kernel lets go of it with the process, however it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from machine_operator.local.bringup import Bringup, BringupError
from machine_operator.local.components import Component, components
from machine_operator.local.hollow.guests import stop_guests
from machine_operator.local.locks import exclusive
from machine_operator.local.logfiles import bound_logs, open_log, tail
from machine_operator.local.paths import ClusterPaths, cluster_paths
from machine_operator.local.processes import (
    ProcessRecord,
    end_processes,
    instance_mark,
    record_of,
)
from machine_operator.local.settings import ClusterSettings, write_json

__all__ = ["Supervisor", "run"]

log = logging.getLogger(__name__)

_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds before the n-th restart in a row; the last one is for all that follow."""

_STEADY = 20.0
"""A process that lived this long starts counting anew."""

_GUEST_GRACE = 20.0
"""Seconds that guests get to power off at the end of the cluster, before their power is cut."""

_EARLY_DEATHS = 5
"""While the cluster comes up, a component that dies this often in a row ends the attempt."""


@dataclass(slots=True)
class _Child:
    component: Component
    process: asyncio.subprocess.Process
    record: ProcessRecord
    started: float
    restarts: int = 0
    in_a_row: int = 0
    watcher: asyncio.Task[None] | None = field(default=None, repr=False)


class Supervisor:
    """Runs one local cluster until told to stop."""

    def __init__(self, settings: ClusterSettings, paths: ClusterPaths) -> None:
        self._settings = settings
        self._paths = paths
        self._components = components(settings, paths)
        self._mark = instance_mark(paths.data)
        self._children: dict[str, _Child] = {}
        self._phase = "starting"
        self._message = ""
        self._since = time.time()
        self._steps: dict[str, float] = {}
        self._failure: asyncio.Future[str] | None = None
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> int:
        """Bring the cluster up, keep it up until `stop`, take it down. Returns the exit code."""
        self._failure = asyncio.get_running_loop().create_future()
        self._report("starting", "starting etcd")
        shutil.rmtree(self._paths.scratch, ignore_errors=True)
        self._paths.scratch.mkdir(mode=0o700)
        work = asyncio.create_task(self._bring_up())
        code = 0
        try:
            if await self._came_up(work, stop):
                self._report("ready", "")
                await self._keep(stop)
        except (BringupError, OSError) as error:
            log.error("%s", error)
            self._report("failed", str(error))
            code = 1
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await self._take_down(failed=code != 0)
        return code

    async def _came_up(self, work: asyncio.Task[None], stop: asyncio.Event) -> bool:
        """Wait for the bring-up; False where `stop` came first."""
        assert self._failure is not None  # noqa: S101 - made by `run`
        stopped = asyncio.create_task(stop.wait())
        waiting: list[asyncio.Future[Any]] = [stopped, self._failure, work]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if self._failure in done:
            raise BringupError(self._failure.result())
        if work in done:
            work.result()
            return True
        return False

    async def _keep(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 30.0)
            bound_logs(self._paths.logs)

    async def _bring_up(self) -> None:
        bringup = Bringup(self._settings, self._paths, start=self._start, say=self._say)
        await bringup.run()
        self._steps = bringup.steps

    def _say(self, message: str) -> None:
        log.info("%s", message)
        self._report("starting", message)

    # ---- processes

    async def _start(self, name: str) -> None:
        component = self._components.get(name)
        if component is None or name in self._children:
            return
        self._children[name] = await self._spawn(component, restarts=0, in_a_row=0)
        self._report(self._phase, self._message)

    async def _spawn(self, component: Component, *, restarts: int, in_a_row: int) -> _Child:
        with open_log(self._paths.logs, component.name) as output:
            process = await asyncio.create_subprocess_exec(
                *component.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._paths.data,
                # virt-api leaves a directory of certificates in TMPDIR at each start.
                env={**os.environ, **self._mark, "TMPDIR": str(self._paths.scratch)},
                # A group of its own: Ctrl-C at the terminal of `local up` is not theirs to see.
                start_new_session=True,
            )
        if self._stopping:  # while we were starting it
            process.kill()
        record = record_of(process.pid)
        if record is None:  # it ended before we looked; `wait` tells how
            record = ProcessRecord(pid=process.pid, started=-1, boot="")
        child = _Child(
            component, process, record, time.monotonic(), restarts=restarts, in_a_row=in_a_row
        )
        child.watcher = asyncio.create_task(self._watch(child))
        return child

    async def _watch(self, child: _Child) -> None:
        name = child.component.name
        code = await child.process.wait()
        if self._stopping:
            return
        lived = time.monotonic() - child.started
        in_a_row = 0 if lived > _STEADY else child.in_a_row + 1
        log.warning("%s ended with code %s after %.1f s; restarting it", name, code, lived)
        if self._phase == "starting" and in_a_row >= _EARLY_DEATHS and self._failure is not None:
            last = tail(self._paths.logs / f"{name}.log", lines=5)
            if not self._failure.done():
                self._failure.set_result(
                    f"{name} ended {in_a_row} times in a row (code {code}). Its last words:\n{last}"
                )
            return
        await self._restart(child, in_a_row=in_a_row)

    async def _restart(self, child: _Child, *, in_a_row: int) -> None:
        name = child.component.name
        while not self._stopping:
            await asyncio.sleep(_PAUSES[min(in_a_row, len(_PAUSES) - 1)])
            if self._stopping:
                return
            try:
                self._children[name] = await self._spawn(
                    child.component, restarts=child.restarts + 1, in_a_row=in_a_row
                )
            except OSError as error:  # such as a cache that somebody has emptied
                log.error("%s cannot be started: %s", name, error)
                in_a_row += 1
                continue
            self._report(self._phase, self._message)
            return

    # ---- the end

    async def _take_down(self, *, failed: bool) -> None:
        """First who acts on machines, then the guests, then the rest; etcd last."""
        self._stopping = True
        if not failed:
            self._report("stopping", "stopping")
        await self._end("gateway", "controller", "hollow-node", grace=3.0)
        await stop_guests(self._paths.node, grace=_GUEST_GRACE)
        stopped = ("gateway", "controller", "hollow-node", "etcd")
        await self._end(*(name for name in self._children if name not in stopped), grace=0)
        # Nobody writes any more, and its log is complete after each write: it need not drain for seconds.
        await self._end("etcd", grace=0.5)
        watchers = [child.watcher for child in self._children.values() if child.watcher]
        await asyncio.gather(*watchers, return_exceptions=True)
        shutil.rmtree(self._paths.scratch, ignore_errors=True)
        self._report("failed" if failed else "stopped", self._message if failed else "")

    async def _end(self, *names: str, grace: float) -> None:
        records = [child.record for name, child in self._children.items() if name in names]
        work = functools.partial(end_processes, records, grace=grace)
        await asyncio.get_running_loop().run_in_executor(None, work)

    # ---- what others see

    def _report(self, phase: str, message: str) -> None:
        if phase != self._phase:
            self._since = time.time()
        self._phase, self._message = phase, message
        children: dict[str, Any] = {
            name: {"restarts": child.restarts, "process": child.record.to_json()}
            for name, child in self._children.items()
        }
        own = record_of(os.getpid())
        write_json(
            self._paths.state,
            {
                "phase": phase,
                "message": message,
                "since": self._since,
                "steps": self._steps,
                "supervisor": own.to_json() if own else None,
                "components": {} if phase == "stopped" else children,
            },
        )


def run(paths: ClusterPaths) -> int:
    """The supervisor's process, until SIGTERM or SIGINT. Returns the exit code."""
    settings = ClusterSettings.load(paths.settings)
    if settings is None:
        raise SystemExit(f"{paths.settings} is not there: start the cluster with `local up`")
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )

    async def body() -> int:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        return await Supervisor(settings, paths).run(stop)

    with exclusive(paths.data / "supervisor.lock", on_wait=log.warning, timeout=10):
        return asyncio.run(body())


@click.command()
@click.option("--name", required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True)
def main(name: str, data: Path) -> None:
    """Run the supervisor of one cluster in the foreground; `local up` starts it detached."""
    raise SystemExit(run(cluster_paths(name, data=data)))


if __name__ == "__main__":
    main()
