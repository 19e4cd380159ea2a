"""A channel of an SSH client and a channel to its machine, joined: whatever comes out of one goes into the other.

    client ── Front ══ Back ── guest

Each end hands data on at once and keeps none. Where an end cannot get rid of what it is given, the other one stops
reading; what then has come already is at most a window, after which its sender has to wait. Two things hold an end up:
its channel's window is used up, or the connection below does not take more. asyncssh tells of the first one, but writes
to a connection without end, so of that we keep an eye ourselves: the window is whatever a hostile receiver says it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from asyncssh.channel import SSHChannel
from asyncssh.connection import SSHConnection
from typing_extensions import override

__all__ = ["MAX_PACKET", "WINDOW", "Back", "Congestion", "End", "Front", "join"]

WINDOW: Final = 1024 * 1024
"""Bytes that may come from one channel before it has to wait."""
MAX_PACKET: Final = 32 * 1024
_HIGH, _LOW = 1024 * 1024, 256 * 1024
"""Bytes in a connection's own buffer at which its writers stop, and go on."""
_LOOK: Final = 0.02
"""Seconds between two looks at such a buffer."""
_LAST_WORDS: Final = 30.0
"""Seconds for a guest to take what a client had sent before it closed."""


class Congestion:
    """Stops those who write to a connection that does not get rid of it."""

    def __init__(self) -> None:
        self._stopped: dict[End, SSHConnection] = {}
        self._timer: asyncio.TimerHandle | None = None

    def written(self, connection: SSHConnection, source: End) -> None:
        """Something that came from `source` was written to that connection."""
        if _unsent(connection) > _HIGH and source not in self._stopped:
            self._stopped[source] = connection
            source.stop(self)
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def close(self) -> None:
        """Forget all."""
        self._stopped.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        free = [end for end, into in self._stopped.items() if _unsent(into) <= _LOW]
        for end in free:
            del self._stopped[end]
        for end in free:
            end.go_on(self)
        if self._stopped and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)


def _unsent(connection: SSHConnection) -> int:
    """Bytes that wait in the connection's transport, to which asyncssh gives no other way."""
    transport: asyncio.WriteTransport | None = getattr(connection, "_transport", None)
    return 0 if transport is None else transport.get_write_buffer_size()


class End:
    """One end. asyncssh calls its methods, in which nothing may be raised: that would end the whole connection.

    Args:
        congestion: of the client's connection and the guest's.

    Attributes:
        channel: while it is open.
        partner: the other end, where that was opened first: they are joined as soon as this one is open too.
    """

    def __init__(self, congestion: Congestion) -> None:
        self._congestion = congestion
        self.channel: SSHChannel[bytes] | None = None
        self.partner: End | None = None
        self._peer: End | None = None
        self._held: list[tuple[bytes, int | None]] = []
        self._at_end = False
        self._reasons: set[object] = set()

    # ---- called by asyncssh

    def connection_made(self, chan: Any) -> None:
        """The channel is open."""
        self.channel = chan
        if self.partner is not None:
            join(self, self.partner)

    def session_started(self) -> None:
        """Data may come."""

    def data_received(self, data: bytes, datatype: int | None = None) -> None:
        """Hand it on, or keep it for a peer that is still to come, and let no more in."""
        if self._peer is not None:
            self._peer.send(data, datatype)
        else:
            self._held.append((data, datatype))
            self.stop(self)

    def eof_received(self) -> bool:
        """No more will come from there; what goes there can go on."""
        self._at_end = True
        if self._peer is not None:
            self._peer.send_end()
        return True

    def pause_writing(self) -> None:
        """The channel's window is used up."""
        if self._peer is not None:
            self._peer.stop(self)

    def resume_writing(self) -> None:
        """There is room again."""
        if self._peer is not None:
            self._peer.go_on(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed."""
        peer, self.channel, self._peer = self._peer, None, None
        if peer is not None:
            peer.left_alone(exc)

    # ---- called by the peer

    def take(self, peer: End) -> None:
        """From now on what comes goes to `peer`, beginning with what has come already."""
        self._peer = peer
        held, self._held = self._held, []
        for data, datatype in held:
            peer.send(data, datatype)
        if self._at_end:
            peer.send_end()
        self.go_on(self)

    def send(self, data: bytes, datatype: int | None) -> None:
        """Write what came from the peer."""
        if self.channel is None:
            return
        # It may have been closed a moment ago, or not know this kind of data; then nobody misses it.
        with contextlib.suppress(OSError):
            self.channel.write(data, datatype)
            if self._peer is not None:
                self._congestion.written(self.channel.get_connection(), self._peer)

    def send_end(self) -> None:
        """The peer will send no more."""
        if self.channel is not None:
            self.channel.write_eof()

    def stop(self, reason: object) -> None:
        """Read no more for a reason."""
        if not self._reasons and self.channel is not None:
            self.channel.pause_reading()
        self._reasons.add(reason)

    def go_on(self, reason: object) -> None:
        """That reason is gone."""
        if reason in self._reasons:
            self._reasons.remove(reason)
            if not self._reasons and self.channel is not None:
                self.channel.resume_reading()

    def left_alone(self, exc: Exception | None) -> None:
        """The peer's channel is closed; `exc` says what happened to its connection, if that is why."""
        self._peer = None
        self.close()

    def close(self) -> None:
        """Close the channel once what was written is sent."""
        if self.channel is not None:
            self.channel.close()


class Front(End):
    """The client's end.

    Args:
        gone: is told when it is closed.
    """

    def __init__(self, congestion: Congestion, gone: Callable[[Front], None]) -> None:
        super().__init__(congestion)
        self._gone = gone

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gone(self)


class Back(End):
    """The guest's end."""

    @override
    def left_alone(self, exc: Exception | None) -> None:
        """The client's channel is closed. A guest that does not take the rest of the data does not get it."""
        channel, self._peer = self.channel, None
        if channel is None:
            return
        if exc is not None:
            channel.abort()
            return
        channel.close()
        if channel.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_LAST_WORDS, channel.abort)


def join(one: End, other: End) -> None:
    """Let them talk to each other. Both are open, or were."""
    one.take(other)
    other.take(one)
    for end, peer in ((one, other), (other, one)):
        if end.channel is None:
            peer.left_alone(None)
