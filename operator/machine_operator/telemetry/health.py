"""`/livez`, `/readyz` and `/metrics` on one small HTTP server.

Both probes consist of named checks and answer as kube-apiserver's do: 200 and `ok`, or 500 and a list that says which
check failed; `?verbose` always prints the list, and `?exclude=NAME` leaves a check out. Alive means that a new start
would not help; ready means that work can be done.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

__all__ = ["Check", "HealthServer"]

log = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.Response]]

Check = Callable[[], str | None]
"""Returns None where all is well, else why not, in a few words. It does not wait for anything."""


class HealthServer:
    """Serves as long as its `async with` block runs.

    Args:
        address: HOST:PORT; without a host all addresses, with port 0 any free port.
        live: checks of which a failing one means that the process should be started anew.
        ready: checks of which a failing one means that the process cannot do its work now.
        registry: what `/metrics` shows.

    Raises:
        ValueError: the address is none.
    """

    def __init__(
        self,
        address: str,
        *,
        live: Mapping[str, Check],
        ready: Mapping[str, Check],
        registry: CollectorRegistry,
    ) -> None:
        host, _, port = address.rpartition(":")
        if not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{address!r} is no address to listen on: write HOST:PORT")
        self._host, self._port = host.strip("[]") or None, int(port)
        self._registry = registry
        self._failing: dict[str, frozenset[str]] = {}
        application = web.Application()
        application.add_routes(
            [
                web.get("/livez", self._probe("livez", live)),
                web.get("/readyz", self._probe("readyz", ready)),
                web.get("/metrics", self._metrics),
            ]
        )
        self._runner = web.AppRunner(application, access_log=None)

    @property
    def port(self) -> int:
        """The port that it listens on; the one that was found free where 0 was asked for."""
        return int(self._runner.addresses[0][1]) if self._runner.addresses else self._port

    async def __aenter__(self) -> HealthServer:
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError:
            await self._runner.cleanup()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._runner.cleanup()

    def _probe(self, probe: str, checks: Mapping[str, Check]) -> _Handler:
        async def handle(request: web.Request) -> web.Response:
            excluded = frozenset(request.query.getall("exclude", ()))
            failed = {
                name: why
                for name, check in checks.items()
                if name not in excluded and (why := _ask(name, check)) is not None
            }
            if not excluded:
                self._note(probe, failed)
            if not failed and "verbose" not in request.query:
                return web.Response(text="ok")
            lines = [_line(name, failed.get(name), name in excluded) for name in checks]
            if unknown := sorted(excluded - checks.keys()):
                lines.append(f"warn: no check to exclude is called {', '.join(unknown)}")
            lines.append(f"{probe} check {'failed' if failed else 'passed'}")
            return web.Response(text="\n".join(lines) + "\n", status=500 if failed else 200)

        return handle

    def _note(self, probe: str, failed: Mapping[str, str]) -> None:
        # kubelet keeps to itself what a failing probe said; the log of the process is where people look.
        names = frozenset(failed)
        if names != self._failing.get(probe, frozenset()):
            self._failing[probe] = names
            told = "; ".join(f"{name}: {why}" for name, why in failed.items())
            log.log(
                logging.WARNING if failed else logging.INFO,
                "%s",
                f"{probe} fails: {told}" if failed else f"{probe} passes again",
            )

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


def _ask(name: str, check: Check) -> str | None:
    try:
        return check()
    except Exception as error:
        log.exception("the health check %s is broken", name)
        return f"the check itself failed: {error!r}"


def _line(name: str, why: str | None, excluded: bool) -> str:
    if excluded:
        return f"[+]{name} excluded: ok"
    return f"[+]{name} ok" if why is None else f"[-]{name} failed: {why}"
