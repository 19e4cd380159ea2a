"""The bodies of the usage operations, which DCS gained later. All sums are over the period that the answer names."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from machine_operator.gateway.dcs.models import Body, Double, Int64

__all__ = [
    "ComputeUsageResponse",
    "ComputeUsageRow",
    "StorageUsageResponse",
    "StorageUsageRow",
    "UsageResponse",
]


class UsageResponse(Body):
    """What an org has used in the current billing period."""

    plan_slug: str
    billed_awake_seconds: Int64
    billed_cpu_millicore_seconds: Int64
    billed_memory_mib_seconds: Int64
    billed_logical_storage_mib_seconds: Int64
    included_storage_gib: Int64
    provisioned_storage_gib: Int64


class ComputeUsageRow(Body):
    """What one machine of one size has used in one bucket of time."""

    machine_id: str
    bucket_start: datetime
    bucket_end: datetime
    last_window_end: datetime = Field(description="Up to when the bucket is counted so far.")
    awake_seconds: Int64
    cpu_millicore_seconds: Int64
    memory_mib_seconds: Int64
    requested_vcpu: Double
    requested_memory_mib: Int64
    requested_storage_gib: Int64
    spec_fingerprint: str = Field(description="Equal for equal sizes.")
    window_count: Int64
    org_metering_bucket_ids: list[str]
    stripe_cpu_identifiers: list[str]
    stripe_memory_identifiers: list[str]
    latest_stripe_emitted_at: datetime | None = None


class ComputeUsageResponse(Body):
    """Awake time and sizes, by machine and bucket."""

    granularity: Literal["hour", "day"]
    period_start: datetime
    period_end: datetime
    rows: list[ComputeUsageRow]


class StorageUsageRow(Body):
    """What one machine's home disk has taken in one bucket of time."""

    machine_id: str
    bucket_start: datetime
    bucket_end: datetime
    logical_storage_bytes: Int64
    storage_mib_seconds: Int64
    org_metering_bucket_id: str
    stripe_storage_identifier: str
    latest_stripe_emitted_at: datetime | None = None


class StorageUsageResponse(Body):
    """Home disks, by machine and bucket."""

    period_start: datetime
    period_end: datetime
    rows: list[StorageUsageRow]
