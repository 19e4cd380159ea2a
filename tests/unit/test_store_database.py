"""The database itself, here SQLite: where it is, its tables' history, and which of its errors are said to pass."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import inspect, text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError, OperationalError

from machine_operator.store import schema
from machine_operator.store.address import parse_address
from machine_operator.store.database import Database, Timeouts
from machine_operator.store.errors import SchemaError, StoreUnavailable
from machine_operator.store.marks import WriteMarks
from tests.support.store import sqlite_replicas

SHORT = Timeouts(connect=0.3, statement=0.1, queue=0.2, migration=5)


@asynccontextmanager
async def opened(
    url: str, *, migrate: bool = True, timeouts: Timeouts = SHORT
) -> AsyncIterator[Database]:
    database = await Database.open(url, migrate=migrate, timeouts=timeouts)
    try:
        yield database
    finally:
        await database.close()


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[list[Database]]:
    async with sqlite_replicas(tmp_path, timeouts=SHORT) as databases:
        yield databases


@pytest.fixture
def empty_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new.db"


def table_names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


class TestSchema:
    """Collected a second time in tests/engine, on PostgreSQL."""

    async def test_migrations_make_the_tables_that_we_work_with(self, empty_url):
        async with opened(empty_url) as database, database.transaction() as connection:
            assert await connection.run_sync(schema.differences) == []

    async def test_there_and_back_leaves_nothing(self, empty_url):
        # All migrations in one transaction: between two statements Alembic thinks for a while.
        async with opened(empty_url, timeouts=Timeouts(statement=30.0)) as database:
            await WriteMarks(database).raise_to("acme", 3)
            async with database.transaction() as connection:
                await connection.run_sync(schema.downgrade)
                assert await connection.run_sync(table_names) == {"alembic_version"}
            async with database.transaction() as connection:
                await connection.run_sync(schema.upgrade)
                assert await connection.run_sync(schema.differences) == []
            assert await WriteMarks(database).of("acme") == 0

    async def test_migration_that_fails_leaves_nothing_behind(self, empty_url):
        async with opened(empty_url, migrate=False) as database:

            def half(connection: Connection) -> None:
                schema.upgrade(connection)
                raise ZeroDivisionError

            async with database.transaction() as connection:
                with pytest.raises(ZeroDivisionError):
                    await connection.run_sync(half)
                await connection.rollback()
            async with database.transaction() as connection:
                assert await connection.run_sync(table_names) == set()

    async def test_many_that_open_a_new_store_at_once_do_not_collide(self, empty_url):
        databases = await asyncio.gather(*(Database.open(empty_url) for _ in range(6)))
        try:
            for version, database in enumerate(databases, start=1):
                await WriteMarks(database).raise_to("acme", version)
                assert await WriteMarks(databases[0]).of("acme") == version
        finally:
            for database in databases:
                await database.close()

    async def test_store_of_a_newer_version_is_left_alone(self, empty_url):
        async with opened(empty_url) as database, database.transaction() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(SchemaError, match=r"newer version \(revision 9999, where"):
            await Database.open(empty_url)
        async with opened(empty_url, migrate=False) as database:
            await WriteMarks(database).raise_to("acme", 1)


class TestTransactions:
    """Collected a second time in tests/engine, on PostgreSQL."""

    async def test_what_raises_is_rolled_back(self, replicas):
        async def half() -> None:
            async with replicas[0].transaction() as connection:
                await connection.execute(text("INSERT INTO write_marks VALUES ('acme', 1)"))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await half()
        assert await WriteMarks(replicas[1]).of("acme") == 0

    async def test_mistakes_of_ours_are_not_hidden(self, replicas):
        for mistake in ("SELECT * FROM nowhere", "SELEC 1"):
            with pytest.raises(Exception, match=r"nowhere|syntax") as caught:
                async with replicas[0].reading() as connection:
                    await connection.execute(text(mistake))
            assert not isinstance(caught.value, StoreUnavailable)
        with pytest.raises(IntegrityError) as broken:
            async with replicas[0].transaction() as connection:
                await connection.execute(
                    text("INSERT INTO write_marks VALUES (:org, NULL)"), {"org": "private-words"}
                )
        assert "[SQL: " in str(broken.value)
        assert "parameters hidden" in str(broken.value)

    async def test_callers_that_go_away_leave_it_usable(self, replicas):
        here, there = map(WriteMarks, replicas)
        for round_ in range(15):
            tasks = [
                asyncio.create_task((here, there)[n % 2].raise_to("gone", round_ * 100 + n))
                for n in range(20)
            ]
            for _ in range(round_):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(end) for end in ends} <= {type(None), asyncio.CancelledError}, ends
        await asyncio.gather(*(here.raise_to("acme", n) for n in range(1, 31)))
        assert await there.of("acme") == 30


async def test_sqlite_is_set_up_for_several_processes(empty_url, tmp_path):
    async with opened(empty_url) as database:
        assert (database.kind, database.shared) == ("sqlite", False)
        async with database.transaction() as connection:
            values = {
                name: await connection.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            }
        assert values == {
            "journal_mode": "wal",
            "synchronous": 1,
            "foreign_keys": 1,
            "busy_timeout": 100,
        }
        assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("new.db*")} == {0o600}


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
async def test_sqlite_in_memory(url):
    async with opened(url) as database:
        marks = WriteMarks(database)
        await asyncio.gather(*(marks.raise_to("acme", n) for n in range(1, 20)))
        assert await asyncio.gather(*(marks.of("acme") for _ in range(5))) == [19] * 5


async def test_writer_elsewhere_that_does_not_end_is_an_error_soon(replicas):
    here, there = replicas
    async with here.transaction() as connection:
        await connection.execute(text("INSERT INTO write_marks VALUES ('acme', 1)"))
        with pytest.raises(StoreUnavailable, match="database is locked"):
            await WriteMarks(there).raise_to("acme", 2)
        with pytest.raises(StoreUnavailable, match="no answer came in time"):
            await WriteMarks(here).raise_to("acme", 3)
        assert await WriteMarks(there).of("acme") == 0, "readers need not wait"
    await WriteMarks(there).raise_to("acme", 2)
    assert await WriteMarks(here).of("acme") == 2


async def test_place_that_cannot_be_a_store_is_told_with_its_name(tmp_path):
    with pytest.raises(StoreUnavailable) as missing:
        await Database.open(f"sqlite:///{tmp_path}/nowhere/store.db", timeouts=SHORT)
    assert str(missing.value) == (
        f"the store (SQLite {tmp_path}/nowhere/store.db) cannot be used now: "
        f"{tmp_path}/nowhere/store.db: No such file or directory; try again later"
    )
    (tmp_path / "letter.db").write_text("Dear sir or madam, " * 500)
    patience = Timeouts(connect=0.3, statement=0.1, queue=0.2, migration=0.1)
    with pytest.raises(StoreUnavailable, match="file is not a database"):
        await Database.open(f"sqlite:///{tmp_path}/letter.db", timeouts=patience)


async def test_table_that_is_gone_is_not_said_to_pass(replicas):
    async with replicas[0].transaction() as connection:
        await connection.execute(text("DROP TABLE write_marks"))
    with pytest.raises(OperationalError, match="no such table"):
        await WriteMarks(replicas[1]).of("acme")


@pytest.mark.parametrize(
    ("url", "name", "driver"),
    [
        ("sqlite:///a/b.db", "SQLite a/b.db", "sqlite+aiosqlite:///a/b.db"),
        ("sqlite:////a/b.db", "SQLite /a/b.db", "sqlite+aiosqlite:////a/b.db"),
        ("sqlite://", "SQLite in memory", "sqlite+aiosqlite://"),
        (
            "postgresql://u:pw@db.example:6000/store",
            "PostgreSQL db.example:6000/store",
            "postgresql+asyncpg://u:pw@db.example:6000/store",
        ),
        (
            "postgres://u@/store?host=/run/postgresql",
            "PostgreSQL /run/postgresql:5432/store",
            "postgresql+asyncpg://u@/store?host=%2Frun%2Fpostgresql",
        ),
    ],
)
def test_urls(url, name, driver):
    address = parse_address(url)
    assert address.name == name
    assert address.url.render_as_string(hide_password=False) == driver


def test_tls_options_go_to_the_driver():
    address = parse_address("postgresql://u@h/d?sslrootcert=/etc/a%20b.pem&sslmode=verify-full")
    assert address.tls == "sslmode=verify-full&sslrootcert=%2Fetc%2Fa+b.pem"
    assert not address.url.query


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "cannot be read"),
        ("hunter2", "cannot be read"),
        ("postgresql://u:hunter2@h:port/d", "cannot be read"),
        ("mysql://u:hunter2@h/d", "mysql: is no store"),
        ("postgresql+psycopg://u:hunter2@h/d", r"postgresql\+psycopg: is no store"),
        ("postgresql://u:hunter2@h", "names no database"),
        ("postgresql://u:hunter2@h/d?pool=9&x=1", "^pool, x cannot be set"),
        ("postgresql://u:hunter2@h/d?sslmode=maybe", "^sslmode in .* is one of disable, allow"),
        ("sqlite://file.db", "three slashes"),
        ("sqlite:///file.db?mode=ro", "no options, but mode"),
    ],
)
def test_wrong_urls_are_told_without_the_password(url, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_address(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_address_does_not_show_the_password():
    assert "hunter2" not in repr(parse_address("postgresql://u:hunter2@h/d"))
