"""The copy of what a program writes: from the guest's spool into events, from where the store says that it has come.

Each piece is written together with the new position, so whatever breaks in between, nothing is missing or there twice.
Of a long output little is in memory at a time, and only so many copies are made at once.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, Literal

from machine_operator.gateway.executions.chunks import pieces
from machine_operator.guest.job import Ended
from machine_operator.store.executions import Event, Execution, ExecutionRecords

if TYPE_CHECKING:
    from machine_operator.guest.runner import Runner

__all__ = ["NotOurs", "OutputCopy"]

_HELD: Final = 1024 * 1024
"""Bytes that wait for the next transaction."""

_Stream = Literal["stdout", "stderr"]
_STREAMS: Final[tuple[_Stream, ...]] = ("stdout", "stderr")


class NotOurs(Exception):
    """Somebody else has taken the execution over, or it has ended."""


class OutputCopy:
    """The copy for one execution.

    Args:
        records: the store.
        execution: as the store has it.
        most: bytes that are kept of each stream.
        room: how many copies may be made at once.

    Attributes:
        execution: as the store has it now.
        events: what is copied, but not yet in the store.
    """

    def __init__(
        self,
        records: ExecutionRecords,
        execution: Execution,
        *,
        most: int,
        room: asyncio.Semaphore,
    ) -> None:
        self.execution = execution
        self.events: list[Event] = []
        self._records = records
        self._most = most
        self._room = room
        self._held = 0
        self._kept = {"stdout": execution.stdout_kept, "stderr": execution.stderr_kept}

    async def look(self, runner: Runner) -> int:
        """Copy what is new while the program runs; returns how many bytes that were.

        Raises:
            NotOurs: it is somebody else's now.
        """
        before = sum(self._kept.values())
        async with self._room:
            for stream in _STREAMS:
                await self._copy(runner, stream, upto=self._most, whole=False)
            await self._flush()
        return sum(self._kept.values()) - before

    async def rest(self, runner: Runner, ended: Ended) -> None:
        """Copy all that is left. The last of it is in `events`, for the transaction of the end.

        Raises:
            NotOurs: it is somebody else's now.
        """
        written = {"stdout": ended.stdout_bytes, "stderr": ended.stderr_bytes}
        if all(self._kept[stream] >= written[stream] for stream in _STREAMS):
            return
        async with self._room:
            for stream in _STREAMS:
                upto, whole = min(written[stream], self._most), written[stream] <= self._most
                # Cut off in the midst of a character it would end with one that the program did not write.
                await self._copy(runner, stream, upto=upto, whole=whole)

    def totals(self, ended: Ended | None) -> dict[str, Any]:
        """Columns: how much the program wrote and how much of it is kept. Without its end: as far as is known."""
        kept = self._kept
        written = {
            "stdout": kept["stdout"] if ended is None else ended.stdout_bytes,
            "stderr": kept["stderr"] if ended is None else ended.stderr_bytes,
        }
        return {
            **self._position(),
            **{f"{stream}_bytes": written[stream] for stream in _STREAMS},
            **{f"{stream}_truncated": written[stream] > kept[stream] for stream in _STREAMS},
        }

    async def _copy(self, runner: Runner, stream: _Stream, *, upto: int, whole: bool) -> None:
        """Copy a stream up to a position, or what there is of it; `whole`: nothing follows then."""
        offset = self._kept[stream]
        if offset >= upto:
            return
        rest = b""
        coming = runner.output(self.execution.id, stream, offset=offset, limit=upto - offset)
        async with aclosing(coming):
            async for data in coming:
                offset += len(data)
                rest = self._take(stream, rest + data, final=whole and offset >= upto)
                if self._held >= _HELD:
                    await self._flush()

    def _take(self, stream: _Stream, data: bytes, *, final: bool) -> bytes:
        """Make events of it; what is left is a character's begin, without `final`."""
        at, taken = self._records.clock(), 0
        for piece in pieces(data, last=final):
            sequence = self.execution.sequence + len(self.events) + 1
            self.events.append(Event(sequence, stream, at, chunk=piece))
            taken += len(piece)
        self._kept[stream] += taken
        self._held += taken
        return data[taken:]

    async def _flush(self) -> None:
        if not self.events:
            return
        known = {f"{stream}_bytes": self._kept[stream] for stream in _STREAMS}
        row = await self._records.append(self.execution, self.events, self._position() | known)
        if row is None:
            raise NotOurs
        self.execution, self.events, self._held = row, [], 0

    def _position(self) -> dict[str, int]:
        return {f"{stream}_kept": self._kept[stream] for stream in _STREAMS}
