"""The tables of executions, and their rows as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    text,
)

from machine_operator.store.subresources import subresource_table
from machine_operator.store.tables import Moment, metadata

__all__ = [
    "Event",
    "Execution",
    "ExecutionInputs",
    "Work",
    "execution_events",
    "execution_inputs",
    "executions",
]

executions: Final = subresource_table(
    "executions",
    Column("status", Text, nullable=False),
    Column("command", JSON, nullable=False),
    Column("cwd", Text),
    Column("env_keys", JSON(none_as_null=True)),
    Column("timeout_ms", BigInteger, nullable=False),
    Column("started_at", Moment),
    Column("completed_at", Moment),
    Column("expires_at", Moment, index=True),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("stdout_bytes", BigInteger, nullable=False, default=0),
    Column("stderr_bytes", BigInteger, nullable=False, default=0),
    Column("stdout_kept", BigInteger, nullable=False, default=0),
    Column("stderr_kept", BigInteger, nullable=False, default=0),
    Column("stdout_truncated", Boolean, nullable=False, default=False),
    Column("stderr_truncated", Boolean, nullable=False, default=False),
    Column("artifacts", JSON(none_as_null=True)),
    # Number of the last event.
    Column("sequence", BigInteger, nullable=False),
    Column("cancelling", Boolean, nullable=False, default=False),
    Column("instance_uid", Text),
    # None: there is nothing left to be done.
    Column("owner", Text),
    Column("lease_until", Moment),
)

Index(
    "ix_executions_owner",
    executions.c.owner,
    executions.c.lease_until,
    sqlite_where=text("owner IS NOT NULL"),
    postgresql_where=text("owner IS NOT NULL"),
)

execution_inputs: Final = Table(
    "execution_inputs",
    metadata,
    Column(
        "execution_id",
        Text,
        ForeignKey("executions.id", ondelete="CASCADE", name="fk_execution_inputs_execution_id"),
        primary_key=True,
    ),
    Column("env", JSON, nullable=False),
    Column("stdin", LargeBinary, nullable=False),
)

execution_events: Final = Table(
    "execution_events",
    metadata,
    Column(
        "execution_id",
        Text,
        ForeignKey("executions.id", ondelete="CASCADE", name="fk_execution_events_execution_id"),
        primary_key=True,
    ),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("type", Text, nullable=False),
    Column("at", Moment, nullable=False),
    Column("chunk", LargeBinary),
    Column("status", Text),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("error_code", Text),
    Column("error_message", Text),
)


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution. `*_bytes` is what the program wrote, `*_kept` how many bytes of it are in events.

    Attributes:
        artifacts: `{artifact_id, name}` of each.
        others: as the columns.
    """

    id: str
    org: str
    machine_id: str
    machine_uid: str
    created_by: str
    created_at: datetime
    status: str
    command: list[str]
    cwd: str | None
    env_keys: list[str] | None
    timeout_ms: int
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None
    exit_code: int | None
    signal: int | None
    error_code: str | None
    error_message: str | None
    stdout_bytes: int
    stderr_bytes: int
    stdout_kept: int
    stderr_kept: int
    stdout_truncated: bool
    stderr_truncated: bool
    artifacts: list[dict[str, str]] | None
    sequence: int
    cancelling: bool
    instance_uid: str | None
    owner: str | None
    lease_until: datetime | None


@dataclass(frozen=True, slots=True)
class ExecutionInputs:
    """What a program is given, kept until it has ended."""

    env: Mapping[str, str]
    stdin: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to an execution, or a piece of its output."""

    sequence: int
    type: str
    at: datetime
    chunk: bytes | None = None
    status: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    error_code: str | None = None
    error_message: str | None = None

    def values(self, execution_id: str) -> dict[str, Any]:
        """As a row."""
        named = {name: getattr(self, name) for name in self.__slots__}
        return {"execution_id": execution_id, **named}


@dataclass(frozen=True, slots=True)
class Work:
    """An execution that was taken over."""

    id: str
    org: str
    machine_id: str
    machine_uid: str
    created_by: str
    instance_uid: str | None
    completed_at: datetime | None
