"""What a read costs the gateway: processor time of its process for each request, beside an empty route of its stack.

Requests a second per core are the inverse of that time. Which of the arms comes first changes from turn to turn, and
all ratios are of one turn. Before the first turn everything has been asked for once.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import dataclass, replace

from asker import Job, ask
from clusters import progress
from empty import PATH
from figures import Report, measured
from gateways import Served, serve, start_empty
from plane import Process
from rounds import Planes

__all__ = ["measure", "measure_crowd"]

_GET_LEAST, _LIST_LEAST, _CROWD_LIMIT = 0.6, 0.3, 1.1
_FEW = 100
_PAGE = 50


@dataclass(frozen=True, slots=True)
class _Arm:
    """One kind of request.

    Attributes:
        process: whose processor time counts.
        job: what is asked in each turn.
    """

    process: Process
    job: Job

    def turn(self) -> float:
        """Microseconds of one core for each request."""
        before = self.process.processor_seconds
        ask(self.job)
        return 1e6 * (self.process.processor_seconds - before) / self.job.count

    def warm_up(self) -> None:
        """Ask for each target, and at least some hundred times."""
        ask(replace(self.job, count=max(500, len(self.job.targets))))


def measure(report: Report, planes: Planes, *, repeats: int, requests: int) -> None:
    """GET machine and list of 50 beside the empty route."""
    with planes.new("reads") as plane:
        served = serve(plane, machines=_FEW)
        empty, port = start_empty(plane)
        headers = served.headers
        pages = [f"/v1/machines?limit={_PAGE}"]
        arms = {
            "empty": _Arm(empty, Job(port, [PATH], headers, requests)),
            "get": _Arm(served.process, _gets(served, requests)),
            "list": _Arm(served.process, Job(served.port, pages, headers, max(1, requests // 3))),
        }
        costs = _turns(arms, repeats=repeats)
    report.raw["reads"] = costs
    for name, what, least in (
        ("get", "GET machine", _GET_LEAST),
        ("list", f"list of {_PAGE}", _LIST_LEAST),
    ):
        ratios = [e / c for e, c in zip(costs["empty"], costs[name], strict=True)]
        title = f"{what}: requests/s per core over the empty route's"
        report.add(measured(title, ratios, "x", least=least))
    for name, values in costs.items():
        report.add(measured(f"  {name}", [1e6 / value for value in values], "requests/s per core"))


def measure_crowd(
    report: Report, planes: Planes, *, repeats: int, requests: int, crowd: int
) -> None:
    """GET machine where there are many beside where there are few, each on a plane of its own."""
    with ExitStack() as stack:
        arms = {}
        for name, machines in (("few", _FEW), ("crowd", crowd)):
            progress(f"crowd: {machines} machines")
            served = serve(stack.enter_context(planes.new(name)), machines=machines)
            arms[name] = _Arm(served.process, _gets(served, requests))
        costs = _turns(arms, repeats=repeats)
        sizes = {name: arm.process.resident_mib() for name, arm in arms.items()}
    report.raw["crowd"] = {"cost": costs, "resident": sizes}
    ratios = [c / f for c, f in zip(costs["crowd"], costs["few"], strict=True)]
    name = f"GET machine with {crowd} machines over with {_FEW}"
    report.add(measured(name, ratios, "x", limit=_CROWD_LIMIT))
    for which, values in costs.items():
        report.add(measured(f"  {which}", values, "us of a core per request"))
    slope = 1024 * (sizes["crowd"] - sizes["few"]) / (crowd - _FEW)
    report.add(measured("  memory of the gateway per machine", [slope], "KiB"))


def _gets(served: Served, requests: int) -> Job:
    targets = served.targets
    random.shuffle(targets)  # not in the order in which they lie in memory
    return Job(served.port, targets, served.headers, requests)


def _turns(arms: dict[str, _Arm], *, repeats: int) -> dict[str, list[float]]:
    """Microseconds per request, of each turn of each arm."""
    costs: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm.warm_up()
    for number in range(repeats):
        for name in [*arms] if number % 2 else [*reversed(arms)]:
            costs[name].append(arms[name].turn())
        told = ", ".join(f"{name} {values[-1]:.0f} us" for name, values in costs.items())
        progress(f"reads {number + 1}/{repeats}: {told}")
    return costs
