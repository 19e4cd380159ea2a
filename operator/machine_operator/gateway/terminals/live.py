"""The connections to terminals of one replica, and what the store says about them.

Once a second all of them are looked up with one statement: a terminal that is not ready any more has ended, and one
that has got another client was taken over. Every now and then the store is told that they are still in use; a gateway
that dies leaves that unsaid, and then the time of the detached shell runs.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum
from typing import Final

from machine_operator.gateway.views import MachineView
from machine_operator.guest.terminal import Attachment, GuestTerminals
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.terminals import Terminal, TerminalRecords

__all__ = ["Live", "LiveTerminals", "Outcome"]

log = logging.getLogger(__name__)

_LOOK: Final = 1.0
_RENEW: Final = 15.0
_LEASE: Final = timedelta(seconds=45)


class Outcome(Enum):
    """Why a connection is over."""

    ENDED = "ended"
    TAKEN = "taken"
    LOST = "lost"
    LEFT = "left"


class Live:
    """One connection.

    Attributes:
        view, terminal: to what.
        shells: of the guest.
        attachment: to the shell.
        client: a name of its own.
        size: columns and rows, once they were changed.
        over: has a result when it shall end, for a reason that lies outside of it.
    """

    __slots__ = ("attachment", "client", "over", "shells", "size", "terminal", "view")

    def __init__(
        self,
        view: MachineView,
        terminal: Terminal,
        shells: GuestTerminals,
        attachment: Attachment,
    ) -> None:
        self.view = view
        self.terminal = terminal
        self.shells = shells
        self.attachment = attachment
        self.client = secrets.token_hex(8)
        self.size: tuple[int, int] | None = None
        self.over: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    def end(self, outcome: Outcome) -> None:
        """Let it end; the first reason counts."""
        if not self.over.done():
            self.over.set_result(outcome)


class LiveTerminals:
    """All of a replica, one for each terminal.

    Args:
        records: the store.
        clock: the time.
    """

    def __init__(self, records: TerminalRecords, *, clock: Callable[[], datetime]) -> None:
        self._records = records
        self._clock = clock
        self._by_id: dict[str, Live] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    async def add(self, live: Live) -> bool:
        """A connection takes its terminal over; False where the terminal is not ready any more.

        Raises:
            StoreUnavailable: nobody can tell.
        """
        id = live.terminal.id
        owned = await self._records.connect(id, live.client, self._clock() + _LEASE)
        if owned is None:
            return False
        self.drop(id, Outcome.TAKEN)
        self._by_id[id] = live
        return True

    async def remove(self, live: Live) -> None:
        """A connection is over. From now on the shell is alone, unless another connection has it.

        Raises:
            StoreUnavailable: it could not be written down; then that comes to light a little later.
        """
        self.discard(live)
        values: dict[str, object] = {"used_until": self._clock()}
        if live.size is not None:
            values |= {"width": live.size[0], "height": live.size[1]}
        client = self._records.table.c.client == live.client
        await self._records.change(live.terminal.id, values, client)

    def discard(self, live: Live) -> None:
        """Forget it here, and say nothing to the store."""
        if self._by_id.get(live.terminal.id) is live:
            del self._by_id[live.terminal.id]

    def drop(self, id: str, outcome: Outcome) -> None:
        """End the connection to a terminal, if this replica has it."""
        live = self._by_id.pop(id, None)
        if live is not None:
            live.end(outcome)

    async def run(self) -> None:
        """Keep them and the store in step until cancelled."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(_LOOK)
            if not self._by_id:
                continue
            try:
                await self._look()
                if loop.time() - renewed >= _RENEW:
                    renewed = loop.time()
                    clients = {id: live.client for id, live in self._by_id.items()}
                    await self._records.used(clients, self._clock() + _LEASE)
            except StoreUnavailable as error:
                log.warning("what has become of %d terminals is not known: %s", len(self), error)

    async def _look(self) -> None:
        asked = dict(self._by_id)
        clients = await self._records.clients(asked)
        for id, live in asked.items():
            if self._by_id.get(id) is not live:
                continue
            if id not in clients:
                self.drop(id, Outcome.ENDED)
            elif clients[id] != live.client:
                self.drop(id, Outcome.TAKEN)
