"""Idempotency records: one winner, the same answer for a day, and nobody writes over another one's answer.

The class is collected a second time in tests/engine, on PostgreSQL.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from machine_operator.store.database import Database
from machine_operator.store.idempotency import (
    Finished,
    IdempotencyRecords,
    InFlight,
    Started,
)
from machine_operator.store.marks import WriteMarks
from machine_operator.store.tables import idempotency_records
from tests.support.store import Clock, sqlite_replicas

CREATE: dict[str, Any] = {
    "org": "acme",
    "method": "POST",
    "path": "/v1/machines",
    "key": "k-1",
    "request_hash": "9ad5f2ad",
    "lease_seconds": 30.0,
}
ANSWER: dict[str, Any] = {
    "status": 202,
    "body": b'{"machine_id":"dm-1"}\x00\xff',
    "etag": '"7"',
    "headers": {"Location": "/v1/machines/dm-1"},
}


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[list[Database]]:
    async with sqlite_replicas(tmp_path) as databases:
        yield databases


async def count(database: Database) -> int:
    async with database.reading() as connection:
        return int(await connection.scalar(select(func.count()).select_from(idempotency_records)))


class TestIdempotency:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def here(self, replicas: list[Database], clock: Clock) -> IdempotencyRecords:
        return IdempotencyRecords(replicas[0], clock=clock)

    @pytest.fixture
    def there(self, replicas: list[Database], clock: Clock) -> IdempotencyRecords:
        return IdempotencyRecords(replicas[1], clock=clock)

    async def begun(self, records: IdempotencyRecords, **changes: Any) -> Started:
        found = await records.begin(**{**CREATE, **changes})
        assert isinstance(found, Started), found
        return found

    async def test_first_starts_second_is_in_flight_third_gets_the_answer(self, here, there, clock):
        started = await self.begun(here)
        assert not started.taken_over
        clock.forward(seconds=12)
        assert await there.begin(**CREATE) == InFlight("9ad5f2ad", 18.0)
        assert await here.finish(started, **ANSWER)
        expected = Finished("9ad5f2ad", **ANSWER)
        assert await there.begin(**CREATE) == expected
        assert await here.begin(**CREATE) == expected

    async def test_answer_without_etag_and_headers(self, here):
        await here.finish(await self.begun(here), status=200, body=b"")
        assert await here.begin(**CREATE) == Finished("9ad5f2ad", 200, b"", None, {})

    async def test_fifty_at_once_have_one_winner(self, here, there):
        found = await asyncio.gather(*((here, there)[n % 2].begin(**CREATE) for n in range(50)))
        assert sum(isinstance(each, Started) for each in found) == 1
        assert sum(isinstance(each, InFlight) for each in found) == 49

    async def test_fifty_keys_at_once_all_start_and_finish(self, here, there, replicas):
        async def whole(n: int) -> bool:
            records = (here, there)[n % 2]
            started = await self.begun(records, key=f"k-{n}")
            return await records.finish(started, **ANSWER, mark=("acme", n))

        assert all(await asyncio.gather(*(whole(n) for n in range(50))))
        assert await WriteMarks(replicas[0]).of("acme") == 49

    @pytest.mark.parametrize(
        "change",
        [
            {"org": "other"},
            {"method": "DELETE"},
            {"path": "/v1/machines/dm-1"},
            {"key": "k-2"},
            {"org": "acmePOST", "method": ""},
            {"key": "k" * 8000},
            {"path": "/v1/\x00/\ud800"},
        ],
        ids=["org", "method", "path", "key", "boundaries", "length", "characters"],
    )
    async def test_records_are_by_org_method_path_and_key(self, here, change):
        await self.begun(here)
        await self.begun(here, **change)
        assert isinstance(await here.begin(**{**CREATE, **change}), InFlight)

    async def test_another_request_with_the_key_learns_the_first_ones_hash(self, here, clock):
        started = await self.begun(here)
        other = {**CREATE, "request_hash": "a2b7e8d4"}
        assert await here.begin(**other) == InFlight("9ad5f2ad", 30.0)
        clock.forward(seconds=31)
        assert await here.begin(**other) == InFlight("9ad5f2ad", 0.0), "it must not take over"
        await here.finish(started, **ANSWER)
        assert await here.begin(**other) == Finished("9ad5f2ad", **ANSWER)

    async def test_lease_that_ran_out_is_taken_over_once(self, here, there, clock):
        await self.begun(here)
        clock.forward(seconds=30)
        found = await asyncio.gather(*((here, there)[n % 2].begin(**CREATE) for n in range(20)))
        winners = [each for each in found if isinstance(each, Started)]
        assert [each.taken_over for each in winners] == [True]
        assert InFlight("9ad5f2ad", 30.0) in found, "the successor has a lease of its own"

    async def test_slow_loser_changes_nothing_but_the_mark(self, here, there, clock, replicas):
        slow = await self.begun(here)
        clock.forward(seconds=31)
        quick = await self.begun(there)
        assert not await here.finish(slow, status=500, body=b"late", mark=("acme", 41))
        await here.abandon(slow)
        assert isinstance(await here.begin(**CREATE), InFlight)
        assert await there.finish(quick, **ANSWER, mark=("acme", 40))
        assert not await here.finish(slow, status=500, body=b"later")
        await here.abandon(slow)
        assert await here.begin(**CREATE) == Finished("9ad5f2ad", **ANSWER)
        assert await WriteMarks(replicas[1]).of("acme") == 41

    async def test_finish_may_be_repeated(self, here):
        started = await self.begun(here)
        assert await here.finish(started, **ANSWER)
        assert await here.finish(started, **ANSWER)
        await here.abandon(started)
        assert await here.begin(**CREATE) == Finished("9ad5f2ad", **ANSWER)

    async def test_abandoned_request_can_begin_anew_even_as_another(self, here, there):
        await here.abandon(await self.begun(here))
        again = await self.begun(there, request_hash="a2b7e8d4")
        assert not again.taken_over

    async def test_answer_is_kept_for_a_day_and_then_absent(self, here, clock):
        await here.finish(await self.begun(here), **ANSWER)
        clock.forward(hours=23, minutes=59, seconds=59)
        assert isinstance(await here.begin(**CREATE), Finished)
        clock.forward(seconds=1)
        again = await self.begun(here, request_hash="a2b7e8d4")
        assert not again.taken_over
        assert await here.begin(**CREATE) == InFlight("a2b7e8d4", 30.0), "nothing is left of it"

    async def test_sweep_deletes_what_is_old_and_nothing_else(self, here, there, clock, replicas):
        for n in range(8):
            await self.begun(here, key=f"old-{n}")
        clock.forward(hours=23)
        await here.finish(await self.begun(here), **ANSWER)
        assert await here.sweep() == 0
        clock.forward(hours=1)
        assert sum(await asyncio.gather(here.sweep(batch=3), there.sweep(batch=3))) == 8
        assert await count(replicas[0]) == 1
        assert isinstance(await here.begin(**CREATE), Finished)
