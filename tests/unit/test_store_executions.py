"""Executions in the store: one owner at a time, output and its position together, and nothing after the end.

The class is collected a second time in tests/engine, on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from machine_operator.store.artifacts import ArtifactRecords
from machine_operator.store.database import Database
from machine_operator.store.executions import (
    Event,
    Execution,
    ExecutionInputs,
    ExecutionRecords,
    execution_events,
    execution_inputs,
)
from tests.support.store import Clock, sqlite_replicas

LEASE = 15.0
INPUTS = ExecutionInputs({"TOKEN": "s3cret"}, b"\x00in\xff")


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[list[Database]]:
    async with sqlite_replicas(tmp_path) as databases:
        yield databases


def values(id: str = "wexec-1", **changed: Any) -> dict[str, Any]:
    return {
        "id": id,
        "org": "acme",
        "machine_id": "uuid-1",
        "machine_uid": "uid-1",
        "created_by": "ada",
        "status": "queued",
        "command": ["true"],
        "timeout_ms": 1000,
        **changed,
    }


def ending(clock: Clock, **changed: Any) -> dict[str, Any]:
    now = clock()
    end = {"status": "succeeded", "exit_code": 0, "completed_at": now}
    return {**end, "expires_at": now + timedelta(hours=1), **changed}


async def rows(database: Database, table: Any) -> int:
    async with database.reading() as connection:
        return int(await connection.scalar(select(func.count()).select_from(table)))


class TestExecutions:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def here(self, replicas: list[Database], clock: Clock) -> ExecutionRecords:
        return ExecutionRecords(replicas[0], owner="here", lease=LEASE, clock=clock)

    @pytest.fixture
    def there(self, replicas: list[Database], clock: Clock) -> ExecutionRecords:
        return ExecutionRecords(replicas[1], owner="there", lease=LEASE, clock=clock)

    async def made(self, records: ExecutionRecords, **changed: Any) -> Execution:
        execution, new = await records.create(values(**changed), INPUTS)
        assert new
        return execution

    async def test_a_new_one_is_there_once_with_what_it_is_given(self, here, there):
        execution = await self.made(here)
        again, new = await there.create(values(command=["false"]), None)
        assert (again, new) == (execution, False)
        assert await there.readable("acme", "uuid-1", "wexec-1") == execution
        assert await there.inputs("wexec-1") == INPUTS
        assert await there.inputs("wexec-2") == ExecutionInputs({}, b"")
        assert [e.status for e in await there.events("wexec-1", after=0, limit=9)] == ["queued"]
        assert await there.readable("other", "uuid-1", "wexec-1") is None
        assert await there.readable("acme", "uuid-2", "wexec-1") is None

    async def test_only_its_owner_goes_on_with_it(self, here, there, clock):
        execution = await self.made(here)
        assert await there.mine("wexec-1") is None
        assert await there.begin(execution, instance_uid="boot") is None
        begun = await here.begin(execution, instance_uid="boot")
        piece = Event(3, "stdout", clock(), chunk=b"x")
        assert await there.append(begun, [piece], {"stdout_kept": 1}) is None
        assert await there.end(begun, [], ending(clock)) is None
        appended = await here.append(begun, [piece], {"stdout_kept": 1})
        assert (appended.sequence, appended.stdout_kept) == (3, 1)
        assert await rows(here.database, execution_events) == 3

    async def test_its_end_is_told_once_and_wipes_what_it_was_given(self, here, clock):
        begun = await here.begin(await self.made(here), instance_uid="boot")
        pieces = [
            Event(0, "stdout", clock(), chunk=b"a\xff"),
            Event(0, "stderr", clock(), chunk=b"b"),
        ]
        ended = await here.end(begun, pieces, ending(clock, stdout_kept=2, stdout_bytes=2))
        assert (ended.status, ended.sequence, ended.completed_at) == ("succeeded", 5, clock())
        assert await here.end(begun, [], ending(clock, status="failed")) is None
        assert await here.append(begun, [Event(9, "stdout", clock(), chunk=b"x")], {}) is None
        events = await here.events("wexec-1", after=0, limit=9)
        assert [(e.sequence, e.type, e.chunk, e.status) for e in events] == [
            (1, "lifecycle", None, "queued"),
            (2, "lifecycle", None, "running"),
            (3, "stdout", b"a\xff", None),
            (4, "stderr", b"b", None),
            (5, "lifecycle", None, "succeeded"),
        ]
        assert events[-1].exit_code == 0
        assert await here.output("wexec-1") == (b"a\xff", b"b")
        assert await rows(here.database, execution_inputs) == 0

    async def test_what_an_owner_leaves_is_taken_over_by_one(self, here, there, clock):
        for number in range(5):
            await self.made(here, id=f"wexec-{number}")
        clock.forward(seconds=LEASE - 1)
        assert await there.take_over() == []
        assert len(await here.renew()) == 5
        clock.forward(seconds=LEASE - 1)
        assert await there.take_over() == []
        clock.forward(seconds=1)
        first, second = await there.take_over(batch=3), await there.take_over(batch=3)
        assert {work.id for work in first + second} == {f"wexec-{n}" for n in range(5)}
        assert (len(first), len(second), await there.take_over()) == (3, 2, [])
        assert await here.renew() == set()
        assert await here.mine("wexec-1") is None
        assert (await there.mine("wexec-1")).owner == "there"

    async def test_what_is_handed_over_can_be_taken_at_once(self, here, there):
        await self.made(here)
        await here.hand_over()
        assert [work.id for work in await there.take_over()] == ["wexec-1"]

    async def test_what_has_ended_but_is_not_settled_is_taken_over_too(self, here, there, clock):
        begun = await here.begin(await self.made(here), instance_uid="boot")
        await here.end(begun, [], ending(clock))
        clock.forward(seconds=LEASE)
        (work,) = await there.take_over()
        assert (work.completed_at is not None, work.instance_uid) == (True, "boot")
        await here.settle(["wexec-1"])
        assert await there.renew() == {"wexec-1"}
        await there.settle(["wexec-1"])
        assert await there.renew() == set()

    async def test_one_that_has_not_begun_is_cancelled_by_anybody(self, here, there, clock):
        execution = await self.made(here)
        end = ending(clock, status="cancelled", exit_code=None)
        ended = await there.cancel("wexec-1", end)
        assert (ended.status, ended.completed_at, ended.owner) == ("cancelled", clock(), None)
        assert await here.begin(execution, instance_uid="boot") is None
        assert await there.cancel("wexec-1", end) is None
        assert await rows(here.database, execution_inputs) == 0

    async def test_the_owner_of_one_that_may_have_begun_is_told(self, here, there, clock):
        await self.made(here, instance_uid="boot")
        await self.made(here, id="wexec-2")
        told = await there.cancel("wexec-1", ending(clock, status="cancelled"))
        assert (told.status, told.completed_at, told.cancelling) == ("queued", None, True)
        assert await here.cancelled() == ["wexec-1"]
        assert await there.cancelled() == []

    async def test_those_of_a_machine_are_queued_once_it_is_awake(self, here, there):
        for number, uid in enumerate(("uid-1", "uid-2")):
            await self.made(here, id=f"wexec-{number}", machine_uid=uid, status="wake_in_progress")
        await there.queued("uid-1")
        await here.queued("uid-1")
        statuses = [(await here.mine(f"wexec-{number}")).status for number in range(2)]
        assert statuses == ["queued", "wake_in_progress"]

    async def test_pages_and_expiry(self, here, there, clock):
        for number in range(5):
            execution = await self.made(here, id=f"wexec-{number}")
            if number < 3:
                await here.end(execution, [], ending(clock))
                await here.settle([execution.id])
            clock.forward(minutes=10)
        first, place = await there.page("acme", "uuid-1", after=None, limit=3)
        second, end = await there.page("acme", "uuid-1", after=place, limit=3)
        assert [one.id[-1] for one in first + second] == ["4", "3", "2", "1", "0"]
        assert end is None
        clock.forward(minutes=15)  # 65 after the first one, 55 after the second
        assert await there.readable("acme", "uuid-1", "wexec-0") is None
        page, _ = await there.page("acme", "uuid-1", after=None, limit=9)
        assert len(page) == 4
        assert await there.sweep(batch=1) == 1
        assert await there.find(here.table.c.id == "wexec-0") is None
        assert await rows(here.database, execution_events) == 2 * 2 + 2
        assert (await there.readable("acme", "uuid-1", "wexec-1")) is not None

    async def test_artifacts_are_shown_with_the_end(self, here, there, clock):
        artifacts = ArtifactRecords(here.database, clock=clock)
        execution = await self.made(here)
        row = {
            **{name: getattr(execution, name) for name in ("org", "machine_id", "machine_uid")},
            "id": "art-1",
            "created_by": "ada",
            "created_at": clock(),
            "execution_id": execution.id,
            "name": "a.txt",
            "size_bytes": 1,
            "mime_type": "text/plain",
            "sha256": "",
            "key": "art-1",
            "expires_at": clock() + timedelta(hours=2),
        }
        await artifacts.announce([row, {**row, "id": "art-2", "key": "art-2"}])
        assert await artifacts.readable("acme", "uuid-1", "art-1") is None
        assert len(await artifacts.unfinished(execution.id)) == 2

        async def publish(connection: Any) -> None:
            await artifacts.publish(connection, {"art-1": {"size_bytes": 3, "sha256": "00"}})

        assert await there.end(execution, [], ending(clock), more=publish) is None
        assert await artifacts.by_id("art-1") is None
        await here.end(execution, [], ending(clock), more=publish)
        found = await artifacts.by_id("art-1")
        assert (found.size_bytes, found.sha256, found.ready) == (3, "00", True)
        page, _ = await artifacts.page("acme", "uuid-1", after=None, limit=9)
        assert [one.id for one in page] == ["art-1"]
        limits = {"abandoned": timedelta(hours=1), "limit": 9}
        assert await artifacts.expired(**limits) == []
        clock.forward(hours=1)
        assert [one.id for one in await artifacts.expired(**limits)] == ["art-2"]
        await artifacts.hide(["art-1"])
        assert await artifacts.by_id("art-1") is None
        assert {one.id for one in await artifacts.expired(**limits)} == {"art-1", "art-2"}
