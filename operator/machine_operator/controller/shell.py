"""The kopf shell: process life cycle, login, and intake of Machine events. Nothing else of kopf is used.

Its high-level handlers are edge-triggered and write to the object on their own (annotations, finalizers); here
kopf only says that a Machine changed. Both of its storages are null objects: they would be computed for each event
even though no handler needs them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from typing import Any

import kopf
from typing_extensions import override

from machine_operator.api.names import GROUP, PLURAL, VERSION
from machine_operator.controller.engine import Engine
from machine_operator.controller.settings import ControllerSettings
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.telemetry.health import HealthServer

__all__ = ["run", "run_controller"]

log = logging.getLogger(__name__)


class _NoDiffBase(kopf.DiffBaseStorage):
    """Keeps no last-seen state: decisions are made from what is there, not from what changed."""

    @override
    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> Any:
        return {}

    @override
    def fetch(self, *, body: kopf.Body) -> Any:
        return None

    @override
    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: Any) -> None:
        return None


class _NoProgress(kopf.ProgressStorage):
    """Keeps no handler progress: there are no handlers that could make any."""

    @override
    def fetch(self, *, key: Any, body: kopf.Body) -> Any:
        return None

    @override
    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        return None

    @override
    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        return None

    @override
    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: Any) -> None:
        return None

    @override
    def clear(self, *, essence: Any) -> Any:
        return essence


class _Backoffs:
    """Pauses between kopf's attempts: for ever, up to half a minute. Its own list ends, and then it exits."""

    def __iter__(self) -> Iterator[float]:
        pause = 1.0
        while True:
            yield pause * random.uniform(0.5, 1.0)
            pause = min(pause * 2, 30.0)


async def run_controller(settings: ControllerSettings) -> None:
    """Run the operator until SIGTERM or SIGINT."""
    connection = await connect(settings.kubeconfig)
    async with KubeClient(connection) as client:
        stop = asyncio.Event()
        engine = Engine(
            client, on_failure=stop.set, defaults=settings.machines, workers=settings.workers
        )
        health = HealthServer(settings.metrics_address, ready=lambda: engine.ready)
        async with health:
            # Crash-only: whoever runs us (kubelet, the local supervisor) starts us again.
            await kopf.operator(
                registry=_registry(client, engine, stop=stop),
                settings=_settings(),
                clusterwide=True,
                standalone=True,
                stop_flag=stop,
            )
        if engine.failed:
            raise SystemExit("the controller cannot go on; the log says why")


def _registry(client: KubeClient, engine: Engine, *, stop: asyncio.Event) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        # kopf closes the session that it is given, so it gets one of its own.
        return kopf.AiohttpSession(
            server=client.connection.server, aiohttp_session=client.new_session()
        )

    @kopf.on.startup(registry=registry)
    async def startup(**_: Any) -> None:
        await engine.start()

    @kopf.on.cleanup(registry=registry)
    async def cleanup(**_: Any) -> None:
        await engine.stop()
        # kopf leaves its own task waiting for the flag, and then waits five seconds for that task.
        stop.set()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def machine_event(event: Any, **_: Any) -> None:
        if event["type"] == "DELETED":
            engine.lost_machine(dict(event["object"]))
        else:
            engine.saw_machine(dict(event["object"]))

    return registry


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.queueing.idle_timeout = 0.5
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.persistence.progress_storage = _NoProgress()
    settings.networking.error_backoffs = _Backoffs()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    return settings


def run(settings: ControllerSettings) -> None:
    """The operator's process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    asyncio.run(run_controller(settings))
