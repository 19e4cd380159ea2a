"""One database for all repositories: SQLite for one gateway process, or a few on one computer; PostgreSQL for replicas.

Every access goes through `transaction()` or `reading()`, where errors are told apart and waiting has an end.

SQLite has one writer at a time. Within the process writers queue here, in order, instead of polling for the file's
lock; a transaction takes that lock when it begins (BEGIN IMMEDIATE), since one that first reads and then writes fails
when somebody wrote between. WAL lets readers go on meanwhile. A commit survives the end of the process at once, that
of the computer as from the next checkpoint (synchronous=NORMAL).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Table, event, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool

from machine_operator.store.address import Address, Kind, parse_address
from machine_operator.store.errors import StoreUnavailable, told

__all__ = ["Database", "StoreUnavailable", "Timeouts"]

_CONNECTIONS: Final = 10
_RECYCLE_SECONDS: Final = 1800
_READING: Final = "machine_operator_reading"
_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds, before the database is said to be unavailable.

    Attributes:
        connect: for a new connection.
        statement: for the answer to a statement; with SQLite, for another process that writes. Where nothing answers
            at all, as long again for the attempt to end the transaction.
        queue: for a free connection, or for the writers of this process that came before.
        migration: for other processes that migrate, and for each statement of a migration.
    """

    connect: float = 3.0
    statement: float = 3.0
    queue: float = 3.0
    migration: float = 60.0


class Database:
    """An open database. Made by `Database.open`.

    Attributes:
        kind: "sqlite" or "postgresql".
        shared: whether gateways on several computers may use it at once.
        name: which database it is, for people; without user and password.
    """

    def __init__(self, engine: AsyncEngine, *, address: Address, timeouts: Timeouts) -> None:
        self.kind: Kind = address.kind
        self.shared = address.kind == "postgresql"
        self.name = address.name
        self._address = address
        self._timeouts = timeouts
        self._engine = engine
        # Nothing to begin and to commit where nothing is written: a statement is a transaction.
        self._reader = engine.execution_options(
            **({"isolation_level": "AUTOCOMMIT"} if self.shared else {_READING: True})
        )
        self._turn = asyncio.Lock()
        self._one_by_one = address.kind == "sqlite"
        self._one_connection = self._one_by_one and address.file is None

    @classmethod
    async def open(
        cls, url: str, *, migrate: bool = True, timeouts: Timeouts | None = None
    ) -> Database:
        """Connect to the store, and bring its tables to this version.

        Any number of processes may do so at once: one migrates, the others wait for it.

        Args:
            url: see `address.py`.
            migrate: False leaves the tables alone, whatever they are.
            timeouts: None for the defaults.

        Raises:
            ValueError: the URL is none of a store.
            StoreUnavailable: there is no reaching it.
            SchemaError: a newer version has been here.
        """
        address = parse_address(url)
        timeouts = timeouts or Timeouts()
        database = cls(_engine(address, timeouts), address=address, timeouts=timeouts)
        try:
            with told(address.name):
                if address.file is not None:
                    await database._prepare_file(address.file)
                if migrate:
                    await database._migrate()
            async with database.reading() as connection:
                await connection.execute(select(1))
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that is committed at the end of the block, or rolled back where the block raises.

        Nothing but statements belongs into the block: with SQLite all other writers wait meanwhile.

        Raises:
            StoreUnavailable: the database cannot be used now. Whether the transaction was committed is not known
                where the connection broke at its very end.
        """
        with told(self.name):
            async with self._in_turn(self._one_by_one), self._engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read from. Each statement sees what is committed when it begins.

        Raises:
            StoreUnavailable: the database cannot be used now.
        """
        with told(self.name):
            async with self._in_turn(self._one_connection), self._reader.connect() as connection:
                yield connection

    async def lock(self, connection: AsyncConnection, name: str) -> None:
        """Let no other transaction that locks `name` go on until this one ends."""
        # A writing transaction of SQLite is the only one anyway.
        if self.shared:
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
            number = int.from_bytes(digest[:8], signed=True)
            await connection.execute(select(func.pg_advisory_xact_lock(number)))

    def insert(self, table: Table) -> postgresql.Insert | sqlite.Insert:
        """An INSERT of this database's dialect, which has `on_conflict_do_…`."""
        return postgresql.insert(table) if self.shared else sqlite.insert(table)

    @asynccontextmanager
    async def _in_turn(self, wait: bool) -> AsyncIterator[None]:
        if not wait:
            yield
            return
        async with asyncio.timeout(self._timeouts.queue):
            await self._turn.acquire()
        try:
            yield
        finally:
            self._turn.release()

    async def _prepare_file(self, file: Path) -> None:
        # Answers are kept in it that only their callers may see. The files beside it get the same mode.
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        deadline = asyncio.get_running_loop().time() + self._timeouts.migration
        while True:
            try:
                async with self.reading() as connection:
                    await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
                return
            except StoreUnavailable:
                # Two that change it at once: SQLite tells one of them at once, without waiting, that it is locked.
                if asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_POLL_SECONDS)

    async def _migrate(self) -> None:
        from machine_operator.store import schema  # noqa: PLC0415  (it knows all tables, and they know databases)

        # A database in memory is there for its own connection only.
        patient = self._engine if self._one_connection else _engine(self._address, self._patience)
        try:
            async with patient.begin() as connection:
                await self.lock(connection, "machine-operator migrations")
                await connection.run_sync(schema.upgrade)
        finally:
            if patient is not self._engine:
                await patient.dispose()

    @property
    def _patience(self) -> Timeouts:
        return Timeouts(connect=self._timeouts.connect, statement=self._timeouts.migration)


def _engine(address: Address, timeouts: Timeouts) -> AsyncEngine:
    # Parameters are kept out of messages: bodies of answers are among them.
    if address.kind == "postgresql":
        return create_async_engine(
            address.url,
            hide_parameters=True,
            poolclass=AsyncAdaptedQueuePool,
            pool_size=_CONNECTIONS,
            max_overflow=0,
            pool_timeout=timeouts.queue,
            pool_pre_ping=True,
            pool_recycle=_RECYCLE_SECONDS,
            connect_args=_postgresql_options(address, timeouts),
        )
    options: dict[str, Any] = {"poolclass": StaticPool}
    if address.file is not None:
        options = {
            "poolclass": AsyncAdaptedQueuePool,
            "pool_size": _CONNECTIONS,
            "max_overflow": 0,
            "pool_timeout": timeouts.queue,
        }
    engine = create_async_engine(
        address.url,
        hide_parameters=True,
        connect_args={"timeout": timeouts.statement},
        **options,
    )
    event.listen(engine.sync_engine, "connect", _set_up_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _postgresql_options(address: Address, timeouts: Timeouts) -> dict[str, Any]:
    statement = str(max(1, int(timeouts.statement * 1000)))
    options: dict[str, Any] = {
        "timeout": timeouts.connect,
        # The server's own limit comes first, and leaves the connection in a usable state.
        "command_timeout": timeouts.statement + 0.5,
        "server_settings": {
            "application_name": "machine-operator",
            "statement_timeout": statement,
            "lock_timeout": statement,
            "idle_in_transaction_session_timeout": statement,
        },
    }
    if address.tls:
        options["dsn"] = f"postgresql://?{address.tls}"
    return options


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # Else Python's own layer begins transactions, and not before the first INSERT.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    if not connection.get_execution_options().get(_READING):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
