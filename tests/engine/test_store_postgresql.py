"""The store on a real PostgreSQL server: all that holds on SQLite, and what only a server can do to us."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from machine_operator.store.database import Database, Timeouts
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.idempotency import Finished, IdempotencyRecords, Started
from machine_operator.store.marks import WriteMarks
from tests.support import postgresql as support
from tests.support.postgresql import PASSWORD, PostgresServer
from tests.support.store import postgresql_replicas
from tests.unit.test_store_database import TestSchema, TestTransactions
from tests.unit.test_store_idempotency import ANSWER, CREATE, TestIdempotency
from tests.unit.test_store_ledger import TestLedger
from tests.unit.test_store_marks import TestMarks

__all__ = ["TestIdempotency", "TestLedger", "TestMarks", "TestSchema", "TestTransactions"]

postgresql_server = support.postgresql_server
postgresql_url = support.postgresql_url

SHORT = Timeouts(connect=0.5, statement=0.5, queue=0.5)


@pytest.fixture
async def replicas(postgresql_server: PostgresServer) -> AsyncIterator[list[Database]]:
    async with postgresql_replicas(postgresql_server) as databases:
        yield databases


@pytest.fixture
async def impatient(postgresql_server: PostgresServer) -> AsyncIterator[Database]:
    async with postgresql_replicas(postgresql_server, timeouts=SHORT) as databases:
        yield databases[0]


@pytest.fixture
def empty_url(postgresql_url: str) -> str:
    return postgresql_url


@contextmanager
def unavailable(words: str, *, within: float) -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=words) as caught:
        yield
    took = time.monotonic() - began
    assert took < within, f"it took {took:.1f} s"
    assert caught.value.retryable
    assert PASSWORD not in str(caught.value)


async def test_postgresql_is_shared(replicas):
    assert [(each.kind, each.shared) for each in replicas] == [("postgresql", True)] * 2


async def test_server_that_crashes_between_and_comes_back(replicas, postgresql_server):
    records = IdempotencyRecords(replicas[0])
    started = await records.begin(**CREATE)
    assert isinstance(started, Started)
    postgresql_server.kill()
    try:
        for use in (
            lambda: records.begin(**CREATE),
            lambda: records.finish(started, **ANSWER, mark=("acme", 5)),
            lambda: WriteMarks(replicas[1]).of("acme"),
        ):
            with unavailable("cannot be used now", within=2):
                await use()
    finally:
        postgresql_server.start()
    assert await records.finish(started, **ANSWER, mark=("acme", 5))
    assert await records.begin(**CREATE) == Finished("9ad5f2ad", **ANSWER)
    assert await WriteMarks(replicas[1]).of("acme") == 5


async def test_server_that_crashes_within_a_transaction(replicas, postgresql_server):
    try:
        with unavailable("connection", within=2):
            async with replicas[0].transaction() as connection:
                await connection.execute(text("INSERT INTO write_marks VALUES ('acme', 1)"))
                postgresql_server.kill()
                await connection.execute(text("INSERT INTO write_marks VALUES ('other', 1)"))
    finally:
        postgresql_server.start()
    assert await WriteMarks(replicas[0]).of("acme") == 0


async def test_server_that_does_not_answer_is_an_error_soon(impatient, postgresql_server):
    marks = WriteMarks(impatient)
    await marks.raise_to("acme", 1)
    postgresql_server.freeze()
    try:
        # The statement's time, the end of the transaction's, or that of a new connection.
        for _ in range(3):
            with unavailable("no answer came in time", within=4):
                await marks.raise_to("acme", 2)
    finally:
        postgresql_server.thaw()
    await marks.raise_to("acme", 3)
    assert await marks.of("acme") == 3


async def test_statement_that_takes_too_long_is_an_error_soon(impatient):
    with unavailable("statement timeout", within=2):
        async with impatient.reading() as connection:
            await connection.execute(text("SELECT pg_sleep(20)"))


async def test_row_that_somebody_keeps_locked_is_an_error_soon(impatient, postgresql_server):
    marks = WriteMarks(impatient)
    await marks.raise_to("acme", 1)
    holder = await asyncpg.connect(postgresql_server.url(impatient.name.rpartition("/")[2]))
    try:
        async with holder.transaction():
            await holder.execute("SELECT * FROM write_marks FOR UPDATE")
            with unavailable("timeout", within=2):
                await marks.raise_to("acme", 2)
    finally:
        await holder.close()
    await marks.raise_to("acme", 2)


async def test_transaction_that_stands_still_is_ended(impatient):
    with unavailable("cannot be used now", within=4):
        async with impatient.transaction() as connection:
            await connection.execute(text("INSERT INTO write_marks VALUES ('acme', 1)"))
            await ended(impatient, "SELECT count(*) FROM pg_locks WHERE mode = 'RowExclusiveLock'")
            await connection.execute(text("SELECT 1"))
    await WriteMarks(impatient).raise_to("acme", 2)


async def ended(database: Database, count: str) -> None:
    """Wait until the statement `count` finds nothing."""
    deadline = time.monotonic() + 10
    async with database.reading() as connection:
        while found := await connection.scalar(text(count)):
            assert time.monotonic() < deadline, f"{count}: {found}"
            await asyncio.sleep(0.02)


async def test_values_that_no_column_takes_are_a_mistake_of_ours(impatient):
    with pytest.raises(DBAPIError, match="int64"):
        await WriteMarks(impatient).raise_to("acme", 2**63)


async def test_pool_has_an_end_and_a_queue_with_one_too(impatient):
    async def hold() -> None:
        async with impatient.reading() as connection:
            await connection.execute(text("SELECT 1"))
            await release.wait()

    release = asyncio.Event()
    async with asyncio.TaskGroup() as holders:
        for _ in range(10):
            holders.create_task(hold())
        await asyncio.sleep(0)  # they queue up first
        with unavailable("all connections are in use", within=2):
            await WriteMarks(impatient).of("acme")
        release.set()
    assert await WriteMarks(impatient).of("acme") == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((PASSWORD, "guessed-7"), "password authentication failed"),
        (("/test_", "/no_such_"), "does not exist"),
        (("127.0.0.1", "no-such-host.invalid"), "cannot be used now"),
        (("$", "?sslmode=require"), "rejected SSL"),
    ],
    ids=["password", "database", "host", "tls"],
)
async def test_server_that_does_not_let_us_in(postgresql_url, change, words, caplog):
    caplog.set_level(logging.DEBUG)
    with unavailable(words, within=5):
        await Database.open(re.sub(*change, postgresql_url))
    assert PASSWORD not in caplog.text
    assert "guessed-7" not in caplog.text


async def test_port_where_nobody_listens(postgresql_server, postgresql_url):
    url = postgresql_url.replace(f":{postgresql_server.port}/", ":1/")
    with unavailable("Connect call failed", within=2):
        await Database.open(url)
