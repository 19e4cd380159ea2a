"""A guest with terminals: the tests' sshd, a plain connection to it, and a directory in memory that is removed."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from machine_operator.guest.target import GuestTarget
from machine_operator.kubevirt.scripts import guest_script
from tests.support.sshd import SshServer, ssh_server

__all__ = ["PlainGuest", "TerminalGuest", "terminal_guest"]


@dataclass
class PlainGuest:
    """One connection to a guest, with as much of `Guest` as terminals need."""

    target: GuestTarget
    connection: asyncssh.SSHClientConnection
    scripts: Path

    async def script(self, name: str) -> str:
        """The path of a script."""
        script = guest_script(name)
        path = self.scripts / Path(script.path).name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(script.content)
        return str(path)


@dataclass
class TerminalGuest:
    """A guest.

    Attributes:
        server: its sshd.
        root: where it keeps its terminals.
    """

    server: SshServer
    root: str

    @asynccontextmanager
    async def connected(self, *, instance_uid: str = "boot-1") -> AsyncIterator[PlainGuest]:
        """A connection of its own, for as long as the block runs."""
        guest = await self.connect(instance_uid=instance_uid)
        try:
            yield guest
        finally:
            guest.connection.close()
            await guest.connection.wait_closed()

    async def connect(self, *, instance_uid: str = "boot-1") -> PlainGuest:
        """A connection of its own, to be closed by who asked for it."""
        server, now = self.server, int(time.time())
        key = asyncssh.generate_private_key("ssh-ed25519")
        line = key.export_public_key().decode().strip()
        certificate = server.user_authority.certify_user(
            line,
            key_id="test",
            principals=[server.vm],
            valid_after=now - 60,
            valid_before=now + 600,
            extensions=["permit-pty"],
        )
        connection = await asyncssh.connect(
            "127.0.0.1",
            server.port,
            username=server.user,
            client_keys=[(key, asyncssh.import_certificate(certificate))],
            known_hosts=None,
            config=None,
            agent_path=None,
        )
        return PlainGuest(
            server.target(instance_uid=instance_uid), connection, Path(server.places.scripts)
        )

    def keeps(self, id: str) -> Path:
        """Where it keeps one terminal."""
        return Path(self.root) / id


@asynccontextmanager
async def terminal_guest(
    directory: Path, *, settings: Sequence[str] = (), root: Path | None = None
) -> AsyncIterator[TerminalGuest]:
    """Run one for as long as the block runs."""
    # In memory, as in a guest: there `tail` hears of changes, which it does not on an overlay.
    kept = root or Path(tempfile.mkdtemp(prefix="terminals-", dir="/dev/shm"))
    try:
        async with ssh_server(directory, settings=settings) as server:
            (server.home / ".bashrc").write_text("echo noise of a start-up file\n")
            yield TerminalGuest(server, str(kept))
    finally:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(kept)
