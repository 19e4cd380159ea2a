"""`make bench-guest`: what the way into machines costs, beside the bare thing to the same guest.

    bench/guest.py                     everything, about 20 minutes on two processors
    bench/guest.py runs terminals      only these parts; nothing is written unless --output says where
    bench/guest.py --quick             all parts with small numbers: shows that it works, and no figures

The bare thing is SSH straight to the guest's address; the gateway goes through kube-apiserver and virt-api, as it does
by default. Everything runs in a cluster of its own on loopback, in a scratch directory, and is taken down at the end,
also after an error or Ctrl-C. Figures that fall short are printed like the others.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import guest_idle
import guest_previews
import guest_runs
import guest_starts
import guest_terminals
from clusters import BenchError, Cluster, progress, scratch, terminable
from figures import Report
from guest_machines import Inside, inside

from machine_operator.guest.errors import GuestError
from machine_operator.kube.errors import KubeError

PARTS = ("runs", "crowd", "throughput", "terminals", "previews", "starts", "idle")

_REPEATS = 4
_ENVIRONMENT = {
    # So high that each request is counted, and none refused; and so much output that all of it is carried.
    "MACHINE_OPERATOR_READ_RATE": "20000",
    "MACHINE_OPERATOR_READ_BURST": "20000",
    "MACHINE_OPERATOR_CHANGE_RATE": "20000",
    "MACHINE_OPERATOR_CHANGE_BURST": "20000",
    "MACHINE_OPERATOR_EXECUTION_OUTPUT_KIB": "65536",
    "MACHINE_OPERATOR_WAKE_ORG_LIMIT": "32",
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done.

    Attributes:
        runs: executions of each arm in each repeat.
        together: executions at once on one machine.
        machines: of the crowd.
        mib: of output.
        keys: typed in each arm in each repeat.
        requests: to the preview, of each arm in each repeat.
        starts: of each sort.
        idle: terminals.
    """

    runs: int = 100
    together: int = 50
    machines: int = 20
    mib: int = 16
    keys: int = 200
    requests: int = 400
    starts: int = 4
    idle: int = 1000


_QUICK = Size(runs=10, together=10, machines=3, mib=2, keys=20, requests=40, starts=1, idle=50)


def main() -> int:
    """Measure what was asked for."""
    arguments = _arguments()
    terminable()
    os.environ.update(_ENVIRONMENT)
    report = Report("guest")
    report.note_load("at the start")
    try:
        with scratch(arguments.scratch) as directory:
            failures = asyncio.run(_measure(report, directory, arguments))
    except (BenchError, KubeError, OSError) as error:
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


async def _measure(report: Report, directory: Path, arguments: argparse.Namespace) -> list[str]:
    """All parts; one that cannot be measured does not keep the others from it. Returns what went wrong."""
    size = _QUICK if arguments.quick else Size()
    repeats: int = arguments.repeats or (1 if arguments.quick else _REPEATS)
    wanted = arguments.parts or PARTS
    failures: list[str] = []

    async def attempt(name: str, work: Callable[[], Awaitable[None]]) -> None:
        if name not in wanted:
            return
        try:
            await work()
        except (BenchError, KubeError, GuestError, OSError, TimeoutError) as error:
            failures.append(f"{name}: {error or type(error).__name__}")
            progress(f"bench: {failures[-1]}")
        report.note_load(f"after {name}")

    with Cluster(directory) as cluster:
        progress("a cluster with guests is started")
        await asyncio.to_thread(cluster.up)
        async with inside(cluster, directory) as world:
            for name, work in _jobs(report, world, size, repeats=repeats).items():
                await attempt(name, work)
    await attempt("idle", lambda: guest_idle.measure(report, directory, count=size.idle))
    return failures


def _jobs(
    report: Report, world: Inside, size: Size, *, repeats: int
) -> dict[str, Callable[[], Awaitable[None]]]:
    return {
        "runs": lambda: guest_runs.measure(report, world, repeats=repeats, count=size.runs),
        "crowd": lambda: guest_runs.measure_crowd(
            report, world, together=size.together, machines=size.machines
        ),
        "throughput": lambda: guest_runs.measure_throughput(
            report, world, repeats=repeats, mib=size.mib
        ),
        "terminals": lambda: guest_terminals.measure(
            report, world, repeats=repeats, keys=size.keys
        ),
        "previews": lambda: guest_previews.measure(
            report, world, repeats=repeats, requests=size.requests
        ),
        "starts": lambda: guest_starts.measure(report, world, repeats=size.starts),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the way into machines.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--quick", action="store_true", help="small numbers")
    parser.add_argument("--repeats", type=int, help=f"of each part ({_REPEATS})")
    parser.add_argument("--scratch", type=Path, help="where the scratch directory is made")
    parser.add_argument("--output", type=Path, help="the results file")
    arguments = parser.parse_args()
    unknown = [part for part in arguments.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are: {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
