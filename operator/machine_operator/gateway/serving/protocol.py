"""One connection: uvicorn's, with limits where it has none.

    begins ── head (limited in bytes, fields and time) ── answer ── idle (limited in time) ── head …
                     └─ 400, 408, 431, 501, 505                      └─ closed

uvicorn itself stops reading when 64 KiB of a body wait for the application, and lets the application wait when 64 KiB
of an answer wait for the client. What is added here: limits until a head is complete; an end for clients that do not
take their answer; an end for bodies that nobody reads, where uvicorn would go on reading them for ever; few pipelined
requests; no trailers, which uvicorn appends to the headers of the request under way; and no answer in the midst of
another one.

A connection that is ended with input unread is reset by the kernel, and the reset may overtake the answer. So it is
parted from in two steps: we say that nothing will follow, drop what still comes for a moment, and then close.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
import orjson
from typing_extensions import override
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.server import ServerState

from machine_operator.gateway.problems import Problem
from machine_operator.gateway.serving.one_write import OneWrite
from machine_operator.gateway.serving.sockets import Socket, SocketLimits, wants_socket
from machine_operator.gateway.serving.upgrade import Upgrade

__all__ = ["ConnectionLimits", "GatewayProtocol"]

log = logging.getLogger(__name__)

_WORDS: Final = {
    400: "this is no HTTP/1.1 request",
    408: "the request did not come in time",
    431: "the request line and the headers are too long, or too many",
    501: "the only transfer coding here is chunked",
    503: "there are too many connections: try again later",
    505: "this server speaks HTTP/1.1",
}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one client may do to a server.

    Attributes:
        head_bytes: length of request line and headers.
        head_fields: number of header fields.
        head_seconds: from the beginning of a connection, or the first byte of a later request, to the last header.
        idle_seconds: between two requests.
        stalled_seconds: how long a client may leave more than 64 KiB of an answer, or the end of one, untaken.
        pipelined: requests that are sent before the answer to an earlier one.
        linger_seconds: how long what still comes is dropped before the connection is closed.
        linger_bytes: how much of it.
        connections: at the same time; whoever comes later is told 503.
        early_bytes: sent before the answer to the handshake of a WebSocket.
        sockets: of WebSockets.
    """

    head_bytes: int = 32 * 1024
    head_fields: int = 100
    head_seconds: float = 10.0
    idle_seconds: float = 75.0
    stalled_seconds: float = 30.0
    pipelined: int = 8
    linger_seconds: float = 2.0
    linger_bytes: int = 4 * 1024 * 1024
    connections: int = 16384
    early_bytes: int = 64 * 1024
    sockets: SocketLimits = field(default_factory=SocketLimits)


class _Refused(Exception):
    """Stops the parser from within one of its callbacks."""


class GatewayProtocol(HttpToolsProtocol):
    """One connection.

    Args:
        config: uvicorn's.
        server_state: what the connections of a server share.
        app_state: what the application's lifespan made.
        limits: of this connection.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.timeout_keep_alive = limits.idle_seconds  # type: ignore[assignment]
        self._limits = limits
        self._in_head = True  # between the last byte of one request and the last header of the next
        self._begun = False  # the request line has begun
        self._head_bytes = 0
        self._silent = 0  # bytes since the parser last had something to say
        self._has_body = False
        self._refusal = 0  # the status that a callback wants
        self._deaf = False  # what still comes is not looked at
        self._dropped = 0
        self._parting = False
        self._early: bytearray | None = (
            None  # the last request may become a WebSocket; what came after it
        )
        self._timer: asyncio.TimerHandle | None = None  # for the head, later for the end
        self._stalled: asyncio.TimerHandle | None = None

    # ---- what the transport calls

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        excess = len(self.connections) - self._limits.connections
        if excess <= 0:
            self._arm(self._limits.head_seconds, self._head_overdue)
        elif excess <= 64 + self._limits.connections // 16:
            self._refuse(503, b"retry-after: 1\r\n")
        else:  # a flood: even saying no would take too many descriptors
            transport.abort()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._unset_keepalive_if_required()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._dropped += len(data)
            if self._dropped > self._limits.linger_bytes:
                self.transport.abort()
            return
        if self._early is not None:
            self._take_early(data)
            return
        self._unset_keepalive_if_required()
        self._silent += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or 400)
        except httptools.HttpParserUpgrade as upgrade:
            if self._early is not None:
                self._take_early(data[upgrade.args[0] :])
            else:  # answered as if nothing had been said of another protocol
                self._last_one()
        else:
            if self._silent > self._limits.head_bytes:
                self._refuse(431)
            elif self._in_head and self._timer is None and (self._begun or not self._busy):
                self._arm(self._limits.head_seconds, self._head_overdue)

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_flush()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        self._watch_close()

    # ---- what the parser calls

    @override
    def on_message_begin(self) -> None:
        if len(self.pipeline) >= self._limits.pipelined:
            raise _Refused
        super().on_message_begin()
        self._begun = True
        self._has_body = False
        self._head_bytes = 0

    @override
    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        self.url += url

    @override
    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer
        self._count(len(name) + len(value) + 4)
        if len(self.headers) >= self._limits.head_fields:
            self._stop(431)
        name = name.lower()
        if name == b"transfer-encoding":
            if value.lower() != b"chunked":
                self._stop(501)
            self._has_body = True
        elif name == b"content-length":
            self._has_body = value != b"0"
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    @override
    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            self._stop(505)
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if (
            self.parser.should_upgrade()
            and not self._has_body
            and wants_socket(method, version, self.headers)
        ):
            self.scope["type"] = "websocket"  # type: ignore[typeddict-item]
            self._early = bytearray()
        super().on_headers_complete()
        self._in_head = self._begun = False
        self._silent = 0
        self._disarm()

    @override
    def on_body(self, body: bytes) -> None:
        self._silent = 0
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._in_head = True
        self._silent = 0
        super().on_message_complete()

    # ---- what uvicorn calls

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # Only the latest request can have a body that is not here yet.
        scope: Mapping[str, Any] = cycle.scope
        if scope["type"] == "websocket":
            cycle.keep_alive = False
            cycle.transport = _Exit(self, early=True)  # type: ignore[assignment]
            app = Upgrade(self, cycle, app)
        elif self._has_body and cycle is self.cycle:
            cycle.transport = _Exit(self)  # type: ignore[assignment]
            app = _told_to_close(app, cycle)
        cycle.transport = OneWrite(cycle)  # type: ignore[assignment]
        super()._start_asgi_task(cycle, app)

    @override
    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_close()

    @override
    def shutdown(self) -> None:
        super().shutdown()
        self._watch_close()

    @override
    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_close()

    # ---- WebSockets

    def become_socket(self, answer: bytes) -> Socket:
        """Answer the request under way with a 101, and leave the connection to a WebSocket.

        Raises:
            OSError: the client has gone.
        """
        if self.transport.is_closing() or self._parting:
            raise ClientDisconnected
        self._disarm()
        self._unset_keepalive_if_required()
        connections: set[Any] = self.connections
        socket = Socket(self.transport, limits=self._limits.sockets, on_end=connections.discard)
        connections.discard(self)
        connections.add(socket)
        self.transport.set_protocol(socket)
        self.transport.write(answer)
        if self.flow.write_paused:
            socket.pause_writing()
        self._deaf = self._parting = True  # nothing is left to be done here
        early, self._early = self._early, None
        self.flow.resume_reading()
        if early:
            socket.data_received(bytes(early))
        return socket

    def _take_early(self, data: bytes) -> None:
        """A client that does not wait for the answer to its handshake."""
        early = self._early = (self._early or bytearray()) + data
        if len(early) > self._limits.early_bytes:
            self.transport.abort()

    # ---- ends

    def part(self) -> None:
        """Say that nothing will follow, and close soon."""
        if self.transport.is_closing() or self._parting:
            return
        self._deaf = True
        self._early = None
        self.flow.resume_reading()
        if not self.transport.can_write_eof():
            self.transport.close()
            self._watch_close()
            return
        self.transport.write_eof()
        self._arm(self._limits.linger_seconds, self.transport.abort)
        self._parting = True

    @property
    def _busy(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _count(self, number: int) -> None:
        self._head_bytes += number
        if self._head_bytes > self._limits.head_bytes:
            self._stop(431)

    def _stop(self, status: int) -> None:
        self._refusal = status
        raise _Refused

    def _head_overdue(self) -> None:
        self._timer = None
        if self._begun:
            self._refuse(408)
        else:  # it never said a word
            self.transport.close()

    def _last_one(self) -> None:
        """Let the answers that are owed be the last ones."""
        self._deaf = True
        self.cycle.keep_alive = False

    def _refuse(self, status: int, headers: bytes = b"") -> None:
        """Answer with `status`, unless other answers are owed first."""
        self._deaf = True
        self._disarm()
        if self.transport.is_closing():
            return
        if log.isEnabledFor(logging.DEBUG):
            log.debug("a request from %s was refused with %d", self.client, status)
        if self._busy:
            if not self.cycle.more_body:
                self._last_one()
                return
            if self.pipeline or self.cycle.response_started:
                self.transport.abort()
                return
            # What is broken is the body of the only request: its application finds that the client is gone.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(self._answer(status, headers))
        self.part()

    def _answer(self, status: int, headers: bytes) -> bytes:
        problem = Problem(status, _WORDS[status])
        body = orjson.dumps(problem.body())
        lines = [
            b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()),
            *(b"%s: %s" % header for header in self.server_state.default_headers),
            b"content-type: " + problem.media_type.encode(),
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        return b"\r\n".join(lines) + b"\r\n" + headers + b"\r\n" + body

    # ---- clocks

    def _arm(self, seconds: float, act: Callable[[], None]) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, act)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch_flush(self) -> None:
        if self._stalled is None:
            self._stalled = self.loop.call_later(self._limits.stalled_seconds, self.transport.abort)

    def _watch_close(self) -> None:
        """A closed transport lives until its last byte is taken."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._watch_flush()


class _Exit:
    """The transport, for the answer to a request of which some may still be coming."""

    def __init__(self, protocol: GatewayProtocol, *, early: bool = False) -> None:
        self._protocol = protocol
        self._early = early
        self.write = protocol.transport.write
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        if self._early or self._protocol.cycle.more_body:
            self._protocol.part()
        else:
            self._protocol.transport.close()


def _told_to_close(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """An answer that comes before the end of its request is the last one of its connection, and says so."""

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if cycle.more_body and not cycle.response_started:
                cycle.keep_alive = False
            await send(message)

        await app(scope, receive, sending)

    return answering
