"""The gateway's process: store, caches, the server, and what has to be done beside it.

Crash-only: what cannot go on ends the process, and whoever runs it starts it again. All that must survive is in the
store and in the objects.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import uvloop
from starlette.types import ASGIApp

from machine_operator.gateway.app import build_app
from machine_operator.gateway.changes import Changes
from machine_operator.gateway.credentials import load_credentials
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.idempotency import Idempotency
from machine_operator.gateway.identity import KeyOrgs, KeyScopes
from machine_operator.gateway.inside import Inside, Shared, open_inside
from machine_operator.gateway.keys import KeyRing
from machine_operator.gateway.limits import Rate, RateLimiter
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.marks import Freshness
from machine_operator.gateway.metering import Metering
from machine_operator.gateway.orgs import Orgs
from machine_operator.gateway.previews.proxy import PreviewHost
from machine_operator.gateway.problems import Scope
from machine_operator.gateway.serving.server import serve
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.upkeep import Upkeep
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.errors import ConfigurationError
from machine_operator.store.database import Database
from machine_operator.store.idempotency import IdempotencyRecords
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.marks import WriteMarks
from machine_operator.telemetry.gateway import GatewayMetrics
from machine_operator.telemetry.health import Check, HealthServer
from machine_operator.telemetry.logs import configure
from machine_operator.telemetry.registry import new_registry

__all__ = ["run"]

log = logging.getLogger(__name__)


def run(settings: GatewaySettings) -> None:
    """The gateway's process.

    Raises:
        ConfigurationError: there is no way to reach a cluster, the database's URL is none, or the credentials are not
            what they should be.
        StoreUnavailable, SchemaError: the database cannot be reached, or is one of a newer version.
        TemplateError: the template of new organisations cannot be used.
        OSError: the address cannot be listened on.
        SystemExit: it cannot go on.
    """
    configure(settings.log_format, settings.log_level)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    uvloop.run(_Process(settings).run())


class _Process:
    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._failed: str | None = None
        self._server: asyncio.Task[None] | None = None
        self._registry = new_registry()
        self._metrics = GatewayMetrics(self._registry)

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            gateway = await stack.enter_async_context(self._gateway())
            await stack.enter_async_context(self._health(gateway))
            host, _, port = self._settings.address.rpartition(":")
            self._server = asyncio.create_task(
                serve(
                    self._app(gateway),
                    host=host.strip("[]") or "0.0.0.0",  # noqa: S104
                    port=int(port),
                    draining=gateway.draining,
                    on_listening=self._listening,
                    drain_seconds=self._settings.drain,
                )
            )
            draining = asyncio.create_task(self._drain(gateway))
            try:
                await self._server
                if gateway.inside is not None and gateway.inside.ssh is not None:
                    await gateway.inside.ssh.ended.wait()
            except asyncio.CancelledError:
                if self._failed is None:
                    raise
            finally:
                draining.cancel()
        if self._failed is not None:
            raise SystemExit(self._failed)

    def _app(self, gateway: Gateway) -> ASGIApp:
        app = build_app(gateway, self._metrics)
        if gateway.inside is None:
            return app
        return PreviewHost(app, gateway.inside.previews, metrics=self._metrics)

    def _listening(self, address: str) -> None:
        log.info("serving on %s", address)

    async def _drain(self, gateway: Gateway) -> None:
        await gateway.draining.wait()
        gateway.machines.wake_followers()
        if gateway.inside is not None:
            gateway.inside.access.drain()

    @asynccontextmanager
    async def _gateway(self) -> AsyncIterator[Gateway]:
        settings = self._settings
        async with AsyncExitStack() as stack:
            try:
                database = await Database.open(settings.database)
            except ValueError as error:
                raise ConfigurationError(f"database: {error}") from error
            stack.push_async_callback(database.close)
            limiter = RateLimiter.open(settings.redis, rates=_rates(settings))
            stack.push_async_callback(limiter.close)
            connection = await connect(settings.kubeconfig)
            client = await stack.enter_async_context(
                KubeClient(connection, user_agent="machine-operator-gateway")
            )
            keys = KeyRing(client, namespace=settings.keys_namespace)
            machines = Machines(client)
            records, ledger = IdempotencyRecords(database), UsageLedger(database)
            self._keys = keys
            tasks = (
                ("keys", keys.run()),
                ("machines", machines.informer.run()),
                ("metering", Metering(machines, ledger).run()),
                ("upkeep", Upkeep(client, machines, records, settings).run()),
            )
            for name, work in tasks:
                stack.push_async_callback(_end, self._beside(name, work))
            changes, scopes, draining = Changes(client, machines), KeyScopes(), asyncio.Event()
            shared = Shared(
                settings, database, client, machines, changes, keys, scopes, draining=draining
            )
            yield Gateway(
                settings=settings,
                authenticator=keys,
                resolver=KeyOrgs(),
                authorizer=scopes,
                limiter=limiter,
                machines=machines,
                freshness=Freshness(machines, WriteMarks(database) if database.shared else None),
                changes=changes,
                idempotency=Idempotency(records),
                orgs=Orgs(client, create=settings.create_orgs, template=settings.org_template),
                ledger=ledger,
                draining=draining,
                inside=await self._inside(shared, stack),
            )

    async def _inside(self, shared: Shared, stack: AsyncExitStack) -> Inside | None:
        if self._settings.credentials is None:
            log.warning("no credentials are set: there is no way into machines")
            return None
        inside = open_inside(shared, load_credentials(self._settings.credentials))
        stack.push_async_callback(inside.guests.close)
        self._metrics.inside.values = inside.counts
        self._metrics.entries.values = inside.totals
        inside.access.on_connect = self._metrics.connects.observe
        for name, work in inside.tasks().items():
            stack.push_async_callback(_end, self._beside(name, work))
        return inside

    def _beside(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Something that runs as long as the process does; its end is the end of all."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        self._failed = f"the task {task.get_name()} ended: {task.exception()!r}"
        log.critical("%s", self._failed, exc_info=task.exception())
        if self._server is not None:
            self._server.cancel()

    def _health(self, gateway: Gateway) -> HealthServer:
        machines, keys = gateway.machines, self._keys
        self._metrics.machines.values = lambda: {
            "machines": len(machines.informer.cache),
            "keys": len(keys),
        }
        self._metrics.behind.values = lambda: {"machines": machines.informer.behind}

        def caches() -> str | None:
            named = {"machines": gateway.machines.informer.synced, "keys": self._keys.synced}
            missing = [name for name, synced in named.items() if not synced.is_set()]
            return f"not listed yet: {', '.join(missing)}" if missing else None

        def drains() -> str | None:
            return "the process is about to end" if gateway.draining.is_set() else None

        ready: dict[str, Check] = {"caches": caches, "serving": drains}
        return HealthServer(
            self._settings.gateway_metrics_address,
            live={"loop": lambda: None},
            ready=ready,
            registry=self._registry,
        )


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _rates(settings: GatewaySettings) -> dict[Scope, Rate]:
    return {
        Scope.READ: Rate(settings.read_rate, settings.read_burst),
        Scope.MUTATE: Rate(settings.change_rate, settings.change_burst),
        Scope.SLEEP: Rate(settings.sleep_rate, settings.sleep_burst),
    }
