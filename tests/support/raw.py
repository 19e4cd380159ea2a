"""HTTP by hand: bytes to a port on loopback, and the bytes that come back."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import uvloop

__all__ = ["PATIENCE", "Line", "eventually", "on_uvloop", "says"]

PATIENCE = 10.0


class Line:
    """One connection, as a client sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> Line:
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**20))

    async def send(self, data: bytes) -> None:
        """Send, and wait until most of it is on its way.

        Raises:
            OSError: the server has gone.
        """
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), PATIENCE)

    async def until(self, mark: bytes) -> bytes:
        """What comes, up to and with `mark`."""
        return await asyncio.wait_for(self.reader.readuntil(mark), PATIENCE)

    async def answer(self) -> bytes:
        """One answer with a content length."""
        head = await self.until(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        length = int(fields[b"content-length"])
        return head + await asyncio.wait_for(self.reader.readexactly(length), PATIENCE)

    async def rest(self) -> bytes:
        """All that comes until the server ends the connection, one way or other."""
        received = b""
        async with asyncio.timeout(PATIENCE):
            try:
                while data := await self.reader.read(2**16):
                    received += data
            except ConnectionError:
                pass
        return received

    async def close(self) -> None:
        """Hang up."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def says(port: int, data: bytes) -> bytes:
    """What a server answers to `data` until it ends the connection."""
    line = await Line.open(port)
    try:
        await line.send(data)
        return await line.rest()
    finally:
        await line.close()


async def eventually(holds: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Wait until something holds.

    Raises:
        AssertionError: with `otherwise`; it does not.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not await holds():
        assert loop.time() < deadline, otherwise
        await asyncio.sleep(0.01)


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loop that the gateway has."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        uvloop.run(test(*args, **kwargs))

    return run
