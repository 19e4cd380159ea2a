"""The runner's process in the guest, for one connection: lines in, lines out (`scripts/runner.sh`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable

import asyncssh
from typing_extensions import override

from machine_operator.guest.errors import GuestError, GuestLost
from machine_operator.guest.job import quoted
from machine_operator.guest.places import Places
from machine_operator.guest.spool import Reply, parse

__all__ = ["Channel"]

log = logging.getLogger(__name__)

_READY = 30.0
_CLOSE = 1.0
_LONGEST_LINE = 65536


class Channel:
    """One process. Made by `Channel.open`.

    Attributes:
        token: with which it marks its lines; the files of its jobs begin with it.
        lost: is set when it has ended, or cannot be reached any more.
    """

    def __init__(
        self,
        *,
        token: str,
        on_reply: Callable[[Reply], None],
        on_lost: Callable[[Channel], None],
    ) -> None:
        self.token = token
        self.lost = asyncio.Event()
        self._on_reply, self._on_lost = on_reply, on_lost
        self._ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._status: int | None = None
        self._rest = b""

    @classmethod
    async def open(
        cls,
        connection: asyncssh.SSHClientConnection,
        *,
        places: Places,
        install: Callable[[], Awaitable[str]],
        path: str,
        patience: int,
        on_reply: Callable[[Reply], None],
        on_lost: Callable[[Channel], None],
    ) -> Channel:
        """Start it, and install it first where it is not there.

        Raises:
            GuestError: it cannot be started; GuestLost: the connection broke.
        """
        for attempt in range(2):
            channel = cls(token=secrets.token_hex(6), on_reply=on_reply, on_lost=on_lost)
            try:
                if await channel._start(
                    connection, _command(places, path, channel.token, patience)
                ):
                    return channel
            except BaseException:
                await channel.close()
                raise
            status = channel._status
            await channel.close()
            if status is None:
                raise GuestLost("the runner does not start: the connection broke")
            if attempt:
                raise GuestError(f"the runner does not start: it ended with {status}")
            # Shells differ in what they end with where the script is not there.
            path = await install()
        raise AssertionError("it returns or raises")

    async def send(self, line: bytes) -> None:
        """One request; waits while the guest does not take more.

        Raises:
            GuestLost: it has ended.
        """
        if not self.send_soon(line):
            raise GuestLost("the runner has ended")
        await self._flowing.wait()

    def send_soon(self, line: bytes) -> bool:
        """One short request for which nobody waits; False: it has ended."""
        if self._channel is None or self.lost.is_set():
            return False
        try:
            self._channel.write(line + b"\n")
        except (asyncssh.Error, OSError):  # it is being closed
            return False
        return True

    async def close(self) -> None:
        """End it; what it has started goes on."""
        self._lose()
        if self._channel is not None:
            with contextlib.suppress(asyncssh.Error, OSError, TimeoutError):
                await asyncio.wait_for(self._channel.wait_closed(), _CLOSE)

    async def _start(self, connection: asyncssh.SSHClientConnection, command: str) -> bool:
        try:
            async with asyncio.timeout(_READY):
                self._channel, _ = await connection.create_session(
                    lambda: _Session(self), command, encoding=None
                )
                return await self._ready
        except TimeoutError as error:
            raise GuestLost(f"the runner says nothing within {_READY:g} s") from error
        except (asyncssh.Error, OSError) as error:
            raise GuestLost(f"the runner cannot be started: {error}") from error

    def _receive(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            reply = parse(line, token=self.token)
            if reply is None:
                log.debug("runner %s: a line that is not ours", self.token)
            elif reply.verb != "ready":
                self._on_reply(reply)
            elif not self._ready.done():
                self._ready.set_result(True)
        if len(self._rest) > _LONGEST_LINE:
            self._rest = b""  # whatever writes that is not the runner

    def _flow(self, flowing: bool) -> None:
        (self._flowing.set if flowing else self._flowing.clear)()

    def _lose(self, status: int | None = None) -> None:
        if self.lost.is_set():
            return
        self._status = status
        if self._channel is not None:
            self._channel.close()
        self.lost.set()
        self._flowing.set()
        if not self._ready.done():
            self._ready.set_result(False)
        self._on_lost(self)


class _Session(asyncssh.SSHClientSession[bytes]):
    """What asyncssh tells.

    The end of the process is not the end of its output: the jobs' keepers have that, too.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @override
    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if datatype is None:  # not its errors
            self._channel._receive(data)

    @override
    def pause_writing(self) -> None:
        self._channel._flow(False)

    @override
    def resume_writing(self) -> None:
        self._channel._flow(True)

    @override
    def exit_status_received(self, status: int) -> None:
        self._channel._lose(status)

    @override
    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._channel._lose(-1)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._channel._lose()


def _command(places: Places, path: str, token: str, patience: int) -> str:
    words = [path, "serve", places.spool, places.artifacts, token, str(patience)]
    return f"exec {places.shell} " + " ".join(quoted(word).decode() for word in words)
