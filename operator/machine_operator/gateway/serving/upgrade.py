"""A request that wants to become a WebSocket, while the application has not decided about it.

It is an HTTP request like any other, with the place in the pipeline, the limits and the clocks that those have, until
the application accepts. Where it answers instead, that is the request's answer, and the last one of the connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from websockets.frames import CloseCode

from machine_operator.gateway.problems import Problem
from machine_operator.gateway.serving.sockets import Socket, switching

if TYPE_CHECKING:
    from machine_operator.gateway.serving.protocol import GatewayProtocol

__all__ = ["Upgrade"]


class Upgrade:
    """The application of one such request: shows the real one a WebSocket.

    Args:
        protocol: the connection.
        cycle: the request.
        app: the real application.
    """

    def __init__(
        self, protocol: GatewayProtocol, cycle: RequestResponseCycle, app: ASGI3Application
    ) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._app = app
        self._begun = False
        self._socket: Socket | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: D102
        self._receive_http, self._send_http = receive, send
        headers = scope["headers"]
        offered = [value for name, value in headers if name == b"sec-websocket-protocol"]
        seen: Any = {
            **{name: value for name, value in scope.items() if name != "method"},
            "asgi": {**scope["asgi"], "spec_version": "2.4"},
            "scheme": "wss" if scope["scheme"] == "https" else "ws",
            "subprotocols": [
                part.strip().decode("latin-1") for value in offered for part in value.split(b",")
            ],
            "extensions": {"websocket.http.response": {}},
        }
        try:
            await self._app(seen, self._receive, self._send)
        except ClientDisconnected:
            pass  # whoever sends to somebody who has gone need not know
        except BaseException:
            if self._socket is not None:
                self._socket.close(CloseCode.INTERNAL_ERROR)
            raise
        if self._socket is not None:
            self._socket.close(CloseCode.NORMAL_CLOSURE)

    async def _receive(self) -> Any:
        if self._socket is not None:
            return await self._socket.receive()
        if not self._begun:
            self._begun = True
            return {"type": "websocket.connect"}
        while (await self._receive_http())["type"] != "http.disconnect":
            pass
        return {"type": "websocket.disconnect", "code": CloseCode.ABNORMAL_CLOSURE}

    async def _send(self, message: Any) -> None:
        if self._socket is not None:
            await self._socket.send(message)
            return
        kind = message["type"]
        if kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close":
            await self._refuse()
        elif kind.startswith("websocket.http.response."):
            await self._send_http({**message, "type": kind.removeprefix("websocket.")})
        else:
            raise RuntimeError(f"{kind} cannot be sent before the connection is accepted")

    def _accept(self, message: Any) -> None:
        if self._cycle.disconnected:
            raise ClientDisconnected
        extra = self._protocol.server_state.default_headers
        answer = switching(self._cycle.scope["headers"], message, extra)
        self._socket = self._protocol.become_socket(answer)
        self._cycle.response_started = self._cycle.response_complete = True

    async def _refuse(self) -> None:
        """What ASGI says about a close before the beginning."""
        problem = Problem(403, "this WebSocket is not for you")
        body = orjson.dumps(problem.body())
        fields = [
            (b"content-type", problem.media_type.encode()),
            (b"content-length", b"%d" % len(body)),
        ]
        await self._send_http({"type": "http.response.start", "status": 403, "headers": fields})
        await self._send_http({"type": "http.response.body", "body": body})
