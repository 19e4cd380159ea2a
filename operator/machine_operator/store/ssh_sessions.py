"""SSH sessions: a public key, and what lets it log in to the SSH gateway.

    wake_in_progress ──> ready ──> closed
                  └────> failed

That a ready one has expired is not written down: its certificate ends at `expires_at`. A connection that began before
goes on, and keeps the row by saying now and then that it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Column, Index, Row, Text, or_, select, update
from typing_extensions import override

from machine_operator.store.database import Database
from machine_operator.store.subresources import SubResources, subresource_table
from machine_operator.store.tables import Moment

__all__ = ["SshSession", "SshSessionRecords", "SshStatus", "ssh_sessions"]

_AT_ONCE: Final = 1000
"""Ids in one statement, and rows removed by one: other writers wait no longer than that takes."""


class SshStatus(StrEnum):
    """What the store knows of a session."""

    WAKING = "wake_in_progress"
    READY = "ready"
    CLOSED = "closed"
    FAILED = "failed"


ssh_sessions: Final = subresource_table(
    "ssh_sessions",
    Column("status", Text, nullable=False),
    Column("public_key", Text, nullable=False),
    Column("certificate", Text),
    Column("ready_at", Moment),
    Column("expires_at", Moment),
    Column("closed_at", Moment),
    Column("used_at", Moment, nullable=False),
    Column("error_code", Text),
    Column("error_message", Text),
)
Index(None, ssh_sessions.c.used_at)


@dataclass(frozen=True, slots=True)
class SshSession:
    """One session.

    Attributes:
        id: `ssh-` and 32 hex digits; the key id of the certificate.
        org, machine_id, machine_uid: whose machine.
        created_by, created_at: who asked for it, and when.
        status: see above.
        public_key: one line, without a comment.
        certificate: one line; None until it is ready.
        ready_at, expires_at, closed_at: when it became what it is; None where it did not.
        used_at: when it was made, or last used, to within a minute.
        error_code, error_message: of a failed one.
    """

    id: str
    org: str
    machine_id: str
    machine_uid: str
    created_by: str
    created_at: datetime
    status: SshStatus
    public_key: str
    certificate: str | None
    ready_at: datetime | None
    expires_at: datetime | None
    closed_at: datetime | None
    used_at: datetime
    error_code: str | None
    error_message: str | None


class SshSessionRecords(SubResources[SshSession]):
    """The sessions in one database. Each method raises StoreUnavailable where that cannot be used."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, ssh_sessions, SshSession)

    @override
    def as_record(self, row: Row[Any]) -> SshSession:
        session = super().as_record(row)
        return replace(session, status=SshStatus(session.status))

    async def open_among(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that are there and have not been closed."""
        columns, found = ssh_sessions.c, set[str]()
        for some in _batches(ids):
            statement = select(columns.id).where(
                columns.id.in_(some), columns.status == SshStatus.READY
            )
            async with self.database.reading() as connection:
                found.update((await connection.execute(statement)).scalars())
        return found

    async def used(self, ids: Iterable[str], at: datetime) -> None:
        """Say that they are in use."""
        for some in _batches(ids):
            statement = update(ssh_sessions).where(ssh_sessions.c.id.in_(some)).values(used_at=at)
            async with self.database.transaction() as connection:
                await connection.execute(statement)

    async def sweep(self, before: datetime) -> int:
        """Forget those that have not been of use to anybody since; how many those were, at most 1,000."""
        columns = ssh_sessions.c
        statement = (
            select(columns.id)
            .where(
                columns.used_at < before,
                or_(columns.expires_at.is_(None), columns.expires_at < before),
            )
            .limit(_AT_ONCE)
        )
        async with self.database.reading() as connection:
            old = list((await connection.execute(statement)).scalars())
        return await self.remove(old) if old else 0


def _batches(ids: Iterable[str]) -> Iterator[list[str]]:
    every = list(ids)
    return (every[start : start + _AT_ONCE] for start in range(0, len(every), _AT_ONCE))
