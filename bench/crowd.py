"""What thousands of machines at rest cost: memory, idling, a restart, the next machine, the fail-over.

One plane is filled once, in steps, and everything is measured on it. Beside it, for flatness, stands a small one, and
both are probed in turns. The machines never sleep by themselves, so whatever the operator does then is its own idea.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import failover
import flatness
import idling
import restarts
from arms import load, machines, start_operator, start_stub
from clusters import BenchError, progress
from figures import Report, single
from plane import Plane, Process
from rounds import WARM_UP, Planes, warm_up

__all__ = ["PARTS", "Attempt", "Crowd"]

Attempt = Callable[[str, Callable[[], None]], None]
"""Runs a named part, and lets the others be measured where it cannot be."""

PARTS = ("memory", "idle", "restart", "flat", "failover")

_SMALL = 100
_FILL_RATE = 100.0
_FILL_LIMIT = 400.0
_SETTLE = 15.0
_START, _REST, _SLOPE = 100.0, 200.0, 30.0
"""The most resident memory: at the start, with 3,000 machines (or 3/5 of fewer), and per 1,000 more."""


@dataclass(slots=True)
class Crowd:
    """One plane with machines at rest, and what is measured on it.

    Attributes:
        report: gets the figures.
        size: how many machines.
        probes: for flatness, in each turn.
        repeats: of restarts and fail-overs; flatness is measured one time more.
    """

    report: Report
    size: int
    probes: int
    repeats: int

    def measure(self, planes: Planes, parts: Sequence[str], *, attempt: Attempt) -> None:
        """The chosen parts; memory is read at 1/5, 2/5 and 3/5 of the machines."""
        report = self.report
        with planes.new("crowd") as plane:
            start_stub(plane)
            operator = start_operator(plane)
            self._settle_in(plane, operator, memory="memory" in parts)
            if "idle" in parts:
                attempt("idle", lambda: idling.measure(report, plane, operator))
            if "flat" in parts:
                attempt("flat", lambda: self._flatness(planes, plane))
            if "restart" in parts:
                attempt("restart", lambda: self._restarts(plane))
            if "failover" in parts:
                attempt("failover", lambda: failover.measure(report, plane, repeats=self.repeats))
            report.note_load("after the crowd")

    def _settle_in(self, plane: Plane, operator: Process, *, memory: bool) -> None:
        """Fill the plane; the operator's memory is read on the way."""
        time.sleep(3)
        sizes = {0: operator.resident_mib()}
        warm_up(plane)
        step = self.size // 5
        for number in range(1, 6):
            progress(f"crowd: {number * step} machines")
            _fill(plane, step, namespace=f"crowd-{number}")
            if memory and number <= 3:
                time.sleep(_SETTLE)
                sizes[number * step] = operator.resident_mib()
        if memory:
            _report_memory(self.report, sizes)

    def _flatness(self, planes: Planes, plane: Plane) -> None:
        with planes.new("small") as small:
            start_stub(small)
            start_operator(small)
            warm_up(small)
            _fill(small, _SMALL - WARM_UP, namespace="crowd-1")
            both = {"small": small, "crowd": plane}
            repeats = self.repeats + 1
            flatness.measure(self.report, both, size=self.size, repeats=repeats, probes=self.probes)

    def _restarts(self, plane: Plane) -> None:
        restarts.measure(self.report, plane, size=self.size, repeats=self.repeats)


def _fill(plane: Plane, count: int, *, namespace: str) -> None:
    taken = load(
        plane.kubeconfig("admin"),
        machines(count),
        scratch=plane.paths.data,
        namespace=namespace,
        rate=_FILL_RATE,
        end="machine-ready",
        limit=_FILL_LIMIT,
    )
    if taken.lost:
        why = taken.failures[0] if taken.failures else "no create failed"
        raise BenchError(f"{taken.lost} of {count} machines did not become Ready; {why}")


def _report_memory(report: Report, sizes: dict[int, float]) -> None:
    report.raw["memory"] = sizes
    points = [(count, size) for count, size in sizes.items() if count]
    (first, small), (last, big) = points[0], points[-1]
    report.add(single("operator's memory at its start", sizes[0], "MiB", limit=_START))
    report.add(single(f"  with {last} machines at rest", big, "MiB", limit=_REST))
    slope = 1000 * (big - small) / (last - first)
    report.add(single("  per 1000 machines more", slope, "MiB", limit=_SLOPE))
