"""Executions: each is a row, beside it what goes into the guest until it has ended, and what came out of it as events.

Whoever works on one has it on lease; work is what is to be done until the end, and after it the removal of what the
guest still keeps. A lease that ran out is taken over. All that an owner writes is written only while it is the owner,
and each piece of output together with how far the copy has come: whoever goes on does so at that byte.

`instance_uid` says in which boot of the machine it may have begun. It is there before the guest is told.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import override

from machine_operator.store.database import Database
from machine_operator.store.execution_tables import (
    Event,
    Execution,
    ExecutionInputs,
    Work,
    execution_events,
    execution_inputs,
    executions,
)
from machine_operator.store.moments import utc_now
from machine_operator.store.subresources import Place, SubResources

__all__ = [
    "Event",
    "Execution",
    "ExecutionInputs",
    "ExecutionRecords",
    "Work",
    "execution_events",
    "execution_inputs",
    "executions",
]

_BATCH: Final = 100


class ExecutionRecords(SubResources[Execution]):
    """The executions in one database. Each method raises StoreUnavailable where that cannot be used.

    Args:
        database: where they are.
        owner: who writes; another one for each process.
        lease: seconds for which work is one's own without being renewed.
        clock: tells the time, with a zone.
    """

    def __init__(
        self,
        database: Database,
        *,
        owner: str,
        lease: float,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        super().__init__(database, executions, Execution)
        self.owner = owner
        self._lease = timedelta(seconds=lease)
        self.clock = clock

    # ---- for whoever asks

    async def create(
        self, values: Mapping[str, Any], inputs: ExecutionInputs | None
    ) -> tuple[Execution, bool]:
        """A new one, of our own; or the one that is there under this id. And whether it is new."""
        now = self.clock()
        row = {
            "created_at": now,
            "sequence": 1,
            "owner": self.owner,
            "lease_until": now + self._lease,
            **values,
        }
        statement = (
            self.database.insert(executions)
            .values(**row)
            .on_conflict_do_nothing(index_elements=[executions.c.id])
            .returning(executions)
        )
        async with self.database.transaction() as connection:
            made = (await connection.execute(statement)).one_or_none()
            if made is None:
                found = await connection.execute(
                    select(executions).where(executions.c.id == row["id"])
                )
                return self.as_record(found.one()), False
            event = Event(1, "lifecycle", row["created_at"], status=row["status"])
            await self._tell(connection, row["id"], [event])
            if inputs is not None:
                given = {"env": dict(inputs.env), "stdin": inputs.stdin}
                await connection.execute(
                    insert(execution_inputs).values(execution_id=row["id"], **given)
                )
        return self.as_record(made), True

    async def readable(self, org: str, machine_id: str, id: str) -> Execution | None:
        """One of a machine's, unless it has expired."""
        columns = executions.c
        return await self.find(
            columns.id == id,
            columns.org == org,
            columns.machine_id == machine_id,
            self._unexpired(),
        )

    @override
    async def page(
        self,
        org: str,
        machine_id: str,
        *,
        after: Place | None,
        limit: int,
        where: Sequence[ColumnElement[bool]] = (),
    ) -> tuple[list[Execution], Place | None]:
        return await super().page(
            org, machine_id, after=after, limit=limit, where=[*where, self._unexpired()]
        )

    async def events(self, id: str, *, after: int, limit: int) -> list[Event]:
        """Its events from the one after number `after` on, at most `limit`."""
        columns = execution_events.c
        statement = (
            select(execution_events)
            .where(columns.execution_id == id, columns.sequence > after)
            .order_by(columns.sequence)
            .limit(limit)
        )
        async with self.database.reading() as connection:
            found = [dict(row._mapping) for row in await connection.execute(statement)]
        return [
            Event(**{name: row[name] for name in row if name != "execution_id"}) for row in found
        ]

    async def output(self, id: str) -> tuple[bytes, bytes]:
        """What is kept of its stdout and stderr."""
        columns = execution_events.c
        statement = (
            select(columns.type, columns.chunk)
            .where(columns.execution_id == id, columns.chunk.is_not(None))
            .order_by(columns.sequence)
        )
        kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        async with self.database.reading() as connection:
            for stream, chunk in await connection.execute(statement):
                kept[stream].append(chunk)
        return b"".join(kept["stdout"]), b"".join(kept["stderr"])

    async def cancel(self, id: str, end: Mapping[str, Any]) -> Execution | None:
        """End one that cannot have begun, as `end` says; where it may have begun, tell its owner to end it.

        Returns:
            What it is then; None where it had ended already.
        """
        columns = executions.c
        async with self.database.transaction() as connection:
            ended = await self._end(
                connection, id, end, (), columns.instance_uid.is_(None), completed=True
            )
            if ended is not None:
                return ended
            told = await connection.execute(
                update(executions)
                .where(columns.id == id, columns.completed_at.is_(None))
                .values(cancelling=True)
                .returning(executions)
            )
            row = told.one_or_none()
        return None if row is None else self.as_record(row)

    # ---- for the owner

    async def mine(self, id: str) -> Execution | None:
        """One that is ours to work on; None where it is no more."""
        return await self.find(executions.c.id == id, self._ours())

    async def inputs(self, id: str) -> ExecutionInputs:
        """What its program is given."""
        columns = execution_inputs.c
        async with self.database.reading() as connection:
            found = await connection.execute(
                select(columns.env, columns.stdin).where(columns.execution_id == id)
            )
            row = found.one_or_none()
        return ExecutionInputs({}, b"") if row is None else ExecutionInputs(row.env, row.stdin)

    async def begin(
        self, execution: Execution, *, instance_uid: str, at: datetime | None = None
    ) -> Execution | None:
        """Note that it runs, in which boot of the machine, since when (else now). None: it is not ours any more."""
        now = at or self.clock()
        event = Event(execution.sequence + 1, "lifecycle", now, status="running")
        values = {
            "status": "running",
            "instance_uid": instance_uid,
            "started_at": now,
            "sequence": event.sequence,
        }
        async with self.database.transaction() as connection:
            row = await self._write(connection, execution.id, values, self._unfinished())
            if row is not None:
                await self._tell(connection, execution.id, [event])
        return row

    async def append(
        self, execution: Execution, events: Sequence[Event], values: Mapping[str, Any]
    ) -> Execution | None:
        """More of its events, and what changes with them. None: it is not ours any more."""
        change = {**values, "sequence": events[-1].sequence}
        async with self.database.transaction() as connection:
            row = await self._write(connection, execution.id, change, self._unfinished())
            if row is not None:
                await self._tell(connection, execution.id, events)
        return row

    async def end(
        self,
        execution: Execution,
        events: Sequence[Event],
        values: Mapping[str, Any],
        *,
        more: Callable[[AsyncConnection], Awaitable[None]] | None = None,
    ) -> Execution | None:
        """Its end, and forget what its program was given. None: it is not ours any more.

        Args:
            execution: which.
            events: the last ones, without that of the end itself.
            values: what it is then.
            more: what else belongs into the transaction.
        """
        async with self.database.transaction() as connection:
            row = await self._end(connection, execution.id, values, events, self._ours())
            if row is not None and more is not None:
                await more(connection)
        return row

    async def settle(self, ids: Iterable[str]) -> None:
        """There is nothing left to be done about these, which have ended."""
        async with self.database.transaction() as connection:
            await connection.execute(
                update(executions)
                .where(executions.c.id.in_(list(ids)), self._ours())
                .values(owner=None, lease_until=None)
            )

    async def queued(self, machine_uid: str) -> None:
        """Our executions on a machine wait for nothing but their turn now."""
        columns = executions.c
        async with self.database.transaction() as connection:
            await connection.execute(
                update(executions)
                .where(
                    columns.machine_uid == machine_uid,
                    columns.status == "wake_in_progress",
                    self._ours(),
                )
                .values(status="queued")
            )

    # ---- leases

    async def renew(self) -> set[str]:
        """Keep all that is ours; what that is."""
        statement = (
            update(executions)
            .where(self._ours())
            .values(lease_until=self.clock() + self._lease)
            .returning(executions.c.id)
        )
        async with self.database.transaction() as connection:
            return set((await connection.execute(statement)).scalars())

    async def hand_over(self) -> None:
        """Leave all that is ours to whoever comes first."""
        async with self.database.transaction() as connection:
            await connection.execute(
                update(executions).where(self._ours()).values(lease_until=self.clock())
            )

    async def cancelled(self) -> list[str]:
        """Ours that are to be ended."""
        columns = executions.c
        statement = select(columns.id).where(
            self._ours(), columns.cancelling, columns.completed_at.is_(None)
        )
        async with self.database.reading() as connection:
            return list((await connection.execute(statement)).scalars())

    async def take_over(self, *, batch: int = _BATCH) -> list[Work]:
        """Make ours what its owner has left, at most `batch`, the oldest first."""
        columns, now = executions.c, self.clock()
        left = (
            select(columns.id)
            .where(columns.owner.is_not(None), columns.lease_until <= now)
            .order_by(columns.lease_until)
            .limit(batch)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        statement = (
            update(executions)
            .where(columns.id.in_(left))
            .values(owner=self.owner, lease_until=now + self._lease)
            .returning(*(columns[name] for name in Work.__slots__))
        )
        async with self.database.transaction() as connection:
            rows = (await connection.execute(statement)).all()
        return [Work(**row._mapping) for row in rows]

    async def sweep(self, *, batch: int = _BATCH) -> int:
        """Delete what has expired, `batch` at a time; how many there were."""
        columns, swept = executions.c, 0
        while True:
            old = (
                select(columns.id)
                .where(columns.expires_at <= self.clock(), columns.owner.is_(None))
                .order_by(columns.expires_at)
                .limit(batch)
                .with_for_update(skip_locked=True)
                .scalar_subquery()
            )
            statement = delete(executions).where(columns.id.in_(old)).returning(columns.id)
            async with self.database.transaction() as connection:
                gone = len((await connection.execute(statement)).all())
            swept += gone
            if gone < batch:
                return swept

    # ---- parts

    def _unexpired(self) -> ColumnElement[bool]:
        return or_(executions.c.expires_at.is_(None), executions.c.expires_at > self.clock())

    def _ours(self) -> ColumnElement[bool]:
        return executions.c.owner == self.owner

    def _unfinished(self) -> ColumnElement[bool]:
        return and_(self._ours(), executions.c.completed_at.is_(None))

    async def _write(
        self,
        connection: AsyncConnection,
        id: str,
        values: Mapping[str, Any],
        condition: ColumnElement[bool],
    ) -> Execution | None:
        statement = (
            update(executions)
            .where(executions.c.id == id, condition)
            .values(**values)
            .returning(executions)
        )
        row = (await connection.execute(statement)).one_or_none()
        return None if row is None else self.as_record(row)

    async def _end(
        self,
        connection: AsyncConnection,
        id: str,
        values: Mapping[str, Any],
        events: Sequence[Event],
        condition: ColumnElement[bool],
        *,
        completed: bool = False,
    ) -> Execution | None:
        settled = {"owner": None, "lease_until": None} if completed else {}
        columns = executions.c
        row = await self._write(
            connection,
            id,
            {**values, **settled, "sequence": columns.sequence + len(events) + 1},
            and_(condition, columns.completed_at.is_(None)),
        )
        if row is None:
            return None
        told = ("exit_code", "signal", "error_code", "error_message")
        end = Event(
            row.sequence,
            "lifecycle",
            values["completed_at"],
            status=row.status,
            **{name: getattr(row, name) for name in told},
        )
        first = row.sequence - len(events)
        numbered = [replace(one, sequence=first + place) for place, one in enumerate(events)]
        await self._tell(connection, id, [*numbered, end])
        await connection.execute(
            delete(execution_inputs).where(execution_inputs.c.execution_id == id)
        )
        return row

    async def _tell(self, connection: AsyncConnection, id: str, events: Sequence[Event]) -> None:
        await connection.execute(insert(execution_events), [one.values(id) for one in events])
