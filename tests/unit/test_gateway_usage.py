"""Usage: sums from the ledger, whoever asks, whatever the period; what is wrong with a query is said where it is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI

from machine_operator.gateway import answers
from machine_operator.gateway.dcs import openapi, usage
from machine_operator.gateway.dcs.usage import usage_routes
from machine_operator.gateway.dcs.usage_models import (
    ComputeUsageResponse,
    StorageUsageResponse,
    UsageResponse,
)
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.segments import SegmentKind, Sizes
from tests.support.asgi import Answer
from tests.support.gateway import ORG, Cluster, Replica

NOW = datetime(2026, 5, 20, 12, 0, 0, 500_000, tzinfo=UTC)
MONTH = datetime(2026, 5, 1, tzinfo=UTC)
FIRST, SECOND, FOREIGN = (f"{n}1111111-1111-4111-8111-111111111111" for n in "abc")
SMALL, LARGE = Sizes(250, 512, 10), Sizes(2500, 4096, 20)
PATHS = ("/v1/usage", "/v1/usage/machines/compute", "/v1/usage/machines/storage")


@dataclass
class Served:
    replica: Replica
    ledger: UsageLedger

    async def get(self, target: str, *, org: str | None = ORG, **query: str) -> Answer:
        written = "&".join(f"{name}={quote(value)}" for name, value in query.items())
        return await self.replica.call("GET", f"{target}?{written}", org=org)

    async def body(self, target: str, *, org: str = ORG, **query: str) -> Any:
        answer = await self.get(target, org=org, **query)
        assert answer.status == 200, (answer.status, answer.body)
        model = {
            PATHS[0]: UsageResponse,
            PATHS[1]: ComputeUsageResponse,
            PATHS[2]: StorageUsageResponse,
        }[target]
        model.model_validate(answer.json())
        return answer.json()

    async def used(
        self,
        uuid: str,
        begin: datetime,
        end: datetime | None,
        *,
        kind: SegmentKind = "awake",
        sizes: Sizes = SMALL,
        org: str = ORG,
    ) -> None:
        await self.ledger.open_segment(
            f"uid-{uuid}",
            kind=kind,
            ordinal=int(begin.timestamp() * 1000),
            org=org,
            machine_id=f"dm-{uuid}",
            sizes=sizes,
            at=begin,
        )
        if end is not None:
            await self.ledger.close_segment(f"uid-{uuid}", kind, end)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with Cluster(tmp_path).gateway() as replica:
        assert replica.database is not None
        ledger = UsageLedger(replica.database)
        app = FastAPI()
        app.include_router(usage_routes(replica.gateway, ledger, clock=lambda: NOW))
        openapi.install(app)
        answers.install(app)
        replica.app = app
        yield Served(replica, ledger)


async def some(served: Served) -> None:
    """Two machines of ours, one of them destroyed, and one of somebody else."""
    await served.used(
        FIRST, MONTH - timedelta(hours=1), MONTH + timedelta(hours=1, milliseconds=600)
    )
    await served.used(
        FIRST, MONTH + timedelta(days=3), MONTH + timedelta(days=3, milliseconds=700), sizes=LARGE
    )
    await served.used(FIRST, MONTH, MONTH + timedelta(days=4), kind="storage")
    await served.used(SECOND, MONTH + timedelta(days=2), None, kind="storage", sizes=LARGE)
    await served.used(SECOND, MONTH + timedelta(days=2, hours=23.5), None)
    await served.used(FOREIGN, MONTH, NOW, org="other")
    await served.ledger.touch(MONTH + timedelta(days=3, hours=1))


async def test_nothing_was_used(served: Served) -> None:
    assert await served.body("/v1/usage") == {
        "plan_slug": "self-hosted",
        "billed_awake_seconds": 0,
        "billed_cpu_millicore_seconds": 0,
        "billed_memory_mib_seconds": 0,
        "billed_logical_storage_mib_seconds": 0,
        "included_storage_gib": 0,
        "provisioned_storage_gib": 0,
    }
    assert await served.body(PATHS[1]) == {
        "granularity": "day",
        "period_start": "2026-05-01T00:00:00Z",
        "period_end": "2026-05-20T12:00:00.500000Z",
        "rows": [],
    }


async def test_the_summary_is_of_this_month_unless_another_start_is_named(served: Served) -> None:
    await some(served)
    milliseconds = 3_600_600 + 700 + 5_400_000
    cpu = (3_600_600 + 5_400_000) * 250 + 700 * 2500
    disks = 4 * 86_400_000 * 10 * 1024 + (86_400_000 + 3_600_000) * 20 * 1024
    body = await served.body("/v1/usage")
    assert body["billed_awake_seconds"] == milliseconds // 1000
    assert body["billed_cpu_millicore_seconds"] == cpu // 1000
    assert body["billed_logical_storage_mib_seconds"] == disks // 1000
    assert body["provisioned_storage_gib"] == 20, "one disk is gone"
    earlier = await served.body("/v1/usage", period_start="2026-04-01T00:00:00+02:00")
    assert earlier["billed_awake_seconds"] == (milliseconds + 3_600_000) // 1000
    assert (await served.body("/v1/usage", org="other"))["billed_cpu_millicore_seconds"] == (
        (NOW - MONTH) // timedelta(milliseconds=1) * 250 // 1000
    )


async def test_hours_and_days_and_the_summary_add_up_to_the_same(served: Served) -> None:
    await some(served)
    summary = await served.body("/v1/usage")
    days = (await served.body(PATHS[1]))["rows"]
    hours = (await served.body(PATHS[1], granularity="hour"))["rows"]
    assert len(days) < len(hours)
    for member in ("awake_seconds", "cpu_millicore_seconds", "memory_mib_seconds"):
        sums = [sum(row[member] for row in rows) for rows in (days, hours)]
        assert sums == [summary[f"billed_{member}"]] * 2, member
    for machine in (FIRST, SECOND):
        own = [
            [r["awake_seconds"] for r in rows if machine in r["machine_id"]]
            for rows in (days, hours)
        ]
        assert sum(own[0]) == sum(own[1])
    disks = (await served.body(PATHS[2]))["rows"]
    assert (
        sum(row["storage_mib_seconds"] for row in disks)
        == summary["billed_logical_storage_mib_seconds"]
    )


async def test_a_row_of_time_awake(served: Served) -> None:
    await some(served)
    rows = (await served.body(PATHS[1]))["rows"]
    assert [(r["machine_id"], r["bucket_start"]) for r in rows] == [
        (f"dm-{FIRST}", "2026-05-01T00:00:00Z"),
        (f"dm-{FIRST}", "2026-05-04T00:00:00Z"),
        (f"dm-{SECOND}", "2026-05-03T00:00:00Z"),
        (f"dm-{SECOND}", "2026-05-04T00:00:00Z"),
    ]
    opaque = (
        "spec_fingerprint",
        "org_metering_bucket_ids",
        "stripe_cpu_identifiers",
        "stripe_memory_identifiers",
    )
    assert {name: value for name, value in rows[1].items() if name not in opaque} == {
        "machine_id": f"dm-{FIRST}",
        "bucket_start": "2026-05-04T00:00:00Z",
        "bucket_end": "2026-05-05T00:00:00Z",
        "last_window_end": "2026-05-04T00:00:00.700000Z",
        "awake_seconds": 1,
        "cpu_millicore_seconds": 1750,
        "memory_mib_seconds": 2867,
        "requested_vcpu": 2.5,
        "requested_memory_mib": 4096,
        "requested_storage_gib": 20,
        "window_count": 1,
    }
    assert rows[2]["spec_fingerprint"] == rows[3]["spec_fingerprint"] != rows[1]["spec_fingerprint"]
    ids = [row[name][0] for row in rows for name in opaque[1:]]
    assert len(set(ids)) == len(ids)


async def test_identifiers_are_the_same_in_every_answer(served: Served) -> None:
    await some(served)
    whole = (await served.body(PATHS[2]))["rows"]
    cut = (await served.body(PATHS[2], period_start="2026-05-01T07:30:00Z"))["rows"]
    names = ("org_metering_bucket_id", "stripe_storage_identifier")
    assert [[row[n] for n in names] for row in whole] == [[row[n] for n in names] for row in cut]
    assert cut[0]["bucket_start"] == "2026-05-01T07:30:00Z"
    assert all(re.fullmatch(r"[a-z-]+-[0-9a-f]{24}", row[n]) for row in whole for n in names)


async def test_a_row_of_a_disk(served: Served) -> None:
    await some(served)
    row = (await served.body(PATHS[2], machine_id=f"dm-{SECOND}"))["rows"][-1]
    assert (row["bucket_start"], row["bucket_end"]) == (
        "2026-05-04T00:00:00Z",
        "2026-05-05T00:00:00Z",
    )
    assert row["logical_storage_bytes"] == 20 * 2**30
    assert row["storage_mib_seconds"] == 3600 * 20 * 1024, "as far as it was seen"


async def test_one_machine_in_either_spelling(served: Served) -> None:
    await some(served)
    for spelled in (FIRST, f"dm-{FIRST}"):
        rows = (await served.body(PATHS[1], machine_id=spelled))["rows"]
        assert [row["machine_id"] for row in rows] == [spelled] * 2


@pytest.mark.parametrize("machine", [FOREIGN, f"dm-{FOREIGN}", "dm-", "nobody", "\0", "x" * 9999])
@pytest.mark.parametrize("path", PATHS[1:])
async def test_a_machine_that_is_not_ours_has_used_nothing(
    served: Served, path: str, machine: str
) -> None:
    await some(served)
    assert (await served.body(path, machine_id=machine))["rows"] == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("query", "location", "words"),
    [
        ({"period_start": "yesterday"}, "query.period_start", "RFC 3339"),
        ({"period_start": "2026-05-01"}, "query.period_start", "RFC 3339"),
        ({"period_start": "2026-05-01T00:00:00"}, "query.period_start", "with a zone"),
        ({"period_start": "2026-02-30T00:00:00Z"}, "query.period_start", "RFC 3339"),
        ({"period_start": "0001-01-01T00:00:00+23:00"}, "query.period_start", "RFC 3339"),
        ({"period_start": "2026-05-01T00:00:00+99:00"}, "query.period_start", "RFC 3339"),
        ({"period_start": "٢٠٢٦-05-01T00:00:00Z"}, "query.period_start", "RFC 3339"),
        ({"period_start": "2026-05-21T00:00:00Z"}, "query.period_start", "in the past"),
        ({"period_start": "2025-04-01T00:00:00Z"}, "query.period_start", "400 days"),
        ({"period_start": "0001-01-01T00:00:00Z"}, "query.period_start", "400 days"),
    ],
)
async def test_what_is_wrong_with_a_start(
    served: Served, path: str, query: dict[str, str], location: str, words: str
) -> None:
    await self_explaining(await served.get(path, **query), location, words)


@pytest.mark.parametrize("path", PATHS[1:])
@pytest.mark.parametrize(
    ("query", "location", "words"),
    [
        ({"period_end": "tomorrow"}, "query.period_end", "RFC 3339"),
        (
            {"period_start": "2026-05-02T00:00:00Z", "period_end": "2026-05-02T02:00:00+02:00"},
            "query.period_end",
            "later than period_start",
        ),
        (
            {"period_start": "2026-05-02T00:00:00Z", "period_end": "9999-12-31T23:59:59.999999Z"},
            "query.period_end",
            "400 days",
        ),
    ],
)
async def test_what_is_wrong_with_an_end(
    served: Served, path: str, query: dict[str, str], location: str, words: str
) -> None:
    await self_explaining(await served.get(path, **query), location, words)


async def test_what_is_wrong_with_a_granularity(served: Served) -> None:
    answer = await served.get(PATHS[1], granularity="week")
    await self_explaining(answer, "query.granularity", "hour or day")


async def self_explaining(answer: Answer, location: str, words: str) -> None:
    assert answer.status == 422, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    (fault,) = answer.json()["errors"]
    assert fault["location"] == location
    assert words in fault["message"]


async def test_a_named_end_is_the_end_of_its_month(served: Served) -> None:
    for end, begin in (
        ("2026-03-01T00:00:00Z", "2026-02-01T00:00:00Z"),
        ("2026-03-01t00:00:00.001z", "2026-03-01T00:00:00Z"),
        ("2026-03-01T01:00:00%2B02:00", "2026-02-01T00:00:00Z"),
    ):
        answer = await served.replica.call("GET", f"{PATHS[1]}?period_end={end}")
        assert answer.status == 200, answer.body
        assert answer.json()["period_start"] == begin


async def test_an_empty_parameter_counts_as_none(served: Served) -> None:
    query = {"granularity": "", "machine_id": "", "period_start": "", "period_end": ""}
    assert await served.body(PATHS[1], **query) == await served.body(PATHS[1])


async def test_an_answer_has_an_end(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    await some(served)
    monkeypatch.setattr(usage, "_MOST_ROWS", 3)
    await self_explaining(await served.get(PATHS[2]), "query.period_start", "more than 3 rows")
    answer = await served.get(PATHS[1], granularity="hour")
    await self_explaining(answer, "query.period_start", "for days or for one machine")
    assert len((await served.body(PATHS[1], machine_id=FIRST))["rows"]) == 2


@pytest.mark.parametrize("path", PATHS)
async def test_without_the_store_there_is_no_answer(served: Served, path: str) -> None:
    assert served.replica.database is not None
    served.replica.database.down = True
    answer = await served.get(path)
    assert (answer.status, answer.json()["error_code"]) == (503, "DEPENDENCY_UNAVAILABLE")
    assert answer.json()["retryable"]


@pytest.mark.parametrize("path", PATHS)
async def test_nobody_asks_without_a_key(served: Served, path: str) -> None:
    answer = await served.get(path, org=None)
    assert (answer.status, answer.json()["error_code"]) == (401, "AUTH_REQUIRED")


async def test_the_document_tells_parameters_and_bodies(served: Served) -> None:
    paths = (await served.replica.call("GET", "/openapi.json")).json()["paths"]
    assert set(paths) == set(PATHS)
    told = {
        one["name"]
        for one in paths[PATHS[1]]["get"]["parameters"]
        if one["in"] == "query" and not one["required"]
    }
    assert told == {"granularity", "machine_id", "period_start", "period_end"}
    for path in PATHS:
        assert {"200", "401", "403", "429", "503"} <= set(paths[path]["get"]["responses"])
