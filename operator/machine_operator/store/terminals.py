"""Terminals: what was asked for, which boot of the machine has its shell, and who is connected to it.

    wake_in_progress ──> ready ──> closed
                  │        └─────> expired
                  └─────> failed

The shell itself is in the guest. `instance_uid` is written before it is started, once: a shell belongs to one boot, and
a machine that starts again has none of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import JSON, Column, Index, Integer, Row, Text, and_, or_, select, update
from typing_extensions import override

from machine_operator.store.database import Database
from machine_operator.store.subresources import SubResources, subresource_table
from machine_operator.store.tables import Moment

__all__ = ["OPEN", "Terminal", "TerminalRecords", "TerminalStatus", "terminals"]

_AT_ONCE: Final = 500
"""Ids in one statement: other writers wait no longer than that takes."""


class TerminalStatus(StrEnum):
    """How it is with a terminal."""

    WAKING = "wake_in_progress"
    READY = "ready"
    CLOSED = "closed"
    EXPIRED = "expired"
    FAILED = "failed"


OPEN: Final = (TerminalStatus.WAKING, TerminalStatus.READY)
"""Those that something may still become of."""

terminals: Final = subresource_table(
    "terminals",
    Column("status", Text, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("shell", Text, nullable=False),
    Column("directory", Text, nullable=False),
    # Its values are nobody's business, and are dropped when the shell has them.
    Column("env", JSON(none_as_null=True)),
    Column("instance_uid", Text),
    Column("client", Text),
    Column("used_until", Moment),
    Column("ready_at", Moment),
    Column("expires_at", Moment, nullable=False),
    Column("closed_at", Moment),
    Column("error_code", Text),
    Column("error_message", Text),
)
Index(None, terminals.c.status, terminals.c.expires_at)
Index(None, terminals.c.closed_at)


@dataclass(frozen=True, slots=True)
class Terminal:
    """One terminal.

    Attributes:
        id: `term-` and 32 hex digits.
        org, machine_id, machine_uid: whose machine.
        created_by, created_at: who asked for it, and when.
        status: see above.
        width, height: columns and rows, as last set.
        shell, directory, env: what is started where, with what.
        instance_uid: UID of the VMI that has the shell; None before anybody has connected.
        client: the connection that it belongs to; a newer one takes it away from an older one.
        used_until: until when the shell is surely in use: ahead of now while somebody is connected.
        ready_at, expires_at, closed_at: when it became what it is, or will be over.
        error_code, error_message: of a failed one.
    """

    id: str
    org: str
    machine_id: str
    machine_uid: str
    created_by: str
    created_at: datetime
    status: TerminalStatus
    width: int
    height: int
    shell: str
    directory: str
    env: Mapping[str, str] | None = field(repr=False)
    instance_uid: str | None
    client: str | None
    used_until: datetime | None
    ready_at: datetime | None
    expires_at: datetime
    closed_at: datetime | None
    error_code: str | None
    error_message: str | None


class TerminalRecords(SubResources[Terminal]):
    """The terminals in one database. Each method raises StoreUnavailable where that cannot be used."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, terminals, Terminal)

    @override
    def as_record(self, row: Row[Any]) -> Terminal:
        terminal = super().as_record(row)
        return replace(terminal, status=TerminalStatus(terminal.status))

    async def claim(self, id: str, instance_uid: str) -> Terminal | None:
        """Say which boot will have the shell, if none has it yet."""
        columns = terminals.c
        return await self.change(
            id,
            {"instance_uid": instance_uid},
            columns.status == TerminalStatus.READY,
            columns.instance_uid.is_(None),
        )

    async def end(
        self, id: str, status: TerminalStatus, at: datetime, *, code: str = "", message: str = ""
    ) -> Terminal | None:
        """Close one that is open; None where it was not."""
        values = {"status": status, "closed_at": at, "env": None}
        if code:
            values |= {"error_code": code, "error_message": message}
        return await self.change(id, values, terminals.c.status.in_(OPEN))

    async def connect(self, id: str, client: str, until: datetime) -> Terminal | None:
        """A connection takes a terminal over, from whomever; None where it is open no more."""
        values = {"client": client, "used_until": until}
        return await self.change(id, values, terminals.c.status == TerminalStatus.READY)

    async def clients(self, ids: Iterable[str]) -> dict[str, str | None]:
        """Whom those of `ids` that are ready belong to; the others are left out."""
        columns, found = terminals.c, dict[str, str | None]()
        for some in _batches(ids):
            statement = select(columns.id, columns.client).where(
                columns.id.in_(some), columns.status == TerminalStatus.READY
            )
            async with self.database.reading() as connection:
                found.update((row.id, row.client) for row in await connection.execute(statement))
        return found

    async def used(self, clients: Mapping[str, str], until: datetime) -> None:
        """Say of terminals, by id, that these clients are still connected."""
        columns = terminals.c
        for some in _batches(clients):
            statement = (
                update(terminals)
                .where(columns.id.in_(some), columns.client.in_([clients[id] for id in some]))
                .values(used_until=until)
            )
            async with self.database.transaction() as connection:
                await connection.execute(statement)

    async def overdue(self, now: datetime, *, left_before: datetime) -> list[Terminal]:
        """The open ones that have expired, or whose shell nobody has been connected to since; at most 500."""
        columns = terminals.c
        left = and_(columns.status == TerminalStatus.READY, columns.used_until < left_before)
        return await self.all(
            columns.status.in_(OPEN), or_(columns.expires_at <= now, left), limit=_AT_ONCE
        )

    async def sweep(self, before: datetime) -> int:
        """Forget those that were over by then; how many those were, at most 500."""
        old = await self.all(terminals.c.closed_at < before, limit=_AT_ONCE)
        return await self.remove([terminal.id for terminal in old]) if old else 0


def _batches(ids: Iterable[str]) -> Iterable[Collection[str]]:
    every = list(ids)
    return (every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE))
