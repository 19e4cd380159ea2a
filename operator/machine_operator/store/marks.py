"""Write marks: per org the highest resourceVersion that any gateway has written.

Who reads waits until its informer has come that far, and so sees the writes of the other replicas. A mark never falls.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from machine_operator.store.database import Database
from machine_operator.store.tables import write_marks

__all__ = ["WriteMarks", "raise_mark"]


class WriteMarks:
    """The marks of all orgs in one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def raise_to(self, org: str, version: int) -> None:
        """`org` has an object of resourceVersion `version` now. Lower than the mark: nothing happens.

        Raises:
            StoreUnavailable: the mark may not have been raised.
        """
        async with self._database.transaction() as connection:
            await raise_mark(self._database, connection, org=org, version=version)

    async def of(self, org: str) -> int:
        """The mark of `org`; 0 where nothing was written yet.

        Raises:
            StoreUnavailable: it is not known.
        """
        async with self._database.reading() as connection:
            version = await connection.scalar(
                select(write_marks.c.version).where(write_marks.c.org == org)
            )
        return int(version or 0)


async def raise_mark(
    database: Database, connection: AsyncConnection, *, org: str, version: int
) -> None:
    """Raise the mark of `org` within a transaction of somebody else."""
    new = database.insert(write_marks).values(org=org, version=version)
    await connection.execute(
        new.on_conflict_do_update(
            index_elements=[write_marks.c.org],
            set_={"version": new.excluded.version},
            where=write_marks.c.version < new.excluded.version,
        )
    )
