"""Artifacts: files that executions left, each a row here and an object in a file system.

A row is there before its object is written, and is shown once its execution has ended: `ready` is set in the
transaction of that end. So an object that nobody will ever see has a row by which it is found and removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import BigInteger, Boolean, Column, ColumnElement, Table, Text, and_, insert, update
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from machine_operator.store.database import Database
from machine_operator.store.moments import utc_now
from machine_operator.store.subresources import Place, SubResources, subresource_table
from machine_operator.store.tables import Moment

__all__ = ["Artifact", "ArtifactRecords", "artifacts"]

artifacts: Final[Table] = subresource_table(
    "artifacts",
    Column("execution_id", Text, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("mime_type", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    # Under which its object is kept; another one for each attempt to write it.
    Column("key", Text, nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("expires_at", Moment, nullable=False, index=True),
)


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file."""

    id: str
    org: str
    machine_id: str
    machine_uid: str
    created_by: str
    created_at: datetime
    execution_id: str
    name: str
    size_bytes: int
    mime_type: str
    sha256: str
    key: str
    ready: bool
    expires_at: datetime


class ArtifactRecords(SubResources[Artifact]):
    """The artifacts in one database. Each method raises StoreUnavailable where that cannot be used.

    Args:
        database: where they are.
        clock: tells the time, with a zone.
    """

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(database, artifacts, Artifact)
        self.clock = clock

    async def announce(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Objects are about to be written; nobody sees them yet."""
        async with self.database.transaction() as connection:
            await connection.execute(insert(artifacts), [{**row, "ready": False} for row in rows])

    async def publish(
        self, connection: AsyncConnection, known: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Show them, in the transaction of their execution's end; `known` is what came out, by id."""
        for id, values in known.items():
            await connection.execute(
                update(artifacts).where(artifacts.c.id == id).values(**values, ready=True)
            )

    async def unfinished(self, execution_id: str) -> list[Artifact]:
        """What earlier attempts have left of an execution."""
        columns = artifacts.c
        return await self.all(columns.execution_id == execution_id, columns.ready.is_(False))

    async def of_execution(self, execution_id: str) -> list[Artifact]:
        """All that there is of an execution."""
        return await self.all(artifacts.c.execution_id == execution_id)

    async def readable(self, org: str, machine_id: str, id: str) -> Artifact | None:
        """One of a machine's, unless it has expired."""
        columns = artifacts.c
        return await self.find(
            columns.id == id,
            columns.org == org,
            columns.machine_id == machine_id,
            self._shown(),
        )

    async def by_id(self, id: str) -> Artifact | None:
        """One, for somebody who has a link to it."""
        return await self.find(artifacts.c.id == id, self._shown())

    @override
    async def page(
        self,
        org: str,
        machine_id: str,
        *,
        after: Place | None,
        limit: int,
        where: Sequence[ColumnElement[bool]] = (),
    ) -> tuple[list[Artifact], Place | None]:
        return await super().page(
            org, machine_id, after=after, limit=limit, where=[*where, self._shown()]
        )

    async def hide(self, ids: Iterable[str]) -> None:
        """Let nobody see them any more."""
        async with self.database.transaction() as connection:
            await connection.execute(
                update(artifacts)
                .where(artifacts.c.id.in_(list(ids)))
                .values(ready=False, expires_at=self.clock())
            )

    async def expired(self, *, abandoned: timedelta, limit: int) -> list[Artifact]:
        """Those that are to be removed: they have expired, or were never finished and are older than `abandoned`."""
        columns, now = artifacts.c, self.clock()
        old = await self.all(columns.expires_at <= now, limit=limit)
        if len(old) < limit:
            never = and_(columns.ready.is_(False), columns.created_at <= now - abandoned)
            old += await self.all(never, columns.expires_at > now, limit=limit - len(old))
        return old

    def _shown(self) -> ColumnElement[bool]:
        return and_(artifacts.c.ready, artifacts.c.expires_at > self.clock())
