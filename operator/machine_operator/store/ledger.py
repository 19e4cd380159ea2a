"""The ledger of use: when each machine was awake or had its disk, and at which sizes. Usage is computed from it.

Of one machine and kind, at most one segment is open, no two overlap, and none has two rows. Every replica may tell the
same news, and tell it late: a segment has the ordinal of the news that opened it, and an ordinal that is not higher
than all that are there already changes nothing. An open segment counts until it was last seen, so that a time in which
no gateway ran is charged only if the machine is still as it was.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from itertools import islice
from typing import Any, Final, Literal

from sqlalchemy import and_, case, delete, insert, literal, or_, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from machine_operator.store.database import Database
from machine_operator.store.segments import Segment, SegmentKind, Sizes
from machine_operator.store.tables import usage_segments as rows

__all__ = ["UsageLedger"]

_UIDS_AT_ONCE: Final = 10_000
"""Both databases take about 32,000 parameters."""


class UsageLedger:
    """The ledger in one database. Each method raises StoreUnavailable where that cannot be used."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def open_segment(
        self,
        machine_uid: str,
        *,
        kind: SegmentKind,
        ordinal: int,
        org: str,
        machine_id: str,
        sizes: Sizes,
        at: datetime,
    ) -> bool:
        """From `at` on the machine is awake (or has a disk) at these sizes.

        An older segment that is still open ended unseen; it is closed as of when it was last seen.

        Args:
            machine_uid: uid of the Machine object.
            kind: what is counted.
            ordinal: the same at every replica that tells this, and higher than that of all that happened to the
                machine before.
            org: whose machine it is.
            machine_id: the machine's id over REST.
            sizes: what the machine has.
            at: since when, with a time zone.

        Returns:
            Whether that was news.
        """
        new = Segment(machine_uid, kind, ordinal, org, machine_id, sizes, at, None, at)
        return await self._begin(new, former="ended unseen")

    async def resize(
        self,
        machine_uid: str,
        *,
        kind: SegmentKind,
        ordinal: int,
        org: str,
        machine_id: str,
        sizes: Sizes,
        at: datetime,
    ) -> bool:
        """As `open_segment`, but an older segment that is still open ends at `at`, where the new one begins."""
        new = Segment(machine_uid, kind, ordinal, org, machine_id, sizes, at, None, at)
        return await self._begin(new, former="goes over")

    async def close_segment(
        self,
        machine_uid: str,
        kind: SegmentKind,
        ended_at: datetime,
        *,
        up_to: int | None = None,
    ) -> bool:
        """The machine is asleep (or has no disk) since `ended_at`; whether that was news.

        A segment that has a higher ordinal than `up_to` is another one and stays open; without that number, so is one
        that began later. One that is meant and began later, by another clock, ends as it begins.
        """
        meant = rows.c.began_at <= ended_at if up_to is None else rows.c.ordinal <= up_to
        told = literal(ended_at, rows.c.ended_at.type)
        end = case((rows.c.began_at > told, rows.c.began_at), else_=told)
        async with self._database.transaction() as connection:
            result = await connection.execute(
                update(rows)
                .where(_of(machine_uid, kind), rows.c.ended_at.is_(None), meant)
                .values(ended_at=end, seen_at=end)
            )
        return result.rowcount > 0

    async def touch(self, at: datetime, *, machine_uids: Collection[str] | None = None) -> int:
        """All open segments (of these machines, where given) still go on at `at`; how many that moved forward."""
        batches: list[tuple[str, ...] | None] = [None]
        if machine_uids is not None:
            uids = iter(machine_uids)
            batches = list(iter(lambda: tuple(islice(uids, _UIDS_AT_ONCE)), ()))
        touched = 0
        for batch in batches:
            statement = update(rows).where(rows.c.ended_at.is_(None), rows.c.seen_at < at)
            if batch is not None:
                statement = statement.where(rows.c.machine_uid.in_(batch))
            async with self._database.transaction() as connection:
                # Two statements that change many rows each, in whatever order, could wait for each other.
                await self._database.lock(connection, "usage touch")
                touched += (await connection.execute(statement.values(seen_at=at))).rowcount
        return touched

    async def open_segments(self, *, org: str | None = None) -> list[Segment]:
        """All that go on (of `org`, where given), by machine."""
        statement = select(rows).where(rows.c.ended_at.is_(None))
        if org is not None:
            statement = statement.where(rows.c.org == org)
        async with self._database.reading() as connection:
            found = await connection.execute(statement.order_by(rows.c.machine_uid, rows.c.kind))
        return [_segment(row) for row in found]

    async def segments(
        self,
        org: str,
        *,
        kind: SegmentKind,
        begin: datetime,
        end: datetime,
        machine_id: str | None = None,
    ) -> list[Segment]:
        """What `org` used between `begin` and `end`, by machine and time; segments are told whole, not cut."""
        statement = select(rows).where(
            rows.c.org == org,
            rows.c.kind == kind,
            rows.c.began_at < end,
            or_(rows.c.ended_at > begin, and_(rows.c.ended_at.is_(None), rows.c.seen_at > begin)),
        )
        if machine_id is not None:
            statement = statement.where(rows.c.machine_id == machine_id)
        async with self._database.reading() as connection:
            found = await connection.execute(
                statement.order_by(rows.c.machine_id, rows.c.began_at, rows.c.ordinal)
            )
        return [_segment(row) for row in found]

    async def prune(self, before: datetime, *, batch: int = 500) -> int:
        """Delete what ended before that, `batch` rows in a transaction; how many there were."""
        key = tuple_(rows.c.machine_uid, rows.c.kind, rows.c.ordinal)
        old = (
            select(rows.c.machine_uid, rows.c.kind, rows.c.ordinal)
            .where(rows.c.ended_at < before)
            .limit(batch)
            .with_for_update(skip_locked=True)
            .cte("old")
        )
        statement = delete(rows).where(key.in_(select(old))).returning(rows.c.ordinal)
        pruned = 0
        while True:
            async with self._database.transaction() as connection:
                # Python's SQLite counts no rows of a statement that begins with WITH.
                gone = len((await connection.execute(statement)).all())
            pruned += gone
            if gone < batch:
                return pruned

    async def _begin(self, new: Segment, *, former: Literal["ended unseen", "goes over"]) -> bool:
        async with self._database.transaction() as connection:
            await self._database.lock(connection, f"usage {new.kind} {new.machine_uid}")
            last = await _last(connection, new.machine_uid, new.kind)
            began_at = new.began_at
            if last is not None:
                if last.ordinal >= new.ordinal:
                    return False
                ended_at = last.ended_at
                if ended_at is None:
                    seen = new.began_at if former == "goes over" else last.seen_at
                    ended_at = max(last.began_at, min(seen, new.began_at))
                    await connection.execute(
                        update(rows)
                        .where(_of(last.machine_uid, last.kind), rows.c.ordinal == last.ordinal)
                        .values(ended_at=ended_at, seen_at=ended_at)
                    )
                began_at = max(began_at, ended_at)
            await connection.execute(insert(rows).values(**_values(new, began_at)))
        return True


def _of(machine_uid: str, kind: SegmentKind) -> Any:
    return and_(rows.c.machine_uid == machine_uid, rows.c.kind == kind)


async def _last(connection: AsyncConnection, machine_uid: str, kind: SegmentKind) -> Segment | None:
    found = await connection.execute(
        select(rows).where(_of(machine_uid, kind)).order_by(rows.c.ordinal.desc()).limit(1)
    )
    row = found.one_or_none()
    return None if row is None else _segment(row)


def _values(new: Segment, began_at: datetime) -> dict[str, Any]:
    return {
        "machine_uid": new.machine_uid,
        "kind": new.kind,
        "ordinal": new.ordinal,
        "org": new.org,
        "machine_id": new.machine_id,
        "vcpu_millis": new.sizes.vcpu_millis,
        "memory_mib": new.sizes.memory_mib,
        "storage_gib": new.sizes.storage_gib,
        "began_at": began_at,
        "seen_at": began_at,
    }


def _segment(row: Any) -> Segment:
    return Segment(
        machine_uid=row.machine_uid,
        kind=row.kind,
        ordinal=row.ordinal,
        org=row.org,
        machine_id=row.machine_id,
        sizes=Sizes(row.vcpu_millis, row.memory_mib, row.storage_gib),
        began_at=row.began_at,
        ended_at=row.ended_at,
        seen_at=row.seen_at,
    )
