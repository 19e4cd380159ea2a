"""What the operator does while nothing happens: requests by the audit log, and processor time."""

from __future__ import annotations

import time

from audit import AuditLog, by_kind
from clusters import progress
from figures import Report, single
from plane import Plane, Process

__all__ = ["measure"]

_SETTLE = 15.0
_LENGTH = 60.0
_CPU = 0.5
"""Percent of a processor."""


def measure(report: Report, plane: Plane, operator: Process) -> None:
    """Watch it doing nothing for a minute."""
    time.sleep(_SETTLE)
    progress(f"idle: {_LENGTH:.0f} s")
    log, before, begun = AuditLog(plane.audit), operator.processor_seconds, time.monotonic()
    time.sleep(_LENGTH)
    took = time.monotonic() - begun
    used = 100 * (operator.processor_seconds - before) / took
    requests = log.requests()
    # The server ends each watch after some minutes; whoever wants to know more asks again.
    watches = [r for r in requests if r.is_watch]
    others = [r for r in requests if not r.is_watch]
    report.raw["idle"] = {"watches": by_kind(watches), "others": by_kind(others), "cpu": used}
    name = f"requests in {took:.0f} s at rest, without leases and watches"
    report.add(single(name, len(others), "", limit=0, least=0))
    report.add(single("  watches begun again", len(watches), ""))
    report.add(single("  operator's processor", used, "%", limit=_CPU))
