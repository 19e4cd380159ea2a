"""`make bench-gateway`: the figures of the REST gateway. Prints a table and writes bench/results/gateway.json.

    bench/gateway.py                    everything, about ten minutes on two processors
    bench/gateway.py reads streams      only these parts; nothing is written unless --output says where
    bench/gateway.py --quick            all parts with small numbers: shows that it works, and no figures

Everything runs on loopback in a scratch directory, and is ended and removed at the end, also after an error or
Ctrl-C. Figures that fall short are printed like the others; only a failure to measure exits with 1.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import creates
import reads
import revocation
import streams
from clusters import BenchError, progress, scratch, terminable
from figures import Report
from plane import prepare
from rounds import Planes

from machine_operator.kube.errors import KubeError
from machine_operator.local.toolchain import BinariesError

_REPEATS = 4

PARTS = ("reads", "create", "streams", "crowd", "revocation")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done.

    Attributes:
        requests: of each arm in each turn; a third of them for lists.
        creates: of each sort in each repeat.
        streams: open ones.
        crowd: machines in the cache.
    """

    requests: int = 15_000
    creates: int = 100
    streams: int = 1000
    crowd: int = 5000


_QUICK = Size(requests=1000, creates=20, streams=50, crowd=300)


def main() -> int:
    """Measure what was asked for."""
    arguments = _arguments()
    terminable()
    _allow_files()
    report = Report("gateway")
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
    reduced = arguments.quick or (arguments.repeats or _REPEATS) < _REPEATS
    if arguments.output or not (arguments.parts or reduced):
        print(f"written: {report.write(arguments.output)}")
    for failure in failures:
        print(f"bench: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _measure(report: Report, directory: Path, arguments: argparse.Namespace) -> list[str]:
    """All parts; one that cannot be measured does not keep the others from it. Returns what went wrong."""
    size = _QUICK if arguments.quick else Size()
    repeats: int = arguments.repeats or (1 if arguments.quick else _REPEATS)
    planes = Planes(directory, *prepare(directory))
    failures: list[str] = []
    for name, work in _jobs(report, planes, size, repeats=repeats).items():
        if arguments.parts and name not in arguments.parts:
            continue
        try:
            work()
        except (BenchError, KubeError, OSError, ExceptionGroup) as error:
            failures.append(f"{name}: {_told(error)}")
            progress(f"bench: {failures[-1]}")
        report.note_load(f"after {name}")
    return failures


def _jobs(
    report: Report, planes: Planes, size: Size, *, repeats: int
) -> dict[str, Callable[[], None]]:
    requests = size.requests
    return {
        "reads": lambda: reads.measure(report, planes, repeats=repeats, requests=requests),
        "create": lambda: creates.measure(report, planes, repeats=repeats, count=size.creates),
        "streams": lambda: streams.measure(report, planes, repeats=repeats, count=size.streams),
        "crowd": lambda: reads.measure_crowd(
            report, planes, repeats=repeats, requests=requests, crowd=size.crowd
        ),
        "revocation": lambda: revocation.measure(report, planes, repeats=2 * repeats),
    }


def _told(error: Exception) -> str:
    """The words of an error, or of the first one in a group; a group of anything unexpected is raised."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, BenchError | KubeError | OSError):
        raise error
    return str(error)


def _allow_files() -> None:
    """As many open files as we may have, for us and whom we start: each stream is one, on both sides."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the REST gateway.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--repeats", type=int, help="of whatever is repeated (4)")
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
