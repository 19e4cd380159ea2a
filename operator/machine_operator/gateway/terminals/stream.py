"""One client at a terminal: what it types goes into the shell, and what the shell says goes to it.

Neither side is ahead of the other by more than a few buffers: output is taken from the guest when the last of it has
been sent, and the next message is taken from the client when the last one has been typed. Sizes are set one after the
other, and only the latest one that waits.

A connection to the guest that breaks is made again, and goes on at the byte where it was. What ends a session is said
to the client in its last words and in the code: 1000 where there is no more to come, 1011 where trying again may help.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from starlette.websockets import WebSocket

from machine_operator.gateway.access import NotUsable, UseKind
from machine_operator.gateway.terminals.live import Live, Outcome
from machine_operator.gateway.terminals.messages import (
    CLOSED,
    Fault,
    Input,
    Resize,
    error_message,
    is_plain,
    output_message,
    read_message,
)
from machine_operator.gateway.terminals.terminals import Terminals
from machine_operator.guest.errors import GuestError, GuestLost
from machine_operator.guest.terminal import Attachment
from machine_operator.store.errors import StoreUnavailable

__all__ = ["serve_terminal"]

log = logging.getLogger(__name__)

_PIECE: Final = 48 * 1024
"""Bytes of output in one message."""
_TRIES: Final = 8
_PAUSE: Final = 0.5
_LAST: Final = {
    Outcome.TAKEN: ("terminal_taken_over", "somebody has connected to this terminal since"),
    Outcome.LOST: ("machine_not_routable", "the machine cannot be reached; try again in a moment"),
}
_CODES: Final = {Outcome.ENDED: 1000, Outcome.TAKEN: 1000, Outcome.LOST: 1011}


async def serve_terminal(socket: WebSocket, terminals: Terminals, live: Live) -> None:
    """Serve a client that is connected, and accepted, to the end."""
    session = _Session(socket, terminals, live)
    outcome = Outcome.LEFT
    try:
        with terminals.access.use(live.view, UseKind.TERMINAL):
            outcome = await session.run()
            await session.say_goodbye(outcome)
    except OSError:
        pass  # the client has gone
    finally:
        session.attachment.abort() if outcome is Outcome.LEFT else await session.attachment.close()
        try:
            await terminals.live.remove(live)
        except StoreUnavailable as error:
            log.warning("the end of a connection is not written down: %s", error)


class _Session:
    def __init__(self, socket: WebSocket, terminals: Terminals, live: Live) -> None:
        self.attachment = live.attachment
        self._socket = socket
        self._terminals = terminals
        self._live = live
        self._plain = False
        self._first = True
        self._size: tuple[int, int] | None = None  # waits to be set
        self._sizing: asyncio.Task[None] | None = None
        self._attached = asyncio.Event()
        self._attached.set()

    async def run(self) -> Outcome:
        """Both directions, until one of them ends, or somebody else ends it."""
        tasks = [asyncio.create_task(self._output()), asyncio.create_task(self._input())]
        over = self._live.over
        try:
            await asyncio.wait([*tasks, over], return_when=asyncio.FIRST_COMPLETED)
            if over.done():
                return over.result()
            return next(task for task in tasks if task.done()).result()
        finally:
            if self._sizing is not None:
                tasks.append(self._sizing)  # type: ignore[arg-type]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def say_goodbye(self, outcome: Outcome) -> None:
        """The last words, and the close."""
        if outcome is Outcome.LEFT:
            return
        if not self._plain:
            last = error_message(*_LAST[outcome]) if outcome in _LAST else CLOSED
            await self._socket.send_text(last)
        await self._socket.close(_CODES[outcome])

    # ---- from the shell

    async def _output(self) -> Outcome:
        while True:
            try:
                data = await self.attachment.read()
            except GuestLost:
                outcome = await self._attach_again()
                if outcome is not None:
                    return outcome
                continue
            if not data:
                await self._shell_ended()
                return Outcome.ENDED
            for start in range(0, len(data), _PIECE):
                piece = data[start : start + _PIECE]
                if self._plain:
                    await self._socket.send_bytes(piece)
                else:
                    await self._socket.send_text(output_message(piece))

    async def _attach_again(self) -> Outcome | None:
        """None: it goes on."""
        self._attached.clear()
        for _ in range(_TRIES):
            try:
                found = await self._terminals.attach_again(self._live, self.attachment.offset)
            except (NotUsable, GuestError) as error:
                log.info("terminal %s: %s", self._live.terminal.id, error)
                await asyncio.sleep(_PAUSE)
                continue
            if found is None:
                await self._shell_ended()
                return Outcome.ENDED
            self.attachment = found
            self._attached.set()
            return None
        return Outcome.LOST

    async def _shell_ended(self) -> None:
        try:
            await self._terminals.shell_ended(self._live.terminal)
        except StoreUnavailable as error:
            log.warning("the end of a shell is not written down: %s", error)

    # ---- from the client

    async def _input(self) -> Outcome:
        while True:
            message = await self._socket.receive()
            if message["type"] != "websocket.receive":
                return Outcome.LEFT
            content = message.get("text")
            await self._take(message["bytes"] if content is None else content)

    async def _take(self, content: str | bytes) -> None:
        if self._first:
            self._first, self._plain = False, is_plain(content)
        match read_message(content):
            case Input(data):
                await self._type(data)
            case Resize(width, height):
                self._size = self._live.size = (width, height)
                if self._sizing is None or self._sizing.done():
                    self._sizing = asyncio.create_task(self._resize())
            case Fault(code, words):
                if not self._plain:
                    await self._socket.send_text(error_message(code, words))

    async def _type(self, data: bytes) -> None:
        attachment: Attachment = self.attachment
        try:
            await attachment.write(data)
        except GuestLost:
            # Whether it arrived is not known: typing it once more might do something twice.
            if self.attachment is attachment:
                self._attached.clear()
            await self._attached.wait()

    async def _resize(self) -> None:
        while self._size is not None:
            (columns, rows), self._size = self._size, None
            try:
                await self._live.shells.resize(self._live.terminal.id, columns=columns, rows=rows)
            except GuestError as error:
                log.info("terminal %s: %s", self._live.terminal.id, error)
