"""One HTTP request to a guest, and its answer, both as they come.

    client ── receive ──> upload ──> stream ──> guest
       <───── send ───── AnswerReader <── stream

Neither side is read faster than the other one takes it. A request without a body whose stream turns out to have been
closed is sent once more over a new one, if sending it twice does no harm. What goes on for longer than a second keeps
the machine awake, and is ended when its client goes away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Final

from starlette.types import Receive, Send

from machine_operator.gateway.previews.access import no_such_preview
from machine_operator.gateway.previews.http import AnswerReader, BadAnswer, Header, NoAnswer
from machine_operator.gateway.previews.limits import PreviewLimits
from machine_operator.gateway.previews.reach import Reach, Reached
from machine_operator.gateway.previews.tunnels import StreamLost
from machine_operator.gateway.previews.visits import Visit
from machine_operator.gateway.problems import GatewayError, Problem

__all__ = ["Forward", "framing"]

log = logging.getLogger(__name__)

_HARMLESS: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))


class _ClientGone(Exception):
    """Nobody is left to be answered."""


def framing(headers: list[Header]) -> list[Header]:
    """How the body of a request with these headers is framed towards the guest; nothing where it has none."""
    length: bytes | None = None
    for name, value in headers:
        if name == b"transfer-encoding":
            return [(b"transfer-encoding", b"chunked")]
        if name == b"content-length":
            length = value
    return [] if length is None else [(b"content-length", length)]


class Forward:
    """One request on its way.

    Args:
        method: of the request.
        head: of the request, as the guest gets it.
        frame: made by `framing`.
        receive, send: the client.
        visit: cut when the preview is closed.
        hold: keeps the machine awake.
        limits: how long anybody waits for anybody.
        leave_out: fields of the answer that are not passed on.
    """

    def __init__(
        self,
        method: str,
        head: bytes,
        frame: list[Header],
        *,
        receive: Receive,
        send: Send,
        visit: Visit,
        hold: Callable[[], AbstractContextManager[None]],
        limits: PreviewLimits,
        leave_out: frozenset[bytes] = frozenset(),
    ) -> None:
        self._method = method
        self._head = head
        self._chunked = frame[:1] == [(b"transfer-encoding", b"chunked")]
        self._has_body = self._chunked or bool(frame and frame[0][1] != b"0")
        self._receive, self._send = receive, send
        self._visit = visit
        self._hold = hold
        self._leave_out = leave_out
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._reached: Reached | None = None
        self._uploaded = not self._has_body
        self._gone = self._over = self._started = self._long = self._held = False
        self._slow: Problem | None = None
        self._patience: asyncio.Timeout | None = None
        self._client: asyncio.Task[None] | None = None
        self._stack = ExitStack()

    async def run(self, reach: Reach) -> None:
        """Carry it out.

        Raises:
            Waking, GatewayError: there was no answer.
        """
        twice = self._method in _HARMLESS and not self._has_body
        clock = self._loop.call_later(self._limits.long_seconds, self._lasts)
        try:
            for new in (False, True):
                self._reached = await reach.stream(twice=twice, new=new)
                if self._gone:
                    return
                self._stack.enter_context(self._reached.guest.hold())
                self._keep_awake()
                self._visit.ended_by(self._reached.stream.close)
                again = twice and self._reached.reused
                if await self._exchange(reach, self._reached, again=again):
                    return
        except _ClientGone:
            return
        finally:
            self._over = True
            clock.cancel()
            self._visit.ended_by(None)
            if self._client is not None:
                self._client.cancel()
            if self._reached is not None:
                self._reached.stream.close()
            self._stack.close()

    async def _exchange(self, reach: Reach, reached: Reached, *, again: bool) -> bool:
        """Send, and pass on the answer; False where it is to be tried again."""
        reader = AnswerReader(reached.stream, self._method)
        try:
            await self._ask(reached, reader)
            while True:
                data = await reader.body()
                if reader.done:
                    break
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except (StreamLost, BadAnswer) as error:
            untouched = not reader.touched and isinstance(error, StreamLost | NoAnswer)
            if again and untouched and not (self._gone or self._visit.over):
                reached.stream.close()
                return False
            self._failed(error)
            return True
        self._over = True
        if reader.reusable and self._uploaded:
            self._reached = None
            self._visit.ended_by(None)
            reach.give_back(reached)
        await self._send({"type": "http.response.body", "body": data, "more_body": False})
        return True

    async def _ask(self, reached: Reached, reader: AnswerReader) -> None:
        """Send the request, as far as the guest takes it, up to the head of the answer; and pass that on."""
        await reached.stream.write(self._head)
        if self._has_body:
            self._client = asyncio.create_task(self._upload(reached))
        try:
            async with asyncio.timeout(self._limits.head_seconds) as self._patience:
                await reader.head()
        except TimeoutError:
            seconds = self._limits.head_seconds
            raise Problem(504, f"the service did not answer within {seconds:g} s") from None
        finally:
            self._patience = None
        headers = reader.headers
        if self._leave_out:
            headers = [header for header in headers if header[0] not in self._leave_out]
        self._started = True
        await self._send(
            {"type": "http.response.start", "status": reader.status, "headers": headers}
        )

    def _failed(self, error: Exception) -> None:
        """There is no answer, or only half of one: say so, or let the server cut the connection."""
        if self._gone:
            raise _ClientGone from error
        if self._started:
            log.info("the answer of a preview is cut: %s", error)
        elif self._visit.over:
            raise no_such_preview() from error
        elif self._slow is not None:
            raise self._slow from error
        else:
            raise Problem(502, str(error)) from error

    # ---- the client

    async def _upload(self, reached: Reached) -> None:
        """Pass on the body of the request, and then see whether the client goes away."""
        stream, more, reading = reached.stream, True, True
        try:
            while more:
                async with asyncio.timeout(self._limits.body_seconds):
                    reading = True
                    message = await self._receive()
                if message["type"] == "http.disconnect":
                    self._left()
                    return
                data, more = message.get("body", b""), message.get("more_body", False)
                if self._chunked:
                    end = b"" if more else b"0\r\n\r\n"
                    data = (b"%x\r\n%s\r\n" % (len(data), data) if data else b"") + end
                if data:
                    async with asyncio.timeout(self._limits.body_seconds):
                        reading = False
                        await stream.write(data)
                if self._patience is not None:
                    self._patience.reschedule(self._loop.time() + self._limits.head_seconds)
        except StreamLost:
            return  # an answer may have come before; whoever reads it finds out
        except TimeoutError:
            self._slow = (
                Problem(408, "the request body did not come: send it again")
                if reading
                else Problem(504, "the service does not read the request")
            )
            stream.close()
            return
        self._uploaded = True
        await self._watch()

    async def _watch(self) -> None:
        """Return when the client is gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left()

    def _left(self) -> None:
        # Once all has been sent, the server says the same; and the stream may be somebody else's by then.
        if not self._over:
            self._gone = True
            if self._reached is not None:
                self._reached.stream.close()

    def _lasts(self) -> None:
        """It goes on for long."""
        self._long = True
        self._keep_awake()
        if not self._has_body:
            self._client = asyncio.create_task(self._watch())

    def _keep_awake(self) -> None:
        if self._long and self._reached is not None and not self._held:
            self._held = True
            with contextlib.suppress(GatewayError):  # the machine is gone, and the stream soon
                self._stack.enter_context(self._hold())
