"""The tables. Whoever changes them adds a migration; a test compares the two."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator
from typing_extensions import override

from machine_operator.store.moments import from_milliseconds, milliseconds

__all__ = ["Moment", "idempotency_records", "metadata", "usage_segments", "write_marks"]


class Moment(TypeDecorator[datetime]):
    """A moment with a time zone, kept as an integer of milliseconds: SQLite knows no time zones."""

    impl = BigInteger
    cache_ok = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else milliseconds(value)

    @override
    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_milliseconds(value)


metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

idempotency_records: Final = Table(
    "idempotency_records",
    metadata,
    # A digest of org, method, path and key: those may be longer than what an index takes, and have any character.
    Column("id", Text, primary_key=True),
    Column("request_hash", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("lease_until", Moment, nullable=False),
    Column("expires_at", Moment, nullable=False, index=True),
    Column("status", Integer),
    Column("body", LargeBinary),
    Column("etag", Text),
    Column("headers", JSON(none_as_null=True)),
)

write_marks: Final = Table(
    "write_marks",
    metadata,
    Column("org", Text, primary_key=True),
    Column("version", BigInteger, nullable=False),
)

usage_segments: Final = Table(
    "usage_segments",
    metadata,
    Column("machine_uid", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("ordinal", BigInteger, primary_key=True, autoincrement=False),
    Column("org", Text, nullable=False),
    Column("machine_id", Text, nullable=False),
    Column("vcpu_millis", BigInteger, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("storage_gib", BigInteger, nullable=False),
    Column("began_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("seen_at", Moment, nullable=False),
    CheckConstraint("kind IN ('awake', 'storage')", name="kind"),
    CheckConstraint("ended_at >= began_at", name="forward"),
    Index(None, "org", "kind", "ended_at"),
)

Index(
    "ix_usage_segments_open",
    usage_segments.c.machine_uid,
    usage_segments.c.kind,
    # That at most one is open is what every sum rests on; so the database watches over it too.
    unique=True,
    sqlite_where=text("ended_at IS NULL"),
    postgresql_where=text("ended_at IS NULL"),
)
