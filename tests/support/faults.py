"""A transport that wraps any other one and breaks it, as told by rules.

A rule sees each request and its number among the writes, and may name a fault; another kind of rule sees each event
of each watch. Each rule is asked in turn, and the first fault counts. Once dead, nothing ever goes on: the process
that the client stands for is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson

from machine_operator.kube.errors import Unreachable
from machine_operator.kube.transport import Transport, WireRequest, WireResponse, WireStream, lines
from tests.support.apiserver import Object, Request

__all__ = [
    "Answer",
    "Cut",
    "Delay",
    "Die",
    "End",
    "Fault",
    "FaultyTransport",
    "Garbage",
    "Hold",
    "Refuse",
    "Repeat",
    "StreamFault",
    "TimeOut",
]


# ---- faults of requests; `after` tells that the request took effect nevertheless


@dataclass(frozen=True, slots=True)
class Die:
    """The process ends here."""

    after: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """The server (or something before it) answers with a failure."""

    status: int
    reason: str = ""
    retry_after: str | None = None
    after: bool = False


@dataclass(frozen=True, slots=True)
class TimeOut:
    """No answer comes in time."""

    after: bool = False


@dataclass(frozen=True, slots=True)
class Delay:
    """The request is on its way for so many seconds more."""

    seconds: float


Fault = Die | Answer | TimeOut | Delay


# ---- faults of watches, each at one event


@dataclass(frozen=True, slots=True)
class Repeat:
    """The event comes again, after so many others."""

    after: int = 0


@dataclass(frozen=True, slots=True)
class Hold:
    """The event, and with it all behind it, comes so many seconds later."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Cut:
    """The connection breaks; `delivered` or not before the event."""

    delivered: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The server ends the stream, before the event."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """An ERROR comes in the stream, in the event's place."""

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Garbage:
    """Something that is no event comes in its place."""

    raw: bytes = b"<html>gateway</html>"


StreamFault = Repeat | Hold | Cut | End | Refuse | Garbage

Rule = Callable[[Request, int], Fault | None]
StreamRule = Callable[[Object, int], StreamFault | None]


class FaultyTransport:
    """See the module.

    Args:
        parse: tells the parts of a request.
        latency: seconds for each way of a request, and of each event.

    Attributes:
        rules: asked for each request, with its number among the writes (of a read: how many came before).
        stream_rules: asked for each event of a watch, with its number among all events.
        dead: set once the process is gone.
        written: how many writes were sent; `seen`: how many events came.
    """

    def __init__(
        self, inner: Transport, *, parse: Callable[[WireRequest], Request], latency: float = 0.0
    ) -> None:
        self.rules: list[Rule] = []
        self.stream_rules: list[StreamRule] = []
        self.dead = asyncio.Event()
        self.written = 0
        self.seen = 0
        self._inner = inner
        self._parse = parse
        self._latency = latency

    def at_write(self, number: int, fault: Fault) -> None:
        """The fault for the n-th write (from 1)."""
        self.rules.append(lambda asked, n: fault if asked.writes and n == number else None)

    def next(
        self, fault: Fault, *, when: Callable[[Request], bool] = lambda _: True, times: int = 1
    ) -> None:
        """The fault for the next so many requests that fit."""
        left = times

        def rule(asked: Request, _: int) -> Fault | None:
            nonlocal left
            if left <= 0 or not when(asked):
                return None
            left -= 1
            return fault

        self.rules.append(rule)

    async def open(self) -> None:
        """Opens the wrapped one."""
        await self._inner.open()

    async def close(self) -> None:
        """Closes the wrapped one."""
        await self._inner.close()

    async def send(self, request: WireRequest) -> WireResponse:
        """One request, unless something is wrong with it."""
        asked = self._parse(request)
        await self._pass(self._latency)
        self.written += asked.writes
        fault = self._fault(asked)
        if isinstance(fault, Die) and not fault.after:
            self.dead.set()
        if isinstance(fault, Delay):
            await self._within(fault.seconds, request)
        elif fault is not None and not fault.after:
            return await self._broken(fault, request)
        await self._alive()
        try:
            answer = await self._inner.send(request)
        finally:
            if isinstance(fault, Die):
                self.dead.set()
        await self._pass(self._latency)
        if isinstance(fault, Answer | TimeOut):
            return await self._broken(fault, request)
        return answer

    @asynccontextmanager
    async def stream(self, request: WireRequest) -> AsyncIterator[WireStream]:
        """One watch, which may break at its beginning or at any event."""
        fault = self._fault(self._parse(request))
        if isinstance(fault, Die):
            self.dead.set()
        await self._alive()
        if isinstance(fault, Delay):
            await self._within(fault.seconds, request)
        elif fault is not None:
            answer = await self._broken(fault, request)
            yield WireStream(answer.status, answer.headers, _once(answer.body))
            return
        async with self._inner.stream(request) as inner:
            if inner.status >= 300:
                yield inner
            else:
                yield WireStream(inner.status, inner.headers, self._events(inner, request))

    async def _events(self, inner: WireStream, request: WireRequest) -> AsyncIterator[bytes]:
        again: list[tuple[int, bytes]] = []
        async for line in lines(inner.chunks):
            await self._pass(self._latency)
            self.seen += 1
            fault = next(
                filter(None, (rule(orjson.loads(line), self.seen) for rule in self.stream_rules)),
                None,
            )
            match fault:
                case Hold(seconds):
                    await self._within(seconds, request)
                case End() | Cut(delivered=False):
                    pass
                case Refuse(code, reason):
                    status = {
                        "kind": "Status",
                        "code": code,
                        "reason": reason,
                        "message": "told to",
                    }
                    yield orjson.dumps({"type": "ERROR", "object": status}) + b"\n"
                    return
                case Garbage(raw):
                    yield raw + b"\n"
                    return
                case Repeat(after):
                    again.append((self.seen + after, line))
            if isinstance(fault, End):
                return
            if not (isinstance(fault, Cut) and not fault.delivered):
                yield line + b"\n"
            if isinstance(fault, Cut):
                raise Unreachable(f"WATCH {request.path}: the connection was cut")
            for due, old in list(again):
                if due <= self.seen:
                    again.remove((due, old))
                    yield old + b"\n"

    def _fault(self, asked: Request) -> Fault | None:
        return next(filter(None, (rule(asked, self.written) for rule in self.rules)), None)

    async def _broken(self, fault: Die | Answer | TimeOut, request: WireRequest) -> WireResponse:
        await self._alive()
        if isinstance(fault, Answer):
            headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
            status = {"kind": "Status", "code": fault.status, "reason": fault.reason}
            return WireResponse(fault.status, headers, orjson.dumps(status))
        await self._pass(request.timeout)
        raise Unreachable(f"{request.method} {request.path}: no answer came in time")

    async def _within(self, seconds: float, request: WireRequest) -> None:
        await self._pass(min(seconds, request.timeout))
        if seconds >= request.timeout:
            raise Unreachable(f"{request.method} {request.path}: no answer came in time")

    async def _pass(self, seconds: float) -> None:
        await self._alive()
        await asyncio.sleep(seconds)
        await self._alive()

    async def _alive(self) -> None:
        if self.dead.is_set():
            await asyncio.Future()


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
