"""`make bench-controller`: the figures of the operator. Prints a table and writes bench/results/controller.json.

    bench/controller.py                    everything, about 80 minutes on two processors
    bench/controller.py rates writes       only these parts; nothing is written unless --output says where
    bench/controller.py --quick            all parts with small numbers: shows that it works, and no figures

Everything runs on loopback in a scratch directory, and is ended and removed at the end, also after an error or
Ctrl-C. Figures that fall short are printed like the others; only a failure to measure exits with 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import beside
import crowd
import rates
import writes
from clusters import BenchError, progress, scratch, terminable
from figures import Report
from plane import prepare
from rounds import Planes

from machine_operator.kube.errors import KubeError
from machine_operator.local.toolchain import BinariesError

_REPEATS = 4

PARTS = ("rates", "writes", *crowd.PARTS, "cluster")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done.

    Attributes:
        seconds: of each load at a rate.
        turns: machines that are put to sleep and woken.
        crowd: machines at rest.
        probes: for flatness, in each turn.
        few, many: machines on the full cluster, for times and for throughput.
    """

    seconds: float = 20.0
    turns: int = 100
    crowd: int = 5000
    probes: int = 200
    few: int = 60
    many: int = 200


_QUICK = Size(seconds=3.0, turns=10, crowd=200, probes=20, few=6, many=20)


def main() -> int:
    """Measure what was asked for."""
    arguments = _arguments()
    terminable()
    report = Report("controller")
    report.note_load("at the start")
    try:
        with scratch(arguments.scratch) as directory:
            failures = _measure(report, directory, arguments)
    except (BenchError, BinariesError, KubeError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything was taken down", file=sys.stderr)
        return 130
    report.show()
    report.raw["not measured"] = failures
    if arguments.output or not (arguments.parts or _reduced(arguments)):
        print(f"written: {report.write(arguments.output)}")
    for failure in failures:
        print(f"bench: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _measure(report: Report, directory: Path, arguments: argparse.Namespace) -> list[str]:
    """All parts; one that cannot be measured does not keep the others from it. Returns what went wrong."""
    parts: tuple[str, ...] = tuple(arguments.parts) or PARTS
    size = _QUICK if arguments.quick else Size()
    if arguments.crowd:
        size = replace(size, crowd=arguments.crowd)
    repeats: int = arguments.repeats or (1 if arguments.quick else _REPEATS)
    failures: list[str] = []

    def attempt(name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except (BenchError, KubeError, OSError) as error:
            failures.append(f"{name}: {error}")
            progress(f"bench: {failures[-1]}")

    def beside_vms() -> None:
        beside.measure(report, directory, repeats=repeats, few=size.few, many=size.many)

    if {*parts} - {"cluster"}:
        planes = Planes(directory, *prepare(directory))
        for name, work in _jobs(report, planes, parts, size, repeats=repeats, attempt=attempt):
            attempt(name, work)
    if "cluster" in parts:
        attempt("cluster", beside_vms)
    return failures


def _jobs(
    report: Report,
    planes: Planes,
    parts: tuple[str, ...],
    size: Size,
    *,
    repeats: int,
    attempt: crowd.Attempt,
) -> Iterator[tuple[str, Callable[[], None]]]:
    """What is to be done on planes."""
    if "rates" in parts:
        yield (
            "rates",
            lambda: rates.measure(report, planes, repeats=repeats, seconds=size.seconds),
        )
    if "writes" in parts:
        yield (
            "writes",
            lambda: writes.measure(report, planes, count=size.turns, seconds=size.seconds),
        )
    chosen = [part for part in crowd.PARTS if part in parts]
    if chosen:
        todo = crowd.Crowd(report, size.crowd, probes=size.probes, repeats=repeats)
        yield "crowd", lambda: todo.measure(planes, chosen, attempt=attempt)


def _reduced(arguments: argparse.Namespace) -> bool:
    """Whether it is too little for the results file."""
    repeats: int = arguments.repeats or _REPEATS
    return bool(arguments.quick or arguments.crowd) or repeats < _REPEATS


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the operator.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--repeats", type=int, help="of whatever is repeated (4)")
    parser.add_argument("--crowd", type=int, help="machines at rest (5000)")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--scratch", type=Path, help="where the scratch directory is made")
    parser.add_argument("--output", type=Path, help="the results file")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
