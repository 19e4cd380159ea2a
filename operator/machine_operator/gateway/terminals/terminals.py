"""Terminals: shells in machines, and who is connected to them.

A terminal of a machine that sleeps waits for it. Nothing runs meanwhile: whoever reads a waiting one, on whatever
replica, looks at the machine and settles what has become of it. The shell starts when somebody first connects; it
belongs to that boot of the machine, and ends with it.

A terminal has one connection at a time: a new one takes it over. That is written to the store, and so is the end of a
terminal; every replica looks once a second, with one question for all its connections, what has become of them. The
guest ends a shell by itself that nobody has been connected to for long, whatever happens to gateways; here that is only
written down.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from machine_operator.api.phases import Phase
from machine_operator.gateway.access import Access, NotUsable, Readiness
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.problems import Problem
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.terminals.live import Live, LiveTerminals, Outcome
from machine_operator.gateway.tokens import TokenError, Tokens
from machine_operator.gateway.views import MachineView
from machine_operator.guest.errors import GuestError
from machine_operator.guest.terminal import (
    Attachment,
    GuestTerminals,
    Shell,
    TerminalUnavailable,
)
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.moments import utc_now
from machine_operator.store.subresources import Place
from machine_operator.store.terminals import OPEN, Terminal, TerminalRecords, TerminalStatus

__all__ = ["NotReady", "Terminals", "Wanted"]

log = logging.getLogger(__name__)

_PREFIX: Final = "term-"
_PURPOSE: Final = "terminal"
_KEPT: Final = timedelta(days=1)
"""How long a terminal can be read after its end."""
_SWEEP: Final = 15.0
_KILLS: Final = 8
"""Guests in which shells are being ended at once."""
_WAITING_KILLS: Final = 1000
_CONNECT: Final = 10.0
_CHANGES: Final = 5
"""Times that a terminal may change under a connection that is being made."""
_GONE_PHASES: Final = (Phase.SLEEPING, Phase.DESTROYING, Phase.DESTROYED)
_DAMAGES: Final = {
    Readiness.FAILED: ("machine_not_routable", "the machine has failed and cannot be woken"),
    Readiness.GONE: ("machine_not_found", "machine no longer exists"),
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asks for; None is the default."""

    width: int
    height: int
    shell: str | None = None
    directory: str | None = None
    env: dict[str, str] | None = None


class NotReady(Exception):
    """There is no connecting to a terminal in this state."""

    def __init__(self, status: TerminalStatus) -> None:
        super().__init__(f"the terminal is {status}")
        self.status = status


class Terminals:
    """The terminals of all machines. What needs the store raises StoreUnavailable where that cannot be used.

    Args:
        records: the store.
        access: the way to machines.
        machines: the cache.
        tokens: sign links.
        settings: lifetimes, and what a shell begins with.
        clock: the time.
        root: where guests keep terminals; see `GuestTerminals`.

    Attributes:
        live: the connections of this replica.
    """

    def __init__(
        self,
        records: TerminalRecords,
        access: Access,
        machines: Machines,
        tokens: Tokens,
        settings: GatewaySettings,
        *,
        clock: Callable[[], datetime] = utc_now,
        root: str = "-",
    ) -> None:
        self.records = records
        self.access = access
        self.live = LiveTerminals(records, clock=clock)
        self._machines = machines
        self._tokens = tokens
        self._lifetime = timedelta(seconds=settings.terminal_lifetime)
        self._detached = timedelta(seconds=settings.terminal_detached)
        self._home = settings.guest_home
        self._clock = clock
        self._root = root
        self._kills: asyncio.Queue[Terminal] = asyncio.Queue(_WAITING_KILLS)

    async def run(self) -> None:
        """Look after connections and end what is overdue, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.live.run())
            tasks.create_task(self._sweeping())
            for _ in range(_KILLS):
                tasks.create_task(self._killing())

    # ---- for the API

    async def create(
        self, view: MachineView, wanted: Wanted, *, by: str, own_id: bytes | None
    ) -> Terminal:
        """A new terminal; the same one again for the same `own_id`. A machine that sleeps is asked to wake.

        Raises:
            NotUsable: too many machines are waiting to be woken.
        """
        digits = own_id.hex()[:32] if own_id is not None else secrets.token_hex(16)
        now = self._clock()
        readiness = self.access.knock(view, by=by)
        identity = {
            "id": _PREFIX + digits,
            "org": view.org,
            "machine_id": view.uuid,
            "machine_uid": view.machine.metadata.uid,
            "created_by": by,
            "created_at": now,
            "expires_at": now + self._lifetime,
            "width": wanted.width or 80,
            "height": wanted.height or 24,
            "shell": wanted.shell or "/bin/bash",
            "directory": wanted.directory or self._home,
            "env": wanted.env or None,
        }
        state = _settled(readiness, now) or {"status": TerminalStatus.WAKING}
        return await self._settle(await self.records.insert({**identity, **state}), view)

    async def get(self, view: MachineView, id: str) -> Terminal | None:
        """One of a machine's."""
        terminal = await self.records.get(view.org, view.uuid, id)
        return None if terminal is None else await self._settle(terminal, view)

    async def page(
        self, view: MachineView, *, after: Place | None, limit: int
    ) -> tuple[list[Terminal], Place | None]:
        """A machine's terminals, the newest first, and where the next page begins."""
        found, more = await self.records.page(view.org, view.uuid, after=after, limit=limit)
        return [await self._settle(terminal, view) for terminal in found], more

    async def close(self, view: MachineView, id: str) -> Terminal | None:
        """End one, and whoever is connected to it; one that is over stays as it is."""
        terminal = await self.records.get(view.org, view.uuid, id)
        if terminal is None or terminal.status not in OPEN:
            return terminal
        return await self._end(terminal, TerminalStatus.CLOSED)

    # ---- links

    def token(self, terminal: Terminal) -> str:
        """What lets somebody connect to a terminal for as long as it lives."""
        seconds = (terminal.expires_at - self._clock()).total_seconds()
        return self._tokens.sign(_PURPOSE, terminal.machine_uid, terminal.id, seconds=seconds)

    async def by_token(self, token: str, machine_id: str, id: str) -> tuple[Terminal, MachineView]:
        """The terminal that a link is for, and its machine.

        Raises:
            TokenError: it is for another one, or for none, or has expired.
            Problem: 404, the machine is gone.
        """
        terminal = await self.records.find(self.records.table.c.id == id)
        if terminal is None:
            raise TokenError("there is no such terminal")
        self._tokens.check(token, _PURPOSE, terminal.machine_uid, id)
        view = self._machines.find(terminal.org, machine_id)
        if view.uuid != terminal.machine_id:
            raise TokenError("the token is for a terminal of another machine")
        return await self._settle(terminal, view), view

    # ---- connecting

    async def attach(self, view: MachineView, terminal: Terminal, *, by: str) -> Live:
        """Connect to a terminal, whose shell is started if this is the first time.

        Raises:
            NotReady: it cannot be connected to, or not yet.
            NotUsable, GuestError: the machine cannot be reached now.
        """
        for _ in range(_CHANGES):
            if terminal.status is not TerminalStatus.READY:
                raise NotReady(terminal.status)
            await self._awake(view, terminal, by=by)
            guest = await self.access.guest(view, by=by, timeout=_CONNECT)
            here = guest.target.instance_uid
            if terminal.instance_uid is None:
                await self.records.claim(terminal.id, here)
            elif terminal.instance_uid == here:
                shells = GuestTerminals(guest, root=self._root)
                attachment = await self._begin(shells, terminal)
                return await self._connected(view, terminal, shells, attachment)
            else:
                await self._end(terminal, TerminalStatus.CLOSED)
            terminal = await self._again(terminal)
        raise NotUsable(
            Readiness.WAKING, "machine_not_routable", "the machine restarts all the time"
        )

    async def attach_again(self, live: Live, offset: int) -> Attachment | None:
        """A new connection to the same shell, to go on at `offset`; None where there is no shell any more.

        Raises:
            NotUsable, GuestError: the machine cannot be reached now.
        """
        terminal = live.terminal
        target = self.access.target(live.view)
        if target is None or target.instance_uid != terminal.instance_uid:
            return None
        guest = await self.access.guest(live.view, by=terminal.created_by, timeout=_CONNECT / 2)
        if guest.target.instance_uid != terminal.instance_uid:
            return None
        live.shells = GuestTerminals(guest, root=self._root)
        return await live.shells.attach(terminal.id, offset=offset)

    async def shell_ended(self, terminal: Terminal) -> None:
        """The shell has ended by itself, or with its machine."""
        await self.records.end(terminal.id, TerminalStatus.CLOSED, self._clock())

    async def _awake(self, view: MachineView, terminal: Terminal, *, by: str) -> None:
        readiness = self.access.knock(view, by=by)
        if readiness is Readiness.READY:
            return
        ended: Terminal | None
        if readiness is Readiness.WAKING and terminal.instance_uid is None:
            columns = self.records.table.c
            ended = await self.records.change(
                terminal.id,
                {"status": TerminalStatus.WAKING},
                columns.status == TerminalStatus.READY,
                columns.instance_uid.is_(None),
            )
        elif readiness is Readiness.WAKING:
            ended = await self._end(terminal, TerminalStatus.CLOSED)
        else:
            ended = await self._fail(terminal, *_DAMAGES[readiness])
        raise NotReady((ended or await self._again(terminal)).status)

    async def _begin(self, shells: GuestTerminals, terminal: Terminal) -> Attachment:
        attachment = await shells.attach(terminal.id)
        if attachment is not None:
            return attachment
        left = (terminal.expires_at - self._clock()).total_seconds()
        try:
            await shells.start(
                Shell(
                    terminal.id,
                    program=terminal.shell,
                    directory=terminal.directory,
                    columns=terminal.width,
                    rows=terminal.height,
                    env=terminal.env or {},
                    detached=self._detached.total_seconds(),
                    lifetime=max(1.0, left),
                )
            )
        except TerminalUnavailable as error:
            await self._fail(terminal, "terminal_unavailable", str(error))
            raise NotReady(TerminalStatus.FAILED) from error
        attachment = await shells.attach(terminal.id)
        if attachment is None:
            raise GuestError(f"terminal {terminal.id} was started, and is not there")
        return attachment

    async def _connected(
        self,
        view: MachineView,
        terminal: Terminal,
        shells: GuestTerminals,
        attachment: Attachment,
    ) -> Live:
        live = Live(view, terminal, shells, attachment)
        try:
            owned = await self.live.add(live)
            if owned and terminal.env is not None:
                await self.records.change(terminal.id, {"env": None})
        except BaseException:
            attachment.abort()
            self.live.discard(live)
            raise
        if not owned:  # it was closed in the meantime
            attachment.abort()
            self._kill(terminal)
            raise NotReady((await self._again(terminal)).status)
        return live

    # ---- states

    async def _settle(self, terminal: Terminal, view: MachineView) -> Terminal:
        """What has become of it."""
        if terminal.status not in OPEN:
            return terminal
        now = self._clock()
        if terminal.expires_at <= now:
            return await self._end(terminal, TerminalStatus.EXPIRED)
        readiness = self.access.readiness(view)
        if terminal.status is TerminalStatus.WAKING:
            values = _settled(readiness, now)
            if values is None:
                return terminal
            waiting = self.records.table.c.status == TerminalStatus.WAKING
            changed = await self.records.change(terminal.id, values, waiting)
            return changed or await self._again(terminal)
        if readiness is Readiness.GONE or self._lost(terminal, view):
            return await self._end(terminal, TerminalStatus.CLOSED)
        return terminal

    def _lost(self, terminal: Terminal, view: MachineView) -> bool:
        """Whether the boot that has its shell is over."""
        if terminal.instance_uid is None:
            return False
        target = self.access.target(view)
        if target is None:
            return self._machines.latest(view).phase in _GONE_PHASES
        return target.instance_uid != terminal.instance_uid

    async def _end(self, terminal: Terminal, status: TerminalStatus) -> Terminal:
        ended = await self.records.end(terminal.id, status, self._clock())
        if ended is None:
            return await self._again(terminal)
        self.live.drop(terminal.id, Outcome.ENDED)
        self._kill(ended)
        return ended

    async def _fail(self, terminal: Terminal, code: str, message: str) -> Terminal | None:
        failed = TerminalStatus.FAILED
        return await self.records.end(
            terminal.id, failed, self._clock(), code=code, message=message
        )

    async def _again(self, terminal: Terminal) -> Terminal:
        found = await self.records.find(self.records.table.c.id == terminal.id)
        if found is None:
            raise Problem(404, "the terminal is not there any more")
        return found

    # ---- beside

    async def _sweeping(self) -> None:
        while True:
            with suppress(StoreUnavailable):  # told by those who wait for it
                await self._sweep()
            await asyncio.sleep(min(_SWEEP, self._detached.total_seconds() / 2))

    async def _sweep(self) -> None:
        now = self._clock()
        for terminal in await self.records.overdue(now, left_before=now - self._detached):
            expired = terminal.expires_at <= now
            await self._end(terminal, TerminalStatus.EXPIRED if expired else TerminalStatus.CLOSED)
        await self.records.sweep(now - _KEPT)

    def _kill(self, terminal: Terminal) -> None:
        """Have a shell ended in its guest, soon."""
        if terminal.instance_uid is None:
            return
        try:
            self._kills.put_nowait(terminal)
        except asyncio.QueueFull:
            log.warning("terminal %s ends by itself: too many are being ended", terminal.id)

    async def _killing(self) -> None:
        while True:
            terminal = await self._kills.get()
            try:
                await self._kill_now(terminal)
            except (NotUsable, GuestError) as error:
                log.info("the shell of terminal %s ends by itself later: %s", terminal.id, error)

    async def _kill_now(self, terminal: Terminal) -> None:
        try:
            view = self._machines.find(terminal.org, terminal.machine_id)
        except Problem:
            return  # the machine has gone, and the shell with it
        target = self.access.target(view)
        if target is None or target.instance_uid != terminal.instance_uid:
            return
        guest = await self.access.guest(view, by=terminal.created_by, timeout=_CONNECT)
        if guest.target.instance_uid == terminal.instance_uid:
            await GuestTerminals(guest, root=self._root).kill(terminal.id)


def _settled(readiness: Readiness, now: datetime) -> dict[str, Any] | None:
    """What becomes of a terminal that waits for its machine; None: it goes on waiting."""
    if readiness is Readiness.READY:
        return {"status": TerminalStatus.READY, "ready_at": now}
    if readiness in _DAMAGES:
        code, message = _DAMAGES[readiness]
        return {
            "status": TerminalStatus.FAILED,
            "closed_at": now,
            "env": None,
            "error_code": code,
            "error_message": message,
        }
    return None
