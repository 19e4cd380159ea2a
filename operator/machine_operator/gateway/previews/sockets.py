"""A WebSocket through a preview: the client's on one side, one of our own to the guest on the other.

The guest is asked first, and the client gets its answer: the subprotocol that it chose, or its refusal. Then messages
go both ways, each read only when the one before has been taken on the other side. Pings are answered by whoever gets
them. Codes of closing go through; 1011 says that the guest is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from starlette.types import Receive, Send
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, ProtocolError
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import CONNECTING, OPEN
from websockets.uri import WebSocketURI

from machine_operator.gateway.previews.http import Header
from machine_operator.gateway.previews.tunnels import Stream, StreamLost
from machine_operator.gateway.problems import Problem

__all__ = ["Bridge", "Refused", "SocketBudget", "handshake"]

# At debug level it tells every frame, and what people do in previews is nobody's business.
_frames = logging.getLogger(__name__).getChild("frames")
_frames.setLevel(logging.CRITICAL)

_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_SMALL: Final = 256 * 1024
_BUDGET: Final = 256 * 1024 * 1024
_HEAD_SECONDS: Final = 60.0
_CLOSE_SECONDS: Final = 5.0
_NOT_PASSED: Final = (
    b"connection",
    b"upgrade",
    b"sec-websocket-key",
    b"sec-websocket-version",
    b"sec-websocket-extensions",
    b"sec-websocket-accept",
    b"sec-websocket-protocol",
    b"date",
    b"content-length",
    b"transfer-encoding",
    b"keep-alive",
    b"trailer",
)
"""Of requests and answers: each side has its own."""
_UNSPOKEN: Final = (CloseCode.NO_STATUS_RCVD, CloseCode.ABNORMAL_CLOSURE)


class Refused(Exception):
    """The guest answered the handshake otherwise.

    Attributes:
        status, headers, body: its answer.
    """

    def __init__(self, status: int, headers: list[Header], body: bytes) -> None:
        super().__init__(f"the service answers with the status {status}")
        self.status, self.headers, self.body = status, headers, body


class SocketBudget:
    """Memory for messages that are not complete yet, of all WebSockets together.

    A guest may announce a long message on many sockets, and send all but the last byte of each. Up to 256 KiB each
    are free.
    """

    def __init__(self, *, limit: int = _BUDGET) -> None:
        self._left = limit

    def take(self, amount: int) -> bool:
        """Whether there is as much left, which is then taken."""
        if amount > self._left:
            return False
        self._left -= amount
        return True

    def give(self, amount: int) -> None:
        """Give back what was taken."""
        self._left += amount


def handshake(subprotocols: Iterable[str]) -> tuple[ClientProtocol, list[Header]]:
    """Our side of a WebSocket to a guest, and what its request says of it."""
    offered = list(subprotocols)
    protocol = ClientProtocol(
        WebSocketURI(secure=False, host="localhost", port=80, path="/", query=""),
        subprotocols=offered or None,  # type: ignore[arg-type]
        max_size=_MESSAGE_BYTES,
        logger=_frames,
    )
    fields = [
        (b"upgrade", b"websocket"),
        (b"connection", b"Upgrade"),
        (b"sec-websocket-key", protocol.key.encode()),
        (b"sec-websocket-version", b"13"),
    ]
    if offered:
        fields.append((b"sec-websocket-protocol", ", ".join(offered).encode("latin-1")))
    return protocol, fields


class Bridge:
    """One WebSocket.

    Args:
        protocol: made by `handshake`.
        stream: to the guest; this closes it.
        receive, send: the client.
        budget: memory for incomplete messages.
    """

    NOT_PASSED = _NOT_PASSED

    def __init__(
        self,
        protocol: ClientProtocol,
        stream: Stream,
        *,
        receive: Receive,
        send: Send,
        budget: SocketBudget,
    ) -> None:
        self._protocol = protocol
        self._stream = stream
        self._receive, self._send = receive, send
        self._budget = budget
        self._parts: list[bytes] = []
        self._text = False
        self._early: list[Any] = []
        self._unread = self._taken = 0

    async def open(self, head: bytes) -> None:
        """Ask the guest, by a request with this head, and accept the client.

        Raises:
            Refused: the guest does not want a WebSocket there.
            Problem: 502 or 504, its answer is none.
            StreamLost: the stream broke.
        """
        protocol = self._protocol
        await self._stream.write(head)
        try:
            async with asyncio.timeout(_HEAD_SECONDS):
                while protocol.state is CONNECTING and protocol.handshake_exc is None:
                    data = await self._stream.read()
                    if data:
                        protocol.receive_data(data)
                    else:
                        protocol.receive_eof()
                        break
        except TimeoutError:
            raise Problem(504, f"the service did not answer within {_HEAD_SECONDS:g} s") from None
        if protocol.state is CONNECTING or protocol.handshake_exc is not None:
            raise _refusal(protocol.handshake_exc)
        # The answer to the handshake, and what came with it.
        response, *self._early = protocol.events_received()
        message: dict[str, Any] = {
            "type": "websocket.accept",
            "headers": _passed_on(response),
        }
        if protocol.subprotocol is not None:
            message["subprotocol"] = protocol.subprotocol
        await self._send(message)

    async def run(self) -> None:
        """Pass messages on, both ways, until one side closes."""
        down = asyncio.create_task(self._down())
        up = asyncio.create_task(self._up())
        try:
            await asyncio.wait((down, up), return_when=asyncio.FIRST_COMPLETED)
            if not down.done() and up.exception() is None:
                # The client has closed: the guest gets a moment to say that it has heard.
                await asyncio.wait((down,), timeout=_CLOSE_SECONDS)
        finally:
            for task in (down, up):
                task.cancel()
            ends = await asyncio.gather(down, up, return_exceptions=True)
            self._budget.give(self._taken)
            self._taken = 0
            self._stream.close()
        for end in ends:
            # OSError is how servers say that the client is gone.
            if isinstance(end, Exception) and not isinstance(end, OSError | StreamLost):
                raise end

    # ---- from the guest

    async def _down(self) -> None:
        close: Close | None = None
        events: Iterable[Any] = self._early
        try:
            while close is None:
                close = await self._pass_down(events)
                if close is None and self._protocol.parser_exc is not None:
                    close = self._protocol.close_sent  # it broke the rules, and is told so
                await self._flush()
                if close is not None:
                    break
                data = await self._stream.read()
                if not data:
                    break
                self._protocol.receive_data(data)
                events = self._protocol.events_received()
                if not self._has_room(len(data)):
                    close = Close(CloseCode.TRY_AGAIN_LATER, "too many long messages")
        except StreamLost:
            pass
        await self._close_client(close or Close(CloseCode.INTERNAL_ERROR, "the service is gone"))

    async def _pass_down(self, events: Iterable[Any]) -> Close | None:
        """Pass frames on; the guest's closing, if it is among them."""
        for frame in events:
            if not isinstance(frame, Frame):
                continue
            if frame.opcode is Opcode.CLOSE:
                return self._protocol.close_rcvd
            if frame.opcode in (Opcode.PING, Opcode.PONG):
                continue
            if frame.opcode is not Opcode.CONT:
                self._text = frame.opcode is Opcode.TEXT
            self._parts.append(bytes(frame.data))
            if not frame.fin:
                continue
            data, self._parts = b"".join(self._parts), []
            self._unread = 0
            self._budget.give(self._taken)
            self._taken = 0
            try:
                content = {"text": data.decode()} if self._text else {"bytes": data}
            except UnicodeDecodeError:
                self._protocol.fail(CloseCode.INVALID_DATA, "this is no UTF-8")
                await self._flush()
                return Close(CloseCode.INVALID_DATA, "the service sent what is no UTF-8")
            await self._send({"type": "websocket.send", **content})
        return None

    def _has_room(self, came: int) -> bool:
        """Whether what has come of a message may be kept."""
        self._unread += came
        wanted = max(0, self._unread - _SMALL) - self._taken
        if wanted <= 0:
            return True
        if not self._budget.take(wanted):
            return False
        self._taken += wanted
        return True

    async def _close_client(self, close: Close) -> None:
        code = CloseCode.NORMAL_CLOSURE if close.code == CloseCode.NO_STATUS_RCVD else close.code
        await self._send(
            {"type": "websocket.close", "code": int(code), "reason": close.reason or ""}
        )

    # ---- from the client

    async def _up(self) -> None:
        protocol = self._protocol
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                await self._close_guest(message.get("code", 1005), message.get("reason") or "")
                return
            if message["type"] != "websocket.receive" or protocol.state is not OPEN:
                continue
            text = message.get("text")
            if text is not None:
                protocol.send_text(text.encode())
            else:
                protocol.send_binary(message["bytes"])
            await self._flush()

    async def _close_guest(self, code: int, reason: str) -> None:
        if self._protocol.state is not OPEN:
            return
        if code == CloseCode.ABNORMAL_CLOSURE:
            code, reason = CloseCode.GOING_AWAY, ""
        try:
            if code in _UNSPOKEN:
                self._protocol.send_close()
            else:
                self._protocol.send_close(code, reason)
        except ProtocolError:  # a code that may not be sent
            self._protocol.send_close(CloseCode.GOING_AWAY)
        with suppress(StreamLost):
            await self._flush()

    async def _flush(self) -> None:
        data = b"".join(self._protocol.data_to_send())
        if data:
            await self._stream.write(data)


def _refusal(error: Exception | None) -> Exception:
    if not isinstance(error, InvalidStatus):
        return Problem(502, "the service's answer to the WebSocket is no valid one")
    response = error.response
    if not 200 <= response.status_code < 600:
        return Problem(502, f"the service answers with the status {response.status_code}")
    return Refused(response.status_code, _passed_on(response), bytes(response.body or b""))


def _passed_on(response: Any) -> list[Header]:
    fields = [
        (name.lower().encode("latin-1"), value.encode("latin-1"))
        for name, value in response.headers.raw_items()
    ]
    return [field for field in fields if field[0] not in _NOT_PASSED]
