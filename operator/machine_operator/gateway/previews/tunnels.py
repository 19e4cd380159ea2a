"""Streams to a port of a guest: channels of its warm SSH connection, with TLS inside where that is spoken there.

A channel is read by whoever has it, piece by piece: while nobody reads, the guest may send a window full and no more;
while the guest does not take what it is sent, `write` waits.

A service that listens on all addresses or on the guest's 127.0.0.1 is found at 127.0.0.1; where nothing answers
there, ::1 is tried, since some development servers listen on nothing else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

import asyncssh
from typing_extensions import override

from machine_operator.guest.errors import GuestLost, GuestUnreachable

if TYPE_CHECKING:
    from machine_operator.guest.guest import Guest

__all__ = ["PortClosed", "Stream", "StreamLost", "open_stream"]

_HOSTS: Final = ("127.0.0.1", "::1")
_WINDOW: Final = 256 * 1024
"""Bytes that a guest may send ahead."""
_KEPT: Final = 64 * 1024
"""Bytes that are taken from the channel before anybody wants them."""
_OPEN_SECONDS: Final = 10.0
_RECORD: Final = 64 * 1024


class PortClosed(Exception):
    """Nothing answers at the port, or not in the way that it should; the message says what is the case."""


class StreamLost(Exception):
    """The stream broke: its connection is gone, or it was closed on our side."""


class Stream(Protocol):
    """Bytes to and from a port of a guest."""

    @property
    def usable(self) -> bool:
        """Whether another request may be sent over it: it is open, and nothing unread is in it."""
        ...

    async def read(self) -> bytes:
        """The next bytes; none at the end.

        Raises:
            StreamLost: it broke.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Send, and wait while too much is on its way.

        Raises:
            StreamLost: it broke.
        """
        ...

    def close(self) -> None:
        """Let it go, whatever is in it. Whoever reads or writes finds it lost."""
        ...


async def open_stream(guest: Guest, port: int, *, tls: bool) -> Stream:
    """Connect to a port of a guest.

    Raises:
        PortClosed: nothing answers there.
        GuestLost: the connection to the guest broke.
        GuestUnreachable: the guest does not answer in time.
    """
    for host in _HOSTS:
        try:
            channel = await _open(guest, host, port)
        except asyncssh.ChannelOpenError as error:
            if guest.closed:
                raise GuestLost(f"the connection to {guest.target.vm} broke") from error
            if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
                raise PortClosed("the machine's sshd forwards no connections") from error
        else:
            return await _Tls.shake(channel) if tls else channel
    raise PortClosed(f"nothing listens at port {port} of the machine")


async def _open(guest: Guest, host: str, port: int) -> _Channel:
    session = _Channel()
    opening = asyncio.ensure_future(
        guest.connection.create_connection(lambda: session, host, port, window=_WINDOW)
    )
    try:
        async with asyncio.timeout(_OPEN_SECONDS):
            # asyncssh never closes a channel whose opening was cancelled: the guest's end would stay open.
            await asyncio.shield(opening)
    except TimeoutError:
        opening.add_done_callback(_discard)
        raise GuestUnreachable(
            f"{guest.target.vm} did not connect to its port {port} within {_OPEN_SECONDS:g} s"
        ) from None
    except asyncio.CancelledError:
        opening.add_done_callback(_discard)
        raise
    except (asyncssh.ConnectionLost, OSError) as error:
        raise GuestLost(f"the connection to {guest.target.vm} broke") from error
    return session


def _discard(opening: asyncio.Future[tuple[Any, Any]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()


class _Channel(asyncssh.SSHTCPSession[bytes]):
    """A stream as asyncssh sees it."""

    def __init__(self) -> None:
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._ended = self._lost = False
        self._reader: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # ---- what asyncssh calls

    @override
    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan

    @override
    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._pieces.append(data)
        self._size += len(data)
        if self._size > _KEPT and not self._paused and self._channel is not None:
            self._paused = True
            self._channel.pause_reading()
        self._wake()

    @override
    def eof_received(self) -> bool:
        self._ended = True
        self._wake()
        return True

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._wake()
        self._writable.set()

    @override
    def pause_writing(self) -> None:
        self._writable.clear()

    @override
    def resume_writing(self) -> None:
        self._writable.set()

    # ---- what we call

    @property
    def usable(self) -> bool:
        return not (self._pieces or self.over)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._ended or self._lost

    async def read(self) -> bytes:
        while not self._pieces:
            if self._ended:
                return b""
            if self._lost:
                raise StreamLost("the connection broke")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if self._paused and self._channel is not None:
            self._paused = False
            self._channel.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        if self._lost or self._channel is None or self._channel.is_closing():
            raise StreamLost("the connection broke")
        self._channel.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
            if self._lost:
                raise StreamLost("the connection broke")

    def close(self) -> None:
        self._lost = True
        self._pieces.clear()
        if self._channel is not None:
            self._channel.abort()
            self._channel = None
        self._wake()
        self._writable.set()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class _Tls:
    """TLS inside of a channel. Certificates are not looked at: the way there is SSH, and the guest makes its own."""

    def __init__(self, channel: _Channel) -> None:
        self._channel = channel
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = _context().wrap_bio(self._in, self._out, server_hostname="localhost")

    @classmethod
    async def shake(cls, channel: _Channel) -> _Tls:
        """Agree on keys.

        Raises:
            PortClosed: no TLS is spoken there.
        """
        self = cls(channel)
        done = False
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                while not await self._try_to_shake():
                    pass
            done = True
        except (ssl.SSLError, StreamLost, TimeoutError) as error:
            raise PortClosed("what listens at the port does not speak TLS") from error
        finally:
            if not done:
                channel.close()
        return self

    @property
    def usable(self) -> bool:
        # Unread bytes may be tickets for a session to come, which TLS 1.3 sends after the handshake.
        return not (self._channel.over or self._tls.pending())

    async def read(self) -> bytes:
        while True:
            try:
                # A clean end reads as nothing at all; many servers just hang up.
                return self._tls.read(_RECORD)
            except ssl.SSLWantReadError:
                await self._flush()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise StreamLost("the guest broke off TLS") from error
            await self._feed()

    async def write(self, data: bytes) -> None:
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise StreamLost("the guest broke off TLS") from error
        await self._flush()

    def close(self) -> None:
        self._channel.close()

    async def _try_to_shake(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            await self._flush()
            await self._feed()
            return False
        await self._flush()
        return True

    async def _feed(self) -> None:
        data = await self._channel.read()
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    async def _flush(self) -> None:
        if self._out.pending:
            await self._channel.write(self._out.read())


@cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context
