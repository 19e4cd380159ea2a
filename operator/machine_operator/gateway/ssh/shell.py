"""The two ends of a session channel: a shell, a command or a subsystem, with or without a terminal.

Beside data there are requests: from the client its terminal, environment, signals and what shall run; from the guest
how that ended. They are passed on as they are. The client is told at once that what it asked for is granted, for the
machine may still have to wake; what goes wrong after that is told on stderr, with exit status 255, as ssh itself does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from asyncssh.channel import SSHClientChannel, SSHServerChannel
from asyncssh.packet import SSHPacket
from typing_extensions import override

from machine_operator.gateway.ssh.relay import Back, Congestion, Front

__all__ = ["ShellBack", "ShellChannel", "ShellFront", "Terminal"]

_LOST: Final = 255
_MOST_VARIABLES, _MOST_OF_THEM = 128, 128 * 1024
"""Variables of one channel, and their bytes. OpenSSH takes no more than 128 either."""

Size = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Terminal:
    """What a client says about its terminal: its type, and modes as numbered in RFC 4254."""

    type: str
    modes: Mapping[int, int]


class ShellChannel(SSHServerChannel[bytes]):
    """asyncssh's channel, with bounds, and for commands that are no UTF-8: file names need not be."""

    @override
    def _process_env_request(self, packet: SSHPacket) -> bool:
        used = sum(len(name) + len(value) for name, value in self._env.items())
        if len(self._env) >= _MOST_VARIABLES or used > _MOST_OF_THEM:
            return False
        return super()._process_env_request(packet)

    @override
    def _process_exec_request(self, packet: SSHPacket) -> bool:
        command = packet.get_string()
        packet.check_end()
        return self._start_session(command=command.decode("utf-8", "surrogateescape"))


class ShellFront(Front):
    """The client's end.

    Args:
        congestion: see `End`.
        gone: see `Front`.
        begin: is called once it is known what shall run.
        farewell: says why the guest's end closed without a result.

    Attributes:
        terminal: None without one.
        command: None for a shell or a subsystem.
        subsystem: its name, or None.
    """

    def __init__(
        self,
        congestion: Congestion,
        gone: Callable[[Front], None],
        *,
        begin: Callable[[ShellFront], None],
        farewell: Callable[[], str],
    ) -> None:
        super().__init__(congestion, gone)
        self._begin = begin
        self._farewell = farewell
        self.terminal: Terminal | None = None
        self.command: bytes | None = None
        self.subsystem: str | None = None

    @property
    def size(self) -> Size:
        """Of the terminal: columns, lines, and the same in pixels."""
        chan = self._shell
        return (0, 0, 0, 0) if chan is None else chan.get_terminal_size()

    @property
    def environment(self) -> dict[bytes, bytes]:
        """What the client wants to have set."""
        chan = self._shell
        return {} if chan is None else dict(chan.get_environment_bytes())

    @property
    def _shell(self) -> SSHServerChannel[bytes] | None:
        return self.channel if isinstance(self.channel, SSHServerChannel) else None

    @property
    def _back(self) -> ShellBack | None:
        return self._peer if isinstance(self._peer, ShellBack) else None

    # ---- called by asyncssh

    def pty_requested(self, term_type: str, term_size: Size, term_modes: Mapping[int, int]) -> bool:
        """A terminal is wanted."""
        self.terminal = Terminal(term_type, dict(term_modes))
        return True

    def shell_requested(self) -> bool:
        """A shell is wanted."""
        return True

    def exec_requested(self, command: str) -> bool:
        """A command is wanted."""
        self.command = command.encode("utf-8", "surrogateescape")
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """A subsystem is wanted."""
        self.subsystem = subsystem
        return True

    @override
    def session_started(self) -> None:
        self._begin(self)

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        """The terminal has another size."""
        if self._back is not None:
            self._back.resize((width, height, pixwidth, pixheight))

    def signal_received(self, signal: str) -> None:
        """A signal for what runs."""
        if (back := self._back) is not None and back.shell is not None:
            back.shell.send_signal(signal)

    def break_received(self, msec: int) -> bool:
        """A break for the terminal."""
        if (back := self._back) is not None and back.shell is not None:
            back.shell.send_break(msec)
        return True

    # ---- called by others

    def tell(self, text: str) -> None:
        """Say something to whoever sits in front of the terminal."""
        if self.channel is not None:
            with contextlib.suppress(OSError):  # it is closing
                self.channel.write(f"machine-operator: {text}\r\n".encode(), 1)

    def fail(self, text: str) -> None:
        """Say why there is nothing, and end."""
        self.tell(text)
        if (chan := self._shell) is not None:
            chan.exit(_LOST)

    @override
    def left_alone(self, exc: Exception | None) -> None:
        back, chan = self._back, self._shell
        self._peer = None
        if back is None or chan is None:
            return
        if back.signal is not None:
            chan.exit_with_signal(*back.signal)
        elif back.status is not None:
            chan.exit(back.status)
        elif exc is not None:
            self.fail(self._farewell())
        else:
            chan.close()


class ShellBack(Back):
    """The guest's end.

    Attributes:
        status: exit status, once known.
        signal: the one that ended what ran: name, whether there is a core, message, its language.
    """

    status: int | None = None
    signal: tuple[str, bool, str, str] | None = None

    @property
    def shell(self) -> SSHClientChannel[bytes] | None:
        """The channel, while it is open."""
        return self.channel if isinstance(self.channel, SSHClientChannel) else None

    def resize(self, size: Size) -> None:
        """Give the terminal another size."""
        if self.shell is not None:
            self.shell.change_terminal_size(*size)

    def exit_status_received(self, status: int) -> None:
        """What ran has ended."""
        self.status = status

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        """What ran was ended by a signal."""
        self.signal = (signal, core_dumped, msg, lang)

    def xon_xoff_requested(self, client_can_do: bool) -> None:
        """Whether the client may handle ^S and ^Q itself."""
        front = self._peer
        if isinstance(front, ShellFront) and isinstance(front.channel, SSHServerChannel):
            front.channel.set_xon_xoff(client_can_do)
