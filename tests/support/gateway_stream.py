"""The answer to one request as it comes, and server-sent events by the rules of the HTML standard."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

__all__ = ["Event", "Stream"]


@dataclass(frozen=True)
class Event:
    """One server-sent event, or a comment (which has no name)."""

    name: str | None
    id: str | None = None
    data: Any = None
    comment: str | None = None


class Stream:
    """The answer to one request, as it comes. What is not taken holds the sender up, as a full socket does."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        self.headers = Headers()
        self.status = 0
        self.raw = b""
        self.sent = 0
        """Chunks that the application has got rid of."""
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)
        self._started = asyncio.Event()
        self._gone = asyncio.Event()
        self._asked = False
        self._lines: list[str] = []
        self._task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def __aenter__(self) -> Stream:
        waiting = asyncio.ensure_future(self._started.wait())
        await asyncio.wait([waiting, self._task], return_when="FIRST_COMPLETED")
        if not self._started.is_set():
            waiting.cancel()
            await self._task
        return self

    async def __aexit__(self, *_: object) -> None:
        self._gone.set()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def ended(self) -> bool:
        """Whether the application is done."""
        return self._task.done()

    async def event(self, *, within: float = 5.0) -> Event | None:
        """The next event or comment; None at the end of the stream."""
        async with asyncio.timeout(within):
            while (found := self._parsed()) is None:
                chunk = await self._chunks.get()
                if chunk is None:
                    assert not any(self._lines), f"cut off within an event: {self._lines}"
                    return None
                self.raw += chunk
                first, *rest = chunk.decode().split("\n")
                if self._lines:
                    self._lines[-1] += first
                else:
                    self._lines.append(first)
                self._lines += rest
        return found

    async def rest(self, *, within: float = 5.0) -> list[Event]:
        """All that comes until the end, which has to come."""
        events = []
        while (event := await self.event(within=within)) is not None:
            events.append(event)
        return events

    def _parsed(self) -> Event | None:
        """The first whole event, by the rules of the HTML standard."""
        if "" not in self._lines[:-1]:
            return None
        end = self._lines.index("")
        block, self._lines = self._lines[:end], self._lines[end + 1 :]
        fields: dict[str, str] = {}
        comment = None
        for line in block:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not name:
                comment = value
            elif name == "data" and "data" in fields:
                fields["data"] += "\n" + value
            else:
                fields[name] = value
        if not fields:
            return Event(None, comment=comment)
        assert set(fields) <= {"id", "event", "data"}, block
        return Event(
            fields.get("event", "message"),
            fields.get("id"),
            orjson.loads(fields["data"]) if "data" in fields else None,
        )

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], Headers(raw=list(message["headers"]))
            self._started.set()
            return
        if message.get("body"):
            await self._chunks.put(message["body"])
            self.sent += 1
        if not message.get("more_body"):
            await self._chunks.put(None)
