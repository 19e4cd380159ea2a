"""Usage: what an organisation has used in a period, in all and by machine and hour or day.

It comes from the ledger, so machines that are destroyed still count. Amounts are kept in milliseconds and told in whole
seconds, cut so that the rows of any granularity add up to the same sums, and those to the summary of the same period.
What goes on counts until it was last seen, which is at most a minute ago.

Nothing is billed here. The identifiers of a billing system's records are made of what they stand for: they are opaque,
and equal in every answer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
from fastapi import APIRouter
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from machine_operator.api.timestamps import format_timestamp
from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.periods import Period, read_period
from machine_operator.gateway.dcs.usage_models import (
    ComputeUsageResponse,
    StorageUsageResponse,
    UsageResponse,
)
from machine_operator.gateway.failures import store_unavailable, unprocessable
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.identity import Verb
from machine_operator.gateway.machine_ids import PREFIX, bare_id
from machine_operator.gateway.problems import Fault, Scope
from machine_operator.store.buckets import Bucket, Granularity, cut, total, whole_seconds
from machine_operator.store.errors import StoreUnavailable
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.moments import utc_now
from machine_operator.store.segments import Segment, SegmentKind, Sizes

__all__ = ["usage_routes"]

_PATH: Final = "/v1/usage"
_PLAN: Final = "self-hosted"
_MOST_ROWS: Final = 10_000
"""About 6 MB of JSON."""
_LENGTHS: Final[dict[Granularity, timedelta]] = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}

Row = dict[str, Any]
Rows = Callable[["_Usage", Sequence[Segment]], list[Row]]


def usage_routes(
    gateway: Gateway, ledger: UsageLedger, *, clock: Callable[[], datetime] = utc_now
) -> APIRouter:
    """The routes of `/v1/usage`.

    Args:
        gateway: who may ask.
        ledger: what was used.
        clock: tells the time, with a zone.
    """
    here, router = _Routes(gateway, ledger, clock), APIRouter(tags=["usage"])
    for path, endpoint, operation, model, names in (
        ("", here.summary, "getUsage", UsageResponse, ("period_start",)),
        (
            "/machines/compute",
            here.compute,
            "listMachineComputeUsage",
            ComputeUsageResponse,
            ("granularity", "of_machine", "period_start", "period_end"),
        ),
        (
            "/machines/storage",
            here.storage,
            "listMachineStorageUsage",
            StorageUsageResponse,
            ("of_machine", "period_start", "period_end"),
        ),
    ):
        router.add_api_route(
            _PATH + path,
            endpoint,
            methods=["GET"],
            operation_id=operation,
            responses={
                **openapi.read_responses(model, etag=False),
                **openapi.RESPONSES_READ,
            },
            openapi_extra=openapi.parameters(*names),
        )
    return router


@dataclass(frozen=True, slots=True)
class _Usage:
    """What is asked for.

    Attributes:
        org: whose usage.
        period: of which time.
        granularity: length of a bucket.
        machine: the id of the only machine that is meant, as the ledger has it; None for all.
        short: whether ids are spelled without `dm-`.
    """

    org: str
    period: Period
    granularity: Granularity
    machine: str | None
    short: bool

    def spelled(self, machine_id: str) -> str:
        return machine_id.removeprefix(PREFIX) if self.short else machine_id


@dataclass(frozen=True, slots=True)
class _Routes:
    gateway: Gateway
    ledger: UsageLedger
    clock: Callable[[], datetime]

    async def summary(self, request: Request) -> Response:
        """Sum up what the organisation has used since the period began."""
        org = await self._admit(request)
        period = read_period(request.query_params, now=self.clock(), until_now=True)
        used = await self._segments(org, period, "awake")
        used += await self._segments(org, period, "storage")
        sums = await asyncio.to_thread(total, used, begin=period.begin, end=period.end)
        body = {
            "plan_slug": _PLAN,
            "billed_awake_seconds": sums.awake_ms // 1000,
            "billed_cpu_millicore_seconds": sums.cpu_millicore_ms // 1000,
            "billed_memory_mib_seconds": sums.memory_mib_ms // 1000,
            "billed_logical_storage_mib_seconds": sums.storage_mib_ms // 1000,
            "included_storage_gib": 0,
            "provisioned_storage_gib": await self._provisioned(org),
        }
        return _json(body)

    async def compute(self, request: Request) -> Response:
        """List time awake and the sizes in it, by machine and bucket."""
        org = await self._admit(request)
        usage = self._usage(request.query_params, org, granularity=_granularity(request))
        rows = await self._rows(usage, "awake", _compute_rows)
        return _json({"granularity": usage.granularity, **_told(usage.period), "rows": rows})

    async def storage(self, request: Request) -> Response:
        """List home disks, by machine and day."""
        org = await self._admit(request)
        usage = self._usage(request.query_params, org, granularity="day")
        rows = await self._rows(usage, "storage", _storage_rows)
        return _json({**_told(usage.period), "rows": rows})

    async def _admit(self, request: Request) -> str:
        admitted = await self.gateway.admit(request, verb=Verb.USAGE, scopes=(Scope.READ,))
        return admitted.org

    def _usage(self, query: QueryParams, org: str, *, granularity: Granularity) -> _Usage:
        period = read_period(query, now=self.clock())
        named = query.get("machine_id") or None
        short = named is not None and not named.startswith(PREFIX)
        machine = None if named is None else PREFIX + (bare_id(named) or "")
        return _Usage(org, period, granularity, machine, short)

    async def _rows(self, usage: _Usage, kind: SegmentKind, rows: Rows) -> list[Row]:
        if usage.machine == PREFIX:
            return []  # what is no id is the id of no machine
        segments = await self._segments(usage.org, usage.period, kind, machine_id=usage.machine)
        # Thousands of rows take a while, and streams are to be served meanwhile.
        return await asyncio.to_thread(rows, usage, segments)

    async def _provisioned(self, org: str) -> int:
        """GiB of all disks that the organisation has now."""
        try:
            there = await self.ledger.open_segments(org=org)
        except StoreUnavailable as error:
            raise store_unavailable() from error
        return sum(row.sizes.storage_gib for row in there if row.kind == "storage")

    async def _segments(
        self, org: str, period: Period, kind: SegmentKind, *, machine_id: str | None = None
    ) -> list[Segment]:
        try:
            return await self.ledger.segments(
                org, kind=kind, begin=period.begin, end=period.end, machine_id=machine_id
            )
        except StoreUnavailable as error:
            raise store_unavailable() from error


# ---- rows


def _compute_rows(usage: _Usage, segments: Sequence[Segment]) -> list[Row]:
    buckets = _buckets(usage, segments)
    awake = whole_seconds(bucket.awake_ms for bucket in buckets)
    cpu = whole_seconds(bucket.cpu_millicore_ms for bucket in buckets)
    memory = whole_seconds(bucket.memory_mib_ms for bucket in buckets)
    return [
        {
            **_place(usage, bucket),
            "last_window_end": format_timestamp(bucket.last_window_end),
            "awake_seconds": awake[number],
            "cpu_millicore_seconds": cpu[number],
            "memory_mib_seconds": memory[number],
            "requested_vcpu": bucket.sizes.vcpu_millis / 1000,
            "requested_memory_mib": bucket.sizes.memory_mib,
            "requested_storage_gib": bucket.sizes.storage_gib,
            "spec_fingerprint": _fingerprint(bucket.sizes),
            "window_count": bucket.window_count,
            "org_metering_bucket_ids": [_identifier("bucket", usage, bucket)],
            "stripe_cpu_identifiers": [_identifier("cpu", usage, bucket)],
            "stripe_memory_identifiers": [_identifier("memory", usage, bucket)],
        }
        for number, bucket in enumerate(buckets)
    ]


def _storage_rows(usage: _Usage, segments: Sequence[Segment]) -> list[Row]:
    buckets = _buckets(usage, segments)
    seconds = whole_seconds(bucket.storage_mib_ms for bucket in buckets)
    return [
        {
            **_place(usage, bucket),
            "logical_storage_bytes": bucket.sizes.storage_gib << 30,
            "storage_mib_seconds": seconds[number],
            "org_metering_bucket_id": _identifier("disk-bucket", usage, bucket),
            "stripe_storage_identifier": _identifier("disk", usage, bucket),
        }
        for number, bucket in enumerate(buckets)
    ]


def _buckets(usage: _Usage, segments: Sequence[Segment]) -> list[Bucket]:
    """The segments in buckets.

    Raises:
        Problem: 422, there are too many for one answer. There are no pages, and half an answer would be a wrong one.
    """
    begin, end, length = usage.period.begin, usage.period.end, _LENGTHS[usage.granularity]
    # Segments of one machine do not overlap: so many buckets at least are needed for their time.
    least = sum((min(s.end, end) - max(s.began_at, begin)) // length for s in segments)
    if least <= _MOST_ROWS:
        buckets = cut(segments, begin=begin, end=end, granularity=usage.granularity)
        if len(buckets) <= _MOST_ROWS:
            return buckets
    message = (
        f"the answer would have more than {_MOST_ROWS} rows; ask for a shorter period"
        f"{', for days' if usage.granularity == 'hour' else ''} or for one machine"
    )
    raise unprocessable(Fault("query.period_start", message))


def _place(usage: _Usage, bucket: Bucket) -> Row:
    return {
        "machine_id": usage.spelled(bucket.machine_id),
        "bucket_start": format_timestamp(bucket.begin),
        "bucket_end": format_timestamp(bucket.end),
    }


def _identifier(what: str, usage: _Usage, bucket: Bucket) -> str:
    """The same whatever period was asked for, though its bounds cut the first and last bucket."""
    midnight = bucket.begin.replace(hour=0, minute=0, second=0, microsecond=0)
    begin = bucket.begin.replace(minute=0, second=0, microsecond=0)
    if usage.granularity == "day":
        begin = midnight
    parts = (what, usage.org, bucket.machine_id, usage.granularity, format_timestamp(begin))
    return f"{what}-{_hash(*parts, length=24)}"


def _fingerprint(sizes: Sizes) -> str:
    return _hash(str(sizes.vcpu_millis), str(sizes.memory_mib), str(sizes.storage_gib), length=16)


def _hash(*parts: str, length: int) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:length]


# ---- requests and answers


def _granularity(request: Request) -> Granularity:
    text = request.query_params.get("granularity") or "day"
    if text not in _LENGTHS:
        raise unprocessable(Fault("query.granularity", "use hour or day", text))
    return text


def _told(period: Period) -> Row:
    return {
        "period_start": format_timestamp(period.begin),
        "period_end": format_timestamp(period.end),
    }


def _json(body: Row) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
