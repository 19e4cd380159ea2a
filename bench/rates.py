"""create -> Ready at fixed rates: the operator beside its two floors, in turns and in changing order.

25 and 50 machines per second are within what two processors carry, so the times count; 75 and 150 are beyond it, so
the throughput counts, and that nothing is lost or made twice.
"""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Sequence

from arms import Arm
from clusters import progress
from figures import Figure, Report, measured, single
from rounds import Planes, Round, run_round

__all__ = ["measure", "write_figures"]

_CARRIED, _BEYOND = (25.0, 50.0), (75.0, 150.0)

_P50, _P99, _THROUGHPUT = 1.5, 2.0, 0.93
_CPU = 6.0
"""Processor milliseconds of the operator per machine, at the second rate."""

_WRITES, _MORE_WRITES = 6.0, 1.0
_PEAK = 250.0
"""MiB at the highest rate; at rest 200 are allowed for as many machines."""

_EXPLAINED = 2
"""Repeats in which the floor that also writes is measured: it only explains the other two."""

Rounds = dict[tuple[float, Arm], list[Round]]


def measure(report: Report, planes: Planes, *, repeats: int, seconds: float) -> None:
    """All arms at all rates, `repeats` times, each for `seconds`."""
    rounds: Rounds = {(rate, arm): [] for rate in (*_CARRIED, *_BEYOND) for arm in Arm}
    for number in range(repeats):
        arms = list(Arm) if number < _EXPLAINED else [Arm.FLOOR, Arm.OPERATOR]
        for rate in (*_CARRIED, *_BEYOND):
            shift = number % len(arms)
            for arm in (*arms[shift:], *arms[:shift]):
                found = run_round(planes, arm, rate=rate, seconds=seconds)
                rounds[rate, arm].append(found)
                progress(
                    f"rates {number + 1}/{repeats}, {rate:g}/s, {arm}: p50 {found.p50:.3f} s, "
                    f"p99 {found.p99:.3f} s, {found.per_second:.1f} Ready/s, lost {found.lost}, "
                    f"{found.writes:.2f} writes, {found.cpu['arm']:.1f} ms, "
                    f"others use {found.others:.2f} processors"
                )
        report.note_load(f"after rates {number + 1}")
    report.raw["rates"] = [r.to_json() for found in rounds.values() for r in found]
    for rate in _CARRIED:
        report.add(*_times(rounds, rate))
    for rate in _BEYOND:
        report.add(*_throughput(rounds, rate))
    report.add(*write_figures({r: rounds[r, Arm.OPERATOR] for r in (_CARRIED[0], _BEYOND[-1])}))
    report.add(*_processor(rounds, _CARRIED[-1]))
    others = [r.others for found in rounds.values() for r in found]
    report.add(measured("processors used by others meanwhile", others, ""))


def _ratios(rounds: Rounds, rate: float, of: Callable[[Round], float], *, over: Arm) -> list[float]:
    """Operator over floor, round by round: what was measured side by side is compared."""
    # The floor that also writes is measured in the first repeats only.
    pairs = zip(rounds[rate, Arm.OPERATOR], rounds[rate, over], strict=False)
    return [of(ours) / of(floor) for ours, floor in pairs]


def _times(rounds: Rounds, rate: float) -> list[Figure]:
    figures = []
    for title, limit in (("p50", _P50), ("p99", _P99)):
        of: Callable[[Round], float] = operator.attrgetter(title)
        name = f"{rate:g}/s, create -> Ready {title}"
        ratios = _ratios(rounds, rate, of, over=Arm.FLOOR)
        figures.append(measured(f"{name}, operator over floor", ratios, "x", limit=limit))
        ratios = _ratios(rounds, rate, of, over=Arm.WRITING)
        figures.append(measured(f"  operator over {Arm.WRITING}", ratios, "x"))
        figures += [
            measured(f"  {arm}", [1000 * of(r) for r in rounds[rate, arm]], "ms") for arm in Arm
        ]
    return figures


def _throughput(rounds: Rounds, rate: float) -> list[Figure]:
    def ready(found: Round) -> float:
        return found.per_second

    ours = rounds[rate, Arm.OPERATOR]
    ratios = _ratios(rounds, rate, ready, over=Arm.FLOOR)
    name = f"{rate:g}/s, Ready/s, operator over floor"
    figures = [measured(name, ratios, "x", least=_THROUGHPUT)]
    ratios = _ratios(rounds, rate, ready, over=Arm.WRITING)
    figures.append(measured(f"  operator over {Arm.WRITING}", ratios, "x"))
    figures += [measured(f"  {arm}", [ready(r) for r in rounds[rate, arm]], "1/s") for arm in Arm]
    lost, wrong = sum(r.lost for r in ours), sum(r.wrong_children for r in ours)
    figures.append(single("  lost by the operator", lost, "machines", limit=0, least=0))
    figures.append(single("  children missing or too many", wrong, "objects", limit=0, least=0))
    late = [1000 * r.late for r in ours]
    figures.append(measured("  a create was late by at most", late, "ms"))
    peaks = [r.rss for r in ours]
    figures.append(measured("  most memory of the operator", peaks, "MiB", limit=_PEAK))
    return figures


def write_figures(by_rate: dict[float, Sequence[Round]]) -> list[Figure]:
    """API writes per machine, at a low and at a high rate."""
    figures = [
        measured(
            f"API writes per machine, create -> Ready at {rate:g}/s",
            [r.writes for r in found],
            "",
            limit=_WRITES,
        )
        for rate, found in by_rate.items()
    ]
    low, high = (statistics.median(r.writes for r in found) for found in by_rate.values())
    few, many = by_rate
    name = f"  more at {many:g}/s than at {few:g}/s"
    return [*figures, single(name, 100 * (high / low - 1), "%", limit=_MORE_WRITES)]


def _processor(rounds: Rounds, rate: float) -> list[Figure]:
    ours = rounds[rate, Arm.OPERATOR]
    name = f"operator's processor time per machine at {rate:g}/s"
    figures = [measured(name, [r.cpu["arm"] for r in ours], "ms", limit=_CPU)]
    figures += [
        measured(f"  {arm}", [r.cpu["arm"] for r in rounds[rate, arm]], "ms")
        for arm in (Arm.FLOOR, Arm.WRITING)
    ]
    figures += [
        measured(f"  {name}, beside the operator", [r.cpu[name] for r in ours], "ms")
        for name in ours[0].cpu
        if name != "arm"
    ]
    return figures
