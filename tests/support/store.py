"""Stores for tests: two gateways' worth of one database, at once, with tables that were made once for all tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from sqlalchemy import create_engine

from machine_operator.store import schema
from machine_operator.store.database import Database, Timeouts
from tests.support.postgresql import PostgresServer

__all__ = ["EPOCH", "Clock", "postgresql_replicas", "sqlite_replicas"]

EPOCH = datetime(2026, 3, 1, 10, 0, 0, tzinfo=UTC)

_migrated: dict[int, str] = {}


@dataclass(slots=True)
class Clock:
    """A clock that stands still until it is put forward."""

    now: datetime = EPOCH

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **units: float) -> datetime:
        """Put it forward by so many `hours`, `seconds`, …; what it shows then."""
        self.now += timedelta(**units)
        return self.now


@asynccontextmanager
async def sqlite_replicas(
    directory: Path, *, timeouts: Timeouts | None = None
) -> AsyncIterator[list[Database]]:
    """Two that have the same file open, as two processes would."""
    file = directory / "store.db"
    file.write_bytes(_sqlite_with_tables())
    async with _open(f"sqlite:///{file}", timeouts) as databases:
        yield databases


@asynccontextmanager
async def postgresql_replicas(
    server: PostgresServer, *, timeouts: Timeouts | None = None
) -> AsyncIterator[list[Database]]:
    """Two that use the same database, as two replicas would."""
    template = _migrated.get(id(server))
    if template is None:
        template = await server.create_database()
        await (await Database.open(server.url(template))).close()
        _migrated[id(server)] = template
    name = await server.create_database(template=template)
    async with _open(server.url(name), timeouts) as databases:
        yield databases
    await server.drop_database(name)


@asynccontextmanager
async def _open(url: str, timeouts: Timeouts | None) -> AsyncIterator[list[Database]]:
    async with AsyncExitStack() as stack:
        databases = []
        for _ in range(2):
            databases.append(await Database.open(url, migrate=False, timeouts=timeouts))
            stack.push_async_callback(databases[-1].close)
        yield databases


@cache
def _sqlite_with_tables() -> bytes:
    directory = Path(tempfile.mkdtemp(prefix="machine-operator-store-"))
    try:
        engine = create_engine(f"sqlite:///{directory}/template.db")
        with engine.begin() as connection:
            schema.upgrade(connection)
        engine.dispose()
        return (directory / "template.db").read_bytes()
    finally:
        shutil.rmtree(directory)
