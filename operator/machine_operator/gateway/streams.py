"""A machine's status as server-sent events: fed by the cache, one event for each state that differs from the last.

The first event is the state now; after a reconnection only what is newer than the bookmark that the client brings.
The stream ends when nothing more will happen by itself: converged, gone, failed for good. Silence is broken by a
comment, since clients take a silent connection for a dead one; and where the version moved on without anything that
shows, by a bookmark. A gateway that shuts down ends its streams in good order, for clients to come back elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from machine_operator.gateway.machines import Follower, Machines
from machine_operator.gateway.views import MachineView

__all__ = ["PING", "status_stream"]

PING = 10.0
"""Seconds of silence after which a comment is sent; the published clients give up after 60."""

_COMMENT = b": ping\n\n"


def status_stream(
    machines: Machines,
    view: MachineView,
    *,
    last_event_id: str | None,
    short: bool,
    draining: asyncio.Event,
) -> StreamingResponse:
    """The answer that streams a machine's states.

    Args:
        machines: where they come from.
        view: the state now.
        last_event_id: the bookmark of the last event that the client has seen.
        short: spell ids without `dm-`.
        draining: set when this gateway is about to end.
    """
    events = _events(machines, view, seen=_bookmark(last_event_id), short=short, draining=draining)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _Stream(events, media_type="text/event-stream", headers=headers)


class _Stream(StreamingResponse):
    """A stream without its parent's task group, which costs more memory than all the rest of it."""

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streaming = asyncio.ensure_future(self.stream_response(send))
        leaving = asyncio.ensure_future(self.listen_for_disconnect(receive))
        leaving.add_done_callback(lambda _: streaming.cancel())
        try:
            await asyncio.wait([streaming])
            if not streaming.cancelled():
                streaming.result()
        finally:
            leaving.cancel()
            streaming.cancel()
            await asyncio.gather(leaving, streaming, return_exceptions=True)


def _bookmark(text: str | None) -> int:
    """The version that a client has seen; 0 for anything that is no bookmark of ours."""
    return int(text) if text and len(text) <= 20 and text.isascii() and text.isdigit() else 0


async def _events(
    machines: Machines, view: MachineView, *, seen: int, short: bool, draining: asyncio.Event
) -> AsyncIterator[bytes]:
    with machines.followed(view) as follower:
        view = machines.latest(view)  # some time has passed until the answer began
        # Who has seen more than this replica, or brings the bookmark of another machine, is shown what there is.
        shown = view.as_json(short=short) if view.version == seen else b""
        due = _now() + PING
        while True:
            body = view.as_json(short=short)
            if body != shown:
                yield _event("status", view.version, body)
                shown, seen, due = body, view.version, _now() + PING
            if view.final:
                if view.version > seen:
                    yield _event("bookmark", view.version, _revision(view))
                return
            # News that show nothing do not put it off: they may come all the time.
            while (news := await _next(follower, draining, due - _now())) is None:
                if draining.is_set():
                    return
                if view.version > seen:
                    yield _event("bookmark", view.version, _revision(view))
                    seen = view.version
                else:
                    yield _COMMENT
                due = _now() + PING
            view = news


async def _next(follower: Follower, draining: asyncio.Event, timeout: float) -> MachineView | None:
    if draining.is_set():
        return None
    return await follower.next(timeout=timeout)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _event(kind: str, version: int, data: bytes) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (version, kind.encode(), data)


def _revision(view: MachineView) -> bytes:
    return orjson.dumps({"revision": view.revision})
