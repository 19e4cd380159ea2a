"""A guest's files: one SFTP session for each connection, opened when it is first needed, and kept.

Every step has a deadline: a named pipe or a dead disk in the guest would hold the session for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncGenerator, Awaitable
from typing import TypeVar, cast

import asyncssh

from machine_operator.guest.errors import GuestError, GuestLost

__all__ = ["Files"]

T = TypeVar("T")

_BLOCK = 255 * 1024
"""Of one request: the most that OpenSSH's server gives. Each is work for the guest however small it is."""
_CHUNK = 4 * _BLOCK
"""What is under way together."""
_DEADLINE = 30.0


class Files:
    """Files of one guest, by absolute path."""

    def __init__(self, connection: asyncssh.SSHClientConnection, *, vm: str) -> None:
        self._connection = connection
        self._vm = vm
        self._opening: asyncio.Task[asyncssh.SFTPClient] | None = None

    @property
    def channels(self) -> int:
        """Channels of the connection that are its own."""
        return int(self._opening is not None)

    async def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of it from `offset` on, at most `length`.

        Raises:
            FileNotFoundError: there is none.
            GuestError: it cannot be read; GuestLost: the connection broke.
        """
        pieces = [piece async for piece in self.stream(path, offset=offset, length=length)]
        return b"".join(pieces)

    async def stream(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The same, piece by piece; one is on its way while the one before it is used."""
        sftp = await self._session()
        file = await self._step(path, sftp.open(path, "rb", block_size=_BLOCK))
        ahead: asyncio.Task[bytes] | None = None

        async def fetch() -> bytes:
            want = _CHUNK if length is None else min(length, _CHUNK)
            # It was opened as binary.
            return cast(bytes, await self._step(path, file.read(want, offset)))

        try:
            while length is None or length > 0:
                data = await (ahead or fetch())
                ahead = None
                if not data:
                    return
                offset += len(data)
                length = None if length is None else length - len(data)
                if length is None or length > 0:
                    ahead = asyncio.create_task(fetch())
                yield data
        finally:
            if ahead is not None:
                ahead.cancel()
                await asyncio.gather(ahead, return_exceptions=True)
            with contextlib.suppress(asyncssh.Error, OSError):
                await file.close()

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Make it or replace it, at once: nobody ever sees half of it.

        Raises:
            GuestError: it cannot be written; GuestLost: the connection broke.
        """
        sftp = await self._session()
        part = f"{path}.{os.urandom(4).hex()}~"
        attributes = asyncssh.SFTPAttrs(permissions=mode)
        try:
            file = await self._step(path, sftp.open(part, "wb", attributes))
            try:
                for start in range(0, len(data), _CHUNK):
                    await self._step(path, file.write(data[start : start + _CHUNK], start))
            finally:
                with contextlib.suppress(asyncssh.Error, OSError):
                    await file.close()
            await self._step(path, sftp.posix_rename(part, path))
        except FileNotFoundError as error:
            raise GuestError(f"{self._vm}: {path}: there is no such directory") from error
        except BaseException:
            with contextlib.suppress(GuestError, FileNotFoundError):
                await self._step(part, sftp.remove(part))
            raise

    async def make_directory(self, path: str) -> None:
        """Make it and those above it, unless they are there."""
        sftp = await self._session()
        await self._step(path, sftp.makedirs(path, exist_ok=True))

    async def size(self, path: str) -> int | None:
        """Of a regular file or what a link leads to; None: there is none."""
        sftp = await self._session()
        try:
            found = await self._step(path, sftp.stat(path))
        except FileNotFoundError:
            return None
        return found.size or 0

    async def regular_files(self, path: str, *, most: int) -> list[tuple[str, int]]:
        """Names relative to the directory, and sizes, of the first `most` regular files below it, sorted.

        Links are not followed. A directory that is not there has none.
        """
        sftp = await self._session()
        found: list[tuple[str, int]] = []
        waiting = [""]
        while waiting and len(found) < most:
            below = waiting.pop()
            try:
                entries = await self._step(path, _entries(sftp, f"{path}/{below}", most=most))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for name, mode, size in sorted(entries):
                if stat.S_ISDIR(mode):
                    waiting.append(f"{below}{name}/")
                elif stat.S_ISREG(mode) and len(found) < most:
                    found.append((below + name, size))
        return sorted(found)

    def close(self) -> None:
        """End the session."""
        if self._opening is not None:
            if self._opening.done() and not self._opening.cancelled():
                if self._opening.exception() is None:
                    self._opening.result().exit()
            else:
                self._opening.cancel()
            self._opening = None

    async def _session(self) -> asyncssh.SFTPClient:
        if self._opening is None:
            # A name that is no UTF-8 is to be a name all the same.
            opening = self._connection.start_sftp_client(
                path_encoding="utf-8", path_errors="surrogateescape"
            )
            self._opening = asyncio.ensure_future(opening)
        opening_task = self._opening
        try:
            return await self._step("SFTP", asyncio.shield(opening_task))
        except GuestError:
            if self._opening is opening_task:
                self._opening = None
            raise

    async def _step(self, path: str, work: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(work, _DEADLINE)
        except asyncssh.SFTPNoSuchFile as error:
            raise FileNotFoundError(path) from error
        except asyncssh.SFTPNoSuchPath as error:
            raise FileNotFoundError(path) from error
        except asyncssh.SFTPConnectionLost as error:
            raise self._lost(error) from error
        except asyncssh.SFTPNoConnection as error:
            raise self._lost(error) from error
        except asyncssh.SFTPError as error:
            raise GuestError(f"{self._vm}: {path}: {error.reason}") from error
        except TimeoutError as error:
            self.close()
            raise GuestLost(f"{self._vm}: {path}: no answer within {_DEADLINE:g} s") from error
        except (asyncssh.Error, OSError) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> GuestLost:
        self.close()
        return GuestLost(f"{self._vm}: the connection broke: {error}")


async def _entries(
    sftp: asyncssh.SFTPClient, path: str, *, most: int
) -> list[tuple[str, int, int]]:
    """Name, mode and size of the first ones in a directory."""
    found: list[tuple[str, int, int]] = []
    async for entry in sftp.scandir(path):
        if entry.filename not in (".", ".."):
            attributes = entry.attrs
            found.append((str(entry.filename), attributes.permissions or 0, attributes.size or 0))
        if len(found) >= most:
            break
    return found
