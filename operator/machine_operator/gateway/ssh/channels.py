"""The channels of one SSH client, each relayed to its machine.

The gateway has one warm connection to each machine, which all of its clients share. Channels have windows of their own,
so clients do not get in each other's way; a login costs no second one in the guest, and no sshd there. How many
channels and listeners a client may have is bounded.

Where a client asks to be connected to, the guest is who connects, to whatever it reaches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncssh

from machine_operator.gateway.ssh.relay import (
    MAX_PACKET,
    WINDOW,
    Back,
    Congestion,
    End,
    Front,
    join,
)
from machine_operator.gateway.ssh.shell import ShellBack, ShellFront
from machine_operator.gateway.ssh.way import Unreached, Way

__all__ = ["Channels"]

log = logging.getLogger(__name__)

_CHANNELS: Final = 64
_LISTENERS: Final = 16
"""In the life of a connection."""

Opener = Callable[[asyncssh.SSHClientConnection, Callable[[], End]], Awaitable[Any]]
Opening = tuple[Any, Awaitable[Front]]
"""What asyncssh takes for an answer: a channel, and what becomes its end once that is open."""


class Channels:
    """See the module.

    Args:
        connection: the client's.
        way: to the machine.
    """

    def __init__(self, connection: asyncssh.SSHServerConnection, way: Way) -> None:
        self._connection, self._way = connection, way
        self._congestion = Congestion()
        self._fronts: set[Front] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._listeners = 0

    def close(self) -> None:
        """The client is gone."""
        self._congestion.close()

    def tell(self, text: str) -> None:
        """Say something on all terminals."""
        for front in list(self._fronts):
            if isinstance(front, ShellFront) and front.terminal is not None:
                front.tell(text)

    def _room(self) -> None:
        if len(self._fronts) >= _CHANNELS:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, f"at most {_CHANNELS} channels at once"
            )

    def session(self) -> ShellFront:
        """A shell, a command or a subsystem is wanted; which, and with what, the client says later."""
        self._room()
        front = ShellFront(
            self._congestion,
            self._fronts.discard,
            begin=self._begin,
            farewell=lambda: self._way.loss,
        )
        self._fronts.add(front)
        return front

    def _begin(self, front: ShellFront) -> None:
        self._running.add(task := self._connection.create_task(self._run(front)))
        task.add_done_callback(self._running.discard)

    async def _run(self, front: ShellFront) -> None:
        """Have the guest run what a client asks for."""
        for again in (True, False):
            try:
                guest = await self._way.guest()
            except Unreached as error:
                front.fail(str(error))
                return
            try:
                await self._run_there(front, guest.connection)
            except asyncssh.ChannelOpenError as error:
                # A warm connection may have broken unnoticed; then nothing has begun.
                unopened = error.code == asyncssh.OPEN_CONNECT_FAILED and guest.closed
                if not (unopened and again):
                    front.fail(f"the machine refuses this: {error.reason}")
                    return
            except (asyncssh.Error, OSError):
                front.fail(self._way.loss)
                return
            else:
                return

    async def _run_there(self, front: ShellFront, guest: asyncssh.SSHClientConnection) -> None:
        back, terminal, size = ShellBack(self._congestion), front.terminal, front.size
        factory: Any = lambda: back  # noqa: E731  its methods are what counts, not its class
        await guest.create_session(
            factory,
            # File names need not be UTF-8, so this is bytes; asyncssh passes them on.
            front.command,  # type: ignore[arg-type]
            subsystem=front.subsystem,
            env=list(front.environment.items()),
            send_env=None,
            request_pty="force" if terminal is not None else False,
            term_type=terminal.type if terminal is not None else None,
            term_size=size,
            term_modes=dict(terminal.modes) if terminal is not None else {},
            x11_forwarding=False,
            encoding=None,
            window=WINDOW,
            max_pktsize=MAX_PACKET,
        )
        if terminal is not None and front.size != size:
            back.resize(front.size)
        join(front, back)

    def tcp(self, host: str, port: int, orig_host: str, orig_port: int) -> Opening:
        """A connection of the guest to wherever it reaches is wanted (`-L`, `-D`, `-W`)."""

        def opened(guest: asyncssh.SSHClientConnection, end: Callable[[], End]) -> Awaitable[Any]:
            return guest.create_connection(
                end,  # type: ignore[arg-type]
                host,
                port,
                orig_host,
                orig_port,
                window=WINDOW,
                max_pktsize=MAX_PACKET,
            )

        self._room()
        channel = self._connection.create_tcp_channel(window=WINDOW, max_pktsize=MAX_PACKET)
        return channel, self._forward(self._front(), opened)

    def unix(self, path: str) -> Opening:
        """The same to a socket in the guest's file system."""

        def opened(guest: asyncssh.SSHClientConnection, end: Callable[[], End]) -> Awaitable[Any]:
            return guest.create_unix_connection(
                end,  # type: ignore[arg-type]
                path,
                window=WINDOW,
                max_pktsize=MAX_PACKET,
            )

        self._room()
        channel = self._connection.create_unix_channel(window=WINDOW, max_pktsize=MAX_PACKET)
        return channel, self._forward(self._front(), opened)

    def _front(self) -> Front:
        front = Front(self._congestion, self._fronts.discard)
        self._fronts.add(front)
        return front

    async def _forward(self, front: Front, opened: Opener) -> Front:
        """Have the guest connect; the front is joined to that as soon as its own channel is open."""
        back = Back(self._congestion)
        try:
            guest = await self._way.guest()
            await opened(guest.connection, lambda: back)
        except BaseException as error:
            self._fronts.discard(front)
            raise _refusal(error) from error
        if self._connection.is_closed():
            back.left_alone(ConnectionError())
        front.partner = back
        return front

    async def listen(self, host: str, port: int) -> asyncssh.SSHListener | None:
        """Have the guest listen, and bring who connects there to the client (`-R`); None where it does not."""
        if self._listeners >= _LISTENERS:
            return None
        self._listeners += 1
        chosen = port

        def came(orig_host: str, orig_port: int) -> Any:
            return self._bring(host, chosen, orig_host, orig_port)

        try:
            guest = await self._way.guest()
            listener = await guest.connection.create_server(
                came,
                host,
                port,
                window=WINDOW,
                max_pktsize=MAX_PACKET,
            )
        except (Unreached, asyncssh.Error, asyncssh.ChannelListenError, OSError) as error:
            log.debug("no listener in the machine: %s", error)
            self._listeners -= 1
            return None
        chosen = listener.get_port()
        if self._connection.is_closed():
            listener.close()
            return None
        return listener

    async def _bring(self, host: str, port: int, orig_host: str, orig_port: int) -> End:
        """Somebody has connected to a listener in the guest: open a channel to the client for them."""
        # Whatever else than ChannelOpenError came out of here would end the connection that all clients share.
        try:
            self._room()
            front, back = self._front(), Back(self._congestion)
            try:
                factory: Any = lambda: front  # noqa: E731
                await self._connection.create_connection(
                    factory,
                    host,
                    port,
                    orig_host,
                    orig_port,
                    window=WINDOW,
                    max_pktsize=MAX_PACKET,
                )
            except BaseException:
                self._fronts.discard(front)
                raise
        except BaseException as error:
            raise _refusal(error) from error
        back.partner = front
        return back


def _refusal(error: BaseException) -> BaseException:
    """The error as what asyncssh takes for an answer to somebody who wants a channel."""
    if isinstance(error, asyncssh.ChannelOpenError) or not isinstance(error, Exception):
        return error
    reason = str(error) if isinstance(error, Unreached) else "the machine cannot be reached now"
    if not isinstance(error, Unreached | asyncssh.Error | OSError):
        log.error("a channel was not opened: %r", error, exc_info=error)
    return asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, reason)
