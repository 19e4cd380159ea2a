"""QEMU's machine protocol, as far as we need it: one JSON object per line over a UNIX socket.

A UNIX socket's path holds at most 107 bytes, which a data directory may well exceed: it is reached
through /proc/self/fd instead. The socket's other end is known by its credentials, so a QEMU whose
pid was never written down (we were killed right after starting it) can still be found.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

__all__ = ["Qmp", "QmpError"]

log = logging.getLogger(__name__)

_LINE = 2**20


class QmpError(Exception):
    """QEMU refused a command, or the connection is gone."""


class Qmp:
    """A connection to one QEMU. QEMU serves one client at a time.

    Args:
        on_event: called with (name, data) of each event.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        on_event: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.closed = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._sequence = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        path: Path,
        *,
        on_event: Callable[[str, dict[str, Any]], None] = lambda name, data: None,
        timeout: float = 5.0,
    ) -> Qmp:
        """Connect and leave the negotiation mode.

        Raises:
            QmpError: nobody listens, somebody else is connected, or it is no QMP.
        """
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await _open(path)
                greeting = orjson.loads(await reader.readline() or b"{}")
                if "QMP" not in greeting:
                    writer.close()
                    raise QmpError(f"{path} does not speak QMP")
                connection = cls(reader, writer, on_event=on_event)
                connection._task = asyncio.create_task(connection._receive())
                await connection.execute("qmp_capabilities", timeout=timeout)
                return connection
        except (OSError, TimeoutError, orjson.JSONDecodeError) as error:
            raise QmpError(f"no QMP connection at {path}: {error or 'no answer'}") from error

    @property
    def peer(self) -> int:
        """The pid of the QEMU at the other end."""
        end: socket.socket = self._writer.get_extra_info("socket")
        credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    async def execute(
        self, command: str, arguments: dict[str, Any] | None = None, *, timeout: float = 10.0
    ) -> Any:
        """Run a command and return its result.

        Raises:
            QmpError: QEMU refused it, did not answer in `timeout` seconds, or is gone.
        """
        if self.closed.is_set():
            raise QmpError(f"{command}: the connection is closed")
        self._sequence += 1
        request = {"execute": command, "id": self._sequence}
        if arguments:
            request["arguments"] = arguments
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._sequence] = future
        number = self._sequence
        try:
            self._writer.write(orjson.dumps(request) + b"\n")
            async with asyncio.timeout(timeout):
                await self._writer.drain()
                return await future
        except (OSError, TimeoutError) as error:
            raise QmpError(f"{command}: no answer from QEMU: {error or f'{timeout} s'}") from error
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """End the connection; QEMU goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _receive(self) -> None:
        try:
            while line := await self._reader.readline():
                self._dispatch(orjson.loads(line))
        except (OSError, ValueError) as error:
            log.debug("QMP connection ended: %s", error)
        finally:
            self.closed.set()
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(QmpError("QEMU closed the connection"))

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._on_event(message["event"], message.get("data") or {})
            return
        future = self._waiting.get(message.get("id", -1))
        if future is None or future.done():
            return
        if "error" in message:
            future.set_exception(QmpError(str(message["error"].get("desc", message["error"]))))
        else:
            future.set_result(message.get("return"))


async def _open(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        return await asyncio.open_unix_connection(
            f"/proc/self/fd/{directory}/{path.name}", limit=_LINE
        )
    finally:
        os.close(directory)
