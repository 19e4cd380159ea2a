"""The HTTP server: uvicorn around our own protocol, which begins and ends as this process does.

    listening ── SIGTERM, SIGINT, or `draining` set by somebody else
              └─ draining   `draining` is set, so streams end; nobody new is let in; idle connections are closed
                 ├─ all requests under way are answered
                 ├─ or the time is up: connections are cut, and what still runs is cancelled
                 └─ or a second signal: the same, at once

It runs on whatever loop it is called on; `uvloop.run` is meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

import uvicorn
from typing_extensions import override

from machine_operator.gateway.serving.protocol import ConnectionLimits, GatewayProtocol

__all__ = ["GatewayServer", "serve"]

log = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_BACKLOG: Final = 2048
_OTHER_FILES: Final = 512
"""Descriptors that are kept for everything but clients."""
_GONE_MS: Final = 60_000
"""Milliseconds without a sign that the client's computer has what was sent."""
_LOOK: Final = 0.05
"""Seconds between two looks at what is still running."""
_MOMENT: Final = 0.5
"""Seconds for a cut connection's request to find out about it."""


class GatewayServer(uvicorn.Server):
    """uvicorn's server, with an end that is asked for by an event.

    Args:
        config: uvicorn's.
        draining: ends it; set by the first signal.
        drain_seconds: for requests under way.
        on_listening: is told the address, as HOST:PORT.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        draining: asyncio.Event,
        drain_seconds: float,
        on_listening: Callable[[str], None] | None,
    ) -> None:
        super().__init__(config)
        self.servers = []
        self._draining = draining
        self._drain_seconds = drain_seconds
        self._on_listening = on_listening
        self._signals = 0

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            raise RuntimeError("the application did not start; the log above says why") from None
        if self._on_listening is not None and sockets:
            self._on_listening(_address(sockets[0]))

    @override
    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._draining.is_set()

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._draining.set()
        self._close_listeners(sockets)
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        if not await self._idle(self._drain_seconds):
            log.warning(
                "%d requests were not done %s: their connections are cut",
                len(state.tasks),
                "when a second signal came"
                if self.force_exit
                else f"after {self._drain_seconds:g} s",
            )

    async def leave(self) -> None:
        """End what is left: of requests and connections nothing, unless somebody was in a hurry."""
        self._close_listeners(None)
        await self._cut()
        if not self.started:
            return
        try:
            async with asyncio.timeout(_MOMENT if self.force_exit else None):
                await self.lifespan.shutdown()
        except TimeoutError:
            log.warning("the application did not end within %g s", _MOMENT)

    async def _cut(self) -> None:
        state = self.server_state
        for connection in list(state.connections):
            connection.transport.abort()
        await self._idle(_MOMENT, forced=True)
        quiet = _Quiet()
        logger = logging.getLogger("uvicorn.error")
        logger.addFilter(quiet)
        try:
            tasks = list(state.tasks)
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=_MOMENT)
        finally:
            logger.removeFilter(quiet)

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again at its end, which would end the process before its owner is done.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _signalled(self, number: signal.Signals) -> None:
        self._signals += 1
        if self._signals == 1:
            log.info("%s: requests under way are finished, then this ends", number.name)
            self._draining.set()
        else:
            log.info("%s again: this ends now", number.name)
            self.force_exit = True

    def _close_listeners(self, sockets: list[socket.socket] | None) -> None:
        for server in self.servers:
            server.close()
        for sock in sockets or ():
            sock.close()

    async def _idle(self, seconds: float, *, forced: bool = False) -> bool:
        """Wait until nothing runs; False where the time is up or a second signal came."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        state = self.server_state
        while state.connections or state.tasks:
            if loop.time() >= deadline or (self.force_exit and not forced):
                return False
            await asyncio.sleep(_LOOK if not forced else 0.005)
        return True


class _Quiet(logging.Filter):
    """Lets no traceback of what we cancelled ourselves into the log."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, asyncio.CancelledError)


async def serve(
    app: Any,
    *,
    host: str,
    port: int,
    draining: asyncio.Event,
    on_listening: Callable[[str], None] | None = None,
    drain_seconds: float = 10.0,
    fd: int | None = None,
    limits: ConnectionLimits | None = None,
) -> None:
    """Serve `app` until `draining` is set, by a signal or by somebody else, and all its requests are answered.

    Args:
        app: an ASGI application; it has to know lifespan events.
        host: address to listen on; "" means all.
        port: 0 means any free one.
        draining: see above; streams should end themselves on it.
        on_listening: is told HOST:PORT once connections are taken.
        drain_seconds: how long requests may go on after that.
        fd: a socket that is bound already, instead of `host` and `port`; it is closed at the end.
        limits: of connections, if not the usual ones.

    Raises:
        OSError: the address cannot be listened on.
        RuntimeError: the application did not start.
    """
    limits = _within_means(limits or ConnectionLimits())
    sock = _listen(host, port, fd=fd)
    config = uvicorn.Config(
        app,
        http=cast("type[asyncio.Protocol]", partial(GatewayProtocol, limits=limits)),
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG,
    )
    server = GatewayServer(
        config, draining=draining, drain_seconds=drain_seconds, on_listening=on_listening
    )
    try:
        await server.serve(sockets=[sock])
    finally:
        await server.leave()
        sock.close()


def _listen(host: str, port: int, *, fd: int | None) -> socket.socket:
    if fd is not None:
        sock = socket.socket(fileno=fd)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise OSError(
                error.errno or errno.EINVAL,
                f"cannot listen on {host or '*'}:{port}: {error.strerror or error}",
            ) from error
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
        # Inherited by the connections. Without it a client whose computer is gone keeps its stream for a quarter hour.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS)
    return sock


def _address(sock: socket.socket) -> str:
    name = sock.getsockname()
    if not isinstance(name, tuple):
        return str(name)
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _within_means(limits: ConnectionLimits) -> ConnectionLimits:
    """As many connections as this process may have descriptors for, after it has asked for more."""
    wanted = limits.connections + limits.connections // 16 + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard) and soft < wanted:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return limits
    connections = max(64, (soft - _OTHER_FILES) * 16 // 17)
    log.warning(
        "at most %d connections are taken at a time, not %d: the limit of open files is %d (ulimit -n)",
        connections,
        limits.connections,
        soft,
    )
    return replace(limits, connections=connections)
