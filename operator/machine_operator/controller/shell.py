"""The kopf shell: process life cycle, login, and intake of Machine events. Nothing else of kopf is used.

Its high-level handlers are edge-triggered and write to the object on their own (annotations, finalizers); here
kopf only says that a Machine changed. Both of its storages are null objects: they would be computed for each event
even though no handler needs them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import kopf
from typing_extensions import override

from machine_operator.api.names import GROUP, PLURAL, VERSION
from machine_operator.controller.engine import Engine

__all__ = ["run_shell"]


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


async def run_shell(
    engine: Engine,
    *,
    server: str,
    new_session: Callable[[], aiohttp.ClientSession],
    before_start: Callable[[], None],
    at_end: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
) -> None:
    """Run kopf around the engine until SIGTERM, SIGINT or `stop`.

    `new_session` makes one with our identity, at `server`; kopf closes the one that it is given. `before_start` is
    called when the engine is about to start, `at_end` after it has stopped.
    """
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=server, aiohttp_session=new_session())

    @kopf.on.startup(registry=registry)
    async def startup(**_: Any) -> None:
        before_start()
        await engine.start()
        await engine.prime()

    @kopf.on.cleanup(registry=registry)
    async def cleanup(**_: Any) -> None:
        await engine.stop()
        await at_end()
        # kopf leaves its own task waiting for the flag, and then waits five seconds for that task.
        stop.set()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def machine_event(event: Any, **_: Any) -> None:
        if event["type"] == "DELETED":
            engine.lost_machine(event["object"])
        else:
            engine.saw_machine(event["object"], listed=event["type"] is None)

    await kopf.operator(
        registry=registry,
        settings=_settings(),
        clusterwide=True,
        standalone=True,
        stop_flag=stop,
    )


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
