"""The operator's process: client, engine, election, probes, and the kopf shell around them.

Crash-only: what cannot go on ends the process, and whoever runs it (kubelet, the local supervisor) starts it again.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping
from dataclasses import asdict

import uvloop

from machine_operator.controller.engine import Engine, Pace
from machine_operator.controller.settings import ControllerSettings
from machine_operator.controller.shell import run_shell
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.lease import Election
from machine_operator.telemetry.health import Check, HealthServer
from machine_operator.telemetry.logs import configure
from machine_operator.telemetry.metrics import ControllerMetrics
from machine_operator.telemetry.registry import new_registry
from machine_operator.telemetry.watchdog import Watchdog

__all__ = ["run"]

log = logging.getLogger(__name__)

_SILENT = 180.0
"""Seconds without a word from the API server, bookmarks included, after which a watch counts as dead."""


def run(settings: ControllerSettings) -> None:
    """The operator's process.

    Raises:
        ConfigurationError: there is no way to reach a cluster.
        SystemExit: it cannot go on.
    """
    configure(settings.log_format, settings.log_level)
    # What is loaded by now stays; looking through it at each collection would be a tenth of the work.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    uvloop.run(_Process(settings).run())


class _Process:
    def __init__(self, settings: ControllerSettings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._lost = ""
        self._election_task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        settings = self._settings
        connection = await connect(settings.kubeconfig)
        registry = new_registry()
        metrics = ControllerMetrics(registry, host=connection.server)
        async with KubeClient(connection, on_request=metrics.on_request) as client:
            self._engine = engine = Engine(
                client,
                defaults=settings.machines,
                limits=settings.limits,
                pace=Pace(
                    workers=settings.workers,
                    pass_limit=settings.pass_limit,
                    resync=settings.resync,
                ),
                metrics=metrics,
                identity=settings.identity,
                leads=not settings.leader_elect,
                on_failure=self._stop.set,
            )
            self._metrics = metrics
            self._election = self._new_election(client)
            metrics.ask_watches(ages=self._ages, relists=self._relists)
            metrics.ask_events(lambda: asdict(engine.events.tally))
            health = HealthServer(
                settings.metrics_address, live=self._live(), ready=self._ready(), registry=registry
            )
            async with health, Watchdog(on_lag=metrics.loop_lagged):
                await run_shell(
                    engine,
                    server=connection.server,
                    new_session=client.new_session,
                    before_start=self._take_part,
                    at_end=self._step_down,
                    stop=self._stop,
                )
        if self._lost:
            raise SystemExit(self._lost)
        if engine.failed:
            raise SystemExit("the controller cannot go on; the log says why")

    # ---- leadership

    def _new_election(self, client: KubeClient) -> Election:
        settings = self._settings
        return Election(
            client,
            namespace=settings.lease_namespace,
            name=settings.lease_name,
            identity=settings.identity,
            on_change=self._leads,
        )

    def _take_part(self) -> None:
        if not self._settings.leader_elect:
            self._metrics.leading(self._settings.lease_name, True)
            return
        self._metrics.leading(self._settings.lease_name, False)
        self._election_task = asyncio.create_task(self._election.run(), name="election")
        self._election_task.add_done_callback(self._election_ended)

    def _election_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._lost = f"the election ended: {task.exception()!r}"
            log.critical("%s", self._lost)
            self._stop.set()

    def _leads(self, leads: bool) -> None:
        # A lost lease cuts off what is under way, as the end of the process would; but caches stay warm.
        self._metrics.leading(self._settings.lease_name, leads)
        self._engine.lead(leads)

    async def _step_down(self) -> None:
        """Give the Lease back, so that the next one need not wait for it to expire."""
        self._stop.set()
        if self._election_task is not None:
            self._election_task.cancel()
            await asyncio.gather(self._election_task, return_exceptions=True)

    # ---- probes

    def _ages(self) -> Mapping[str, float]:
        now = asyncio.get_running_loop().time()
        return {
            informer.resource.plural: now - informer.heard_at
            for informer in self._engine.children
            if informer.heard_at is not None
        }

    def _relists(self) -> Mapping[str, int]:
        return {informer.resource.plural: informer.relists for informer in self._engine.children}

    def _live(self) -> dict[str, Check]:
        return {"loop": lambda: None, "engine": self._engine_works}

    def _ready(self) -> dict[str, Check]:
        return {"caches": self._caches_complete, "watches": self._watches_heard}

    def _engine_works(self) -> str | None:
        return "a task ended that never should" if self._engine.failed else None

    def _caches_complete(self) -> str | None:
        missing = [i.resource.plural for i in self._engine.children if not i.synced.is_set()]
        return f"not listed yet: {', '.join(missing)}" if missing else None

    def _watches_heard(self) -> str | None:
        silent = {name: age for name, age in self._ages().items() if age > _SILENT}
        told = ", ".join(f"{name} for {age:.0f} s" for name, age in silent.items())
        return f"nothing heard of {told}" if silent else None
