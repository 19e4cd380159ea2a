"""WebSockets of the server: frames on one side, ASGI messages on the other, and a bound on everything between.

    request ── valid handshake? ─ no ─> an HTTP request like any other
                    └─ yes ─> the application, scope `websocket`
                              ├─ answers instead (`websocket.http.response.*`): the answer of the request
                              └─ accepts: 101, and the connection is a `Socket` from here on

Bytes are parsed only while the application keeps up: a few messages wait for it, then the kernel's buffers fill, and
the client waits. It is the same the other way round: `send` waits while the client does not take what it was sent,
and nothing is read from such a client either, since its pings would ask for ever more pongs. Who leaves a whole buffer
untaken for long, or a ping unanswered, is gone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from typing_extensions import override
from uvicorn.protocols.utils import ClientDisconnected
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import OPEN, SEND_EOF, SERVER, Protocol
from websockets.utils import accept_key

__all__ = ["Socket", "SocketLimits", "switching", "wants_socket"]

log = logging.getLogger(__name__)

# At debug level it tells every frame, and what people type into terminals is nobody's business.
_frames = log.getChild("frames")
_frames.setLevel(logging.ERROR)

_SLICE: Final = 4096
"""Bytes that are parsed at a time: as many frames as may come of them may wait in addition to what is allowed."""

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """What one WebSocket may do.

    Attributes:
        message_bytes: length of a message of the client; a longer one ends the connection with 1009.
        waiting_messages, waiting_bytes: messages that may wait for the application before no more are read.
        ping_seconds: between two pings, and for the answer to one.
        stalled_seconds: how long a client may leave more than 64 KiB untaken.
        close_seconds: for the client's part of the closing.
    """

    message_bytes: int = 1024 * 1024
    waiting_messages: int = 16
    waiting_bytes: int = 64 * 1024
    ping_seconds: float = 20.0
    stalled_seconds: float = 30.0
    close_seconds: float = 5.0


def wants_socket(method: bytes, version: str, headers: Headers) -> bool:
    """Whether a request is a valid opening handshake; what is none is an HTTP request like any other."""
    tokens: list[bytes] = []
    found: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name == b"connection":
            tokens += [token.strip().lower() for token in value.split(b",")]
        elif name == b"upgrade" or name.startswith(b"sec-websocket-"):
            found.setdefault(name, []).append(value.strip())
    return (
        method == b"GET"
        and version == "1.1"
        and b"upgrade" in tokens
        and [value.lower() for value in found.get(b"upgrade", ())] == [b"websocket"]
        and found.get(b"sec-websocket-version") == [b"13"]
        and _is_key(found.get(b"sec-websocket-key", ()))
    )


def _is_key(values: Iterable[bytes]) -> bool:
    try:
        (value,) = values
        return len(base64.b64decode(value, validate=True)) == 16
    except (ValueError, binascii.Error):
        return False


def switching(headers: Headers, message: Mapping[str, Any], extra: Headers) -> bytes:
    """The answer to a handshake that is accepted.

    Args:
        headers: of the request.
        message: `websocket.accept`.
        extra: headers of every answer.
    """
    key = next(value for name, value in headers if name == b"sec-websocket-key")
    fields = [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-accept", accept_key(key.strip().decode()).encode()),
        *extra,
        *message.get("headers", ()),
    ]
    if message.get("subprotocol"):
        fields.append((b"sec-websocket-protocol", message["subprotocol"].encode()))
    for name, value in fields:
        if any(mark in name + value for mark in (b"\r", b"\n", b"\0")):
            raise ValueError("a header of the answer has control characters in it")
    lines = [b"HTTP/1.1 101 Switching Protocols", *(b"%s: %s" % field for field in fields)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


class Socket(asyncio.Protocol):
    """One WebSocket, from the 101 on.

    Args:
        transport: of the connection, which this takes over.
        limits: of this socket.
        on_end: is told when the connection is gone.
    """

    __slots__ = (
        "_awaits_pong",
        "_backlog",
        "_code",
        "_drained",
        "_inbox",
        "_limits",
        "_loop",
        "_news",
        "_on_end",
        "_partial",
        "_pausing",
        "_reason",
        "_text",
        "_timer",
        "_waiting_bytes",
        "_wire",
        "transport",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        limits: SocketLimits,
        on_end: Callable[[Socket], None],
    ) -> None:
        self.transport = transport
        self._limits = limits
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._wire = Protocol(SERVER, state=OPEN, max_size=limits.message_bytes, logger=_frames)
        self._backlog = bytearray()  # not parsed yet
        self._partial = bytearray()  # of a message in fragments
        self._text = False
        self._inbox: list[str | bytes] = []
        self._waiting_bytes = 0
        self._news: asyncio.Future[None] | None = None  # somebody waits for messages
        self._drained: asyncio.Future[None] | None = (
            None  # the client does not take what it was sent
        )
        self._pausing = False
        self._code: int | None = None  # why it is over
        self._reason = ""
        self._awaits_pong = False
        self._timer = self._loop.call_later(limits.ping_seconds, self._tick)

    # ---- what the application calls

    async def receive(self) -> dict[str, Any]:
        """The next message; `websocket.disconnect` once there will be none."""
        while not self._inbox and self._code is None:
            self._news = self._loop.create_future()
            try:
                await self._news
            finally:
                self._news = None
        if not self._inbox:
            return {"type": "websocket.disconnect", "code": self._code, "reason": self._reason}
        message = self._inbox.pop(0)
        self._waiting_bytes -= len(message)
        if self._pausing:
            self._read_on()
        kind = "text" if isinstance(message, str) else "bytes"
        return {"type": "websocket.receive", kind: message}

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message, or close; waits while the client does not take what it was sent before.

        Raises:
            OSError: the connection is over.
        """
        while self._drained is not None and self._code is None:
            await asyncio.shield(self._drained)
        if self._code is not None:
            raise ClientDisconnected
        match message["type"]:
            case "websocket.send":
                if message.get("bytes") is not None:
                    self._wire.send_binary(message["bytes"])
                else:
                    self._wire.send_text(message["text"].encode())
                self._flush()
            case "websocket.close":
                self.close(message.get("code") or 1000, message.get("reason") or "")
            case other:
                raise RuntimeError(f"{other} cannot be sent once the connection is accepted")

    # ---- ends

    def close(self, code: int, reason: str = "") -> None:
        """Say that it is over, wait a moment for the client to say so too, and end the connection."""
        if self._code is not None:
            return
        self._over(code, reason)
        try:
            self._wire.send_close(code, reason)
        except InvalidState:
            return  # the client was faster
        self._flush()
        self._read_on()  # its answer is in what comes

    def shutdown(self) -> None:
        """The server is about to end."""
        self.close(CloseCode.SERVICE_RESTART)

    def _over(self, code: int, reason: str = "") -> None:
        if self._code is not None:
            return
        self._code, self._reason = code, reason
        self._partial.clear()
        self._timer.cancel()
        self._timer = self._loop.call_later(self._limits.close_seconds, self.transport.abort)
        for waiter in (self._news, self._drained):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    # ---- what the transport calls

    @override
    def data_received(self, data: bytes) -> None:
        self._backlog += data
        self._read_on()

    @override
    def eof_received(self) -> bool:
        return False

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._over(CloseCode.ABNORMAL_CLOSURE)
        self._timer.cancel()
        self._backlog.clear()
        self._resume_sender()
        self._on_end(self)

    @override
    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_future()
        if self._code is None:
            self._timer.cancel()
            self._timer = self._loop.call_later(self._limits.stalled_seconds, self.transport.abort)
        self._pace()

    @override
    def resume_writing(self) -> None:
        self._resume_sender()
        self._timer.cancel()
        over = self._code is not None
        seconds = self._limits.close_seconds if over else self._limits.ping_seconds
        act = self.transport.abort if over else self._tick
        self._timer = self._loop.call_later(seconds, act)
        self._read_on()

    def _resume_sender(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # ---- reading

    def _read_on(self) -> None:
        """Parse what is here, as far as the application keeps up."""
        if self._code is not None and self._drained is not None:
            self._backlog.clear()  # pings among it would be answered, and nobody takes the answers
        while self._backlog and not self._full and not self.transport.is_closing():
            part = bytes(self._backlog[:_SLICE])
            del self._backlog[:_SLICE]
            self._wire.receive_data(part)
            for event in self._wire.events_received():
                self._take(cast("Frame", event))  # the handshake is over, so it is no request
            fault = self._wire.parser_exc
            if fault is not None and self._wire.close_sent is not None:
                self._over(self._wire.close_sent.code, self._wire.close_sent.reason)
            self._flush()
        self._pace()

    @property
    def _full(self) -> bool:
        if self._code is not None:
            return False  # what comes now is dropped
        return (
            self._drained is not None
            or len(self._inbox) >= self._limits.waiting_messages
            or self._waiting_bytes >= self._limits.waiting_bytes
        )

    def _pace(self) -> None:
        if self.transport.is_closing() or self._full == self._pausing:
            return
        self._pausing = self._full
        if self._pausing:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _take(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.PONG:
                self._awaits_pong = False
            case Opcode.CLOSE:
                received = self._wire.close_rcvd
                if received is not None:
                    self._over(received.code, received.reason)
            case Opcode.PING:
                pass  # the pong is on its way already
            case _:
                self._take_data(frame)

    def _take_data(self, frame: Frame) -> None:
        if self._code is not None:
            return  # nobody wants it any more
        if frame.opcode is not Opcode.CONT:
            self._text = frame.opcode is Opcode.TEXT
        data: bytes = bytes(frame.data)
        if not frame.fin or self._partial:
            # One buffer, since fragments may be empty and without number.
            self._partial += data
            if not frame.fin:
                return
            data = bytes(self._partial)
            self._partial.clear()
        try:
            message = data.decode() if self._text else data
        except UnicodeDecodeError:
            self._wire.fail(CloseCode.INVALID_DATA, "text has to be UTF-8")
            self._over(CloseCode.INVALID_DATA)
            return
        self._inbox.append(message)
        self._waiting_bytes += len(message)
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    # ---- writing

    def _flush(self) -> None:
        parts = self._wire.data_to_send()
        if self.transport.is_closing():
            return
        data = b"".join(parts)
        if data:
            self.transport.write(data)
        if SEND_EOF in parts:
            if self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()

    def _tick(self) -> None:
        """Every so often: is anybody there?"""
        self._timer = self._loop.call_later(self._limits.ping_seconds, self._tick)
        if self._pausing:
            self._awaits_pong = False  # it may have come, and nobody has looked
        elif self._awaits_pong:
            self._wire.fail(CloseCode.INTERNAL_ERROR, "no answer to a ping")
            self._over(CloseCode.ABNORMAL_CLOSURE)
            self._flush()
        else:
            self._awaits_pong = True
            self._wire.send_ping(b"")
            self._flush()
