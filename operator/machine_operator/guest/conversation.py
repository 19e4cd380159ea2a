"""What is asked of the runner in a guest, and its answers: over one channel, and over a new one when that has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncssh

from machine_operator.guest.channel import Channel
from machine_operator.guest.errors import GuestLost
from machine_operator.guest.places import Places
from machine_operator.guest.spool import Reply, Slots

__all__ = ["Conversation"]

_ANSWER = 30.0
_SPARE, _REFILL = 8, 32
_BURST = 4
"""Jobs that a new runner makes slots for one by one: the first output should not wait for slots of others."""


class Conversation:
    """With one guest, over one connection.

    Attributes:
        channel: the one that is used now, or was last.
    """

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        *,
        places: Places,
        path: str,
        install: Callable[[], Awaitable[str]],
        patience: int,
        on_reply: Callable[[Reply], None],
        on_lost: Callable[[Channel], None],
    ) -> None:
        """Nothing is said before something is asked for.

        Args:
            connection: to the guest.
            places: where things are in it.
            path: where the script should be.
            install: brings it there; returns the path.
            patience: seconds after the end of a job's time in which the guest leaves it to us to end it.
            on_reply: is told of each answer.
            on_lost: is told of each channel that has ended.
        """
        self.channel: Channel | None = None
        self._connection, self._places = connection, places
        self._path, self._install, self._patience = path, install, patience
        self._on_reply, self._on_lost = on_reply, on_lost
        self._opening = asyncio.Lock()
        self._answers: dict[tuple[str, str], asyncio.Future[Reply]] = {}
        self._spare, self._filling = 0, False

    @property
    def waiting(self) -> bool:
        """Whether an answer is due."""
        return bool(self._answers)

    @property
    def live(self) -> bool:
        """Whether there is a channel."""
        return self.channel is not None and not self.channel.lost.is_set()

    async def open(self) -> Channel:
        """The channel.

        Raises:
            GuestError: the runner cannot be started.
        """
        async with self._opening:
            if self.channel is None or self.channel.lost.is_set():
                self._spare, self._filling = 0, False
                self.channel = await Channel.open(
                    self._connection,
                    places=self._places,
                    path=self._path,
                    install=self._install,
                    patience=self._patience,
                    on_reply=self._take,
                    on_lost=self._lose,
                )
            return self.channel

    async def ask(self, request: str, answer: tuple[str, str]) -> Reply:
        """Ask, and wait for the answer with that verb and key; who asks the same meanwhile gets the same."""
        channel = await self.open()
        pending = self._answers.get(answer)
        if pending is None:
            pending = self._answers[answer] = asyncio.get_running_loop().create_future()
            await channel.send(request.encode())
        return await self.within(asyncio.shield(pending))

    async def start(self, channel: Channel, line: bytes) -> None:
        """Ask for a job, which uses up a slot."""
        self._spare -= 1
        if self._spare < -_BURST:
            self.fill()
        await channel.send(line)

    async def within(self, answer: Awaitable[Reply]) -> Reply:
        """Wait for an answer, not for ever."""
        try:
            return await asyncio.wait_for(answer, _ANSWER)
        except TimeoutError as error:
            raise GuestLost(f"the runner does not answer within {_ANSWER:g} s") from error

    def fill(self) -> None:
        """Have slots made, if few are left; best while nothing else is to be done."""
        if self.channel is not None and self._spare < _SPARE and not self._filling:
            self._filling = self.channel.send_soon(f"fill {_REFILL}".encode())

    async def close(self) -> None:
        """End the channel; what runs goes on."""
        if self.channel is not None:
            await self.channel.close()

    def _take(self, reply: Reply) -> None:
        if isinstance(reply.body, Slots) and self.channel is not None:
            first, last = reply.body.first, reply.body.last
            self.channel.send_soon(f"add {first} {last}".encode())
            self._spare, self._filling = max(self._spare, 0) + last - first + 1, False
        pending = self._answers.pop((reply.verb, reply.key), None)
        if pending is not None and not pending.done():
            pending.set_result(reply)
        self._on_reply(reply)

    def _lose(self, channel: Channel) -> None:
        if channel is self.channel:
            for pending in self._answers.values():
                if not pending.done():
                    pending.set_exception(GuestLost("the runner has ended"))
                    pending.exception()  # nobody may be waiting any more
            self._answers.clear()
        self._on_lost(channel)
