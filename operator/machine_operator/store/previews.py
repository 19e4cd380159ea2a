"""Previews, which newer clients know as ports: a port of a machine that can be reached from outside.

    wake_in_progress ──> ready ──> closed
                  └────> failed

A machine has at most one open preview for each port, protocol, visibility and, where only its creator may see it,
creator. Whoever asks for the same again gets the one that is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Index, Integer, Row, Text, insert, or_, select
from typing_extensions import override

from machine_operator.store.database import Database
from machine_operator.store.subresources import SubResources, subresource_table
from machine_operator.store.tables import Moment

__all__ = ["Preview", "PreviewRecords", "PreviewStatus", "Visibility", "previews"]

_AT_ONCE: Final = 500
"""Ids in one statement, and rows removed by one: other writers wait no longer than that takes."""


class PreviewStatus(StrEnum):
    """What the store knows of a preview."""

    WAKING = "wake_in_progress"
    READY = "ready"
    CLOSED = "closed"
    FAILED = "failed"


class Visibility(StrEnum):
    """Who may see it: anybody, its creator, or anybody of its organisation."""

    PUBLIC = "public"
    PRIVATE = "private"
    ORG = "org"


_OPEN: Final = (PreviewStatus.WAKING, PreviewStatus.READY)

previews: Final = subresource_table(
    "previews",
    Column("status", Text, nullable=False),
    Column("port", Integer, nullable=False),
    Column("protocol", Text, nullable=False),
    Column("visibility", Text, nullable=False),
    Column("ready_at", Moment),
    Column("closed_at", Moment),
    Column("error_code", Text),
    Column("error_message", Text),
)

Index("ix_previews_status_id", previews.c.status, previews.c.id)


@dataclass(frozen=True, slots=True)
class Preview:
    """One preview.

    Attributes:
        id: `pv-` and 32 hex digits; the name of its host.
        org, machine_id, machine_uid: whose machine.
        created_by, created_at: who asked for it, and when.
        status: see above.
        port: of the guest.
        protocol: what is spoken there: http or https.
        visibility: who may see it.
        ready_at, closed_at: when it became what it is, which for a failed one is `closed_at`; None where it did not.
        error_code, error_message: of a failed one.
    """

    id: str
    org: str
    machine_id: str
    machine_uid: str
    created_by: str
    created_at: datetime
    status: PreviewStatus
    port: int
    protocol: str
    visibility: Visibility
    ready_at: datetime | None
    closed_at: datetime | None
    error_code: str | None
    error_message: str | None

    @property
    def open(self) -> bool:
        """Whether it leads somewhere, or is going to."""
        return self.status in _OPEN


class PreviewRecords(SubResources[Preview]):
    """The previews in one database. Each method raises StoreUnavailable where that cannot be used."""

    def __init__(self, database: Database) -> None:
        super().__init__(database, previews, Preview)

    @override
    def as_record(self, row: Row[Any]) -> Preview:
        columns = dict(row._mapping)
        columns["status"] = PreviewStatus(columns["status"])
        columns["visibility"] = Visibility(columns["visibility"])
        return Preview(**columns)

    async def claim(self, values: Mapping[str, Any]) -> Preview:
        """A new one; or the open one that is like it, or the one of an earlier try of the same request."""
        columns = previews.c
        like = [
            columns[name] == values[name]
            for name in ("machine_uid", "port", "protocol", "visibility")
        ]
        if values["visibility"] == Visibility.PRIVATE:
            like.append(columns.created_by == values["created_by"])
        there = (
            select(previews)
            .where(or_(columns.id == values["id"], _all(*like, columns.status.in_(_OPEN))))
            # Of an earlier try, whatever has become of it: the answer to a repetition is the same.
            .order_by((columns.id == values["id"]).desc(), columns.created_at, columns.id)
            .limit(1)
        )
        async with self.database.transaction() as connection:
            # Two that ask at the same moment would both find none.
            await self.database.lock(connection, f"previews of {values['machine_uid']}")
            row = (await connection.execute(there)).one_or_none()
            if row is None:
                made = await connection.execute(
                    insert(previews).values(**values).returning(previews)
                )
                row = made.one()
        return self.as_record(row)

    async def settle(self, id: str, status: PreviewStatus, **values: Any) -> Preview | None:
        """Say how the wake of its machine went; None where somebody else has said so before."""
        return await self.change(
            id, {"status": status, **values}, previews.c.status == PreviewStatus.WAKING
        )

    async def close(self, id: str, at: datetime) -> Preview | None:
        """Close it; None where it is not open."""
        values = {"status": PreviewStatus.CLOSED, "closed_at": at}
        return await self.change(id, values, previews.c.status.in_(_OPEN))

    async def open_after(self, id: str) -> Sequence[Preview]:
        """The next open ones, in the order of their ids; none where there are no more."""
        columns = previews.c
        statement = (
            select(previews)
            .where(columns.status.in_(_OPEN), columns.id > id)
            .order_by(columns.id)
            .limit(_AT_ONCE)
        )
        async with self.database.reading() as connection:
            return [self.as_record(row) for row in await connection.execute(statement)]

    async def open_among(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that are open."""
        every, found = list(ids), set[str]()
        for start in range(0, len(every), _AT_ONCE):
            some = every[start : start + _AT_ONCE]
            statement = select(previews.c.id).where(
                previews.c.id.in_(some), previews.c.status.in_(_OPEN)
            )
            async with self.database.reading() as connection:
                found.update((await connection.execute(statement)).scalars())
        return found

    async def sweep(self, before: datetime) -> int:
        """Forget those that came to their end before; how many those were, at most 500."""
        columns = previews.c
        statement = (
            select(columns.id)
            .where(columns.status.not_in(_OPEN), columns.closed_at < before)
            .limit(_AT_ONCE)
        )
        async with self.database.reading() as connection:
            old = list((await connection.execute(statement)).scalars())
        return await self.remove(old) if old else 0


def _all(first: ColumnElement[bool], *others: ColumnElement[bool]) -> ColumnElement[bool]:
    for other in others:
        first = first & other
    return first
