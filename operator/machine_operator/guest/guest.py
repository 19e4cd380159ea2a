"""One guest, over one SSH connection: its runner, its files, its scripts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import asyncssh

from machine_operator.guest.errors import GuestError
from machine_operator.guest.files import Files
from machine_operator.guest.places import Places
from machine_operator.guest.runner import Runner
from machine_operator.guest.target import GuestTarget
from machine_operator.kubevirt.scripts import guest_script

__all__ = ["Guest"]

_END = 2.0


class Guest:
    """A connected guest. Made by `Guests.connect`; who uses it does not close it.

    Attributes:
        target: which one.
        connection: for sessions and tunnels of one's own.
        seconds: how long it took to connect and to log in.
        files: its files.
        runner: its programs.
        places: where things are in it.
    """

    def __init__(
        self,
        target: GuestTarget,
        connection: asyncssh.SSHClientConnection,
        *,
        seconds: float,
        places: Places,
    ) -> None:
        self.target, self.connection, self.seconds, self.places = (
            target,
            connection,
            seconds,
            places,
        )
        self.files = Files(connection, vm=target.vm)
        self.runner = Runner(
            connection,
            self.files,
            places=places,
            path=self._path("runner"),
            install=self._install_runner,
        )
        self._installed: set[str] = set()
        self._holds = 0

    @property
    def closed(self) -> bool:
        """It can be used no more."""
        return self.connection.is_closed()

    @property
    def in_use(self) -> bool:
        """Somebody holds it, has a session or a tunnel open, or waits for a program."""
        # asyncssh does not say how many channels there are.
        others = len(self.connection._channels) - self.runner.channels - self.files.channels
        return self._holds > 0 or self.runner.busy or others > 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Not to be ended to make room for another guest, for as long as the block runs."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    async def script(self, name: str) -> str:
        """The path in the guest of a script of ours, which is brought there where the seed was made by another version.

        Raises:
            GuestError: it cannot be written.
        """
        path = self._path(name)
        if name not in self._installed:
            if await self.files.size(path) is None:
                await self.files.make_directory(self.places.scripts)
                await self.files.write(path, guest_script(name).content.encode(), mode=0o755)
            self._installed.add(name)
        return path

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a file from `offset` on, at most `length`.

        Raises:
            FileNotFoundError: there is none.
            GuestError: it cannot be read.
        """
        return await self.files.read(path, offset=offset, length=length)

    async def write(self, path: str, data: bytes) -> None:
        """Make a file or replace it, at once.

        Raises:
            GuestError: it cannot be written.
        """
        await self.files.write(path, data)

    async def wait_closed(self) -> None:
        """Until it can be used no more."""
        await self.connection.wait_closed()

    async def close(self) -> None:
        """End the connection. Programs of the runner go on."""
        with contextlib.suppress(GuestError, TimeoutError):
            await asyncio.wait_for(self.runner.close(), _END)
        self.files.close()
        self.connection.close()
        try:
            await asyncio.wait_for(self.connection.wait_closed(), _END)
        except TimeoutError:
            self.connection.abort()
            await self.connection.wait_closed()

    def _path(self, name: str) -> str:
        return f"{self.places.scripts}/{guest_script(name).path.rpartition('/')[2]}"

    async def _install_runner(self) -> str:
        return await self.script("runner")
