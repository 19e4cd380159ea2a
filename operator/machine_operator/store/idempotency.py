"""Idempotency records: what was answered to a request, for 24 hours, so that its repetition gets the same answer.

    begin ──> Started ──> finish    the answer is kept
      │          └──────> abandon   the request failed: as if it had never been
      ├─────> InFlight              somebody else is at it
      └─────> Finished              the answer

`begin` is one INSERT … ON CONFLICT, so there is one winner however many call at once. A winner has the record on lease.
When its gateway dies, the lease runs out and the next caller with the same request takes over; the token of an attempt
keeps the former winner, should it have been merely slow, from writing over its successor's answer.

Leases are by the clocks of the gateways; those must agree to well within a lease.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, case, delete, null, or_, select, update

from machine_operator.store.database import Database
from machine_operator.store.marks import raise_mark
from machine_operator.store.moments import utc_now
from machine_operator.store.tables import idempotency_records as records

__all__ = ["Finished", "IdempotencyRecords", "InFlight", "Started"]

_KEPT: Final = timedelta(hours=24)
_ANSWER: Final = (
    records.c.request_hash,
    records.c.lease_until,
    records.c.status,
    records.c.body,
    records.c.etag,
    records.c.headers,
)


@dataclass(frozen=True, slots=True)
class Started:
    """The request is the caller's to carry out, who then owes a `finish` or an `abandon`.

    Attributes:
        token: of this attempt; nobody else has it.
        record: of which record.
        request_hash: as given to `begin`.
        taken_over: whether another gateway had begun with the same request and may have carried it out in part.
    """

    token: str
    record: str
    request_hash: str
    taken_over: bool = False


@dataclass(frozen=True, slots=True)
class InFlight:
    """Somebody is carrying it out.

    Attributes:
        request_hash: of the request that came first.
        remaining: seconds until its lease runs out; 0.0 where it has, and another request used the key.
    """

    request_hash: str
    remaining: float


@dataclass(frozen=True, slots=True)
class Finished:
    """It was carried out.

    Attributes:
        request_hash: of the request that was answered.
        status: HTTP status code of the answer.
        body: its bytes.
        etag: its ETag, or None.
        headers: its other headers that belong to the answer.
    """

    request_hash: str
    status: int
    body: bytes
    etag: str | None
    headers: dict[str, str]


class IdempotencyRecords:
    """The records in one database. Each method raises StoreUnavailable where that cannot be used.

    Args:
        database: where they are.
        clock: tells the time, with a zone.
    """

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock

    async def begin(
        self,
        *,
        org: str,
        method: str,
        path: str,
        key: str,
        request_hash: str,
        lease_seconds: float,
    ) -> Started | InFlight | Finished:
        """Begin to carry out a request, or learn what became of it.

        Whether an InFlight or a Finished is about the same request the caller finds out by its `request_hash`.
        """
        now = self._clock()
        record = _digest(org, method, path, key)
        token = secrets.token_hex(16)
        new = self._database.insert(records).values(
            id=record,
            request_hash=request_hash,
            token=token,
            attempt=1,
            lease_until=now + timedelta(seconds=lease_seconds),
            expires_at=now + _KEPT,
        )
        expired = records.c.expires_at <= now
        orphaned = and_(
            records.c.status.is_(None),
            records.c.lease_until <= now,
            records.c.request_hash == request_hash,
        )
        kept = ("request_hash", "token", "lease_until", "expires_at")
        statement = new.on_conflict_do_update(
            index_elements=[records.c.id],
            set_={
                **{name: new.excluded[name] for name in kept},
                "attempt": case((expired, 1), else_=records.c.attempt + 1),
                **dict.fromkeys(("status", "body", "etag", "headers"), null()),
            },
            where=or_(expired, orphaned),
        ).returning(records.c.attempt)
        async with self._database.transaction() as connection:
            attempt = await connection.scalar(statement)
            if attempt is not None:
                return Started(token, record, request_hash, taken_over=attempt > 1)
            # The conflict has locked the row, though it did not change it: it is there until we are done.
            found = await connection.execute(select(*_ANSWER).where(records.c.id == record))
            return _as_found(found.one(), now)

    async def finish(
        self,
        started: Started,
        *,
        status: int,
        body: bytes,
        etag: str | None = None,
        headers: Mapping[str, str] | None = None,
        mark: tuple[str, int] | None = None,
    ) -> bool:
        """Keep the answer, and raise the write mark. May be repeated where it failed.

        Args:
            started: what `begin` gave.
            status: HTTP status code of the answer.
            body: its bytes.
            etag: its ETag.
            headers: its other headers that belong to the answer.
            mark: an org and the resourceVersion that the request wrote there, or None where it wrote nothing.

        Returns:
            Whether the answer was kept: not where the lease had run out and somebody else took over. The mark is
            raised even so, since the write has happened.
        """
        async with self._database.transaction() as connection:
            result = await connection.execute(
                update(records)
                .where(records.c.id == started.record, records.c.token == started.token)
                .values(
                    status=status,
                    body=body,
                    etag=etag,
                    headers=dict(headers or {}),
                    expires_at=self._clock() + _KEPT,
                )
            )
            if mark is not None:
                await raise_mark(self._database, connection, org=mark[0], version=mark[1])
        return result.rowcount > 0

    async def abandon(self, started: Started) -> None:
        """Forget the request: its answer is none to be repeated."""
        async with self._database.transaction() as connection:
            await connection.execute(
                delete(records).where(
                    records.c.id == started.record,
                    records.c.token == started.token,
                    records.c.status.is_(None),
                )
            )

    async def sweep(self, *, batch: int = 500) -> int:
        """Delete what is older than 24 hours, `batch` records in a transaction; how many there were."""
        now = self._clock()
        # A record that another gateway sweeps, or begins anew, is none of our business.
        old = (
            select(records.c.id)
            .where(records.c.expires_at <= now)
            .order_by(records.c.expires_at)
            .limit(batch)
            .with_for_update(skip_locked=True)
            .cte("old")
        )
        statement = (
            delete(records).where(records.c.id.in_(select(old.c.id))).returning(records.c.id)
        )
        swept = 0
        while True:
            async with self._database.transaction() as connection:
                # Python's SQLite counts no rows of a statement that begins with WITH.
                gone = len((await connection.execute(statement)).all())
            swept += gone
            if gone < batch:
                return swept


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.hexdigest()


def _as_found(row: Any, now: datetime) -> InFlight | Finished:
    if row.status is None:
        return InFlight(row.request_hash, max(0.0, (row.lease_until - now).total_seconds()))
    return Finished(row.request_hash, row.status, row.body, row.etag, row.headers or {})
