"""Streams that are open and have nothing to do: the next request to the same port of the same machine takes one.

Servers close streams that idle, and the news may be on its way when we send. A request that may be sent twice is then
sent once more over a new stream; any other one takes only streams that were in use a moment ago.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from machine_operator.gateway.previews.tunnels import Stream, open_stream

if TYPE_CHECKING:
    from machine_operator.guest.guest import Guest

__all__ = ["StreamPool"]

_MOMENT: Final = 1.0
"""Seconds. No server of any repute closes a stream so soon."""
_IDLE_EACH: Final = 32
_IDLE_ALL: Final = 2048
_ROUND: Final = 15.0


@dataclass(frozen=True, slots=True)
class _Place:
    machine_uid: str
    port: int
    tls: bool


class StreamPool:
    """The idle streams of one gateway. `run` must be running for them to be closed in time.

    Args:
        idle_seconds: how long each is kept.
    """

    def __init__(self, *, idle_seconds: float) -> None:
        self._idle_seconds = idle_seconds
        self._idle: dict[_Place, deque[tuple[float, Stream]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    async def take(
        self, guest: Guest, port: int, *, tls: bool, twice: bool, new: bool = False
    ) -> tuple[Stream, bool]:
        """A stream, and whether it has been in use before.

        Args:
            guest: whose port.
            port: which.
            tls: whether TLS is spoken there.
            twice: whether what will be sent may be sent twice.
            new: take none that has been in use.

        Raises:
            PortClosed, GuestLost, GuestUnreachable: there is none to be had.
        """
        if not new:
            stream = self._pop(_Place(guest.target.machine_uid, port, tls), twice=twice)
            if stream is not None:
                return stream, True
        return await open_stream(guest, port, tls=tls), False

    def give(self, guest: Guest, port: int, stream: Stream, *, tls: bool) -> None:
        """Keep one for the next request, or close it."""
        place = _Place(guest.target.machine_uid, port, tls)
        waiting = self._idle.setdefault(place, deque())
        if not stream.usable or len(waiting) >= _IDLE_EACH or self._count >= _IDLE_ALL:
            stream.close()
            if not waiting:
                del self._idle[place]
            return
        waiting.append((_now(), stream))
        self._count += 1

    async def run(self) -> None:
        """Close what has idled too long, until cancelled; then all."""
        try:
            while True:
                await asyncio.sleep(min(_ROUND, self._idle_seconds / 2))
                self.sweep()
        finally:
            self.close()

    def sweep(self) -> None:
        """Close what has idled too long, or was closed on the other side."""
        oldest = _now() - self._idle_seconds
        for place, waiting in list(self._idle.items()):
            kept = deque(one for one in waiting if one[0] > oldest and one[1].usable)
            for one in waiting:
                if one not in kept:
                    one[1].close()
            self._count -= len(waiting) - len(kept)
            if kept:
                self._idle[place] = kept
            else:
                del self._idle[place]

    def close(self) -> None:
        """Close all."""
        for waiting in self._idle.values():
            for _, stream in waiting:
                stream.close()
        self._idle.clear()
        self._count = 0

    def _pop(self, place: _Place, *, twice: bool) -> Stream | None:
        waiting = self._idle.get(place)
        found: Stream | None = None
        while waiting and found is None:
            since, stream = waiting.pop()  # the latest one: the others may time out
            self._count -= 1
            if not stream.usable:
                stream.close()
            elif twice or _now() - since < _MOMENT:
                found = stream
            else:
                waiting.append((since, stream))
                self._count += 1
                break
        if waiting is not None and not waiting:
            del self._idle[place]
        return found


def _now() -> float:
    return asyncio.get_running_loop().time()
