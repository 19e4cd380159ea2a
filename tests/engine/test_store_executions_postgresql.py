"""Executions on a real PostgreSQL server: all that holds on SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from machine_operator.store.database import Database
from tests.support import postgresql as support
from tests.support.postgresql import PostgresServer
from tests.support.store import postgresql_replicas
from tests.unit.test_store_executions import TestExecutions

__all__ = ["TestExecutions"]

postgresql_server = support.postgresql_server


@pytest.fixture
async def replicas(postgresql_server: PostgresServer) -> AsyncIterator[list[Database]]:
    async with postgresql_replicas(postgresql_server) as databases:
        yield databases
