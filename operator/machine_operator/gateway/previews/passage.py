"""One request or WebSocket of somebody who has been let in, on its way to the guest and back."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from machine_operator.gateway.access import UseKind
from machine_operator.gateway.previews.access import Entry
from machine_operator.gateway.previews.forward import Forward, framing
from machine_operator.gateway.previews.hits import Hit
from machine_operator.gateway.previews.http import BadRequest, Header, request_head
from machine_operator.gateway.previews.pages import CHECK, wants_page
from machine_operator.gateway.previews.previews import Previews
from machine_operator.gateway.previews.reach import Reach
from machine_operator.gateway.previews.sockets import Bridge, Refused, SocketBudget, handshake
from machine_operator.gateway.previews.tunnels import StreamLost
from machine_operator.gateway.previews.visits import Visit
from machine_operator.gateway.problems import Problem
from machine_operator.store.previews import Preview

__all__ = ["Passage", "send_answer", "with_query"]

# A worker of one preview could take over the pages of all, and of the API.
_NOT_BY_PATH: Final = frozenset((b"service-worker-allowed",))


class Passage:
    """The way of one.

    Args:
        previews: the previews.
        preview: to which one.
        hit: what was asked for.
        entry: who was let in.
        scope: the request.
        secure: whether it came over https.
        budget: memory for messages that are not complete.
    """

    def __init__(
        self,
        previews: Previews,
        preview: Preview,
        hit: Hit,
        entry: Entry,
        scope: Scope,
        *,
        secure: bool,
        budget: SocketBudget,
    ) -> None:
        self._previews = previews
        self._preview = preview
        self._hit = hit
        self._entry = entry
        self._scope = scope
        self._secure = secure
        self._budget = budget

    async def request(self, receive: Receive, send: Send, visit: Visit) -> None:
        """Pass a request on, and its answer back.

        Raises:
            Waking, GatewayError: there is none.
        """
        scope, reach = self._scope, self._reach(page=wants_page(self._scope))
        if any(name == CHECK for name, _ in scope["headers"]):
            reach.give_back(await reach.stream(twice=True, new=True))
            await send_answer(scope, send, 204, [(b"cache-control", b"no-store")], b"")
            return
        frame = framing(self._entry.headers)
        forward = Forward(
            scope["method"],
            self._head(scope["method"], frame),
            frame,
            receive=receive,
            send=send,
            visit=visit,
            hold=self._hold,
            limits=self._previews.limits,
            leave_out=_NOT_BY_PATH if self._hit.prefix else frozenset(),
        )
        await forward.run(reach)

    async def socket(self, receive: Receive, send: Send, visit: Visit) -> None:
        """Pass messages on, both ways, until one side closes.

        Raises:
            GatewayError: there is no WebSocket.
        """
        await receive()  # websocket.connect
        protocol, own = handshake(self._scope.get("subprotocols") or ())
        head = self._head("GET", own, leave_out=Bridge.NOT_PASSED)
        reached = await self._reach(page=False).stream(twice=False, new=True)
        visit.ended_by(reached.stream.close)
        bridge = Bridge(protocol, reached.stream, receive=receive, send=send, budget=self._budget)
        try:
            with self._hold(), reached.guest.hold():
                await bridge.open(head)
                await bridge.run()
        except Refused as refusal:
            length = (b"content-length", b"%d" % len(refusal.body))
            await send_answer(
                self._scope, send, refusal.status, [*refusal.headers, length], refusal.body
            )
        except StreamLost as error:
            raise Problem(502, "the service closed the connection without an answer") from error
        finally:
            visit.ended_by(None)
            reached.stream.close()

    def _reach(self, *, page: bool) -> Reach:
        previews = self._previews
        return Reach(
            self._preview,
            by=self._entry.by if ":" in self._entry.by else f"preview:{self._preview.id}",
            page=page,
            access=previews.access,
            pool=previews.pool,
            find=previews.view,
            wait=previews.settings.preview_wait,
            starting=previews.limits.starting_seconds,
            clock=previews.clock,
        )

    def _hold(self) -> AbstractContextManager[None]:
        view = self._previews.view(self._preview)
        return self._previews.access.use(view, UseKind.PREVIEW)

    def _head(self, method: str, own: list[Header], *, leave_out: tuple[bytes, ...] = ()) -> bytes:
        """The head of the request, as the guest gets it."""
        headers, hit = self._entry.headers, self._hit
        if method == "CONNECT":
            raise Problem(405, "previews are no proxies", headers={"Allow": "GET"})
        more = [
            (b"x-forwarded-for", _came_from(self._scope, headers)),
            (b"x-forwarded-proto", b"https" if self._secure else b"http"),
            *own,
        ]
        if hit.host:
            more.append((b"x-forwarded-host", hit.host))
        else:  # HTTP/1.0 knows no Host, and what we speak needs one
            more.append((b"host", b"localhost:%d" % self._preview.port))
        if hit.prefix:
            more.append((b"x-forwarded-prefix", hit.prefix))
        target = with_query(hit.target, self._entry.query)
        try:
            return request_head(method, target, headers, more=more, leave_out=(*leave_out, CHECK))
        except BadRequest as error:
            raise Problem(400, str(error)) from error


def _came_from(scope: Scope, headers: list[Header]) -> bytes:
    """The client's address, after those that are known already."""
    known = [value for name, value in headers if name == b"x-forwarded-for"]
    client = scope.get("client")
    return b", ".join([*known, str(client[0]).encode() if client else b"unknown"])


def with_query(path: bytes, query: bytes) -> bytes:
    """A path with a query, if there is one."""
    return b"%s?%s" % (path, query) if query else path


async def send_answer(
    scope: Any, send: Send, status: int, headers: list[Header], body: bytes
) -> None:
    """Answer a request, or a WebSocket before it is one."""
    kind = "http.response"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
            return
        kind = "websocket.http.response"
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body, "more_body": False})
