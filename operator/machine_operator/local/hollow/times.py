"""Times as Kubernetes writes them."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["micro_time", "now", "timestamp"]


def now() -> datetime:
    """The current time, with its zone."""
    return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """`metav1.Time`: seconds, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def micro_time(moment: datetime) -> str:
    """`metav1.MicroTime`, as Leases carry it."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
