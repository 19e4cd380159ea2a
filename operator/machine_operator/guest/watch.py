"""A job that was started over a channel, and what that has told about it since."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Literal

from machine_operator.guest.channel import Channel
from machine_operator.guest.job import Ended
from machine_operator.guest.spool import Counts, Place, Reply, Said

__all__ = ["Watch"]

_MOST_SAID = 1024


class Watch:
    """One job.

    Attributes:
        kept_bytes: of each of its streams.
        channel: over which it was asked for, once it was.
        started: what was answered to that.
        place: where it is, once that is known.
        ended: how it ended, without counts.
        counts: what it wrote; after `ended` by a moment, or much later.
    """

    def __init__(self, *, kept_bytes: int) -> None:
        self.kept_bytes = kept_bytes
        self.channel: Channel | None = None
        self.started: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.place: Place | None = None
        self.ended: Ended | None = None
        self.counts: Counts | None = None
        self._said = {"stdout": b"", "stderr": b""}
        self._ended = asyncio.Event()
        self._counted = asyncio.Event()

    @property
    def lost(self) -> bool:
        """Nothing more will be heard of it here."""
        return self.channel is not None and self.channel.lost.is_set()

    def see(self, place: Place, ended: Ended | None) -> None:
        """It is there, or has ended."""
        self.place = replace(place, kept=self.kept_bytes)
        if ended is not None:
            self.ended = ended
            self._ended.set()

    def hear(self, said: Said) -> None:
        """A piece of its output came along."""
        if len(self._said[said.stream]) <= _MOST_SAID:
            self._said[said.stream] += said.data

    def whole(self, stream: Literal["stdout", "stderr"]) -> bytes | None:
        """What is kept of an output, if all of it came along."""
        if self.counts is None:
            return None
        written = self.counts.stdout if stream == "stdout" else self.counts.stderr
        said = self._said[stream]
        return said[: self.kept_bytes] if len(said) == written else None

    def count(self, counts: Counts) -> None:
        """All of its output has come."""
        self.counts = counts
        self._counted.set()

    def lose(self) -> None:
        """Wake up whoever waits."""
        self._ended.set()
        self._counted.set()

    async def wait_ended(self, *, timeout: float) -> bool:
        """Until it has ended or is lost; False: neither, within `timeout` seconds."""
        return await _within(self._ended, timeout)

    async def wait_counted(self, *, timeout: float) -> bool:
        """Until all of its output has come or it is lost."""
        return await _within(self._counted, timeout)


async def _within(event: asyncio.Event, timeout: float) -> bool:
    if not event.is_set() and timeout > 0:
        try:
            await asyncio.wait_for(event.wait(), timeout)
        except TimeoutError:
            return False
    return event.is_set()
