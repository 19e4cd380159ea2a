"""What the things that belong to a machine have in common: executions, artifacts, previews, SSH sessions, terminals.

Each kind has a table with at least the columns below. They are listed newest first, by (created_at, id); a cursor is a
position in that order, so it stays valid whatever comes and goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Generic, Protocol, TypeVar

from sqlalchemy import Column, ColumnElement, Index, Row, Table, Text, and_, or_, select, update

from machine_operator.store.database import Database
from machine_operator.store.moments import from_milliseconds, milliseconds
from machine_operator.store.tables import Moment, metadata

__all__ = ["Place", "SubResources", "subresource_table"]

Place = tuple[int, str]
"""Where something stands in a list: its creation in milliseconds since 1970, then its id."""

_BATCH: Final = 500


class _Record(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def created_at(self) -> datetime: ...


R = TypeVar("R", bound=_Record)


def subresource_table(name: str, *columns: Column[Any]) -> Table:
    """A table of one kind of sub-resource: the columns that all have, and `columns`."""
    return Table(
        name,
        metadata,
        Column("id", Text, primary_key=True),
        Column("org", Text, nullable=False),
        # The UUID without `dm-`, in which answers spell it as they were asked.
        Column("machine_id", Text, nullable=False),
        Column("machine_uid", Text, nullable=False),
        Column("created_by", Text, nullable=False),
        Column("created_at", Moment, nullable=False),
        *columns,
        Index(None, "org", "machine_id", "created_at", "id"),
    )


class SubResources(Generic[R]):
    """One kind of sub-resource in one database. Each method raises StoreUnavailable where that cannot be used.

    Args:
        database: where they are.
        table: made by `subresource_table`.
        record: makes a record of a row's columns: a frozen dataclass whose fields are named like the columns.
    """

    def __init__(self, database: Database, table: Table, record: type[R]) -> None:
        self.database = database
        self.table = table
        self._record = record

    async def insert(self, values: Mapping[str, Any]) -> R:
        """A new one; or the one that is there under this id, from an earlier try of the same request."""
        columns = self.table.c
        new = self.database.insert(self.table).values(**values)
        statement = new.on_conflict_do_nothing(index_elements=[columns.id]).returning(self.table)
        async with self.database.transaction() as connection:
            row = (await connection.execute(statement)).one_or_none()
            if row is None:
                found = await connection.execute(
                    select(self.table).where(columns.id == values["id"])
                )
                row = found.one()
        return self.as_record(row)

    async def get(self, org: str, machine_id: str, id: str) -> R | None:
        """One of a machine's."""
        columns = self.table.c
        return await self.find(
            columns.id == id, columns.org == org, columns.machine_id == machine_id
        )

    async def find(self, *conditions: ColumnElement[bool]) -> R | None:
        """The one that meets all conditions; they must leave at most one."""
        async with self.database.reading() as connection:
            found = await connection.execute(select(self.table).where(*conditions))
            row = found.one_or_none()
        return None if row is None else self.as_record(row)

    async def all(self, *conditions: ColumnElement[bool], limit: int = _BATCH) -> list[R]:
        """Those that meet all conditions, at most `limit`, the oldest first."""
        columns = self.table.c
        statement = (
            select(self.table)
            .where(*conditions)
            .order_by(columns.created_at, columns.id)
            .limit(limit)
        )
        async with self.database.reading() as connection:
            return [self.as_record(row) for row in await connection.execute(statement)]

    async def page(
        self,
        org: str,
        machine_id: str,
        *,
        after: Place | None,
        limit: int,
        where: Sequence[ColumnElement[bool]] = (),
    ) -> tuple[list[R], Place | None]:
        """A machine's that meet all conditions, the newest first, and where the next page begins."""
        columns = self.table.c
        own = (columns.org == org, columns.machine_id == machine_id)
        statement = select(self.table).where(*own, *where)
        if after is not None:
            moment = from_milliseconds(after[0])
            statement = statement.where(
                or_(
                    columns.created_at < moment,
                    and_(columns.created_at == moment, columns.id < after[1]),
                )
            )
        ordered = statement.order_by(columns.created_at.desc(), columns.id.desc()).limit(limit + 1)
        async with self.database.reading() as connection:
            found = [self.as_record(row) for row in await connection.execute(ordered)]
        if len(found) <= limit:
            return found, None
        last = found[limit - 1]
        return found[:limit], (milliseconds(last.created_at), last.id)

    async def change(
        self, id: str, values: Mapping[str, Any], *conditions: ColumnElement[bool]
    ) -> R | None:
        """Change one if it meets all conditions; None where it does not, or is not there."""
        statement = (
            update(self.table)
            .where(self.table.c.id == id, *conditions)
            .values(**values)
            .returning(self.table)
        )
        async with self.database.transaction() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else self.as_record(row)

    async def remove(self, ids: Iterable[str]) -> int:
        """Delete them; how many there were."""
        statement = (
            self.table.delete().where(self.table.c.id.in_(list(ids))).returning(self.table.c.id)
        )
        async with self.database.transaction() as connection:
            return len((await connection.execute(statement)).all())

    def as_record(self, row: Row[Any]) -> R:
        """A row as a record."""
        return self._record(**row._mapping)
