"""Shells in a guest that outlive the connections of their users, by `scripts/terminal.sh`.

The guest keeps what a shell has put out, by offset, and who attaches says where to go on; so nothing is lost or comes
twice, whichever gateway attaches, and after whatever. An attachment is one channel for both directions. Nothing is
kept without bound on the way: who does not read makes the channel's window close, the guest's keeper stop, the pty
fill, and the shell wait; and `write` waits for a shell that does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from typing_extensions import override

from machine_operator.guest.errors import GuestError, GuestLost, GuestUnreachable

if TYPE_CHECKING:
    from machine_operator.guest.guest import Guest

__all__ = ["Attachment", "GuestTerminals", "Shell", "TerminalUnavailable"]

_WINDOW: Final = 64 * 1024
"""Bytes of output that may be on their way. As many again may wait here."""
_PACKET: Final = 32 * 1024
_SECONDS: Final = 20.0
"""For one of our own commands in a guest that is slow."""
_CLOSE_SECONDS: Final = 5.0
_MARK: Final = b"machine-terminal\n"
_LONGEST_NOISE: Final = 64 * 1024
_MISSING: Final = 69
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,99}")
_ROOT = re.compile(r"-|/[A-Za-z0-9/._-]+")


class TerminalUnavailable(GuestError):
    """The guest lacks a program without which it can have no terminals; the message names it."""


@dataclass(frozen=True, slots=True)
class Shell:
    """What is wanted.

    Attributes:
        id: of the terminal.
        program: absolute path.
        directory: where it begins.
        columns, rows: of its window.
        env: added to its environment.
        detached: seconds that it may live with nobody attached.
        lifetime: seconds that it may live at all.
    """

    id: str
    program: str = "/bin/bash"
    directory: str = "/root"
    columns: int = 80
    rows: int = 24
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    detached: float = 600.0
    lifetime: float = 86400.0


class GuestTerminals:
    """The terminals of one guest.

    Args:
        guest: the way in.
        root: the directory where they are kept; "-" is a file system in memory of the guest's own.
    """

    def __init__(self, guest: Guest, *, root: str = "-") -> None:
        if not _ROOT.fullmatch(root):
            raise ValueError(f"{root!r} is no place for terminals")
        self._guest = guest
        self._root = root

    async def start(self, shell: Shell) -> None:
        """Start a shell, once in each boot of the guest: later calls for the same id do nothing.

        Raises:
            TerminalUnavailable: this guest cannot.
            GuestError: it is not known whether it was started.
        """
        words = (shell.columns, shell.rows, max(1, int(shell.detached)), int(shell.lifetime))
        await self._run("start", shell.id, *words, input=_profile(shell))

    async def attach(self, id: str, *, offset: int | None = None) -> Attachment | None:
        """Connect to a shell; None where it was not started in this boot.

        Args:
            id: of the terminal.
            offset: where to go on in its output; None for what is kept of it, the last 256 KiB at least. Where that
                is not kept any more, the oldest that is.

        Raises:
            GuestError: there is no connection.
        """
        command = await self._command("attach", id, "-" if offset is None else offset)
        session = Attachment()
        with _told(f"attaching to terminal {id}"):
            async with asyncio.timeout(_SECONDS):
                try:
                    await self._guest.connection.create_session(
                        lambda: session,
                        command,
                        encoding=None,
                        window=_WINDOW,
                        max_pktsize=_PACKET,
                    )
                    found = await session.begun()
                except BaseException:
                    session.abort()
                    raise
        return session if found else None

    async def resize(self, id: str, *, columns: int, rows: int) -> None:
        """Give its window another size."""
        await self._run("resize", id, columns, rows)

    async def kill(self, id: str) -> None:
        """End a shell and what it runs: HUP, and KILL for what is left after two seconds. It will not start again."""
        await self._run("kill", id)

    async def _run(self, verb: str, id: str, *words: object, input: bytes = b"") -> None:
        command = await self._command(verb, id, *words)
        with _told(f"{verb} of terminal {id}"):
            async with asyncio.timeout(_SECONDS):
                done = await self._guest.connection.run(
                    command, input=input, encoding=None, check=False
                )
        if done.exit_status == 0:
            return
        raw = done.stderr or b""
        said = (raw if isinstance(raw, str) else raw.decode(errors="replace")).strip()[-200:]
        if done.exit_status == _MISSING and "missing " in said:
            program = said.rpartition("missing ")[2]
            raise TerminalUnavailable(
                f"the guest has no {program}, which terminals need: install it in the machine's image"
            )
        raise GuestError(f"{verb} of terminal {id} failed with {done.exit_status}: {said}")

    async def _command(self, verb: str, id: str, *words: object) -> str:
        if not _ID.fullmatch(id):
            raise ValueError(f"{id!r} is no id of a terminal")
        path = await self._guest.script("terminal")
        return shlex.join(["exec", "sh", path, self._root, verb, id, *map(str, words)])


class Attachment(asyncssh.SSHClientSession[bytes]):
    """A connection to a shell. Made by `GuestTerminals.attach`.

    Attributes:
        offset: where the next byte that is read stands in the shell's output.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._output = bytearray()
        self._said = bytearray()  # on stderr
        self._marked = False
        self._place: int | None = None
        self._absent = False
        self._end: int | None = None
        self._lost = False
        self._pausing = False
        self._blocked = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def read(self) -> bytes:
        """What has come since the last call, at least one byte; b"" where the shell has ended and that was all.

        Raises:
            GuestLost: the connection broke; the shell may live.
        """
        while not self._output:
            if self._end is not None and self.offset >= self._end:
                return b""
            if self._lost:
                raise GuestLost("the connection to the terminal broke")
            await self._news()
        data = bytes(self._output)
        self._output.clear()
        self.offset += len(data)
        if self._pausing and self._channel is not None:
            self._pausing = False
            self._channel.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Type something; waits while much of it is not taken. After the end of the shell it goes nowhere.

        Raises:
            GuestLost: the connection broke.
        """
        if self._end is not None:
            return
        try:
            if self._channel is None or self._lost:
                raise BrokenPipeError
            self._channel.write(data)
        except OSError as error:
            raise GuestLost("the connection to the terminal broke") from error
        while self._blocked and not self._over:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    async def close(self) -> None:
        """Detach. What was typed before still arrives; the shell lives on."""
        channel = self._channel
        if channel is None or self._lost:
            return
        channel.close()
        if self._pausing:
            self._output.clear()
            channel.resume_reading()  # else the other side's end would not be looked at
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await channel.wait_closed()
        except TimeoutError:
            self.abort()

    def abort(self) -> None:
        """Detach without waiting for anything."""
        if self._channel is not None:
            self._channel.abort()

    async def begun(self) -> bool:
        """Return once it is known where the output goes on; False where there is no such shell."""
        while not self._absent and (self._place is None or not self._marked):
            if self._lost:
                said = self._said.decode(errors="replace").strip()[-200:]
                raise GuestLost(f"the connection to the terminal broke before it began: {said}")
            await self._news()
        self.offset = self._place or 0
        return not self._absent

    @property
    def _over(self) -> bool:
        return self._lost or self._end is not None

    async def _news(self) -> None:
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader

    def _wake(self) -> None:
        for waiter in (self._reader, self._writer):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    # ---- what asyncssh calls

    @override
    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    @override
    def data_received(self, data: bytes, datatype: Any) -> None:
        if datatype is not None:
            self._listen(data)
        else:
            self._output += data
            if not self._marked:
                self._look_for_mark()
            if len(self._output) >= _WINDOW and not self._pausing and self._channel is not None:
                self._pausing = True
                self._channel.pause_reading()
        self._wake()

    @override
    def eof_received(self) -> bool:
        return True  # the keeper says by other means when it is over

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._wake()

    @override
    def pause_writing(self) -> None:
        self._blocked = True

    @override
    def resume_writing(self) -> None:
        self._blocked = False
        self._wake()

    def _look_for_mark(self) -> None:
        """Before it stands whatever the login shell's start-up files have to say."""
        noise, mark, _ = self._output.partition(_MARK)
        if mark:
            self._marked = True
            del self._output[: len(noise) + len(mark)]
        elif len(self._output) > _LONGEST_NOISE:
            del self._output[: -len(_MARK)]

    def _listen(self, data: bytes) -> None:
        self._said += data
        *lines, rest = self._said.split(b"\n")
        self._said = rest[-_LONGEST_NOISE:]
        for line in lines:
            match line.split():
                case [b"absent"]:
                    self._absent = True
                case [b"at", place] if place.isdigit():
                    self._place = int(place)
                case [b"ended", _, size] if size.isdigit():
                    self._end = int(size)
                case _:
                    pass  # a word of some program on the way


@contextlib.contextmanager
def _told(what: str) -> Any:
    try:
        yield
    except asyncssh.ChannelOpenError as error:
        raise GuestUnreachable(f"{what}: the guest opens no more channels: {error}") from error
    except (asyncssh.Error, OSError, TimeoutError) as error:
        raise GuestLost(f"{what}: {error or 'no answer in time'}") from error


def _profile(shell: Shell) -> bytes:
    """What the keeper reads: assignments, and the environment as arguments."""
    env = (f"{name}={value}" for name, value in shell.env.items())
    lines = [
        f"program={shlex.quote(shell.program)}",
        f"directory={shlex.quote(shell.directory)}",
        shlex.join(["set", "--", *env]),
    ]
    return ("\n".join(lines) + "\n").encode()
